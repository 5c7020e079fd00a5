"""Laws of dialogs: the frame's bytes, answers apart from requests, one row a dialog."""

import json

import numpy as np
import pytest

from prompteol_jax.models.tiny import tiny_tokenizer
from train.align.collate import IGNORED, DialogShape, lay_out
from train.align.dialogs import Dialogs
from train.align.frames import FRAMES, REPHRASE, Frame, read_frame
from train.data.triplets import Triplet

pytestmark = pytest.mark.unit

ROWS = [Triplet("A man runs.", "Somebody runs.", "Nobody runs at all."), Triplet("a", "b", "c")]


def dialogs(frame="plain", cut=None, positions=512):
    return Dialogs(tiny_tokenizer(), FRAMES[frame], REPHRASE, cut, positions)


def test_a_request_is_sempas_in_the_frame_and_ids_are_those_of_the_text():
    tokenizer = tiny_tokenizer()
    first, second, *_ = dialogs()(ROWS)
    text = 'Keep the same meaning of this sentence: "A man runs.", while making some changes.\n'
    (request,) = tokenizer.ids([text])
    np.testing.assert_array_equal(first.request, request)
    np.testing.assert_array_equal(second.request, request)
    answers = [tokenizer.decode(dialog.answer) for dialog in (first, second)]
    assert answers == ["Somebody runs.\n", "Nobody runs at all.\n"]


def test_a_row_predicts_its_answer_from_the_token_before_each():
    found = dialogs()(ROWS)
    batch = lay_out(found, DialogShape(128, 40), 6)
    assert batch.number_n.tolist() == [6, 7]
    for row, dialog in enumerate(found):
        ids = np.concatenate([dialog.request, dialog.answer])
        end = dialog.tokens
        np.testing.assert_array_equal(batch.rows.ids_BT[row, :end], ids[:-1])
        used = batch.target_BS[row] != IGNORED
        np.testing.assert_array_equal(ids[1:][batch.rows.last_BS[row, used]], dialog.answer)
        assert not batch.rows.start_BT[row, :end].any()
        assert (batch.sentence_BT[row] == 12 + row).all()


def test_sentences_are_cut_and_long_rows_refused():
    long = [Triplet("word " * 200, "b", "c")]
    with pytest.raises(ValueError, match=r"a row has \d+ tokens .* reads 128: 'word word .*--cut"):
        dialogs(positions=128)(long)
    assert max(dialog.tokens for dialog in dialogs(cut=8, positions=128)(long)) < 128


def test_frames_are_those_of_the_models():
    assert FRAMES["llama-2"].around("X") == (
        "[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nX [/INST]"
    )
    assert FRAMES["llama-3"].around("X") == (
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nX<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert FRAMES["chatml"].around("X") == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nX<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_frame_can_be_a_file(tmp_path):
    path = tmp_path / "frame.json"
    path.write_text(json.dumps({"before": "<", "after": ">", "end": "!"}))
    assert read_frame(str(path)) == Frame("<", ">", "!")
    path.write_text('{"before": "<"}')
    with pytest.raises(ValueError, match="needs the fields before, after, end"):
        read_frame(str(path))
