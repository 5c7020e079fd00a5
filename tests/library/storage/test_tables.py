"""Rows of csv and jsonl come with their line, whatever ends it; what is broken is named by line."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.errors import UserError
from prompteol_jax.storage import tables
from prompteol_jax.storage.tables import Bad

pytestmark = pytest.mark.unit


def csv_rows(content):
    return list(tables.csv_rows(io.BytesIO(content), "f.csv"))


def json_rows(content):
    return list(tables.json_rows(io.BytesIO(content), "f.jsonl"))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_line_end_and_a_mark_give_the_same_rows(end, mark):
    text = f'a,b{end}1,"two{end}lines"{end}{end}3,é{end}'
    found = csv_rows(mark + text.encode())
    assert found == [(2, {"a": "1", "b": f"two{end}lines"}), (5, {"a": "3", "b": "é"})]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            b"a,b\n1\n2,3\n",
            [(2, Bad("1 cells where the header names 2")), (3, {"a": "2", "b": "3"})],
        ),
        (b'a\n"x\n', [(2, Bad("a quote that is never closed", ends_file=True))]),
        (
            b'a\n"x"y\nz\n',
            [(2, Bad("""broken quoting (',' expected after '"')""")), (3, {"a": "z"})],
        ),
        (b"a\nx\0y\n", [(2, {"a": "x\0y"})]),
        (b"a\n\xff\n", [(2, {"a": "\udcff"})]),
        (b"a\n", []),
    ],
)
def test_a_broken_row_is_named_and_the_others_are_read(content, rows):
    assert csv_rows(content) == rows


def test_a_cell_of_more_than_131072_characters_is_read():
    limit = csv.field_size_limit()
    long = "word " * 40_000
    assert csv_rows(f'a,b\n"{long}",c\nd,e\n'.encode())[0] == (2, {"a": long, "b": "c"})
    assert csv.field_size_limit() == limit


def test_a_cell_beyond_every_bound_is_told_by_its_length(monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_CELL", 10)
    ((line, bad),) = csv_rows(b'a\n"' + b"x" * 20 + b'"\nb\n')
    assert line == 2 and bad.ends_file
    assert bad.what == "a cell longer than 10 characters, or a quote that is never closed"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"te"xt\nx\n', "f.csv: its header, line 1, has broken quoting"),
        (b'\n"text\nx\n', "f.csv: its header, line 2, has a quote that is never closed"),
        ("text\nx\n".encode("utf-16"), "f.csv is UTF-16; convert it to UTF-8: iconv -f UTF-16"),
        ("text\nx\n".encode("utf-32"), "f.csv is UTF-32; convert it to UTF-8: iconv -f UTF-32"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_one_error(content, message):
    with pytest.raises(UserError, match=message):
        csv_rows(content)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": "\\u2028"}', [(1, {"a": 1}), (3, {"b": "\u2028"})]),
        (b"[1]\n", [(1, Bad("a JSON list, no object"))]),
        (b"x\n", [(1, Bad("no JSON (Expecting value); one object a line is needed"))]),
        (b"[" * 100_000, [(1, Bad("JSON that is nested too deeply"))]),
        (b'{"a": ' * 100_000, [(1, Bad("JSON that is nested too deeply"))]),
        (b'{"a": "\xff"}', [(1, {"a": "\udcff"})]),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_json_lines_are_rows_or_say_why_not(content, rows):
    found = json_rows(content)
    assert found == rows if rows is not None else isinstance(found[0][1], Bad)


@given(st.binary(max_size=300))
def test_any_bytes_give_rows_or_one_error(content):
    for read in (csv_rows, json_rows):
        try:
            found = read(content)
        except UserError:
            continue
        assert all(isinstance(row, dict | Bad) for _, row in found)


@given(st.lists(st.tuples(st.text(), st.text())), st.sampled_from(["\n", "\r\n"]))
def test_what_csv_writes_is_read(pairs, end):
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *pairs])
    try:
        content = file.getvalue().encode()
    except UnicodeEncodeError:
        return
    assert [tuple(row.values()) for _, row in csv_rows(content)] == pairs
