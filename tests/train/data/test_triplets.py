# SPDX-License-Identifier: Apache-2.0
"""Laws of the training rows: what is read, what is refused, and which rows a step sees."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.triplets import Batches, Rows, Triplet, read_triplets

HEADER = "sent0,sent1,hard_neg\n"
LINE = '{"sent0": "a", "sent1": "b", "hard_neg": "c"}\n'


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def numbered(n: int) -> list[Triplet]:
    return [Triplet(f"{i}", f"{i} too", None) for i in range(n)]


# Reading


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1), st.booleans(), st.booleans())
def test_round_trip_of_any_text(tmp_path_factory, rows, as_csv, pairs):
    triplets = [Triplet(a, b, None if pairs else c) for a, b, c in rows]
    path = tmp_path_factory.getbasetemp() / ("any.csv" if as_csv else "any.jsonl")
    columns = 2 if pairs else 3
    with path.open("w", encoding="utf-8", newline="") as file:
        if as_csv:
            writer = csv.writer(file)
            writer.writerows([Triplet._fields[:columns], *[row[:columns] for row in triplets]])
        else:
            lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in triplets]
            file.writelines(lines)
    assert read_triplets(path) == Rows(triplets, skipped=0)


def test_a_row_is_known_by_the_line_it_begins_at(write):
    """Rows may have lines in them and blank ones between them; bad ones are dropped."""
    content = HEADER + 'a,"b\nb",c\n\nbad,,\nd,e,f\n'
    rows = read_triplets(write(content), skip_bad=True).triplets
    assert rows.lines == [2, 6]
    batches = Batches(rows, batch=2, epochs=1.0, seed=0, process_index=1, process_count=2)
    unit, lines = batches.origin(0)
    assert (unit, sorted(lines)) == ("line", [2, 6])
    assert batches.whole(0) == [rows[rows.lines.index(line)] for line in lines]
    assert batches[0] == batches.whole(0)[1:]
    assert Batches(list(rows), batch=1, epochs=2.0, seed=0).origin(3)[0] == "row"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", HEADER + "a,b,c\n", Triplet("a", "b", "c")),
        ("x.CSV", HEADER + "a,b,c", Triplet("a", "b", "c")),
        ("x.csv", "sent0,sent1\na,b\n", Triplet("a", "b", None)),
        ("x.csv", "hard_neg, sent1 ,sent0\nc,b,a\n", Triplet("a", "b", "c")),
        ("x.csv", "\ufeff" + HEADER + "a,b,c\r\n", Triplet("a", "b", "c")),
        ("x.csv", HEADER + "\n\na,b,c\n\n", Triplet("a", "b", "c")),
        ("x.csv", HEADER + '"a\nb","say ""b""",c\n', Triplet("a\nb", 'say "b"', "c")),
        ("x.jsonl", LINE, Triplet("a", "b", "c")),
        ("x.json", "\n" + LINE + "\n", Triplet("a", "b", "c")),
        ("x.jsonl", "\ufeff" + LINE, Triplet("a", "b", "c")),
        ("x.jsonl", '{"sent1": "b", "sent0": "a"}', Triplet("a", "b", None)),
        ("x.jsonl", '{"sent0":"a","sent1":"b","hard_neg":null}\r\n', Triplet("a", "b", None)),
        ("x.jsonl", '{"sent0":"a\u2028\x85d","sent1":"b"}', Triplet("a\u2028\x85d", "b", None)),
    ],
)
def test_reads_each_form(write, name, content, expected):
    assert read_triplets(write(content, name)).triplets == [expected]


def test_reads_the_real_triplets(data):
    rows = read_triplets(data / "nli" / "nli_triplets.csv")
    assert (len(rows.triplets), rows.skipped) == (11034, 0)
    assert all(all(cell.strip() for cell in row) for row in rows.triplets)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("a,b,c\n1,2,3\n", "x.csv", r"first line is 'a,b,c'\. .*'sent0,sent1,hard_neg', or 'sent0"),
        ("sent0,hard_neg\n1,2\n", "x.csv", "first line is 'sent0,hard_neg'"),
        ("sent0,sent1,label\n1,2,3\n", "x.csv", "first line is 'sent0,sent1,label'"),
        ("sent0,sent0,sent1\n1,2,3\n", "x.csv", "first line is 'sent0,sent0,sent1'"),
        ("", "x.csv", r"x\.csv is empty\. It needs rows with sent0, sent1, hard_neg"),
        (HEADER, "x.csv", r"holds no triplet\. It needs at least one row"),
        ("\n\n", "x.jsonl", "holds no triplet"),
        (LINE, "x.txt", r"unknown kind of file '\.txt'.*\.csv, \.jsonl, \.json; rename"),
        (LINE, "triplets", "unknown kind of file ''"),
    ],
)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_refuses_a_file_of_another_kind(write, content, name, message, skip_bad):
    with pytest.raises(ValueError, match=message):
        read_triplets(write(content, name), skip_bad=skip_bad)


def test_refuses_a_path_that_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*none\.csv\. Give a \.csv, \.jsonl"):
        read_triplets(tmp_path / "none.csv")
    with pytest.raises(ValueError, match=r"is a folder\. Give one \.csv, \.jsonl, \.json file"):
        read_triplets(tmp_path)


MALFORMED = [
    ("x.csv", b"a,b\n", "2 cells where the header names 3"),
    ("x.csv", b"a,b,c,d\n", "4 cells where the header names 3"),
    ("x.csv", b"a,,c\n", "empty sent1"),
    ("x.csv", b"a, ,\n", "empty sent1; empty hard_neg"),
    ("x.csv", b"caf\xe9,b,c\n", "sent0 is not UTF-8"),
    ("x.csv", b'"a"b,b,c\n', "broken quoting"),
    ("x.jsonl", b'{"sent0": "a", "sent1"\n', r"not JSON \(.*\); one object a line is needed"),
    ("x.jsonl", b'["a", "b", "c"]\n', "a JSON list, not an object with sent0, sent1"),
    ("x.jsonl", b'{"sent0": "a", "hard_neg": "c"}\n', "no sent1"),
    ("x.jsonl", b'{"sent0": 7, "sent1": null, "hard_neg": "c"}\n', "sent0 is a int, not a string"),
    ("x.jsonl", b'{"sent0": "a", "sent1": "", "hard_neg": "c"}\n', "empty sent1"),
    ("x.jsonl", b'{"sent0": "a", "sent1": "b"}\n', "no hard_neg, but the rows before it have one"),
    ("x.jsonl", LINE.replace("hard_neg", "neg").encode(), r"unknown 'neg' \(allowed: sent0, sent1"),
    ("x.jsonl", LINE.encode().replace(b'"b"', b'"\xff"'), "sent1 is not UTF-8"),
    ("x.jsonl", LINE.encode().replace(b'"b"', b'"\\ud800"'), "sent1 is not UTF-8"),
    ("x.jsonl", b"[" * 100_000 + b"\n", "not JSON"),
]


@pytest.mark.parametrize(("name", "row", "message"), MALFORMED)
def test_refuses_a_malformed_row_and_names_its_line(write, name, row, message):
    first, good = (HEADER + "a,b,c\n", "d,e,f\n") if name == "x.csv" else (LINE * 2, LINE)
    path = write(first.encode() + row + good.encode(), name)
    advice = "Correct them, or drop them with skip_bad"
    with pytest.raises(ValueError, match=rf"1 row is malformed\.\n  line 3: {message}") as error:
        read_triplets(path)
    assert advice in str(error.value)
    rows = read_triplets(path, skip_bad=True)
    assert (len(rows.triplets), rows.skipped) == (2 if name == "x.csv" else 3, 1)


def test_refuses_a_negative_where_the_rows_before_have_none(write):
    path = write('{"sent0": "a", "sent1": "b"}\n' + LINE, "x.jsonl")
    with pytest.raises(ValueError, match="line 2: a hard_neg, but the rows before it have none"):
        read_triplets(path)


def test_lists_every_malformed_row_at_once_up_to_twenty(write):
    path = write(HEADER + '"two\nlines",b,c\n' + "a,b\n" * 25)
    with pytest.raises(ValueError, match="25 rows are malformed") as error:
        read_triplets(path)
    listed = str(error.value).splitlines()[1:-1]
    assert listed[0].startswith("  line 4: ")
    assert listed[19].startswith("  line 23: ")
    assert listed[20:] == ["  ... and 5 more"]


def test_refuses_a_file_of_only_malformed_rows(write):
    with pytest.raises(ValueError, match=r"holds no triplet \(2 malformed\)"):
        read_triplets(write(HEADER + "a\nb\n"), skip_bad=True)


@pytest.mark.parametrize("tail", ["d,e,f\n", "d,e,f\n" * 50_000])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_refuses_an_open_quote_because_it_hides_the_rows_after_it(write, tail, skip_bad):
    path = write(HEADER + "a,b,c\n" + 'a,"b,c\n' + tail)
    message = r"line 3: a quote that is never closed\nClose the quote"
    with pytest.raises(ValueError, match=message):
        read_triplets(path, skip_bad=skip_bad)


# Order


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**31 - 1))
def test_an_epoch_is_a_permutation_of_its_own(n, batch, seed):
    batch = min(n, batch)
    rows = numbered(n)
    batches = Batches(rows, batch=batch, epochs=3.0, seed=seed)
    assert batches.left_out == n - batches.steps_per_epoch * batch < batch
    seen = [
        row
        for step in range(batches.steps_per_epoch, 2 * batches.steps_per_epoch)
        for row in batches[step]
    ]
    assert len(seen) == len(set(seen)) == n - batches.left_out
    assert set(seen) <= set(rows)


def test_epochs_differ_in_order_and_in_the_rows_left_out():
    batches = Batches(numbered(103), batch=10, epochs=5.0, seed=1)
    per_epoch = [
        tuple(row for step in range(10) for row in batches[10 * epoch + step]) for epoch in range(5)
    ]
    assert len(set(per_epoch)) == 5
    assert len({frozenset(order) for order in per_epoch}) > 1


def test_seeds_differ_and_a_seed_repeats_itself():
    def order(seed: int) -> list[list[Triplet]]:
        return list(Batches(numbered(64), batch=16, epochs=2.0, seed=seed))

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes):
    rows = numbered(100)
    whole = Batches(rows, batch=16, epochs=2.0, seed=7)
    shares = [
        Batches(rows, batch=16, epochs=2.0, seed=7, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    for step in (0, 5, 11, 3):
        assert [row for share in shares for row in share[step]] == whole[step]
        assert {len(share[step]) for share in shares} == {16 // processes}


def test_a_process_reads_only_its_own_rows():
    class Counted(list):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return super().__getitem__(index)

    rows = Counted(numbered(64))
    batches = Batches(rows, batch=32, epochs=1.0, seed=0, process_index=1, process_count=4)
    rows.reads = 0
    assert len(batches[0]) == rows.reads == 8


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(1.0, 43), (3.0, 129), (0.5, 22), (0.001, 1), (7 / 43, 7), (100 / 43, 100)],
)
def test_epochs_end_after_a_whole_step(epochs, steps):
    batches = Batches(numbered(11034), batch=256, epochs=epochs, seed=42)
    assert (len(batches), batches.steps_per_epoch, batches.left_out) == (steps, 43, 26)
    with pytest.raises(IndexError, match=f"step {steps} is outside the run's {steps} steps"):
        batches[steps]
    with pytest.raises(IndexError, match="step -1 is outside"):
        batches[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 11}, "a batch of 11, but only 10 rows; use at most 10, or more rows"),
        ({"batch": 0}, "a batch of 0; it needs at least 1 row"),
        ({"epochs": 0.0}, "0.0 epochs; any finite number above 0"),
        ({"epochs": float("nan")}, "nan epochs"),
        ({"process_count": 3}, "a batch of 4, which 3 processes cannot share evenly"),
        ({"process_index": 2, "process_count": 2}, "process 2 of 2; they count from 0"),
        ({"batch": 12, "epochs": -1.0}, "a batch of 12, but only 10 rows.*; -1.0 epochs"),
    ],
)
def test_refuses_batches_that_cannot_be_formed(changes, message):
    with pytest.raises(ValueError, match=f"No batches can be formed: .*{message}"):
        Batches(numbered(10), **({"batch": 4, "epochs": 1.0, "seed": 0} | changes))


def test_three_epochs_of_the_real_triplets(data):
    rows = read_triplets(data / "nli" / "nli_triplets.csv").triplets
    batches = Batches(rows, batch=256, epochs=3.0, seed=42)
    assert (len(batches), batches.left_out) == (129, 26)
    assert sum(len(batch) for batch in batches) == 129 * 256
