"""Files are known by all of their content, and a large one is read once while it is unchanged."""

import hashlib
import os

import pytest

from prompteol_jax.storage import atomic, fingerprint

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "_KNOWN", {})
    monkeypatch.setattr(fingerprint, "_LARGE", 4)
    monkeypatch.setattr(fingerprint, "_SETTLED", -1.0)
    return tmp_path / "cache" / "prompteol-jax" / "digests"


def sha(content):
    return hashlib.sha256(content).hexdigest()


def test_a_byte_changed_in_the_middle_changes_the_digest(tmp_path):
    path = tmp_path / "model.safetensors"
    content = bytearray(3 << 20)
    path.write_bytes(content)
    before = fingerprint.file_sha256(path)
    content[len(content) // 2] = 1
    facts = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a copy that keeps times
    assert fingerprint.file_sha256(path) == sha(content) != before


def test_a_large_file_is_read_once_by_all_processes_of_a_machine(tmp_path, cache, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    assert fingerprint.file_sha256(path) == sha(b"content")
    fingerprint._KNOWN.clear()  # another process
    monkeypatch.setattr(atomic, "sha256", None)
    assert fingerprint.file_sha256(path) == sha(b"content")
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"00", b"\xff" * 64, b"z" * 64])
def test_a_damaged_cache_is_not_believed(tmp_path, cache, content):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    fingerprint.file_sha256(path)
    next(cache.iterdir()).write_bytes(content)
    fingerprint._KNOWN.clear()
    assert fingerprint.file_sha256(path) == sha(b"content")


def test_a_file_that_has_just_changed_is_not_kept(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SETTLED", 60.0)
    (tmp_path / "a").write_bytes(b"content")
    fingerprint.file_sha256(tmp_path / "a")
    assert not cache.exists()


def test_files_that_are_not_there_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    found = fingerprint.files_sha256([tmp_path / "a", tmp_path / "b"])
    assert found == {"a": sha(b"content")}
