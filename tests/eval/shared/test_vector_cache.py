"""Kept vectors are the bits that would be computed, and are of the same weights and settings."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from eval.shared import vector_cache
from eval.shared.vector_cache import CachedEncoder, CacheOptions
from prompteol_jax import progress
from prompteol_jax.pretrained.provenance import digest

pytestmark = pytest.mark.unit


class Lengths:
    """Encodes a text as its length; it notes what it is asked for, and may be interrupted."""

    width = 3

    def __init__(self, stop_after=None):
        self.calls, self.stop_after = [], stop_after

    def encode(self, texts, progress=None):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(list(texts))
        return np.array([[len(text), 1 / 3, 0] for text in texts], np.float32)


TEXTS = ["a", "ccc", "bb", "a", "dddd\ud800", "ccc"]


def test_a_second_run_encodes_only_what_is_new_and_gives_the_same_bits(tmp_path):
    first, second = Lengths(), Lengths()
    z_nD = CachedEncoder(first, tmp_path / "f").encode(TEXTS)
    np.testing.assert_array_equal(z_nD, Lengths().encode(TEXTS))
    again = CachedEncoder(second, tmp_path / "f")
    np.testing.assert_array_equal(again.encode([*TEXTS, "new"]), Lengths().encode([*TEXTS, "new"]))
    assert first.calls == [["a", "bb", "ccc", "dddd\ud800"]] and second.calls == [["new"]]
    assert again.found == 4


def test_an_interruption_keeps_what_was_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_cache, "CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Lengths(stop_after=1), tmp_path / "f").encode(TEXTS)
    second = Lengths()
    CachedEncoder(second, tmp_path / "f").encode(TEXTS)
    assert second.calls == [["ccc", "dddd\ud800"]]


def test_progress_is_over_all_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vector_cache, "CHUNK", 1)
    monkeypatch.setattr(progress, "EVERY", 0.0)
    told = Lengths()
    encode = told.encode

    def advancing(texts, progress=None):
        progress(len(texts))
        return encode(texts)

    told.encode = advancing
    CachedEncoder(told, tmp_path / "f").encode(TEXTS)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [f"encode: {n} of 4" for n in range(1, 5)]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"x" * 300])
def test_a_damaged_file_is_encoded_again(tmp_path, damage):
    CachedEncoder(Lengths(), tmp_path / "f").encode(TEXTS)
    (file,) = (tmp_path / "f").glob("*.npz")
    file.write_bytes(file.read_bytes()[: -len(damage) - 1] + damage if damage else b"")
    np.testing.assert_array_equal(
        CachedEncoder(Lengths(), tmp_path / "f").encode(TEXTS), Lengths().encode(TEXTS)
    )


def test_vectors_of_another_width_are_not_used(tmp_path):
    CachedEncoder(Lengths(), tmp_path / "f").encode(TEXTS)
    other = Lengths()
    other.width = 2
    other.encode = lambda texts, progress=None: np.zeros((len(texts), 2), np.float32)
    assert not CachedEncoder(other, tmp_path / "f").encode(TEXTS).any()


def test_the_oldest_folders_make_room_and_a_full_one_takes_no_more(tmp_path, monkeypatch):
    for name in "abc":
        CachedEncoder(Lengths(), tmp_path / name).encode(TEXTS)
    size = sum(path.stat().st_size for path in (tmp_path / "a").glob("*.npz"))
    monkeypatch.setattr(vector_cache, "LIMIT", int(2.5 * size))
    CachedEncoder(Lengths(), tmp_path / "d").encode(TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
    monkeypatch.setattr(vector_cache, "LIMIT", size // 2)
    monkeypatch.setattr(vector_cache, "CHUNK", 1)
    CachedEncoder(Lengths(), tmp_path / "e").encode(TEXTS)
    assert len(list((tmp_path / "e").glob("*.npz"))) < 4


def test_a_disk_that_refuses_does_not_end_the_work(tmp_path, caplog):
    (tmp_path / "f").write_text("a file in the way")
    z_nD = CachedEncoder(Lengths(), tmp_path / "f" / "g").encode(TEXTS)
    np.testing.assert_array_equal(z_nD, Lengths().encode(TEXTS))
    assert "vectors are not kept" in caplog.text


DESCRIBED = {
    "model": {"name": "m", "folder": "/a", "revision": None, "files": {"w": "1"}, "layers": 2},
    "adapter": {"folder": "/b", "revision": None, "files": {"l": "1"}},
    "template": {"name": "eol", "prefix": "p", "suffix": "s"},
    "layer": None,
    "plan": "fixed: 4x8",
    "versions": {"jax": "1"},
}


@pytest.mark.parametrize(
    ("part", "name", "value", "same"),
    [
        ("model", "name", "x", True),
        ("model", "folder", "/c", True),
        ("template", "name", "mine", True),
        ("model", "files", {"w": "2"}, False),
        ("adapter", "files", {"l": "2"}, False),
        ("template", "prefix", "q", False),
        ("versions", "jax", "2", False),
        (None, "layer", 1, False),
        (None, "adapter", None, False),
        (None, "plan", "fixed: 8x8", False),
        (None, "something that is described one day", 1, False),
    ],
)
def test_a_fingerprint_is_of_content_and_not_of_names(part, name, value, same):
    changed = json.loads(json.dumps(DESCRIBED))
    (changed if part is None else changed[part])[name] = value
    assert (digest(changed) == digest(DESCRIBED)) == same
    assert digest(DESCRIBED, "more") != digest(DESCRIBED)


@pytest.mark.parametrize(
    "changes", [{"plan": "packed: 4x8"}, {"model": DESCRIBED["model"] | {"files": {}}}]
)
def test_vectors_that_depend_on_their_company_or_on_no_file_are_not_kept(changes, tmp_path):
    embedder = Lengths()
    embedder.describe = lambda: DESCRIBED | changes
    assert CacheOptions(cache=tmp_path).cached(embedder) is embedder


def test_the_flags_say_where_and_whether(tmp_path):
    embedder = Lengths()
    embedder.describe = lambda: DESCRIBED
    assert CacheOptions(cache=tmp_path, no_cache=True).cached(embedder) is embedder
    CacheOptions(cache=tmp_path / "mine").cached(embedder).encode(TEXTS)
    assert len(list((tmp_path / "mine").glob("*/*.npz"))) == 1
    CacheOptions().cached(embedder).encode(TEXTS)
    assert len(list((tmp_path / "cache" / "prompteol-jax" / "vectors").glob("*/*.npz"))) == 1


@pytest.mark.slow
def test_a_model_is_scored_alike_from_kept_vectors_and_other_weights_are_encoded(data, tmp_path):
    from eval.sts import command as sts

    folder = tmp_path / "model"
    shutil.copytree(data / "weights" / "tinystories-656k", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    asked = sts.StsOptions(
        model=str(folder), data=data / "senteval", split="dev", cache=tmp_path / "kept"
    )
    first, second = sts.run(asked), sts.run(asked)
    assert first["scores"] == second["scores"] == {"STSBenchmark-dev": 38.07}
    np.testing.assert_array_equal(
        *(it["examples"]["STSBenchmark-dev"]["cosine"] for it in (first, second))
    )
    other = sts.run(dataclasses.replace(asked, layer=1))
    assert other["scores"] == {"STSBenchmark-dev": 19.18}
    assert len(list((tmp_path / "kept").iterdir())) == 2
