"""What is entered is found again; what a kill broke off, or another wrote, counts for nothing."""

import pytest

from prompteol_jax.storage import journal, paths
from prompteol_jax.storage.journal import Entry, ShardJournal

unit = pytest.mark.unit


@unit
def test_entries_of_all_processes_are_found_and_removed_by_process(tmp_path):
    for process in (0, 1, 10):
        one = ShardJournal(tmp_path, process)
        for number in range(3):
            one.enter(Entry(number, f"{process}-{number}", process))
    expected = {(n, f"{process}-{n}", process) for process in (0, 1, 10) for n in range(3)}
    assert set(journal.entries(tmp_path)) == expected
    journal.remove(tmp_path, 1)
    assert {sha for _, sha, _ in journal.entries(tmp_path)} == {
        f"{process}-{n}" for process in (0, 10) for n in range(3)
    }
    journal.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


@unit
def test_an_entry_is_there_immediately(tmp_path):
    ShardJournal(tmp_path, 0).enter(Entry(7, "a"))
    assert list(journal.entries(tmp_path)) == [(7, "a", None)]


@unit
@pytest.mark.parametrize(
    "line",
    [
        b"",
        b'{"shard": 1, "sha2',
        b"[1]",
        b"{}",
        b'{"shard": -1, "sha256": "x", "truncated": 0}',
        b"\xff\xfe",
    ]
    + [
        b'{"shard": true, "sha256": "x", "truncated": 0}',
        b'{"shard": 1, "sha256": null, "truncated": 0}',
        b"[" * 10_000,
    ],
)
def test_a_line_that_is_no_entry_counts_for_nothing(tmp_path, line):
    good = b'{"shard": 2, "sha256": "y", "truncated": 1}'
    (tmp_path / "journal.0.jsonl").write_bytes(b"\n".join([line, good, line]))
    assert list(journal.entries(tmp_path)) == [(2, "y", 1)]


def test_a_bucket_gets_few_objects_and_loses_nothing_that_was_flushed(bucket):
    folder = paths.as_path("gs://bucket/run")
    one = ShardJournal(folder, 0)
    for number in range(50):
        one.enter(Entry(number, str(number)))
    assert set(journal.entries(folder)) == set()
    one.flush()
    one.enter(Entry(50, "50"))
    one.flush()
    assert set(journal.entries(folder)) == {(n, str(n), None) for n in range(51)}
    assert len(list(folder.glob("journal.*"))) == 2
    journal.remove(folder)
    assert list(folder.glob("journal.*")) == []
