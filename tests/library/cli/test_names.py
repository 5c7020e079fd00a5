"""A name that another package takes is told; a checkout and a clean installation say nothing."""

from __future__ import annotations

from importlib import metadata
from pathlib import PurePosixPath
from types import SimpleNamespace

import pytest

from prompteol_jax.cli import names

pytestmark = pytest.mark.unit


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder of installed packages that holds ours, and a way to add files of others."""
    own = ["prompteol_jax/__init__.py", "train/__init__.py", "train/losses.py", "eval/sts/a.py"]
    own += ["train/data/nli.py"]
    root = tmp_path / "site-packages"

    def add(*files, record=()):
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()

        found = SimpleNamespace(
            files=[PurePosixPath(name) for name in record or own],
            locate_file=lambda name: root / name,
        )
        monkeypatch.setattr(metadata, "distribution", lambda name: found)

    add(*own)
    return add


def test_only_files_of_others_are_told(installed):
    installed("train/__pycache__/losses.pyc", "train/data/__pycache__/nli.pyc")
    assert names.taken() == []
    installed("train/trainer.py", "eval/metrics/__init__.py")
    first, second = names.taken()
    assert "has files in `train/` too (train/trainer.py)" in first
    assert "has files in `eval/` too (eval/metrics)" in second


def test_a_checkout_and_no_installation_say_nothing(installed, monkeypatch):
    installed("train/trainer.py", record=["__editable__.prompteol_jax.pth"])
    assert names.taken() == []

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert names.taken() == []
