"""Laws of building triplets from SNLI and MultiNLI."""

import json

import pytest

from train.data.nli import read_nli
from train.data.triplets import ReadTriplets, Triplet

pytestmark = pytest.mark.unit


def line(label, premise, hypothesis):
    fields = {"gold_label": label, "sentence1": premise, "sentence2": hypothesis, "pairID": "1"}
    return json.dumps(fields) + "\n"


SNLI = "".join(
    [
        line("entailment", "P", "E1"),
        line("-", "P", "?"),
        line("contradiction", "Q", "C"),
        line("neutral", "P", "N"),
        line("contradiction", "P", "C1"),
        line("contradiction", "P", "C1"),
        line("contradiction", "P", "C2"),
    ]
)
MNLI = (
    "gold_label\tsentence1_parse\tsentence1\tsentence2\tlabel1\n"
    "entailment\t(x)\tQ\tE\tentailment\textra\n"
    "entailment\t(x)\tP\tE2\tentailment\n"
    "entailment\t(x)\tR\tE\tentailment\n"
)


@pytest.fixture
def write(tmp_path):
    def to_file(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def test_nth_entailment_goes_with_nth_contradiction(write):
    files = write("snli.jsonl", SNLI), write("mnli.txt", MNLI)
    expected = [Triplet("P", "E1", "C1"), Triplet("P", "E2", "C2"), Triplet("Q", "E", "C")]
    assert read_nli(files) == ReadTriplets(expected, skipped=0)


BAD = SNLI + '{"gold_label": "maybe"}\n[1]\n{\n' + line("entailment", "P", " ")


def test_malformed_lines_come_in_one_error_or_are_counted(write):
    path = write("snli.jsonl", BAD)
    with pytest.raises(ValueError) as error:
        read_nli([path])
    for problem in (
        "4 lines are malformed",
        "snli.jsonl:8: gold_label 'maybe' is none of entailment",
        "snli.jsonl:9: a JSON list, no object",
        "snli.jsonl:10: no JSON",
        "snli.jsonl:11: no text in sentence2",
        "--skip-bad",
    ):
        assert problem in str(error.value)
    rows = read_nli([path], skip_bad=True)
    assert (rows.triplets, rows.skipped) == ([Triplet("P", "E1", "C1")], 4)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.csv", "", r"a.csv: give the .jsonl or .txt files"),
        ("a.txt", "gold_label\tsentence1\n", r"names no column sentence2"),
        ("a.txt", MNLI + "entailment\tx\n", r"a.txt:5: 2 cells, the first line names 5"),
        ("a.jsonl", line("neutral", "P", "N"), r"no premise has both kinds"),
    ],
)
def test_refusals(write, name, text, problem):
    with pytest.raises(ValueError, match=problem):
        read_nli([write(name, text)])


def test_missing_files_come_in_one_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no files .*a.jsonl, .*b.jsonl"):
        read_nli([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
