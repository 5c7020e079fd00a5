"""Laws of a run: a kill changes nothing, the best weights are kept, what leaves it can be used."""

import dataclasses
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import oracle
import pytest

from eval.sts.tasks import Pairs
from prompteol_jax import Embedder
from prompteol_jax.lora import peft
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models import build
from train import contrastive, loop
from train import trainable as learning
from train.config import STOPPED, TrainConfig
from train.data.read import read_data
from train.data.triplets import COLUMNS, Triplet
from train.losses import LOSSES
from train.losses.loss import Loss
from train.resolve import resolve
from train.run.checkpoints import Checkpoints
from train.run.folder import RunFolder
from train.save_policy import SavePolicy

TEXTS = ["A man is washing a car.", "", "The doctor reads (a book)!"]
FIELDS = ["dev_before", "dev_after", "dev_last", "best_step", "steps", "loss", "seconds"]
STEPS = 12
FLAGS = dict(batch=8, steps=STEPS, save_every=2, eval_every=3, rank=4)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(run):
    return records(run / "metrics.jsonl")


def weights(run):
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from first to last, in a process of its own, and the command of another like it."""
    folder = tmp_path_factory.mktemp("whole") / "run"

    def command(output, *more):
        flags = [f"--{k.replace('_', '-')}={v}" for k, v in FLAGS.items()]
        return [sys.executable, "-m", "train.contrastive", *flags, f"--output={output}", *more]

    json_file = folder.with_name("deep") / "result.json"
    done = subprocess.run(
        command(folder, f"--json={json_file}"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(json_file.read_text())
    return SimpleNamespace(folder=folder, command=command, result=result, done=done)


@pytest.mark.wide
def test_a_run_leaves_what_is_contracted(whole):
    assert list(whole.result) == FIELDS
    steps, dev = metrics(whole.folder), records(whole.folder / "dev.jsonl")
    assert [list(line) for line in steps] == [
        ["step", "loss", "accuracy", "lr", "grad_norm", "step_s", "sentences_per_s", "padding"]
    ] * STEPS
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["step"] for line in dev] == [0, 3, 6, 9, 12]
    assert whole.result["steps"] == STEPS
    assert whole.result["loss"] == steps[-1]["loss"]
    assert whole.result["dev_before"] == dev[0]["dev"]
    assert whole.result["dev_last"] == dev[-1]["dev"]
    best = max(line["dev"] for line in dev[1:])
    assert whole.result["dev_after"] == best
    assert whole.result["best_step"] == max(r["step"] for r in dev[1:] if r["dev"] == best)
    older, newest = Checkpoints(whole.folder / "checkpoints").steps()
    assert older < newest == STEPS
    assert "<svg" in (whole.folder / "report.html").read_text()
    assert "best weights" in whole.done.stdout
    assert "step 12/12" in whole.done.stderr


def test_the_learning_rate_rises_for_a_tenth_of_the_run_and_falls(whole):
    rates = [line["lr"] for line in metrics(whole.folder)]
    expected = [0.0, *(5e-4 * (11 - n) / 11 for n in range(11))]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def kill_after(command, metrics, steps):
    """Start a run and kill it at some instant behind this many steps."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    try:
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and metrics.read_text().count("\n") >= steps:
                break
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_killed_run_that_is_resumed_is_the_same_run(whole, tmp_path):
    run, step = tmp_path / "run", random.randrange(1, STEPS)
    kill_after(whole.command(run), run / "metrics.jsonl", step)
    logged = (run / "metrics.jsonl").read_text().count("\n")
    result = contrastive.run(TrainConfig(output=run, resume=True, **FLAGS))
    where = f"killed after {logged} steps"
    assert weights(run) == weights(whole.folder), where
    for name, columns in (
        ("metrics.jsonl", ("step", "loss", "grad_norm")),
        ("dev.jsonl", ("dev",)),
    ):
        ours, theirs = records(run / name), records(whole.folder / name)
        assert [[r[c] for c in columns] for r in ours] == [
            [r[c] for c in columns] for r in theirs
        ], where
    assert {k: v for k, v in result.items() if k != "seconds"} == {
        k: v for k, v in whole.result.items() if k != "seconds"
    }, where


@pytest.mark.slow
def test_resuming_a_finished_run_gives_its_result_again(whole):
    files = {path: path.read_bytes() for path in whole.folder.glob("*.jsonl")}
    result = contrastive.run(TrainConfig(output=whole.folder, resume=True, **FLAGS))
    assert {**result, "seconds": 0} == {**whole.result, "seconds": 0}
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.slow
def test_the_adapter_is_loaded_by_its_run_and_by_peft_with_the_same_outputs(whole, tmp_path):
    embedder = Embedder.from_pretrained("tiny", dtype="float32")
    trained = Embedder.from_pretrained("tiny", adapter=str(whole.folder), dtype="float32")
    vectors = trained.encode(TEXTS)
    assert np.abs(vectors - embedder.encode(TEXTS)).max() > 1e-3
    pretrained = embedder.pretrained
    base = tmp_path / "base"
    build.save_decoder(base, pretrained.config, pretrained.decoder, dtype="float32")
    ids = [
        ids.tolist()
        for ids in pretrained.tokenizer.ids([oracle.EOL.format(text) for text in TEXTS])
    ]
    reference = oracle.run(oracle.load_adapted(base, whole.folder / "adapter"), ids)
    oracle.assert_close(vectors, reference.vectors)


def settings(adapter, dropout=0.0):
    config = TrainConfig(adapter=adapter, dropout=dropout, batch=2)
    return resolve(config, make_mesh((1, 1)), [Triplet("a", "b", "c")] * 2).model


def test_a_run_starts_from_the_adapter_it_is_given(whole):
    mesh = make_mesh((1, 1))
    trainable = learning.make_trainable(settings(str(whole.folder), dropout=0.3), mesh)
    decoder = trainable.decoder(trainable.start)
    again = peft.load_adapter(
        trainable.pretrained.decoder,
        trainable.pretrained.config,
        whole.folder / "adapter",
        mesh,
    )
    ours, theirs = build.leaves(decoder), build.leaves(again)
    assert len(jax.tree.leaves(trainable.start)) == 24
    for path, leaf in theirs.items():
        np.testing.assert_array_equal(ours[path], leaf)
    assert decoder.last.attention.q.lora.form.rate == 0.3


def test_refuses_an_adapter_that_is_none_before_any_weight_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(learning, "load_pretrained", None)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    mesh = make_mesh((1, 1))
    for adapter, message in (
        (str(tmp_path / "nothing"), "nothing"),
        (str(tmp_path), "peft_type = 'IA3', supported: 'LORA'; r is missing"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            learning.make_trainable(settings(adapter), mesh)


def csv_file(path, *columns):
    """Twenty rows of sentences under these columns."""
    rows = [[f"A man has {n} cars.", "Somebody owns cars.", "No cars."] for n in range(20)]
    lines = [columns, *(row[: len(columns)] for row in rows)]
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.slow
def test_pairs_of_a_file_without_development_data_export_the_last_weights(tmp_path, capsys):
    data = csv_file(tmp_path / "pairs.csv", "sent0", "sent1")
    config = TrainConfig(
        data=data, output=tmp_path / "run", batch=8, rank=4, dropout=0.0, eval_every=1, resume=True
    )
    result = contrastive.run(config)
    assert (
        "run holds no checkpoint yet: the run starts at its first step" in capsys.readouterr().err
    )
    assert list(result) == FIELDS
    assert [result[k] for k in FIELDS[:5]] == [None, None, None, 2, 2]
    assert records(tmp_path / "run" / "dev.jsonl") == []
    assert (tmp_path / "run" / "report.html").exists()
    assert len(weights(tmp_path / "run")) > 1000
    rates = [line["sentences_per_s"] * line["step_s"] for line in metrics(tmp_path / "run")]
    np.testing.assert_allclose(rates, 16)


@pytest.mark.slow
def test_the_best_weights_are_kept_and_later_ties_win(tmp_path, monkeypatch):
    scores = iter([9.0, 1.0, 3.0, 3.0, 2.0])
    monkeypatch.setattr(loop, "development_score", lambda *_, **__: next(scores))
    seen = []
    export = learning.Trainable.export

    def spied(self, trainable, run):
        folder = export(self, trainable, run)
        seen.append(weights(run))
        return folder

    monkeypatch.setattr(learning.Trainable, "export", spied)
    config = TrainConfig(output=tmp_path / "run", **FLAGS)
    result = contrastive.run(config)
    assert [result[k] for k in FIELDS[:4]] == [9.0, 3.0, 2.0, 9]
    assert len(set(seen)) == 3
    assert weights(tmp_path / "run") == seen[-1]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_its_rows(tmp_path):
    run, data = tmp_path / "run", csv_file(tmp_path / "rows.csv", "sent0", "sent1", "hard_neg")
    config = TrainConfig(
        data=data, output=run, batch=8, steps=9, rank=4, dropout=0.0, lr=1e30, eval_every=9
    )
    message = (
        r"step 2: loss nan, gradient norm nan\. The vectors of 8 of its 8 rows are not finite: "
        r"line (\d+, ){7}\d+ of .*rows\.csv\. All its rows and their texts are in "
        r".*not_finite\.jsonl\. A lower --lr or --dtype float32 may help\."
    )
    with pytest.raises(FloatingPointError, match=message) as error:
        contrastive.run(config)
    assert [line["step"] for line in metrics(run)] == [1]
    assert not (run / "checkpoints").exists()
    texts = (tmp_path / "rows.csv").read_text().splitlines()
    rows = records(run / "not_finite.jsonl")
    assert len({row["line"] for row in rows}) == 8
    for row in rows:
        assert (row["step"], row["finite"]) == (2, False)
        assert texts[row["line"] - 1] == ",".join(row[name] for name in COLUMNS)
    assert f": line {', '.join(str(row['line']) for row in rows)} of " in str(error.value)


@pytest.mark.slow
def test_all_weights_train_and_leave_as_a_model(tmp_path):
    from transformers import AutoTokenizer

    run = tmp_path / "run"
    contrastive.run(TrainConfig(output=run, batch=8, steps=2, full=True, warmup_steps=0))
    folder = run / "model"
    embedder = Embedder.from_pretrained(str(folder), dtype="float32")
    vectors = embedder.encode(TEXTS)
    start = Embedder.from_pretrained("tiny", dtype="float32")
    assert np.abs(vectors - start.encode(TEXTS)).max() > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer([oracle.EOL.format(text) for text in TEXTS])["input_ids"]
    oracle.assert_close(vectors, oracle.run(oracle.load(folder), ids).vectors)


def test_a_run_without_enough_rows_leaves_nothing_behind(tmp_path):
    data = csv_file(tmp_path / "rows.csv", "sent0", "sent1", "hard_neg")
    with pytest.raises(ValueError, match="a batch of 256, but only 20 rows"):
        contrastive.run(TrainConfig(data=data, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_development_pairs_come_from_a_folder(tmp_path, data):
    dev = read_data(TrainConfig(dev=data / "senteval")).dev
    assert isinstance(dev, Pairs)
    assert len(dev) == 1500


@pytest.mark.slow
def test_sigterm_saves_and_ends_with_a_status_of_its_own(whole, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(whole.command(run), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=240)
    assert process.returncode == STOPPED, said
    (step,) = Checkpoints(run / "checkpoints").steps()[-1:]
    assert f"stopped at step {step} of {STEPS}, which is saved: go on with --resume" in said
    assert [line["step"] for line in metrics(run)] == list(range(1, step + 1))
    assert contrastive.run(TrainConfig(output=run, resume=True, **FLAGS))["steps"] == STEPS
    assert weights(run) == weights(whole.folder)


def compiled_programs(caplog):
    """Names of the programs that were compiled, in their order."""
    found = (re.match(r"Compiling (?:jit\()?(\w+)", r.getMessage()) for r in caplog.records)
    return [match[1] for match in found if match]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["demo", "real"])
def test_a_run_compiles_its_step_once_and_nothing_after_its_first_score(
    kind, tmp_path, caplog, request
):
    flags = dict(output=tmp_path / "run", rank=2, eval_every=4, save_every=3)
    if kind == "demo":
        flags |= dict(batch=128, mesh="4x2", steps=9)
    else:
        rows = (request.getfixturevalue("data") / "nli" / "nli_triplets.csv").read_text()
        file = tmp_path / "rows.csv"
        file.write_text("".join(rows.splitlines(keepends=True)[:641]))
        flags |= dict(data=str(file), batch=32, epochs=0.6)
    seen = []
    policy = SavePolicy.decide

    def decide(self, step, *signals, **due):
        seen.append(len(compiled_programs(caplog)))
        return policy(self, step, *signals, **due)

    jax.config.update("jax_log_compiles", True)  # of all threads
    try:
        with pytest.MonkeyPatch.context() as patch, caplog.at_level("WARNING"):
            patch.setattr(SavePolicy, "decide", decide)
            contrastive.run(TrainConfig(**flags))
    finally:
        jax.config.update("jax_log_compiles", False)
    programs = compiled_programs(caplog)
    assert programs.count("_step") == 1
    # The first score of a step exports weights, which lays some out for a file.
    assert programs[seen[5] :] == []


def pull(anchor_BD, positive_BD):
    """A loss of two columns, with a metric of its own."""
    cosine_B = (anchor_BD * positive_BD).sum(1)
    return -cosine_B.mean(), {"cosine": cosine_B.mean()}


@pytest.mark.slow
def test_a_loss_is_one_row_that_collation_metrics_and_page_follow(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "pull", Loss(("sent0", "sent1"), (), pull))
    data = csv_file(tmp_path / "rows.csv", "sent0", "sent1", "hard_neg")
    run = tmp_path / "run"
    flags = dict(data=data, batch=4, rank=2, steps=1, dropout=0.0, remat="none")
    result = contrastive.run(TrainConfig(**flags, loss="pull", output=run))
    (record,) = metrics(run)
    assert record["cosine"] == -record["loss"] == -result["loss"]
    np.testing.assert_allclose(record["sentences_per_s"] * record["step_s"], 8)
    assert "cosine" in (run / "report.html").read_text()


@pytest.mark.slow
def test_minutes_make_more_saves(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *_: saved.append(step))
    config = TrainConfig(
        output=tmp_path / "run", batch=8, steps=4, rank=4, eval_every=9, save_minutes=1e-9
    )
    contrastive.run(config)
    assert saved == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("4x2", "2x4"), ("8x1", "1x1")])
def test_a_run_goes_on_from_the_same_bits_on_another_mesh(tmp_path, before, after):
    """And its next ten losses are those of the first mesh, to rounding."""
    rows = csv_file(tmp_path / "rows.csv", "sent0", "sent1", "hard_neg")
    flags = dict(data=rows, batch=8, rank=4, steps=14, save_every=4, keep=9, eval_every=99)
    first, moved = (
        TrainConfig(**flags, output=tmp_path / name, mesh=mesh, resume=name == "moved")
        for name, mesh in (("first", before), ("moved", after))
    )
    contrastive.run(first)
    shutil.copytree(first.output, moved.output)
    for later in (p for p in (moved.output / "checkpoints").iterdir() if p.name != "4"):
        shutil.rmtree(later)
    states = []
    for config in (first, moved):
        config, data = dataclasses.replace(config, resume=True), read_data(config)
        resolved = resolve(config, make_mesh(parse_mesh(config.mesh)), data.rows)
        run = loop.Run(resolved, RunFolder.at(config.output), data)
        like = run.train_step.init(run.trainable.start)
        step, state, _ = run.checkpoints.restore(like, step=4)
        assert int(state.step) == step == 4
        states.append(jax.tree.map(np.asarray, jax.tree.leaves(state)))
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    contrastive.run(moved)
    expected, found = ([r["loss"] for r in metrics(c.output)] for c in (first, moved))
    assert found[:4] == expected[:4]
    assert len(found) == 14
    np.testing.assert_allclose(found[4:], expected[4:], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_save_that_falls_due_while_one_is_written_waits_for_a_later_step(tmp_path, monkeypatch):
    """No step is held up by a slow disk; only the last save is waited for."""
    saved, answers = [], iter([False, False, True, True, False, True, True, True, True])
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, *_: saved.append(step))
    monkeypatch.setattr(Checkpoints, "busy", lambda self: next(answers))
    contrastive.run(
        TrainConfig(output=tmp_path / "run", batch=8, steps=9, rank=4, eval_every=99, save_every=3)
    )
    assert saved == [5, 9]


@pytest.mark.slow
def test_patience_ends_a_run_and_its_resumption(tmp_path, monkeypatch):
    scores = iter([9.0, 3.0, 2.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(loop, "development_score", lambda *_, **__: next(scores))
    flags = dict(output=tmp_path / "run", batch=8, steps=9, rank=4, eval_every=1, patience=2)
    result = contrastive.run(TrainConfig(**flags))
    assert [result[k] for k in FIELDS[:5]] == [9.0, 3.0, 1.0, 3, 5]
    again = contrastive.run(TrainConfig(**flags, resume=True))
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


@pytest.mark.slow
def test_weights_exported_behind_a_checkpoint_are_not_taken_for_its_best(tmp_path, monkeypatch):
    """A kill between export and checkpoint, and a resumption whose scores differ by rounding."""
    run = tmp_path / "run"
    scores = iter([0.0, 5.0, 1.0, 2.0])
    monkeypatch.setattr(loop, "development_score", lambda *_, **__: next(scores))
    flags = dict(output=run, batch=8, rank=4, save_every=1, steps=2, eval_every=1)
    contrastive.run(TrainConfig(**flags))
    (run / "best.json").write_text('{"step": 2}')
    shutil.rmtree(run / "checkpoints" / "2")
    result = contrastive.run(TrainConfig(**flags, resume=True))
    assert (result["dev_after"], result["best_step"]) == (2.0, 2)


@pytest.mark.slow
def test_the_final_evaluation_is_that_of_the_exported_weights(tmp_path, data):
    from eval.sts import command as sts

    run, dev = tmp_path / "run", data / "senteval"
    config = TrainConfig(
        output=run, batch=8, steps=2, rank=4, eval_every=1, dev=dev, final_eval=True
    )
    read = read_data(config)
    read = read._replace(tasks=[task for task in read.tasks if task.name == "STS16"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.data.read.read_data", lambda _: read)
        patch.setattr(loop, "development_score", lambda *_, **__: 1.0)
        result = contrastive.run(config)
    options = sts.StsOptions(model="tiny", adapter=str(run), data=dev, tasks=("STS16",))
    alone = sts.run(options)
    assert result["sts"] == {**alone["scores"], "average": alone["average"]}
    assert json.loads((run / "sts.json").read_text())["scores"] == alone["scores"]


@pytest.mark.slow
def test_the_default_run_learns(tmp_path):
    command = [sys.executable, "-m", "train.contrastive", "--mesh", "4x2"]
    flags = [f"--output={tmp_path / 'run'}", f"--json={tmp_path / 'result.json'}"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["dev_after"] >= result["dev_before"] + 30
    assert result["dev_after"] >= result["dev_last"]
    assert "8 devices simulated on the CPU" in done.stderr
