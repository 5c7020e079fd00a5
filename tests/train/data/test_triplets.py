# SPDX-License-Identifier: Apache-2.0
"""Laws of the training rows: what is read and what is refused."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.batches import Batches
from train.data.triplets import ReadTriplets, Triplet, read_triplets

pytestmark = pytest.mark.unit

HEADER = "sent0,sent1,hard_neg\n"
LINE = '{"sent0": "a", "sent1": "b", "hard_neg": "c"}\n'


@pytest.fixture
def write(tmp_path):
    def to_file(content: str | bytes, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


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
    assert read_triplets(path) == ReadTriplets(triplets, skipped=0)


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
        (LINE, "x.tsv", r"unknown kind of file '\.tsv'.*\.csv, \.jsonl, \.json, \.txt, \.parquet;"),
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
    with pytest.raises(ValueError, match=r"is a folder without tables\. Give one \.csv, \.jsonl, "):
        read_triplets(tmp_path)


MALFORMED = [
    ("x.csv", b"a,b\n", "2 cells where the header names 3"),
    ("x.csv", b"a,b,c,d\n", "4 cells where the header names 3"),
    ("x.csv", b"a,,c\n", "empty sent1"),
    ("x.csv", b"a, ,\n", "empty sent1; empty hard_neg"),
    ("x.csv", b"caf\xe9,b,c\n", "sent0 is not UTF-8"),
    ("x.csv", b'"a"b,b,c\n', "broken quoting"),
    ("x.jsonl", b'{"sent0": "a", "sent1"\n', r"no JSON \(.*\); one object a line is needed"),
    ("x.jsonl", b'["a", "b", "c"]\n', "a JSON list, no object"),
    ("x.jsonl", b'{"sent0": "a", "hard_neg": "c"}\n', "no sent1"),
    ("x.jsonl", b'{"sent0": 7, "sent1": null, "hard_neg": "c"}\n', "sent0 is a int, not a string"),
    ("x.jsonl", b'{"sent0": "a", "sent1": "", "hard_neg": "c"}\n', "empty sent1"),
    ("x.jsonl", b'{"sent0": "a", "sent1": "b"}\n', "no hard_neg, but the rows before it have one"),
    ("x.jsonl", LINE.replace("hard_neg", "neg").encode(), r"unknown 'neg' \(allowed: sent0, sent1"),
    ("x.jsonl", LINE.encode().replace(b'"b"', b'"\xff"'), "sent1 is not UTF-8"),
    ("x.jsonl", LINE.encode().replace(b'"b"', b'"\\ud800"'), "sent1 is not UTF-8"),
    ("x.jsonl", b"[" * 100_000 + b"\n", "JSON that is nested too deeply"),
]


@pytest.mark.parametrize(("name", "row", "message"), MALFORMED)
def test_refuses_a_malformed_row_and_names_its_line(write, name, row, message):
    first, good = (HEADER + "a,b,c\n", "d,e,f\n") if name == "x.csv" else (LINE * 2, LINE)
    path = write(first.encode() + row + good.encode(), name)
    advice = "Correct them, or drop them with --skip-bad"
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
    assert listed[20:] == ["  and 5 more"]


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


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_long_cell_hides_no_row(write, name):
    """Python's csv stops at 131,072 characters unless it is told otherwise."""
    cell = "word " * 40_000
    row = f'"{cell}",b,c\n' if name == "x.csv" else LINE.replace('"a"', json.dumps(cell))
    content = HEADER + row + "d,e,f\n" if name == "x.csv" else row + LINE
    assert [t.sent0 for t in read_triplets(write(content, name)).triplets] == [
        cell,
        "d" if name == "x.csv" else "a",
    ]
