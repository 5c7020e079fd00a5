"""A file is the old one or the new one, whole."""

import hashlib

import pytest

from prompteol_jax.storage import atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    atomic.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        atomic.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    atomic.write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert atomic.sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_a_file_or_folder_that_is_not_there_cannot_be_synced(tmp_path):
    atomic.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        atomic.sync(tmp_path / "none")
