"""Laws of models by name: one place knows what is a folder, what is on the hub, and `tiny`."""

from __future__ import annotations

import pytest

from prompteol_jax.errors import NotFound
from prompteol_jax.models import build, tiny
from prompteol_jax.pretrained import source


def test_tiny_has_no_folder_and_its_own_tokenizer():
    found = source.resolve("tiny")
    assert (found.folder, found.config) == (None, tiny.CONFIG)
    assert found.tokenizer().ids(["A man"])[0].tolist() == (
        tiny.tiny_tokenizer().ids(["A man"])[0].tolist()
    )
    assert source.resolve_config("tiny") == tiny.CONFIG


def test_a_folder_is_read(checkpoints):
    folder = checkpoints("opt-tiny")
    found = source.resolve(str(folder))
    assert (found.folder, found.config) == (folder, build.read_config(folder))
    assert source.resolve_config(str(folder)) == found.config
    assert found.tokenizer().bos_id == 2


def test_a_name_that_is_nothing_is_refused():
    for find in (source.resolve, source.resolve_config):
        with pytest.raises(NotFound, match="neither an existing folder nor a hub name"):
            find("no/such/folder")
