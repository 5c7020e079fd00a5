"""A file is the old one or the new one, whole."""

import hashlib

import pytest

from prompteol_jax import durable


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    durable.write_whole(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        durable.write_whole(path, fail)
    assert path.read_bytes() == b"old"
    durable.write_whole(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert durable.sha256(path) == hashlib.sha256(b"new").hexdigest()


def test_a_file_or_folder_that_is_not_there_cannot_be_synced(tmp_path):
    durable.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        durable.sync(tmp_path / "none")
