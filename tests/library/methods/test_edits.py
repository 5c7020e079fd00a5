"""Laws of edits: what a hook of torch does between two blocks, both runners do."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.encoding.layerwise import LayerwiseRunner
from prompteol_jax.encoding.runners import Reading, WholeRunner
from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.pooling import EveryLayer, Mean
from prompteol_jax.models.decoder import Rows

TEXTS = ["A dog runs.", "Two women are playing guitar together", "x", "the man eats"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steer(Edit):
    """Adds a vector to the state of every token before one block."""

    by_D: Any
    before: Any

    def __call__(self, x_BTD, layer, first_BS, last_BS):
        return x_BTD + self.by_D * (layer == self.before)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CopyLast(Edit):
    """Copies the last token's state to the text's first one, from one block on."""

    begin: Any
    tokens: ClassVar[str] = "own"

    def __call__(self, x_BTD, layer, first_BS, last_BS):
        last_BD = jnp.take_along_axis(x_BTD, last_BS[..., None], axis=1)[:, 0]
        return jnp.where(layer >= self.begin, x_BTD.at[:, 0].set(last_BD), x_BTD)


def steer(by_D, before):
    def hook(layer, x_BTD, prefix_tokens):
        return x_BTD + by_D if layer == before else x_BTD

    return hook


def copy_last(begin):
    def hook(layer, x_BTD, prefix_tokens):
        if layer >= begin:
            x_BTD[:, prefix_tokens] = x_BTD[:, -1]
        return x_BTD

    return hook


def with_hooks(folder, hook, prompts, prefix_tokens):
    """The last token's final state of each prompt, `hook` being run before every block."""
    import oracle
    import torch

    model = oracle.load.__wrapped__(folder)
    base = getattr(model.model, "decoder", model.model)
    for number, block in enumerate(base.layers):

        def before(_, inputs, kwargs, number=number):
            x = inputs[0] if inputs else kwargs.pop("hidden_states")
            changed = hook(number, x.clone().numpy(), prefix_tokens)
            return (torch.tensor(changed), *inputs[1:]), kwargs

        block.register_forward_pre_hook(before, with_kwargs=True)
    with torch.no_grad():
        for ids in oracle.ids(folder, prompts):
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            yield out.hidden_states[-1][0, -1].numpy()


BY_D = np.linspace(-1, 1, 64, dtype=np.float32)


@pytest.mark.first("copy-0-opt-tiny")
@pytest.mark.fast(
    "copy-0-opt-tiny",
    "steer-1-opt-tiny",
    "steer-1-llama-gqa-tiny",
    "copy-0-llama-gqa-tiny",
    "copy-1-opt-tiny",
)
@pytest.mark.parametrize("name", ["opt-tiny", "llama-gqa-tiny"])
@pytest.mark.parametrize(
    ("edit", "hook", "says"),
    [
        (Steer(BY_D, 0), steer(BY_D, 0), "; Steer: prefix computed for every text"),
        (Steer(BY_D, 1), steer(BY_D, 1), "; Steer: prefix computed for every text"),
        (CopyLast(1), copy_last(1), ""),
        (CopyLast(0), copy_last(0), ""),
    ],
    ids=["steer-0", "steer-1", "copy-1", "copy-0"],
)
def test_an_edit_is_a_hook_of_torch(edit, hook, says, name, embedders, checkpoints):
    usual = embedders(name)
    embedder = Embedder(usual.pretrained, usual.template, edits=[edit])
    z_nD = embedder.encode(TEXTS)
    prompts = [usual.template.fill(text) for text in TEXTS]
    C = len(usual.prompt.prefix_C)
    expected = list(with_hooks(checkpoints(name), hook, prompts, C))
    np.testing.assert_allclose(z_nD, expected, atol=1e-4)
    assert np.abs(z_nD - usual.encode(TEXTS)).max() > 1e-3
    assert embedder.plan.endswith(says) and (says or ";" not in embedder.plan)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt", "llama"])
def test_both_runners_run_the_same_edits(name, decoders):
    _, model = decoders(name)
    ids_BT = np.random.default_rng(1).integers(0, 60, (4, 12)).astype(np.int32)
    rows = Rows(ids_BT, np.array([[3], [11], [0], [7]], np.int32))
    edits = (Steer(np.linspace(0, 1, 32, dtype=np.float32), 2), CopyLast(1))
    first_BS = np.zeros((4, 1), np.int32)
    for reading in (Reading(EveryLayer(), edits), Reading(Mean(), edits, first_BS)):
        whole, layerwise = (
            runner.encode(rows, runner.prefill(np.arange(5, dtype=np.int32)), reading)
            for runner in (WholeRunner(model), LayerwiseRunner(model))
        )
        np.testing.assert_allclose(layerwise, whole, atol=2e-5)


def test_a_result_names_its_edits_and_their_numbers(embedders):
    tiny = embedders("tiny")
    found = [
        Embedder(tiny.pretrained, "eol", edits=edits).describe()["edits"]
        for edits in ([], [CopyLast(1)], [CopyLast(1)], [CopyLast(2)], [Steer(BY_D, 1)])
    ]
    assert found[0] == [] and found[1] == found[2] != found[3]
    assert [edit["edit"] for edit in (*found[3], *found[4])] == ["CopyLast", "Steer"]


def test_packed_rows_take_no_edits(embedders):
    tiny = embedders("tiny")
    with pytest.raises(ValueError, match="no edits that see one prompt a row: CopyLast"):
        Embedder(tiny.pretrained, "eol", edits=[CopyLast(1)], plan="packed")
