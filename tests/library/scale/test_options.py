"""Flags of the engine fit together, or the error says which do not."""

from __future__ import annotations

import pytest

from prompteol_jax.cli.encode import EncodeOptions
from prompteol_jax.cli.options import check
from prompteol_jax.errors import UserError
from prompteol_jax.scale.options import pool

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("workers", "expected"),
    [("1", (1, 1)), ("4:64", (4, 64)), ("0", None), ("3:2", None), ("", None), ("-1", None)],
)
def test_a_number_of_workers_or_a_range_is_read(workers, expected):
    assert pool(workers) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"workers": "2", "mixed_workers": True}, "--workers needs --engine ray; --mixed-workers"),
        ({"engine": "ray", "workers": "x"}, "--workers x is neither N nor N:M"),
        ({"engine": "ray", "coordinator": "auto"}, "are two ways to use several machines"),
        ({"engine": "ray", "input": "-"}, "--input - reaches no worker"),
        ({"engine": "ray", "output": "a.npy"}, "--engine ray writes a folder of shards"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"model": "tiny", "input": "texts.txt", "output": "vectors"} | flags
    paths = {name: type(tmp_path)(given[name]) for name in ("input", "output")}
    with pytest.raises(UserError, match=message):
        check(EncodeOptions(**given | paths))
