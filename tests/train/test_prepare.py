"""Laws of prepared datasets: a run from them sees what a run from the files sees."""

import numpy as np
import pytest

from eval.sts.tasks import SPLITS, read_tasks
from train import prepare
from train.data.batches import Batches
from train.data.prepared import read_prepared
from train.data.triplets import Triplet, read_triplets

CSV = 'sent0,sent1,hard_neg\na,"b ""é""\n",c\nd,e,f\ng,h,i\n'


def run(*flags):
    prepare.main([str(flag) for flag in flags])


@pytest.mark.parametrize("pairs", [False, True])
def test_prepared_triplets_are_those_of_the_file(tmp_path, capsys, pairs):
    path = tmp_path / "rows.csv"
    path.write_text("sent0,sent1\nx,y\nz,w\n" if pairs else CSV, encoding="utf-8")
    run("triplets", "--input", path, "--output", tmp_path / "out")
    rows = read_prepared(tmp_path / "out")
    assert list(rows) == read_triplets(path).triplets
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{len(rows)} {'pairs' if pairs else 'triplets'}" in said.err


@pytest.mark.slow
def test_every_step_sees_the_rows_of_the_file(tmp_path, data):
    path = data / "nli" / "nli_triplets.csv"
    run("triplets", "--input", path, "--output", tmp_path)
    from_file = Batches(read_triplets(path).triplets, batch=256, epochs=2.0, seed=42)
    prepared = Batches(read_prepared(tmp_path), batch=256, epochs=2.0, seed=42)
    assert len(from_file) == len(prepared)
    for step in (0, 1, len(prepared) - 1):
        assert prepared[step] == from_file[step]


@pytest.mark.slow
def test_prepared_sts_sets_are_those_of_the_files(tmp_path, data):
    run("sts", "--data", data / "senteval", "--output", tmp_path)
    for split in SPLITS:
        expected = read_tasks(data / "senteval", SPLITS[split], split)
        found = read_tasks(tmp_path, SPLITS[split], split)
        assert [task.name for task in found] == [task.name for task in expected]
        for ours, theirs in zip(found, expected, strict=True):
            for a, b in zip(ours.subsets, theirs.subsets, strict=True):
                assert (a.name, a.dropped) == (b.name, b.dropped)
                assert (a.texts_a, a.texts_b) == (b.texts_a, b.texts_b)
                np.testing.assert_array_equal(a.gold, b.gold)


def test_triplets_are_built_from_nli_files(tmp_path, capsys):
    header = "gold_label\tsentence1\tsentence2\n"
    path = tmp_path / "snli.txt"
    path.write_text(header + "entailment\tP\tE\ncontradiction\tP\tC\nbroken\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        run("nli", "--files", path, "--output", tmp_path / "out")
    assert "snli.txt:4: 1 cells" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run("nli", "--files", path, "--output", tmp_path / "out", "--skip-bad")
    assert list(read_prepared(tmp_path / "out")) == [Triplet("P", "E", "C")]
    assert "1 malformed rows dropped" in capsys.readouterr().err


def test_a_second_writing_is_refused(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text(CSV, encoding="utf-8")
    run("triplets", "--input", path, "--output", tmp_path)
    with pytest.raises(SystemExit):
        run("triplets", "--input", path, "--output", tmp_path)
    assert "exists; remove it" in capsys.readouterr().err


def test_a_folder_without_triplets_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"one prepared dataset triplets; found: none"):
        read_prepared(tmp_path)


def test_prepared_graded_pairs_are_the_training_pairs_with_their_scores(tmp_path, data):
    run("graded", "--data", data / "senteval", "--output", tmp_path)
    (task,) = read_tasks(data / "senteval", split="train")
    (pairs,) = task.subsets
    rows = read_prepared(tmp_path)
    assert len(rows) == len(pairs)
    for n in (0, 1, len(rows) - 1):
        assert rows[n]._asdict() == {
            "sent0": pairs.texts_a[n],
            "sent1": pairs.texts_b[n],
            "score": pairs.gold[n],
        }
