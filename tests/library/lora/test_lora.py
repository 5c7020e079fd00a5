"""Laws of low-rank adapters that hold without any file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from prompteol_jax import nn
from prompteol_jax.lora import lora as adapters
from prompteol_jax.lora.lora import LoraConfig
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops import dropout

PART = dict.fromkeys("qkvo", "attention") | {"up": "mlp", "down": "mlp", "gate": "mlp"}


@pytest.mark.parametrize("name", ["opt-350m", "llama"])
def test_a_fresh_adapter_changes_nothing_and_is_drawn_as_peft_draws_it(name, decoders):
    config, model = decoders(name)
    lora = LoraConfig(rank=5)
    adapted = adapters.add_lora(model, config, lora, make_mesh((1, 1)), jax.random.key(0))
    drawn = {p: np.asarray(a) for p, a in build.leaves(adapted).items() if ".lora." in p}
    assert all(array.dtype == np.float32 for array in drawn.values())
    assert not any(array.any() for path, array in drawn.items() if path.endswith(".b"))
    widths = {"q": 32, "k": 32, "v": 32, "o": config.sizes["N"] * config.sizes["H"], "up": 32}
    for layer, width in (widths | {"down": 64}).items():
        a = drawn[f"blocks.{PART[layer]}.{layer}.lora.a"]
        assert a.shape[:2] == (2, 5)
        assert 0.9 * width**-0.5 < np.abs(a).max() <= width**-0.5
        assert (a[0] != a[1]).all()
    adapted_projections = {
        p.split(".")[1] for p in drawn if p.startswith(("embedding", "final_norm"))
    }
    assert adapted_projections == ({"project_in", "project_out"} if name == "opt-350m" else set())
    assert adapters.lora_config(adapted, config) == dataclasses.replace(
        lora, targets=adapters.lora_config(adapted, config).targets
    )


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank():
    assert LoraConfig(rank=64, alpha=16.0).scale == 0.25
    assert LoraConfig(rank=64, alpha=16.0, rslora=True).scale == 2.0


@pytest.mark.parametrize("targets", [("q_proj",), ("fc1", "out_proj"), ("project_out",)])
def test_only_the_layers_that_are_named_are_adapted(targets, decoders):
    config, model = decoders("opt-350m")
    mesh = make_mesh((1, 1))
    adapted = adapters.attach(model, config, LoraConfig(rank=2, targets=targets), mesh)
    layers = {path.split(".lora.")[0] for path in build.leaves(adapted) if ".lora." in path}
    names = {"q_proj": "q", "fc1": "up", "out_proj": "o"}
    found = [names[t] for t in targets if t in names]
    blocks = {f"{b}.{PART[name]}.{name}" for name in found for b in ("blocks", "last")}
    assert layers == (blocks or {"final_norm.project_out"})
    assert not any(".lora." in path for path in build.leaves(model))


def test_an_update_is_its_product_and_drops_out_its_input_token_by_token(decoders):
    config, model = decoders("opt")
    lora = LoraConfig(rank=2, dropout=0.5, targets=("q_proj",))
    model = adapters.attach(model, config, lora, make_mesh((1, 1)))
    update, rng = model.last.attention.q.lora, np.random.default_rng(0)
    for factor in (update.a, update.b):
        factor.set_value(jnp.asarray(rng.normal(size=factor.shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(3, 5, 32)), jnp.float32)
    by_hand = np.einsum("BTD,ID->BTI", x, np.asarray(update.product())).reshape(3, 5, 4, 8)
    np.testing.assert_allclose(update(x, None), by_hand, rtol=1e-4, atol=1e-4)
    keys = dropout.token_keys(jax.random.key(0), *jnp.indices((3, 5)))
    dropped = update(x, keys)
    np.testing.assert_array_equal(
        update(x[1:], jax.tree.map(lambda word: word[1:], keys)), dropped[1:]
    )
    assert np.abs(np.asarray(dropped) - by_hand).max() > 0.1


@pytest.mark.wide
@pytest.mark.fast("full")
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_bfloat16_factors_of_scanned_layers_get_gradients(remat, decoders):
    config, model = decoders("llama")
    mesh = make_mesh((1, 1))
    model = adapters.add_lora(model, config, LoraConfig(rank=2), mesh, jax.random.key(0))
    leaves = {
        path: leaf.astype(jnp.bfloat16) if ".lora." in path else leaf
        for path, leaf in build.leaves(model).items()
    }
    graph, factors, frozen = nnx.split(build.fill(model, leaves), nn.Lora, ...)
    rows = Rows(jnp.arange(10).reshape(2, 5), jnp.array([[4], [3]]))

    def total(factors):
        return nnx.merge(graph, factors, frozen)(rows, remat=remat).sum()

    gradients = build.leaves(nnx.merge(graph, jax.jit(jax.grad(total))(factors), frozen))
    found = [path for path, leaf in gradients.items() if path.endswith(".lora.b")]
    assert all(np.abs(gradients[path]).max() > 0 for path in found)
    assert any(path.startswith("blocks.") for path in found)
