"""Several prompts of one model, each a template or a method, on weights that are loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from prompteol_jax.cli.options import ModelOptions

if TYPE_CHECKING:
    from prompteol_jax.embedder import Embedder

Options = TypeVar("Options", bound=ModelOptions)


def with_prompt(
    options: Options, *, template: str | None = None, method: str | None = None
) -> Options:
    """Return the same flags with a template alone, or with a method, as their prompt."""
    if method is not None:
        return dataclasses.replace(options, method=method, template="eol", pooling="last")
    return dataclasses.replace(options, method=None, template=template or options.template)


def load_several(options: Sequence[ModelOptions], default_dtype: str) -> list[Embedder]:
    """Load a model once, and return an embedder for the prompt of each of these options.

    Each has the bits of `ModelOptions.load`.

    Args:
        options: flags that differ in template and method only.
    Raises: as `ModelOptions.load`.
    """
    from prompteol_jax.methods.library import check_trained_with
    from prompteol_jax.pretrained import source
    from prompteol_jax.pretrained.load import find_adapter

    first = options[0]
    L = source.resolve_config(first.model).L
    deepest = max(range(len(options)), key=lambda n: _depth(options[n], L))
    if first.adapter is not None and not first.any_method:
        adapter = find_adapter(first.adapter)
        for one in options:
            check_trained_with(adapter, one.as_method())
    loaded = options[deepest].load(default_dtype)
    return [
        loaded if n == deepest else _on_weights_of(loaded, one) for n, one in enumerate(options)
    ]


def _depth(options: ModelOptions, L: int) -> tuple[int, bool, bool]:
    """Return how much of a model is needed: its blocks, its final norm; a template alone wins ties.

    Raises: UserError where a method does not fit the model.
    """
    from prompteol_jax.methods import on_model

    record, run = options.record(), options.as_method()
    layer = run.layer if record is None else on_model.layer_to_load(record, L)
    return on_model.blocks_run(run, L), layer is None, record is None


def _on_weights_of(loaded: Embedder, options: ModelOptions) -> Embedder:
    record = options.record()
    if record is not None:
        return loaded.with_method(record)
    # A template needs no fewer blocks than any method, so `loaded` has one as well.
    return loaded.with_template(options.template)
