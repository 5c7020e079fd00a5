"""A file is the old one or the new one, whole."""

import errno
import hashlib
import os
import subprocess
import sys

import pytest

from prompteol_jax.errors import CannotWrite
from prompteol_jax.storage import atomic

pytestmark = pytest.mark.unit


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


def test_a_full_disk_is_told_by_path_and_leaves_nothing(tmp_path):
    def fill(file):
        file.write(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a"
    with pytest.raises(CannotWrite, match=rf"^{path} could not be written: No space left on dev"):
        atomic.write_whole(path, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "a")
    (tmp_path / "folder").mkdir()
    atomic.write_whole(tmp_path / "link", lambda file: file.write(b"linked"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "a").read_bytes() == b"linked"
    code = (
        "from pathlib import Path\nfrom prompteol_jax.storage import atomic\n"
        "atomic.write_whole(Path('/dev/stdout'), lambda file: file.write(b'shown'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"shown"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    atomic.prepare(tmp_path / "new" / "a.json", None)
    assert (tmp_path / "new").is_dir()
    with pytest.raises(IsADirectoryError, match=f"found a folder: {tmp_path}"):
        atomic.prepare(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="file/a.json could not be written: "):
        atomic.prepare(tmp_path / "file" / "a.json")
    monkeypatch.setattr(atomic.os, "access", lambda path, mode: path != tmp_path / "new")
    with pytest.raises(CannotWrite, match="new/b.json cannot be written; give a file that can be"):
        atomic.prepare(tmp_path / "file", tmp_path / "new" / "b.json")


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path):
    path = tmp_path / "a"

    def write(file):
        file.write(b"outer")
        atomic.write_whole(path, lambda inner: inner.write(b"inner"))

    atomic.write_whole(path, write)
    assert path.read_bytes() == b"outer"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs setpriv's user")
def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from prompteol_jax.storage import atomic\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: atomic.write_whole(Path(sys.argv[1]), lambda file: file.write(b'x'))\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path / 'a'} could not be written: Permission denied\n"
