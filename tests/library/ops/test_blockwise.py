"""Laws of long rows: block by block is the same as all at once, in memory that grows with T."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.encoding import runners
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import context as model_context
from prompteol_jax.models import initial
from prompteol_jax.models.decoder import Rows
from prompteol_jax.models.gemma2 import Gemma2Config
from prompteol_jax.models.llama import LlamaConfig
from prompteol_jax.models.opt import OptConfig
from prompteol_jax.ops import attention, blockwise
from prompteol_jax.ops import context as ops_context
from prompteol_jax.ops.context import AttentionContext, AttentionSpec, visible
from prompteol_jax.ops.scan import Saved

B, C, N, K, H = 2, 3, 4, 2, 8
T = 11
SPEC, CAPPED = AttentionSpec(H**-0.5), AttentionSpec(0.5, softcap=2.0)
START_BT = jnp.array([[0] * 3 + [3] * 8, [0] * 2 + [2] * 4 + [6] * 5])
HEAD_BT = jnp.array([[2] * 5 + [5] * 6, [2] * 6 + [6] * 5])  # two tokens of all, then sentences


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


QKV = draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
PREFIX = draw(C, K, H, seed=3), draw(C, K, H, seed=4)


def surroundings(start=None, window=None, offset=0, **more):
    """What a layer sees of rows, once with their mask and once without."""
    position_BT = offset + jnp.arange(T)[None] - (0 if start is None else start)
    mask = visible(T, None, start, more.get("prefix_tokens", 0))
    whole = AttentionContext(
        mask, position_BT=position_BT, segment_start_BT=start, window=window, **more
    )
    return whole, dataclasses.replace(whole, mask_BQT=None)


CASES = {
    "rows": (None, SPEC, {}),
    "prefix": (PREFIX, SPEC, {}),
    "padded prefix": (PREFIX, SPEC, dict(prefix_mask_C=jnp.array([True, True, False]))),
    "window and prefix": (PREFIX, SPEC, dict(window=4, offset=C)),
    "narrow window": (None, SPEC, dict(window=1)),
    "window and softcap": (None, CAPPED, dict(window=2)),
    "a window above every distance": (None, SPEC, dict(window=np.iinfo(np.int32).max)),
    "packed": (None, SPEC, dict(start=START_BT)),
    "packed, prefix, window, softcap": (
        PREFIX,
        CAPPED,
        dict(start=START_BT, window=3, offset=C),
    ),
    "prefix in rows": (None, SPEC, dict(start=HEAD_BT, prefix_tokens=2, offset=2)),
    "prefix in rows and window": (
        None,
        SPEC,
        dict(start=HEAD_BT, prefix_tokens=2, offset=2, window=4),
    ),
    "empty prefix": (tuple(x[:0] for x in PREFIX), SPEC, {}),
}


SIZES = {"queries over keys": (4, 3), "keys over queries": (2, 8), "one block": (16, 16)}


@pytest.mark.first(
    "prefix-queries over keys",
    "packed, prefix, window, softcap-queries over keys",
    "window and prefix-keys over queries",
)
@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        *((case, "queries over keys") for case in CASES),
        *(("window and prefix", sizes) for sizes in list(SIZES)[1:]),
    ],
)
def test_blocks_give_the_values_and_gradients_of_whole_rows(case, sizes, monkeypatch):
    prefix, spec, more = CASES[case]
    whole, blocks = surroundings(**more)

    def both(context):
        def run(qkv, prefix):
            return attention.attend(*map(Saved, qkv), context, spec, prefix)

        @jax.jit
        def with_gradients(qkv, prefix):
            y, pull = jax.vjp(run, qkv, prefix)
            return y, pull(jnp.cos(y))

        return jax.tree.leaves(with_gradients(QKV, prefix))

    expected = both(whole)
    monkeypatch.setattr(attention, "LONG", T - 1)
    monkeypatch.setattr(blockwise, "QUERIES", SIZES[sizes][0])
    monkeypatch.setattr(blockwise, "KEYS", SIZES[sizes][1])
    for found, there in zip(both(blocks), expected, strict=True):
        np.testing.assert_allclose(found, there, atol=3e-6)


@pytest.mark.parametrize("case", ["window and prefix", "packed, prefix, window, softcap"])
def test_the_last_tokens_of_a_row_without_a_mask_see_what_they_see_with_one(case):
    prefix, spec, more = CASES[case]
    last_BS = jnp.array([[2, 10], [5, 10]])
    found = []
    for context in surroundings(**more):
        queries = context.of_queries(last_BS)
        q = queries.queries(QKV[0])
        found.append(attention.attend(Saved(q), *map(Saved, QKV[1:]), queries, spec, prefix))
    np.testing.assert_array_equal(*found)


def test_values_of_bfloat16_are_those_of_float32_up_to_its_rounding(monkeypatch):
    _, context = surroundings()
    low = [Saved(x.astype(jnp.bfloat16)) for x in QKV]
    expected = attention.attend(*map(Saved, QKV), context, SPEC, None)
    monkeypatch.setattr(attention, "LONG", T - 1)
    y = attention.attend(*low, context, SPEC, None)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=3e-2)


LONG = 4096
MODELS = {
    "opt": OptConfig(L=3, D=32, N=4, F=64, V=60, P=LONG, E=32),
    "llama-gqa": LlamaConfig(L=3, D=32, N=4, F=64, V=60, P=LONG, K=2, H=8),
    "gemma2": Gemma2Config(
        **dict(L=3, D=32, N=4, F=64, V=60, P=LONG, K=2, H=8, query_scalar=8),
        window_L=(700, None, 700),
    ),
}


def model_of(config):
    return initial.random_decoder(config, make_mesh((1, 1)), jax.random.key(0), dtype="float32")


def encode(model, ids_BT, last):
    rows = Rows(ids_BT, np.array(last)[:, None])
    return np.asarray(jax.jit(model)(rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_4096_tokens_block_by_block_as_all_at_once(name, monkeypatch):
    model = model_of(MODELS[name])
    ids_BT = np.random.default_rng(0).integers(3, 60, (1, LONG))
    blocks = encode(model, ids_BT, [LONG - 1])
    for module in (attention, ops_context, model_context):
        monkeypatch.setattr(module, "LONG", LONG)
    np.testing.assert_allclose(blocks, encode(model, ids_BT, [LONG - 1]), atol=1e-5)


@pytest.mark.slow
def test_a_needle_at_any_position_changes_the_vector_and_padding_never_does():
    model, T = model_of(MODELS["llama-gqa"]), 1600
    hay = np.random.default_rng(0).integers(3, 60, (1, T))
    rows = np.repeat(hay, 8, 0)
    needles = [0, 255, 256, 700, 1023, 1024, 1498]
    rows[np.arange(1, 8), needles] = (rows[np.arange(1, 8), needles] - 2) % 57 + 3
    last = [1499] * 8
    plain, *changed = encode(model, rows, last)[:, 0]
    assert all(np.abs(z - plain).max() > 1e-6 for z in changed)
    rows[:, 1500:] = 7
    np.testing.assert_array_equal(encode(model, rows, last)[:, 0], [plain, *changed])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_memory_of_the_compiled_program_grows_linearly_with_the_tokens_of_a_row(name):
    lengths = (2048, 4096, 8192, 16384)
    config = dataclasses.replace(MODELS[name], P=lengths[-1])
    model = model_of(config)

    def temporary(T):
        shapes = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (T, 1))
        compiled = runners.encode.lower(model, Rows(*shapes)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    bytes_n = np.array([temporary(T) / T for T in lengths])  # a token
    assert (bytes_n < 1.5 * bytes_n[0]).all()  # a T x T array would multiply the last one by 8
