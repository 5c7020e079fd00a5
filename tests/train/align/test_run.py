"""Laws of a run of alignment: it ends, it can be resumed, its adapter encodes."""

import json

import numpy as np
import pytest

from prompteol_jax import Embedder
from train.align.command import run
from train.align.config import AlignConfig
from train.callbacks import Callbacks

FLAGS = dict(batch=4, steps=4, save_every=2, eval_every=2, rank=2, cut=16, lr=1e-2)


def weights(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_is_the_same_run(tmp_path):
    told, scores = [], []
    callbacks = Callbacks(told.append, lambda step, score: scores.append(step))
    result = run(AlignConfig(output=tmp_path / "whole", **FLAGS), callbacks)
    assert [record["step"] for record in told] == [1, 2, 3, 4]
    assert scores == [0, 2, 4]
    records = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in records] == told
    assert told[0]["loss"] == np.float32(np.log(2))
    assert {"margin", "accuracy", "chosen_reward", "rejected_reward"} <= told[0].keys()
    assert result["steps"] == 4

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(AlignConfig(output=tmp_path / "part", **FLAGS), Callbacks(stop))
    run(AlignConfig(output=tmp_path / "part", resume=True, **FLAGS))
    assert weights(tmp_path / "part") == weights(tmp_path / "whole")
    embedder = Embedder.from_pretrained("tiny", adapter=str(tmp_path / "whole"), dtype="float32")
    plain = Embedder.from_pretrained("tiny", dtype="float32")
    assert np.abs(embedder.encode(["A man."]) - plain.encode(["A man."])).max() > 1e-4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"frame": "lama-2"}, r"--frame lama-2 is unknown \(did you mean llama-2\?\)"),
        ({"frame": "none.json"}, "there is no such file"),
        ({"instruction": "nothing"}, "nothing"),
        ({"beta": 0.0}, "--beta 0.0 must be above 0"),
        ({"cut": 0}, "--cut 0 must be at least 1"),
    ],
)
def test_refuses_flags_that_cannot_work(flags, message):
    with pytest.raises(ValueError, match=message):
        AlignConfig(**flags).check()
