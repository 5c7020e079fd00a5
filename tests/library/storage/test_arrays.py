"""Laws of arrays on disk: what numpy writes is read, anything else is one error."""

from __future__ import annotations

import io

import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.storage.arrays import read_array

pytestmark = pytest.mark.unit

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_reads_what_numpy_writes(tmp_path):
    (tmp_path / "a.npy").write_bytes(saved(VECTORS))
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy", (3, 4)), VECTORS)


LARGE = saved(VECTORS).replace(b"(3, 4), }          ", b"(3000000000, 4), } ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no array of vectors"),
        (b"\x93NUMPY\x09\x00", "no array of vectors"),
        (saved(VECTORS)[:60], "no array of vectors"),
        (saved(VECTORS).replace(b"{", b"("), "no array of vectors"),
        (saved(VECTORS.T), r"holds float32 \(4, 3\), not the float32 \(3, 4\)"),
        (saved(np.asfortranarray(VECTORS)), "of its manifest"),
        (saved(VECTORS.astype(np.float64)), "holds float64"),
        (LARGE, r"holds float32 \(3000000000, 4\)"),
        (saved(VECTORS)[:-1], "not as many bytes"),
        (saved(VECTORS) + b"x", "not as many bytes"),
        (saved(np.array([[print] * 4] * 3)), "holds object"),
    ],
)
def test_refuses_every_other_content(tmp_path, content, message):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_array(tmp_path / "a.npy", (3, 4))
