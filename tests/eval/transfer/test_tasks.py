"""Reading SentEval's classification files: its order, its oddities, and what is refused."""

import numpy as np
import pytest

from eval.transfer.tasks import SOURCES, describe_data, read_transfer

pytestmark = pytest.mark.unit

REAL = {
    "MR": (10662,),
    "CR": (3775,),
    "SUBJ": (10000,),
    "MPQA": (10606,),
    "SST2": (67349, 872, 1821),
    "TREC": (5452, 500),
    "MRPC": (4076, 1725),
}
TREC_LINES = "DESC:manner How did it go ?\nHUM:ind Who am I ?\nNUM:date When ?\n"
MRPC_HEAD = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def write(root, name, text, encoding="utf-8"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


@pytest.fixture
def folder(tmp_path):
    """A SentEval folder of CR, SST2 and MRPC with a handful of rows each."""
    root = tmp_path / "downstream"
    write(root, "CR/custrev.pos", "one two three\nbig\nvery good thing\n")
    write(root, "CR/custrev.neg", "one two four\n\nsmall\n")
    for part in ("train", "dev", "test"):
        write(root, f"SST/binary/sentiment-{part}", "a b c \t1\nbad \t0\nso good \t1\n")
    rows = "1\t5\t6\ta b\tc\n0\t5\t6\ta\tb\n1\t7\t8\ta\tc d\n0\t5\t6\tx y\tz\n"
    for part in ("train", "test"):
        write(root, f"MRPC/msr_paraphrase_{part}.txt", MRPC_HEAD + rows)
    return root


def test_reads_every_example_of_the_real_release(data):
    tasks = read_transfer(data / "senteval")
    assert {task.name: tuple(map(len, task.sets)) for task in tasks} == REAL
    assert [task.name for task in tasks] == list(SOURCES)
    empty = {task.name: sum(not text for text in task.train.columns[0]) for task in tasks}
    assert {name: count for name, count in empty.items() if count} == {"CR": 4, "MPQA": 3}
    positive = {t.name: [int((part.labels == 1).sum()) for part in t.sets] for t in tasks}
    assert (positive["CR"], positive["SST2"]) == ([2407], [37569, 444, 909])
    assert (positive["TREC"], positive["MRPC"]) == ([1162, 138], [2753, 1147])


def test_a_byte_order_mark_is_no_text(folder):
    path = folder / "CR/custrev.pos"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (task,) = read_transfer(folder, ["CR"], folds=2)
    assert "one two three" in task.train.columns[0]


def test_a_task_of_another_size_than_published_is_told_in_the_log_and_in_the_record(
    data, folder, caplog
):
    whole = read_transfer(data / "senteval", ["MRPC"])
    assert caplog.messages == [] and describe_data(data, whole)["incomplete"] == {}
    part = read_transfer(folder, ["CR", "MRPC"], folds=2)
    lacking = describe_data(folder, part)["incomplete"]
    assert lacking["CR"] == "6 rows, published 3,775"
    assert lacking["MRPC"] == "4 + 4 rows, published 4,076 + 1,725"
    assert "CR: 6 rows, published 3,775; MRPC: 4 + 4 rows" in caplog.text


def test_order_is_by_words_then_class_and_stable(folder):
    single, *_, pairs = read_transfer(folder, ["CR", "MRPC"], folds=2)
    assert single.train.columns[0] == (
        *("", "small", "big"),
        *("one two four", "one two three", "very good thing"),
    )
    assert single.train.labels.tolist() == [0, 0, 1, 0, 1, 1]
    assert pairs.train.columns == (("a", "a", "x y", "a b"), ("b", "c d", "z", "c"))
    assert pairs.train.labels.tolist() == [0, 1, 0, 1]
    assert len(pairs) == 4


def test_latin_1_and_breaks_of_lines_and_words_are_those_of_the_original(folder):
    write(folder, "CR/custrev.pos", "caf\xe9 a\xa0b\nleft\x85right\n", encoding="latin-1")
    (task,) = read_transfer(folder, ["CR"], folds=2)
    texts = task.train.columns[0]
    assert {"café a b", "left", "right"} <= set(texts)
    assert len(task) == 6


def test_classes_of_trec(folder):
    lines = "".join(f"{name}:x What {n} ?\n" for n, name in enumerate(["NUM", "ABBR", "ENTY"] * 2))
    lines += "".join(f"{name}:x y a b c d e f ?\n" for name in ["DESC", "HUM", "LOC"] * 2)
    write(folder, "TREC/train_5500.label", lines)
    write(folder, "TREC/TREC_10.label", TREC_LINES)
    (task,) = read_transfer(folder, ["TREC"], folds=2)
    assert task.train.labels.tolist() == [0, 0, 2, 2, 5, 5, 1, 1, 3, 3, 4, 4]
    assert task.train.columns[0][:2] == ("What 1 ?", "What 4 ?")
    assert task.test.labels.tolist() == [5, 3, 1]


PROBLEMS = {
    "empty": ("SST/binary/sentiment-dev", "", "sentiment-dev: no examples"),
    "no label": ("SST/binary/sentiment-dev", "fine\n", "sentiment-dev:1: 'fine', expected a sen"),
    "odd label": ("SST/binary/sentiment-test", "fine\t2\n", r"-test:1: 'fine\\t2', expected a sen"),
    "short": (
        "MRPC/msr_paraphrase_test.txt",
        MRPC_HEAD + "1\t2\t3\ta\n",
        "test.txt:2: .*expected 0",
    ),
    "no class": ("CR/custrev.neg", "", "custrev.neg: 0 examples of class negative, needs 2 or m"),
    "few of the first": ("CR/custrev.pos", "x", "custrev.pos: 1 examples of class positive, needs"),
    "nothing in the first": ("CR/custrev.pos", "", "custrev.pos: 0 examples of class positive"),
    "no header": (
        "MRPC/msr_paraphrase_test.txt",
        "1\t2\t3\ta\tb\n",
        "test.txt:1: .*expected the names of the columns",
    ),
    "utf-16": (
        "CR/custrev.pos",
        "g\0o\0o\0d\0\n\0",
        "custrev.pos: holds NUL bytes, so it is UTF-16",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_refuses_what_it_cannot_read_with_file_and_line(folder, problem):
    file, text, message = PROBLEMS[problem]
    write(folder, file, text)
    with pytest.raises(ValueError, match=message):
        read_transfer(folder, ["CR", "SST2", "MRPC"], folds=2)


def test_refuses_an_unknown_class_of_question(folder):
    write(folder, "TREC/train_5500.label", "WHAT:x y ?\nNUM:date\n")
    write(folder, "TREC/TREC_10.label", TREC_LINES)
    with pytest.raises(ValueError) as caught:
        read_transfer(folder, ["TREC"])
    assert "train_5500.label:1: 'WHAT:x y ?', expected CLASS:detail" in str(caught.value)
    assert "train_5500.label:2: 'NUM:date', expected CLASS:detail" in str(caught.value)


def test_refuses_unknown_tasks_missing_files_and_other_folders(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"task 'SST' \(nearest: SST2\), 'mr' \(nearest: MR\); allowed: MR"
    ):
        read_transfer("nowhere", ["SST", "MRPC", "mr"])
    with pytest.raises(FileNotFoundError, match="lacks 2 of the 4 files asked for"):
        read_transfer(folder.parent, ["CR", "TREC"])
    with pytest.raises(FileNotFoundError, match="neither MR/, CR/, .*TREC/ nor MRPC/, nor down"):
        read_transfer(tmp_path / "downstream" / "CR")


def test_labels_are_whole_numbers_a_row_each(folder):
    (task,) = read_transfer(folder, ["SST2"])
    assert task.development.labels.dtype == np.int64
    assert [len(part) for part in task.sets] == [3, 3, 3]
