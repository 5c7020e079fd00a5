"""A server like a corpus has its settings, or says which of them it cannot have."""

from __future__ import annotations

import dataclasses
import json

import pytest

from prompteol_jax.cli.options import check
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.serve.like import filled
from prompteol_jax.serve.options import ServeOptions


@pytest.fixture
def manifest(tmp_path):
    """The manifest of vectors of `tiny` under settings, all else at its default."""

    def write(normalize=False, clean=False, computed=None, **flags):
        options = ServeOptions(model="tiny", **flags)
        own = {"normalize": normalize, "clean": clean, "shard_rows": 16384}
        how = {name: getattr(options, name) for name in ("mesh", "batch_tokens", "plan")}
        content = {"settings": options.work("bfloat16") | own, "computed": how | (computed or {})}
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps(content | {"rows": 0, "width": 128, "shards": []}))
        return path

    return write


def test_every_setting_of_the_corpus_is_taken(manifest):
    flags = dict(template="eol-icl-2.7b", layer=-2, max_tokens=100, batch_tokens=256, mesh="2x1")
    path = manifest(normalize=True, clean=True, **flags)
    for like in (path, path.parent):
        found = filled(ServeOptions(like=like, port=0))
        assert {name: getattr(found, name) for name in flags} == flags
        assert (found.model, found.dtype, found.port) == ("tiny", "bfloat16", 0)
        assert found.clean and not found.raw
        check(dataclasses.replace(found, like=None))
    assert filled(ServeOptions(like=manifest())).raw


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"layer": -3}, r"--layer -3 is not its -2; leave them out"),
        ({"dtype": "float32", "layer": -1}, r"--dtype float32 is not its 'bfloat16'; --layer -1"),
        ({"template": "cot"}, "another run: --prompt was "),
    ],
)
def test_a_flag_that_says_otherwise_is_refused_by_name(manifest, flags, message):
    with pytest.raises(UserError, match=message):
        filled(ServeOptions(like=manifest(layer=-2), **flags))


def test_a_shipped_method_is_taken_by_its_name_and_another_must_be_given(manifest, tmp_path):
    found = filled(ServeOptions(like=manifest(method="attention-sum")))
    assert (found.method, found.template) == ("attention-sum", "eol")
    record = tmp_path / "mine.json"
    record.write_text(json.dumps({"name": "mine", "prompts": ["eol", "cot"]}))
    path = manifest(method=str(record))
    with pytest.raises(UserError, match=r"--method.name was 'mine' and is now \(nothing\)"):
        filled(ServeOptions(like=path))
    assert filled(ServeOptions(like=path, method=str(record))).method == str(record)
    with pytest.raises(UserError, match="--method.collect was"):
        filled(ServeOptions(like=manifest(method="attention-sum"), method=str(record)))


def test_changed_weights_another_plan_and_no_manifest_are_refused(manifest, tmp_path):
    path = manifest()
    content = json.loads(path.read_text())
    content["settings"]["weights"] = {"model.safetensors": "0" * 64}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="--weights"):
        filled(ServeOptions(like=path))
    with pytest.raises(UserError, match="encoded with --plan packed; serve has fixed"):
        filled(ServeOptions(like=manifest(plan="packed")))
    path.write_text("{}")
    with pytest.raises(UserError, match="no manifest of encoded vectors: it has no settings"):
        filled(ServeOptions(like=path))
    with pytest.raises(NotFound, match="no manifest .* of --like"):
        filled(ServeOptions(like=tmp_path / "none"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--model is needed, or --like"),
        ({"model": "tiny", "also": ("icl",)}, "--also icl is not NAME=TEMPLATE"),
        ({"model": "tiny", "also": ("tiny=cot",)}, "--also tiny is served under that name already"),
        ({"model": "tiny", "also": ("a=cot", "a=eol")}, "--also a is served under that name"),
        ({"model": "tiny", "also_method": ("a",)}, "--also-method a is not NAME=METHOD"),
        (
            {"model": "tiny", "also": ("a=cot",), "also_method": ("a=cot",)},
            "--also-method a is served under that name already",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        check(ServeOptions(**flags))
