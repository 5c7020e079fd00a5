"""Laws of every reader of foreign files: an answer, or one clear error; never anything else."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import readers
import run
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.errors import UserError
from prompteol_jax.lora.peft import read_adapter_config
from prompteol_jax.models import FAMILIES
from prompteol_jax.models.published import PUBLISHED

CASES = [
    pytest.param(path.parent.name, path, id=f"{path.parent.name}-{path.name}")
    for path in sorted(readers.CORPUS.glob("*/*"))
]


@pytest.mark.parametrize("name", readers.READERS)
def test_every_valid_input_is_read(name: str, tmp_path: Path) -> None:
    reader = readers.READERS[name]
    for content in reader.seeds():
        (tmp_path / reader.file).write_bytes(content)
        reader.read(tmp_path / reader.file)


@pytest.mark.parametrize(("name", "kept"), CASES)
def test_an_input_that_was_once_hard_is_answered_or_refused(
    name: str, kept: Path, tmp_path: Path
) -> None:
    reader = readers.READERS[name]
    path = tmp_path / reader.file
    path.write_bytes(kept.read_bytes())
    try:
        reader.read(path)
    except UserError as error:
        assert len(str(error)) < 10_000
        assert str(error).isprintable() or "\n" in str(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(PUBLISHED)))
def test_a_config_with_any_values_is_read_or_refused(data: st.DataObject, name: str) -> None:
    fields = PUBLISHED[name].to_hf()
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(fields)), VALUES, max_size=4))
    with contextlib.suppress(UserError):
        FAMILIES[fields["model_type"]][0].from_hf(fields | changed)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes_are_no_adapter(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            read_adapter_config(Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", readers.READERS)
def test_a_thousand_damaged_inputs_are_answered_or_refused(name: str) -> None:
    found = run.run(name, 1000, 300.0)
    assert found["faults"] == []
    assert found["peak_mib"] < 1024
    assert found["slowest_s"] < 10
