"""Laws of needs: an array row is that of its row, wherever the row is packed."""

import numpy as np
import pytest

from train.data.needs import needs_of, placeholders
from train.data.teacher import with_teacher
from train.data.triplets import Triplet, row_class

pytestmark = pytest.mark.unit

GRADED = row_class(("sent0", "sent1", "score"))


def test_texts_have_one_hash_if_they_are_equal():
    rows = [Triplet("a", "b", "a"), Triplet("b", "A", "é"), Triplet("a ", "\ud800", "c")]
    hashes = needs_of(("text",), rows, ("sent0", "sent1", "hard_neg"))["text"]
    assert (hashes.shape, hashes.dtype) == ((3, 3, 2), np.int32)
    texts = [text for row in rows for text in row]
    same = (hashes.reshape(9, 1, 2) == hashes.reshape(1, 9, 2)).all(2)
    assert same.tolist() == [[a == b for b in texts] for a in texts]


def test_scores_are_numbers_or_lists():
    one = needs_of(("score",), [GRADED("a", "b", 0.5), GRADED("c", "d", 2.0)], ())["score"]
    assert (one.tolist(), one.dtype) == ([0.5, 2.0], np.float32)
    two = needs_of(("score",), [GRADED("a", "b", (1.0, 2.0))], ())["score"]
    assert two.tolist() == [[1.0, 2.0]]
    assert placeholders(("score",), GRADED("a", "b", (1.0, 2.0)), ())["score"].shape == (2,)


def save(path, array):
    np.save(path, array)
    return path


def test_a_row_has_the_vectors_of_its_number(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float16)
    rows = [Triplet("a", "b", None)] * 4
    taught = with_teacher(rows, save(tmp_path / "t.npy", vectors))
    found = needs_of(("teacher",), [taught[n] for n in (2, 0)], ("sent0",))["teacher"]
    np.testing.assert_array_equal(found, vectors[[2, 0]].astype(np.float32))
    assert taught[1]._fields == ("sent0", "sent1", "teacher")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2)), "has 3 entries for 4 rows"),
        (np.zeros(4), r"holds float64 of shape \(4,\)"),
        (np.zeros((4, 2), int), "holds int64"),
        (np.full((4, 2), np.inf), "numbers that are not finite"),
        (np.array([object()] * 4), "cannot be read as a .npy file"),
    ],
    ids=["rows", "shape", "integers", "infinite", "objects"],
)
def test_refuses_vectors_that_are_not_of_the_rows(array, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        with_teacher([Triplet("a", "b", None)] * 4, save(tmp_path / "t.npy", array))
