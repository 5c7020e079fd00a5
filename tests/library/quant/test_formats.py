"""Laws of quantized weights: where they lie, what they weigh, and what a model makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch

from prompteol_jax import Embedder, models, nn
from prompteol_jax.lora import lora as adapters
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.models.llama import LlamaConfig
from prompteol_jax.ops import einsum, nf4
from prompteol_jax.quant import formats as quant
from prompteol_jax.weights import load

SEVEN_B = LlamaConfig(L=32, D=4096, N=32, K=32, H=128, F=11008, V=32000, P=2048)
SIZES = {"D": 64, "N": 4, "H": 24, "F": 176, "E": 128}


def place(kind, dims, inputs, w, mesh=(1, 1), **settings):
    sizes = SIZES | dict(zip(dims, w.shape[-len(dims) :], strict=True))
    mesh = make_mesh(mesh)
    leaf = quant.placeholder(kind, dims, inputs, sizes, mesh, **settings)
    stacked = leaf.shape != leaf.item
    named = [("w", layer) for layer in w] if stacked else [("w", w)]
    return load.place_quantized(leaf, named, stacked=stacked)


def drawn(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def by_bitsandbytes(matrix):
    """Quantize to nf4 and back, as one row: where rows are not whole blocks, its CPU code errs."""
    import bitsandbytes.functional as bnb  # takes seconds

    codes, state = bnb.quantize_4bit(
        matrix.reshape(1, -1), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return bnb.dequantize_4bit(codes, state).reshape(matrix.shape)


@pytest.mark.parametrize(
    ("dims", "inputs", "shape"),
    [
        ("FD", "D", (176, 64)),
        ("DF", "F", (64, 176)),
        ("DNH", "NH", (64, 4, 24)),
        ("DF", "F", (3, 5)),
    ],
)
def test_dequantized_weights_are_those_of_bitsandbytes(dims, inputs, shape):
    import bitsandbytes.functional as bnb  # takes seconds

    w = drawn(*shape)
    matrix = torch.tensor(w.reshape(shape[0], -1))
    theirs = by_bitsandbytes(matrix).numpy().reshape(shape)
    ours = jax.jit(lambda leaf: leaf.dequantize(jnp.float32))(place("nf4", dims, inputs, w))
    np.testing.assert_allclose(ours, theirs, rtol=3e-7, atol=1e-9)
    int8 = place("int8", dims, inputs, w).dequantize(jnp.float32)
    codes, peaks, _ = bnb.int8_vectorwise_quant(matrix)
    theirs = bnb.int8_vectorwise_dequant(codes, peaks).numpy().reshape(shape)
    np.testing.assert_allclose(int8, theirs, rtol=3e-7)


@pytest.mark.parametrize(
    ("dims", "inputs", "mesh", "cut"),
    [
        ("FD", "D", (1, 2), ("model", None)),
        ("DF", "F", (1, 2), (None, "model")),  # 2 shards of 128
        ("DF", "F", (1, 8), (None, None)),  # 8 shards of 32
        ("NHD", "D", (1, 4), ("model", None)),
        ("DNH", "NH", (1, 2), (None, None)),  # 2 shards of 160
        ("DNH", "NH", (1, 5), (None, "model")),  # 5 shards of 64
    ],
)
def test_no_block_is_cut_and_what_is_cut_dequantizes_the_same(dims, inputs, mesh, cut):
    sizes = {"D": 128, "F": 256, "N": 20, "H": 16} if "F" in dims or mesh[1] == 5 else None
    sizes = sizes or {"D": 128, "N": 4, "H": 80}
    w = drawn(2, *(sizes[letter] for letter in dims))
    made = place("nf4", dims, inputs, w, mesh, layers=2)
    for name in ("codes", "scale_codes"):
        assert made.parts()[name].sharding.spec == jax.sharding.PartitionSpec(None, *cut)
    assert made.codes.sharding.shard_shape(made.codes.shape)[-1] % (nf4.BLOCK // 2) == 0
    assert made.steps.is_fully_replicated
    assert made.offset.is_fully_replicated
    one = place("nf4", dims, inputs, w, layers=2)
    for name, part in one.parts().items():
        np.testing.assert_array_equal(part, made.parts()[name])
    np.testing.assert_array_equal(one.dequantize_layers(), made.dequantize_layers())


@pytest.mark.parametrize("kind", quant.KINDS)
@pytest.mark.parametrize(
    ("dims", "inputs", "shape", "mesh"),
    [
        ("FD", "D", (128, 64), (8, 1)),
        ("FD", "D", (128, 128), (2, 4)),
        ("DF", "F", (64, 256), (4, 2)),  # columns over model
        ("NHD", "D", (4, 24, 64), (8, 1)),  # rows within a head
        ("DNH", "NH", (64, 4, 24), (2, 1)),  # blocks over two rows: not sharded
        ("FD", "D", (6, 64), (4, 1)),  # rows that do not divide
    ],
)
def test_a_weight_on_use_is_the_dequantized_one(kind, dims, inputs, shape, mesh):
    w = drawn(*shape)
    sharded = place(kind, dims, inputs, w, mesh, fsdp=True)
    with jax.set_mesh(make_mesh(mesh)):
        found = jax.jit(lambda w: w.on_use(dims, jnp.float32, fsdp=True))(sharded)
    whole = jax.jit(lambda w: w.dequantize(jnp.float32))(place(kind, dims, inputs, w))
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("kind", "dtype", "limit"), [("nf4", "bfloat16", 3.7e9), ("nf4", "float32", 4.2e9)]
)
@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_a_7b_base_takes_at_most_4_2_gb(kind, dtype, limit, mesh):
    model = build.abstract_decoder(SEVEN_B, make_mesh(mesh), dtype=jnp.dtype(dtype), quantize=kind)
    held = jax.tree.leaves(model)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in held)
    assert 3.3e9 < total <= limit
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in held]
    device = sum(
        int(np.prod(s)) * leaf.dtype.itemsize for s, leaf in zip(shards, held, strict=True)
    )
    assert device <= total / mesh[1] * 1.01


def test_only_linear_layers_are_quantized_and_paths_stay():
    mesh = make_mesh((1, 1))
    whole = build.abstract_decoder(SEVEN_B, mesh, dtype=jnp.float32)
    small = build.abstract_decoder(SEVEN_B, mesh, dtype=jnp.float32, quantize="nf4")
    ours = build.leaves(small)
    assert {path: leaf.shape for path, leaf in ours.items()} == {
        path: leaf.shape for path, leaf in build.leaves(whole).items()
    }
    kept = {path for path, leaf in ours.items() if not isinstance(leaf, quant.Quantized)}
    assert {path.rpartition(".")[2] for path in kept} == {"tokens", "scale"}


@pytest.mark.parametrize(
    "name", ["opt-350m-tiny", "llama-tiny", "olmo2-tiny", "phi3-tiny", "qwen3-tiny"]
)
def test_the_layers_are_those_that_transformers_gives_to_bitsandbytes(name):
    """All but the head: OPT-350m's projections in and out too."""
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    theirs = oracle.build(name)
    skipped = get_keys_to_not_convert(theirs)
    wanted = {
        path.removeprefix("model.")
        for path, module in theirs.named_modules()
        if isinstance(module, torch.nn.Linear) and should_convert_module(path, skipped)
    }
    config = models.FAMILIES[name.split("-")[0]][0].from_hf(theirs.config.to_dict())
    mesh = make_mesh((1, 1))
    model = build.abstract_decoder(config, mesh, dtype=jnp.float32, quantize="nf4")
    ours = set()
    for move in build.weight_table(config, model):
        leaf = build.leaves(model)[move.target.replace("block.", "last.")]
        if isinstance(leaf, quant.Quantized):
            layers = range(config.L) if "{l}" in move.source else [0]
            ours |= {move.source.removesuffix(".weight").format(l=layer) for layer in layers}
    assert ours == wanted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_with_a_quantized_weight_and_its_gradient_are_those_of_the_whole_one(dtype):
    w = place("nf4", "FD", "D", drawn(128, 64))
    x, dy = jnp.asarray(drawn(3, 5, 64), dtype), jnp.asarray(drawn(3, 5, 128))
    y, pull = jax.vjp(lambda x: nn.frozen_dot("BTD,FD->BTF", x, w), x)
    whole = w.dequantize(x.dtype)
    same, whole_pull = jax.vjp(lambda x: einsum.dot("BTD,FD->BTF", x, whole), x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(pull(dy)[0], whole_pull(dy)[0])
    kept = jax.tree.leaves(jax.tree.map(jnp.shape, pull))
    assert max(leaf.size for leaf in jax.tree.leaves(pull)) == w.codes.size, kept


BASES = (
    *("opt-350m-tiny", "llama-odd-tiny", "mistral-tiny", "qwen2-tiny", "qwen3-odd-tiny"),
    *("gemma-tiny", "gemma2-tiny", "gemma3-tiny", "olmo2-tiny", "olmo3-tiny", "phi3-tiny"),
)
# Phi's fused matrices divide no group of scales, as in every published one.
WHOLE_GROUPS = dict(hidden_size=128, intermediate_size=128, num_key_value_heads=4)


@pytest.mark.usefixtures("coarse")
@pytest.mark.fast("opt-350m-tiny")
@pytest.mark.parametrize("name", BASES)
def test_an_nf4_model_is_that_of_transformers_with_the_weights_of_bitsandbytes(
    name, tokenizers, texts, tmp_path
):
    theirs = oracle.build(name, **(WHOLE_GROUPS if name == "phi3-tiny" else {}))
    oracle.write(theirs, tmp_path, tokenizers(name))
    with torch.no_grad():
        for path, module in theirs.named_modules():
            if isinstance(module, torch.nn.Linear) and path != "lm_head":
                module.weight.copy_(by_bitsandbytes(module.weight.data))
    texts = texts[:40]
    wanted = oracle.run(theirs, oracle.ids(tmp_path, [oracle.EOL.format(t) for t in texts])).vectors
    ours = Embedder.from_pretrained(str(tmp_path), dtype="float32", quantize="nf4")
    oracle.assert_close(ours.encode(texts), wanted)


@pytest.mark.usefixtures("coarse")
@pytest.mark.slow
@pytest.mark.parametrize("kind", quant.KINDS)
def test_vectors_are_equal_on_every_mesh(kind, checkpoints, texts):
    folder = str(checkpoints("tinystories-656k"))

    def vectors(mesh):
        embedder = Embedder.from_pretrained(folder, dtype="float32", quantize=kind, mesh=mesh)
        return embedder.encode(texts[:40])

    one = vectors("1x1")
    for mesh in ("4x2", "2x4"):
        np.testing.assert_allclose(vectors(mesh), one, rtol=0, atol=1e-5)


def test_merging_makes_a_quantized_base_whole_and_adds_the_update(decoders):
    config, plain = decoders("opt-350m")
    mesh = make_mesh((1, 1))
    empty = build.abstract_decoder(config, mesh, dtype=jnp.float32, quantize="int8")

    def fill(path, leaf):
        w = np.asarray(build.leaves(plain)[path])
        if not isinstance(leaf, quant.Quantized):
            return jnp.asarray(w)
        stacked = path.startswith("blocks.")
        named = [(path, layer) for layer in (w if stacked else [w])]
        return load.place_quantized(leaf, named, stacked=stacked)

    base = build.fill(empty, {p: fill(p, leaf) for p, leaf in build.leaves(empty).items()})
    lora = adapters.LoraConfig(rank=2, targets=("fc1",))
    model = adapters.add_lora(base, config, lora, mesh, jax.random.key(0))
    model.last.mlp.up.lora.b.set_value(jnp.ones_like(model.last.mlp.up.lora.b[...]))
    merged = build.leaves(adapters.merge_lora(model))
    assert {path: leaf.dtype for path, leaf in merged.items()} == {
        path: leaf.dtype for path, leaf in build.leaves(plain).items()
    }
    last = base.last.mlp.up.w.get_value().dequantize(jnp.float32)
    np.testing.assert_allclose(
        merged["last.mlp.up.w"], last + model.last.mlp.up.lora.product(), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_array_equal(
        merged["blocks.attention.q.w"], base.blocks.attention.q.w.get_value().dequantize_layers()
    )


@pytest.mark.parametrize("kind", quant.KINDS)
def test_a_quantized_model_lowers_for_tpu_and_cuda_and_its_codes_stay_codes(kind):
    config = LlamaConfig(L=3, D=128, N=4, K=2, H=32, F=256, V=64, P=64)
    mesh = make_mesh((1, 1))
    model = build.abstract_decoder(config, mesh, dtype=jnp.bfloat16, quantize=kind)
    ids_BT = jax.ShapeDtypeStruct((4, 16), jnp.int32)
    rows = Rows(ids_BT, jax.ShapeDtypeStruct((4, 1), jnp.int32))
    with jax.set_mesh(mesh):
        traced = jax.jit(lambda model, rows: model(rows)).trace(model, rows)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "2x256x64xui8" in text if kind == "nf4" else "2x256x128xi8" in text
