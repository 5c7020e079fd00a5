"""Shards come to the same bytes however often their writer is killed, and mix with nothing else."""

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from prompteol_jax.storage import merge_shards, shards
from prompteol_jax.storage.corpus import Chunk
from prompteol_jax.storage.journal import Entry

pytestmark = pytest.mark.unit

SETTINGS = {"model": "tiny", "prompt": "{}", "dtype": "float32"}
CHUNKS = [Chunk(3, "a"), Chunk(3, "b"), Chunk(1, "c")]
WIDTH = 4


def vectors(number):
    rows = CHUNKS[number].rows
    return np.arange(rows * WIDTH, dtype=np.float32).reshape(rows, WIDTH) + 100 * number


def opened(folder, settings=SETTINGS, chunks=CHUNKS, overwrite=False):
    return shards.opened(folder, settings, chunks, overwrite=overwrite)


def fill(folder, numbers=range(3)):
    with opened(folder) as run:
        run.begin(WIDTH)
        for number in numbers:
            run.write(number, vectors(number))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_the_manifest_counts_the_texts_that_were_cut(folder):
    with opened(folder) as run:
        run.begin(WIDTH)
        run.write(0, vectors(0), 2)
        run.write(2, vectors(2), 0)
    with opened(folder) as run:
        assert run.truncated == [2, None, 0]


def test_written_shards_are_done_and_the_others_missing(folder):
    fill(folder, [2, 0])
    with opened(folder) as run:
        assert (run.missing, run.width, run.rows, run.damaged) == ([1], WIDTH, 7, 0)
        np.testing.assert_array_equal(run.read(2), vectors(2))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["settings"] == SETTINGS
    assert (manifest["rows"], manifest["width"]) == (7, WIDTH)
    assert not list(folder.glob("journal*"))
    assert manifest["shards"][1] == {
        "file": "shard-00001.npy",
        "rows": 3,
        "truncated": None,
        "input_sha256": "b",
        "sha256": None,
    }
    raw = (folder / "shard-00002.npy").read_bytes()
    assert manifest["shards"][2]["sha256"] == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
        lambda path: path.write_bytes(b""),
    ],
)
def test_a_damaged_shard_is_missing_again(folder, damage):
    fill(folder)
    damage(folder / "shard-00001.npy")
    with opened(folder) as run:
        assert (run.missing, run.damaged) == ([1], 1)


@pytest.mark.parametrize(
    ("settings", "chunks", "message"),
    [
        ({"dtype": "bfloat16"}, CHUNKS, r"dtype was 'float32' and is now 'bfloat16'\. Repeat"),
        ({"layer": -2}, CHUNKS, r"layer was \(nothing\) and is now -2"),
        ({"prompt": "x", "dtype": "y"}, CHUNKS, r"prompt was '\{\}' .*'x'; dtype was .* 'y'"),
        ({}, CHUNKS[:2], "the input had 7 texts and has now 6"),
        (
            {},
            [Chunk(3, "a"), Chunk(3, "x"), Chunk(1, "c")],
            "the input's texts have changed, in 1 of 3 shards",
        ),
        (
            {"shard_rows": 7},
            [Chunk(7, "d")],
            r"run: shard_rows was \(nothing\) and is now 7\. Repeat",
        ),
    ],
)
def test_another_run_is_refused_and_replaced_only_on_demand(folder, settings, chunks, message):
    fill(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with (
        pytest.raises(ValueError, match=message),
        opened(folder, {**SETTINGS, **settings}, chunks),
    ):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with opened(folder, {**SETTINGS, **settings}, chunks, overwrite=True) as run:
        assert run.missing == list(range(len(chunks)))
        assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()
        run.begin(WIDTH)
        assert {path.name for path in folder.iterdir()} == {"manifest.json", "lease.json"}


def test_names_of_the_same_model_and_template_may_differ(folder):
    fill(folder)
    with opened(folder, {**SETTINGS, "model": "./tiny", "template": "eol.json"}) as run:
        assert run.missing == []


def test_overwriting_goes_on_with_the_same_run(folder):
    fill(folder, [0])
    with opened(folder, overwrite=True) as run:
        run.begin(WIDTH)
        assert run.missing == [1, 2]


def test_refuses_a_damaged_manifest(folder):
    fill(folder)
    (folder / "manifest.json").write_text('{"settings": {}')
    with (
        pytest.raises(ValueError, match=r"its manifest\.json is damaged \(.*--overwrite"),
        opened(folder),
    ):
        pass


def test_refuses_folders_of_others_and_touches_nothing(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with (
            pytest.raises(FileExistsError, match=r"holds other files \(thesis\.tex\); give a new"),
            opened(folder, overwrite=overwrite),
        ):
            pass
    assert (folder / "thesis.tex").read_text() == "x"


def test_refuses_vectors_of_another_shape(folder):
    fill(folder, [0])
    with opened(folder) as run:
        with pytest.raises(ValueError, match="holds vectors of 4 numbers, the model gives 5"):
            run.begin(5)
        with pytest.raises(ValueError, match=r"shard 1 needs \(3, 4\) numbers, got \(1, 4\)"):
            run.write(1, vectors(2))


def test_a_second_writer_is_refused(folder):
    with opened(folder) as run:
        run.begin(WIDTH)
        refusal = "another run is writing to .*run: prompteol encode, process .*; wait for it"
        with pytest.raises(ValueError, match=refusal), opened(folder):
            pass
        run.write(0, vectors(0))
    with opened(folder) as run:
        assert run.missing == [1, 2]


def begun(stack, folder, process, processes):
    part = dict(overwrite=False, process=process, processes=processes)
    return stack.enter_context(shards.opened(folder, SETTINGS, CHUNKS, **part))


def test_processes_share_the_shards_and_the_first_joins_them(folder, tmp_path):
    with contextlib.ExitStack() as stack:
        first, second = (begun(stack, folder, process, 2) for process in (0, 1))
        assert (first.share, second.share) == ([0, 2], [1])
        for run in (first, second):
            run.begin(WIDTH)
        for run in (second, first):
            for number in run.share:
                run.write(number, vectors(number))
        assert (first.missing, second.missing) == ([1], [0, 2])
        (folder / "shard-00001.npy").rename(folder / "shard-00009.npy")
        with pytest.raises(ValueError, match="1 of 3 shards in .* every process must see the same"):
            first.gather()
        (folder / "shard-00009.npy").rename(folder / "shard-00001.npy")
        second.write(1, vectors(1))
        with ThreadPoolExecutor() as pool:
            entered = pool.submit(second.wait_for_first, removed=False)
            removed = pool.submit(second.wait_for_first, removed=True)
            assert not (entered.done() or removed.done())
            first.gather()
            assert first.missing == []
            entered.result(timeout=10)
            assert not list(folder.glob("journal.*"))
            merge_shards.join_npy(first, tmp_path / "a.npy")
            assert not removed.done()
            first.remove()
            removed.result(timeout=10)
    expected = np.concatenate([vectors(number) for number in range(3)])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_killed_run_of_two_processes_is_resumed_by_any_number(folder, processes):
    with contextlib.ExitStack() as stack:
        runs = [begun(stack, folder, process, 2) for process in (0, 1)]
        for run in runs:
            run.begin(WIDTH)
        runs[1].write(1, vectors(1))  # entered by the second process alone
    with contextlib.ExitStack() as stack:
        runs = [begun(stack, folder, process, processes) for process in range(processes)]
        assert sorted(number for run in runs for number in run.share) == [0, 2]
        runs[0].begin(WIDTH)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert [shard["sha256"] is None for shard in manifest["shards"]] == [True, False, True]
        assert not list(folder.glob("journal.*"))


def test_a_shard_costs_a_line_of_the_journal_and_no_manifest(folder):
    with opened(folder) as run:
        run.begin(WIDTH)
        before = (folder / "manifest.json").read_bytes()
        for number in (2, 0):
            run.write(number, vectors(number))
        assert (folder / "manifest.json").read_bytes() == before
        lines = (folder / "journal.0.jsonl").read_text().splitlines()
        assert [json.loads(line)["shard"] for line in lines] == [2, 0]


def test_a_killed_run_goes_on_after_the_entries_of_its_journal(folder, tmp_path):
    with opened(folder) as run:
        run.begin(WIDTH)
        run.write(1, vectors(1))
        run.write(2, vectors(2))
        killed = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = killed["journal.0.jsonl"][:-5]  # the last line is not whole
    for path in folder.iterdir():
        path.unlink()
    for name, content in (killed | {"journal.0.jsonl": broken}).items():
        if name != "lease.json":
            (folder / name).write_bytes(content)
    with opened(folder) as run:
        assert run.missing == [0, 2]
        run.begin(WIDTH)
        for number in run.missing:
            run.write(number, vectors(number))
    fill(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_manifests_of_several_processes_from_before_the_journal_are_read(folder):
    fill(folder, [0])
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "shard-00002.npy"
    np.save(path, vectors(2))
    manifest["shards"][2]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.1.json").write_text(json.dumps(manifest))
    with opened(folder) as run:
        assert run.missing == [1]
        run.begin(WIDTH)
        assert not (folder / "manifest.1.json").exists()


def test_a_width_may_come_with_the_first_shard_and_then_holds(folder):
    with opened(folder) as run:
        run.begin(None)
        digest = shards.write_shard(folder, 1, vectors(1), run.dtype)
        run.enter(Entry(1, digest), WIDTH)
        with pytest.raises(ValueError, match="holds vectors of 4 numbers, the model gives 5"):
            run.enter(Entry(2, digest), 5)
    with opened(folder) as run:
        assert (run.width, run.missing) == (WIDTH, [0, 2])


def test_float16_holds_the_rounded_numbers_and_refuses_what_is_too_large(folder, tmp_path):
    settings = SETTINGS | {"output_dtype": "float16"}
    with opened(folder, settings) as run:
        run.begin(WIDTH)
        for number in range(3):
            run.write(number, vectors(number) / 7)
        merge_shards.join_npy(run, tmp_path / "a.npy")
        merge_shards.join_parquet(run, tmp_path / "a.parquet")
    expected = (np.concatenate([vectors(number) for number in range(3)]) / 7).astype(np.float16)
    joined = np.load(tmp_path / "a.npy")
    assert joined.dtype == np.float16
    np.testing.assert_array_equal(joined, expected)
    rows = parquet.read_table(tmp_path / "a.parquet")["embedding"].to_pylist()
    np.testing.assert_array_equal(np.array(rows, np.float16), expected)
    large = np.array([[1], [7e4]], np.float32)
    with pytest.raises(ValueError, match=r"vector 1 has a number beyond 65504.* --normalize"):
        shards.write_shard(folder, 0, large, "float16")
    with pytest.raises(ValueError, match="output_dtype was 'float16'"), opened(folder):
        pass


def test_two_writers_of_one_shard_leave_one_whole_file(folder):
    folder.mkdir()
    with ThreadPoolExecutor(8) as pool:
        same = (folder, 0, vectors(0), "float32")
        write = [pool.submit(shards.write_shard, *same) for _ in range(100)]
        assert len({one.result() for one in write}) == 1
    assert [path.name for path in folder.iterdir()] == ["shard-00000.npy"]


def test_too_many_shards_are_refused_with_a_size_that_fits(folder):
    chunks = [Chunk(10, "a")] * (shards.MOST + 1)
    with pytest.raises(ValueError, match=r"65537 shards .* give --shard-rows 11"):
        opened(folder, chunks=chunks).__enter__()


def test_a_run_that_never_begins_leaves_no_folder(folder):
    with opened(folder):
        pass
    assert not folder.exists()
    folder.mkdir()
    with opened(folder):
        pass
    assert folder.exists()


@pytest.mark.parametrize("chunks", [[], CHUNKS[:1], CHUNKS])
def test_joined_rows_are_those_of_the_shards_in_order(folder, tmp_path, chunks):
    with opened(folder, chunks=chunks) as run:
        run.begin(WIDTH)
        for number in reversed(range(len(chunks))):
            run.write(number, vectors(number))
        merge_shards.join_npy(run, tmp_path / "a.npy")
        merge_shards.join_parquet(run, tmp_path / "a.parquet")
    expected = np.concatenate([np.empty((0, WIDTH)), *map(vectors, range(len(chunks)))])
    joined = np.load(tmp_path / "a.npy")
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, expected)
    np.save(tmp_path / "numpy.npy", expected.astype(np.float32))
    assert (tmp_path / "numpy.npy").read_bytes() == (tmp_path / "a.npy").read_bytes()
    table = parquet.read_table(tmp_path / "a.parquet")
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[4]"
    rows = np.array(table["embedding"].to_pylist(), np.float32).reshape(-1, WIDTH)
    np.testing.assert_array_equal(rows, expected)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from prompteol_jax.storage import merge_shards as joins, shards
from prompteol_jax.storage.corpus import Chunk

output = Path(sys.argv[1])
chunks = [Chunk(50, str(n)) for n in range(40)]
print("ready", flush=True)
with shards.opened(output.with_name("parts"), {"model": "m"}, chunks, overwrite=False) as run:
    run.begin(64)
    for n in run.missing:
        run.write(n, np.random.default_rng(n).random((50, 64), np.float32))
    joins.join_npy(run, output)
    run.remove()
"""


def start_writer(output):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, output], stdout=subprocess.PIPE)
    with writer.stdout as ready:
        assert ready.readline() == b"ready\n"
    return writer


def test_killed_at_any_moment_and_resumed_gives_the_same_file(tmp_path):
    alone = tmp_path / "alone" / "vectors.npy"
    alone.parent.mkdir()
    start = time.perf_counter()
    writer = start_writer(alone)
    assert writer.wait() == 0
    seconds = time.perf_counter() - start
    expected = [np.random.default_rng(n).random((50, 64), np.float32) for n in range(40)]
    np.testing.assert_array_equal(np.load(alone), np.concatenate(expected))

    moments = random.Random(0)
    output = tmp_path / "killed" / "vectors.npy"
    output.parent.mkdir()
    kills = 0
    for _ in range(8):
        writer = start_writer(output)
        time.sleep(moments.random() * seconds / 4)
        writer.kill()
        kills += writer.wait() != 0
        if output.exists():
            assert output.read_bytes() == alone.read_bytes()
    assert kills
    assert start_writer(output).wait() == 0
    assert output.read_bytes() == alone.read_bytes()
    assert not Path(output.with_name("parts")).exists()
