"""Every kind of file gives the same texts, read in chunks, and says what cannot be read."""

import csv
import io
import json
import os
import sys

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from prompteol_jax.storage import corpus

pytestmark = pytest.mark.unit

AWKWARD = [
    "A jockey riding a horse.",
    "",
    "  spaces  ",
    "tab\there",
    "\u2028 \u2029 \x85 \x0b \x0c \x1c are no line ends",
    'quotes " and "" and, commas',
    "😀 é 你好",
    "x" * 200_000,
]

KINDS = [
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


def write_txt(path, texts):
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())


def write_jsonl(path, texts):
    rows = (json.dumps({"id": n, "text": text}) for n, text in enumerate(texts))
    path.write_text("".join(f"{row}\n" for row in rows))


def write_csv(path, texts):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))


def write_parquet(path, texts):
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())})
    parquet.write_table(table, path, row_group_size=3)


WRITERS = {
    ".txt": write_txt,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


def read(path, rows=3):
    return [text for chunk in corpus.open_corpus(path).chunks(rows) for text in chunk]


@pytest.mark.parametrize("suffix", WRITERS)
def test_awkward_texts_come_back_unchanged_and_in_order(tmp_path, suffix):
    path = tmp_path / f"texts{suffix.upper()}"
    WRITERS[suffix](path, AWKWARD)
    assert read(path) == AWKWARD


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_line_ends_inside_a_text_are_kept(tmp_path, suffix):
    texts = ["one\ntwo", "one\r\ntwo", "\r", "one\n\n"]
    path = tmp_path / f"texts{suffix}"
    WRITERS[suffix](path, texts)
    assert read(path) == texts


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\r\r\n", ["a\rb\r"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("a\u2028b\x85c\x0cd\n".encode(), ["a\u2028b\x85c\x0cd"]),
    ],
)
def test_a_line_ends_at_a_line_feed_only(tmp_path, content, texts):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    assert read(path) == texts


@given(st.lists(st.binary(max_size=12).filter(lambda raw: b"\n" not in raw)))
def test_any_bytes_are_one_text_a_line(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("bytes") / "texts.txt"
    path.write_bytes(b"x\n" + b"".join(line + b"\n" for line in lines))
    expected = [line.removesuffix(b"\r").decode(errors="replace") for line in lines]
    assert read(path) == ["x", *expected]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"good\nb\xff\xfed\nlate \xe2\x82\n"),
        ("a.jsonl", b'{"text": "good"}\n{"text": "b\xff\xfed"}\n{"text": "late \xe2\x82"}\n'),
        ("a.csv", b"text\ngood\nb\xff\xfed\nlate \xe2\x82\n"),
    ],
)
def test_invalid_utf8_is_replaced_and_counted(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    texts = corpus.open_corpus(tmp_path / name)
    for _ in range(2):  # each reading counts anew
        assert list(texts.chunks(9)) == [["good", "b\ufffd\ufffdd", "late \ufffd"]]
        assert texts.invalid == 2


def test_invalid_utf8_in_parquet_is_replaced_and_counted(tmp_path):
    raw = pa.array([b"good", b"b\xffd"], pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    texts = corpus.open_corpus(tmp_path / "a.parquet")
    assert list(texts.chunks(9)) == [["good", "b\ufffdd"]]
    assert texts.invalid == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_string_column_is_read(tmp_path, kind):
    texts = ["b", "a", "b", ""]
    parquet.write_table(pa.table({"text": pa.array(texts, kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == texts


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_chunks_are_full_but_for_the_last(tmp_path, rows):
    write_txt(tmp_path / "a.txt", map(str, range(14)))
    texts = corpus.open_corpus(tmp_path / "a.txt")
    sizes = [len(chunk) for chunk in texts.chunks(rows)]
    assert sum(sizes) == 14
    assert set(sizes[:-1]) <= {rows} and 1 <= sizes[-1] <= rows
    assert [chunk.rows for chunk in texts.survey(rows)] == sizes


def test_reading_is_streamed(tmp_path):
    write_txt(tmp_path / "a.txt", ["a"] * 100_000)
    chunks = corpus.open_corpus(tmp_path / "a.txt").chunks(2)
    assert next(chunks) == ["a", "a"]
    chunks.close()


def test_standard_input_is_read_as_often_as_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\r\n\ntw\xffo")))
    with corpus.opened(corpus.STDIN, spool=tmp_path) as texts:
        for _ in range(2):
            assert list(texts.chunks(2)) == [["one", ""], ["tw\ufffdo"]]
        assert texts.invalid == 1
        assert list(tmp_path.iterdir()) == []  # it has no name, so a kill leaves nothing


@given(st.lists(st.text()), st.lists(st.text()))
def test_other_texts_have_another_digest(a, b):
    assert (corpus.digest(a) == corpus.digest(b)) == (a == b)


def test_the_digest_takes_half_a_surrogate_pair():
    assert corpus.digest(["\ud800"]) != corpus.digest(["\ud801"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"x", r"a\.tsv has the unknown suffix '\.tsv'; known: \.txt, \.jsonl, \.csv, "),
        ("a", b"x", r"unknown suffix ''; .* pipe them to --input -"),
        ("a.txt", "é".encode("utf-16"), r"a\.txt is UTF-16; convert it to UTF-8: iconv"),
        ("a.csv", b"id,sentence\n1,x\n", r"has no column 'text'; its columns: id, sentence$"),
        ("a.csv", b"text,text\n1,x\n", r"has several columns 'text'"),
        ("a.csv", b"", r"has no column 'text'; its columns: none$"),
        (
            "a.csv",
            b'text,n\na,1\nb\n"c"d,1\n\ne,1\n',
            r"a\.csv: 2 rows cannot be read: line 3: 1 cells where the header names 2; line 4: ",
        ),
        ("a.csv", b'text\n"never closed\n', r"1 row cannot be read: line 2: a quote that is never"),
        ("a.jsonl", b"\n{nonsense\n", r"1 row cannot be read: line 2: no JSON \(Expecting "),
        ("a.jsonl", b"[1]\n", r"line 1: a JSON list, no object"),
        ("a.jsonl", b'{"id": 1, "body": ""}\n', r"line 1: no 'text'; its columns: id, body$"),
        ("a.jsonl", b'{"text": null}\n{"text": 3}', r"line 1: 'text' is NoneType.*line 2: .* int"),
        ("a.jsonl", b"1\n" * 9, r"9 rows cannot be read: line 1: .*; line 5: .*; and 4 more$"),
        ("a.parquet", b"PAR1", r"a\.parquet is no parquet file"),
        ("a.csv", b'"te"xt\nx\n', r"a\.csv: its header, line 1, has broken quoting"),
    ],
)
def test_refuses_what_it_cannot_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        corpus.open_corpus(tmp_path / name).survey(2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "body": ["x"]}, r"has no column 'text'; its columns: id, body$"),
        ({"text": [1, 2]}, r"column 'text' holds int64, not strings"),
        ({"text": ["a", None, "b", None]}, r"2 rows cannot be read: row 2: null; row 4: null$"),
    ],
)
def test_refuses_parquet_without_texts(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        corpus.open_corpus(tmp_path / "a.parquet").survey(2)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no input file .*a\.txt; give a file \(\.txt, "):
        corpus.open_corpus(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="cannot be read twice; pipe its lines to --input -"):
        corpus.open_corpus(tmp_path / "pipe.txt")


def test_reads_real_triplets_of_a_csv_by_column(data, tmp_path):
    source = (data / "nli" / "nli_triplets.csv").read_text(encoding="utf-8")
    (tmp_path / "a.csv").write_text(source.replace("sent0", "text", 1), encoding="utf-8")
    texts = read(tmp_path / "a.csv", rows=1000)
    assert len(texts) == 11034
    assert len(set(texts)) == 11014


def test_csv_of_old_macs_with_bare_carriage_returns_is_read(tmp_path):
    (tmp_path / "mac.csv").write_bytes(b"id,text\r1,A cat sleeps.\r2,It rains.\r")
    assert read(tmp_path / "mac.csv") == ["A cat sleeps.", "It rains."]


def test_a_damaged_page_of_parquet_is_told_by_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [str(n) for n in range(90_000)]})
    parquet.write_table(table, path, compression="gzip", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet is damaged after row \d+: "):
        read(path)


PIECES = st.lists(st.sampled_from(["a", "é", "\n", "\r\n", "\r", '"', ",", " ", "😀"]), max_size=6)
ONE_LINE = st.lists(st.sampled_from(["a", "é", '"', ",", " ", "\r"]), max_size=6).map("".join)


@pytest.mark.parametrize("suffix", WRITERS)
@settings(max_examples=50, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), mark=st.booleans())
def test_a_chunk_is_read_alone_as_it_was_read_among_all(tmp_path_factory, suffix, data, rows, mark):
    text = ONE_LINE.map(lambda t: t.rstrip("\r")) if suffix == ".txt" else PIECES.map("".join)
    texts = data.draw(st.lists(text, max_size=12))
    path = tmp_path_factory.mktemp("split") / f"a{suffix}"
    WRITERS[suffix](path, texts)
    if mark and suffix != ".parquet":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = corpus.open_corpus(path)
    whole = list(found.chunks(rows))
    chunks = found.survey(rows)
    assert [t for chunk in whole for t in chunk] == texts
    for chunk, expected in reversed(list(zip(chunks, whole, strict=True))):
        assert found.read(chunk) == expected


def test_lines_that_end_with_both_signs_and_blank_ones_are_found_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n\n{"text": "b"}\n\n{"text": "c"}')
    found = corpus.open_corpus(path)
    assert [found.read(chunk) for chunk in found.survey(1)] == [["a"], ["b"], ["c"]]


def test_a_folder_is_its_files_in_order_of_name_and_no_chunk_has_two_of_them(tmp_path):
    for suffix, texts in {".txt": "abc", ".csv": "de", ".jsonl": "", ".parquet": "fghij"}.items():
        WRITERS[suffix](tmp_path / f"{min(texts, default='0')}{suffix}", list(texts))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".a.crc").touch()
    found = corpus.open_corpus(tmp_path)
    chunks = found.survey(2)
    assert [(chunk.file, chunk.rows) for chunk in chunks] == [
        *[("a.txt", 2), ("a.txt", 1), ("d.csv", 2)],
        *[("f.parquet", 2), ("f.parquet", 2), ("f.parquet", 1)],
    ]
    assert ["".join(found.read(chunk)) for chunk in chunks] == ["ab", "c", "de", "fg", "hi", "j"]
    (tmp_path / "a.txt").write_text("a\nx\nc\n")
    with pytest.raises(ValueError, match="has changed while it was encoded; start again"):
        found.read(chunks[0])
    assert found.read(chunks[1]) == ["c"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no file with .txt, .jsonl, "),
        (["a.txt", "b.tsv"], r"holds what is no text \(b\.tsv\); only files with "),
        (["a.txt", "c/b.txt"], r"no text \(c/b\.txt\)"),
    ],
)
def test_a_folder_with_anything_else_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x\n")
    with pytest.raises(ValueError, match=message):
        corpus.open_corpus(tmp_path)


def test_the_rows_of_a_folder_that_cannot_be_read_are_named_with_their_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{"text": null}\n')
    with pytest.raises(ValueError, match=r"2 rows .*: a\.jsonl line 1: .*; b\.jsonl line 2: "):
        corpus.open_corpus(tmp_path).survey(2)
