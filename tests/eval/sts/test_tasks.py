"""Reading SentEval's files: real counts, what is dropped, and what is refused."""

import re

import numpy as np
import pytest

from eval.sts.tasks import DEFAULTS, TABLES, YEARS, Pairs, describe_data, read_tasks
from prompteol_jax.errors import UserError

pytestmark = pytest.mark.unit

REAL = {
    "STS12": (3108, 0),
    "STS13": (1500, 0),
    "STS14": (3750, 0),
    "STS15": (3000, 5500),
    "STS16": (1186, 7997),
    "STSBenchmark": (1379, 0),
    "SICKRelatedness": (4927, 0),
}


def write(root, name, text, encoding="utf-8"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def folder(tmp_path):
    """A SentEval folder of STS13, STSBenchmark and SICKRelatedness with three pairs a file."""
    root = tmp_path / "downstream"
    for subset in YEARS["STS13"]:
        write(root, f"STS/STS13-en-test/STS.input.{subset}.txt", "a b\tc\nd\te\nf\tg\n")
        write(root, f"STS/STS13-en-test/STS.gs.{subset}.txt", "1\n2.5\n5\n")
    rows = "".join(f"g\tf\ty\t{n}\t{n}.5\tone {n}\ttwo {n}\n" for n in range(3))
    write(root, "STS/STSBenchmark/sts-test.csv", rows)
    rows = "".join(f"{n}\tOne {n}\tTwo {n}\t{n}\tNEUTRAL\r\n" for n in range(1, 4))
    write(root, "SICK/SICK_test_annotated.txt", "pair_ID\ta\tb\tscore\tjudgment\r\n" + rows)
    return root


def test_reads_every_pair_of_the_real_release(data):
    tasks = read_tasks(data / "senteval")
    dropped = {task.name: sum(pairs.dropped for pairs in task.subsets) for task in tasks}
    assert {task.name: (len(task), dropped[task.name]) for task in tasks} == REAL
    assert sum(map(len, tasks)) == 18850
    assert tuple(task.name for task in tasks) == DEFAULTS["test"]
    for task in tasks:
        names = YEARS.get(task.name, (task.name,))
        assert tuple(pairs.name for pairs in task.subsets) == names


def test_a_task_of_another_size_than_published_is_told_in_the_log_and_in_the_record(
    data, folder, caplog
):
    names = tuple(TABLES)
    whole = read_tasks(data / "senteval", names)
    assert caplog.messages == []
    part = read_tasks(folder, names)
    listed = "; ".join(f"{name}: 3 rows, published {REAL[name][0]:,}" for name in names)
    assert caplog.messages == [f"{folder} is not the published data: {listed}"]
    record = describe_data(folder, "test", part)
    assert record["incomplete"].keys() == record["rows"].keys() == set(names)
    assert describe_data(data, "test", whole)["incomplete"] == {}
    part[0].subsets[0].gold[0] += 0.5
    assert describe_data(folder, "test", part)["sha256"] != record["sha256"]


def test_folder_and_its_parent_give_the_same(data):
    for folder in (data / "senteval", data / "senteval" / "downstream"):
        (task,) = read_tasks(folder, ["STSBenchmark"])
        assert task.subsets[0].texts_a[0] == "a girl is styling her hair ."
        assert task.subsets[0].gold[:2].tolist() == [2.5, 3.6]


def test_development_split_is_named_so_and_is_stsbenchmark_by_default(data):
    (task,) = read_tasks(data / "senteval", split="dev")
    assert (task.name, len(task), len(task.subsets)) == ("STSBenchmark-dev", 1500, 1)
    names = [task.name for task in read_tasks(data / "senteval", tuple(TABLES), split="dev")]
    assert names == ["STSBenchmark-dev", "SICKRelatedness-dev"]


def test_case_and_carriage_returns_of_the_real_sick_file(data):
    (task,) = read_tasks(data / "senteval", ["SICKRelatedness"])
    (pairs,) = task.subsets
    assert pairs.texts_a[0] == "There is no boy playing outdoors and there is no man smiling"
    assert pairs.gold[0] == 3.3


def test_reads_the_columns_of_each_format(folder):
    year, benchmark, sick = read_tasks(folder, ["STS13", "STSBenchmark", "SICKRelatedness"])
    assert year.subsets[1].texts_a == ("a b", "d", "f")
    assert year.subsets[1].gold.tolist() == [1, 2.5, 5]
    assert benchmark.subsets[0].texts_b == ("two 0", "two 1", "two 2")
    assert benchmark.subsets[0].gold.tolist() == [0.5, 1.5, 2.5]
    assert sick.subsets[0].texts_a == ("One 1", "One 2", "One 3")
    assert sick.subsets[0].gold.dtype == np.float64


def test_order_and_repetition_of_names(folder):
    tasks = read_tasks(folder, ["STSBenchmark", "STS13", "STSBenchmark"])
    assert [task.name for task in tasks] == ["STSBenchmark", "STS13"]


def test_tokens_are_joined_by_single_spaces_and_unicode_line_breaks_end_no_line(folder):
    write(
        folder,
        "STS/STS13-en-test/STS.input.FNWN.txt",
        " A  b \tC\nd\u2028x\te\x85y\nf\rz\tg\n",
    )
    (task,) = read_tasks(folder, ["STS13"])
    assert task.subsets[0].texts_a == ("A b", "d x", "f z")
    assert task.subsets[0].texts_b == ("C", "e y", "g")


@pytest.mark.parametrize("gold", ["\n2\n3\n", "\r\n2\r\n3\r\n", " \n2\n3"])
def test_pair_without_gold_is_dropped_and_counted(folder, gold):
    write(folder, "STS/STS13-en-test/STS.gs.OnWN.txt", gold)
    (task,) = read_tasks(folder, ["STS13"])
    pairs = task.subsets[2]
    assert (pairs.texts_a, pairs.dropped, len(pairs)) == (("d", "f"), 1, 2)
    assert len(task) == 8


BENCHMARK = "STS/STSBenchmark/sts-test.csv"
SICK = "SICK/SICK_test_annotated.txt"
ONWN = "STS/STS13-en-test/STS.input.OnWN.txt"
ONWN_GOLD = "STS/STS13-en-test/STS.gs.OnWN.txt"
PROBLEMS = {
    "short line": (BENCHMARK, "g\tf\ty\t1\t2.0\tone\n", "sts-test.csv:1: 6 tab-separated .*ed 7"),
    "not a number": (
        BENCHMARK,
        "g\tf\ty\t1\tx\ta\tb\n",
        "sts-test.csv:1: gold 'x', expected 0 to 5",
    ),
    "not finite": (BENCHMARK, "g\tf\ty\t1\tnan\ta\tb\n", "sts-test.csv:1: gold 'nan', expected"),
    "above": (BENCHMARK, "g\tf\ty\t1\t5.1\ta\tb\n", "sts-test.csv:1: gold '5.1', expected 0 to 5"),
    "empty": (BENCHMARK, "g\tf\ty\t1\t2\t \tb\n", "sts-test.csv:1: an empty sentence"),
    "equal": (BENCHMARK, "g\tf\ty\t1\t2\ta\tb\n" * 3, "needs two different gold scores"),
    "no rows": (BENCHMARK, "", "sts-test.csv: rank correlation needs two different"),
    "below": (SICK, "h\n1\ta\tb\t0.5\tNEUTRAL\n", "annotated.txt:2: gold '0.5', expected 1 to 5"),
    "no gold": (SICK, "h\n1\ta\tb\t\tNEUTRAL\n", "annotated.txt:2: gold '', expected 1 to 5"),
    "short sick": (SICK, "h\n1\ta\n", "annotated.txt:2: 2 tab-separated fields, expected 4"),
    "one sentence": (ONWN, "a\nb\tc\nd\te\n", "OnWN.txt:1: 1 tab-.*, expected 2 sentences"),
    "fewer pairs": (ONWN, "b\tc\nd\te\n", "OnWN.txt: 2 pairs, but 3 lines in STS.gs.OnWN.txt"),
    "fewer golds": (ONWN_GOLD, "1\n2\n", "OnWN.txt: 3 pairs, but 2 lines in STS.gs.OnWN.txt"),
    "bad gold": (ONWN_GOLD, "1\n2\n-1\n", "STS.gs.OnWN.txt:3: gold '-1', expected 0 to 5"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_refuses_what_it_cannot_read_with_file_and_line(folder, problem):
    file, text, message = PROBLEMS[problem]
    write(folder, file, text)
    with pytest.raises(ValueError, match=message):
        read_tasks(folder, ["STS13", "STSBenchmark", "SICKRelatedness"])


def test_refuses_bytes_that_are_not_utf8(folder):
    write(folder, ONWN, "a\tb\ncaf\xe9\tc\nd\te\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"OnWN.txt:2: not UTF-8 \(invalid continuation"):
        read_tasks(folder, ["STS13"])


def test_a_byte_order_mark_is_no_text_and_utf16_is_refused(folder):
    path = folder / ONWN
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (task,) = read_tasks(folder, ["STS13"])
    assert task.subsets[2].texts_a[0] == "a b"
    write(folder, ONWN, "a b\tc\nd\te\nf\tg\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"OnWN.txt: holds NUL bytes, so it is UTF-16") as caught:
        read_tasks(folder, ["STS13"])
    assert "rank correlation" not in str(caught.value)


def test_one_problem_is_one_problem(folder):
    write(folder, BENCHMARK, "short\n")
    with pytest.raises(
        UserError, match=r"^1 problem in .*:\n.*sts-test.csv:1: 1 tab-separated.*\Z"
    ):
        read_tasks(folder, ["STSBenchmark"])


def test_all_problems_come_in_one_error(folder):
    write(folder, BENCHMARK, "short\n" * 30)
    write(folder, ONWN_GOLD, "1\n2\n9\n")
    with pytest.raises(ValueError) as caught:
        read_tasks(folder, ["STS13", "STSBenchmark"])
    message = str(caught.value)
    assert message.startswith(f"31 problems in {folder}:\n")
    assert "gold '9'" in message
    assert message.count("\n") == 21
    assert message.endswith("and 11 more")


def test_refuses_missing_files_all_in_one_error(folder):
    (folder / BENCHMARK).unlink()
    (folder / ONWN).unlink()
    message = f"{folder} lacks 2 of the 7 files asked for; add them or name fewer tasks:"
    with pytest.raises(FileNotFoundError, match=re.escape(message)) as caught:
        read_tasks(folder.parent, ["STS13", "STSBenchmark"])
    assert str(caught.value).splitlines()[1:] == [f"  {ONWN}", f"  {BENCHMARK}"]


def test_refuses_a_folder_that_is_not_sentevals(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither STS/ nor SICK/"):
        read_tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; give SentEval's"):
        read_tasks(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["STS17"], "test", r"no test split of 'STS17' \(nearest: STS1\d\); allowed: STS12"),
        (["sts12"], "test", r"no test split of 'sts12' \(nearest: STS12\); allowed: STS12"),
        (["STS12"], "dev", r"no dev split of 'STS12'.*; allowed: STSBenchmark, SICKRel"),
        (["STS-B"], "test", r"'STS-B' \(nearest: STSBenchmark\)"),
        (["SICK-R"], "test", r"'SICK-R' \(nearest: SICKRelatedness\)"),
        (["STS12,STS13"], "test", r"'STS12,STS13' \(separate names by spaces\)"),
        ([], "all", "unknown split 'all'; allowed: test, dev, train"),
    ],
)
def test_refuses_unknown_tasks_and_splits_before_looking_at_files(names, split, message):
    with pytest.raises(ValueError, match=message):
        read_tasks("nowhere", names, split)


def test_refuses_pairs_of_unequal_length():
    with pytest.raises(ValueError, match="made: 1 first sentences, 2 second sentences and 1 gold"):
        Pairs("made", ("a",), ("b", "c"), np.array([1.0]))
