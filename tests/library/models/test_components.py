"""Each part of a family's last layer is that of transformers: a broken weight says where."""

import functools

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.ops.rope import apply_rope
from prompteol_jax.ops.scan import Saved

NAMES = (
    *("opt-tiny", "opt-350m-tiny", "llama-odd-tiny", "llama3-tiny"),
    *("gemma-tiny", "gemma2-tiny", "gemma3-tiny", "gemma3-untied-tiny"),
    *("mistral-tiny", "olmo2-tiny", "olmo3-tiny", "phi3-tiny", "phi3-long-tiny"),
    *("qwen2-tiny", "qwen3-tiny", "qwen3-odd-tiny"),
)
FIRST = ("opt-350m-tiny", "llama-odd-tiny", "gemma3-tiny", "olmo2-tiny", "phi3-tiny")
B, T = 2, 20
IDS_BT = np.random.default_rng(0).integers(0, 30000, (B, T)).astype(np.int32)


class Pair:
    """A model of transformers, the same one here, and what their last layers see."""

    def __init__(self, name, folder):
        self.name, self.torch = name, oracle.build(name)
        oracle.write(self.torch, folder, None)
        config = build.read_config(folder)
        self.ours = build.load_decoder(folder, config, make_mesh((1, 1)), dtype=jnp.float32)
        body = self.torch.model
        self.body = getattr(body, "decoder", body)
        self.layer, self.block = self.body.layers[-1], self.ours.last
        rows = Rows(jnp.asarray(IDS_BT), jnp.full((B, 1), T - 1))
        self.x0_BTD, context = self.ours.begin(rows, 0)
        self.context = context.of_layer(self.ours.layers.info(config.L - 1))
        x_BTD = np.random.default_rng(1).normal(size=(B, T, config.D))
        self.x_BTD = jnp.asarray(x_BTD, jnp.float32)

    @property
    def is_opt(self):
        return self.name.startswith("opt")

    def torch_sees(self):
        """Return the keywords of transformers' layer: its mask, and the rope of every position."""
        import torch

        distance = torch.arange(T)[:, None] - torch.arange(T)
        of_all = getattr(self.torch.config, "sliding_window", None)
        window = vars(self.layer.self_attn).get("sliding_window", of_all) or T
        seen = (distance >= 0) & (distance < window)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
        if self.is_opt:
            return dict(attention_mask=mask)
        return dict(attention_mask=mask, position_embeddings=self.torch_rope())

    def torch_rope(self):
        import torch

        kinds = [getattr(self.torch.config, "layer_types", [None])[-1]]
        kinds = kinds if hasattr(self.body.rotary_emb, "layer_types") else []
        return self.body.rotary_emb(torch.zeros(1), torch.arange(T)[None], *kinds)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return functools.cache(lambda name: Pair(name, tmp_path_factory.mktemp("components")))


def concatenated(parts):
    import torch

    return torch.cat(parts, -1)


def first(result):
    return result[0] if isinstance(result, tuple) else result


def embedding(pair, x):
    ids = np.asarray(IDS_BT, np.int64)
    if not pair.is_opt:
        return pair.x0_BTD, pair.body.embed_tokens(x.new_tensor(ids).long())
    words = pair.body.embed_tokens(x.new_tensor(ids).long())
    words = words if pair.body.project_in is None else pair.body.project_in(words)
    everywhere = x.new_ones(B, T).long()
    return pair.x0_BTD, words + pair.body.embed_positions(everywhere, 0)


def rope(pair, x):
    from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb  # a part of a head too

    H = pair.ours.layers.H
    heads = x[..., : 2 * H].reshape(B, T, 2, H)
    theirs, _ = apply_rotary_pos_emb(*[heads.transpose(1, 2)] * 2, *pair.torch_rope())
    return apply_rope(jnp.asarray(heads.numpy()), pair.context.rope), theirs.transpose(1, 2)


def attention_norm(pair, x):
    layer = pair.layer
    theirs = layer.self_attn_layer_norm if pair.is_opt else layer.input_layernorm
    return pair.block.attention_norm(pair.x_BTD), theirs(x)


def mlp_norm(pair, x):
    layer = pair.layer
    names = ("final_layer_norm", "pre_feedforward_layernorm", "post_attention_layernorm")
    theirs = next(getattr(layer, name) for name in names if hasattr(layer, name))
    return pair.block.mlp_norm(pair.x_BTD), theirs(x)


def post_norms(pair, x):
    layer, block = pair.layer, pair.block
    theirs = [layer.post_attention_layernorm(x), layer.post_feedforward_layernorm(x)]
    norms = (block.attention_post_norm, block.mlp_post_norm)
    return np.concatenate([norm(pair.x_BTD) for norm in norms], -1), concatenated(theirs)


def head_norms(pair, x):
    ours, theirs = pair.block.attention, pair.layer.self_attn
    norms = [(ours.q_norm, theirs.q_norm), (ours.k_norm, theirs.k_norm)]
    wide = [x[..., : norm.weight.numel()] for _, norm in norms]  # of a head, or of all joined
    each = list(zip(wide, norms, strict=True))
    found = [norm(jnp.asarray(y.numpy())) for y, (norm, _) in each]
    return np.concatenate(found, -1), concatenated([norm(y) for y, (_, norm) in each])


def attention(pair, x):
    ours, _ = pair.block.attention(pair.x_BTD, pair.context, None)
    return ours, first(pair.layer.self_attn(x, **pair.torch_sees()))


def mlp(pair, x):
    layer = pair.layer
    theirs = layer.fc2(layer.fc1(x).relu()) if pair.is_opt else layer.mlp(x)
    return pair.block.mlp(pair.x_BTD, pair.context), theirs


def block(pair, x):
    ours, _ = pair.block(Saved(pair.x_BTD), pair.context, None)
    return ours.value, first(pair.layer(x, **pair.torch_sees()))


def final_norm(pair, x):
    if not pair.is_opt:
        return pair.ours.final_norm(pair.x_BTD), pair.body.norm(x)
    theirs = x if pair.body.final_layer_norm is None else pair.body.final_layer_norm(x)
    theirs = theirs if pair.body.project_out is None else pair.body.project_out(theirs)
    return pair.ours.final_norm(pair.x_BTD), theirs


PARTS = (
    *(embedding, rope, attention_norm, head_norms, attention),
    *(mlp_norm, mlp, post_norms, block, final_norm),
)
PRE_NORM = {head_norms, post_norms}
POST_NORM = {attention_norm, mlp_norm}
LACKING = {
    "opt": {rope, head_norms, post_norms},
    **dict.fromkeys(("llama", "mistral", "phi3", "qwen2", "gemma"), PRE_NORM),
    "gemma2": {head_norms},
    "qwen3": {post_norms},
    **dict.fromkeys(("olmo2", "olmo3"), POST_NORM),
}


@pytest.mark.parametrize(
    ("part", "name"),
    [
        pytest.param(part, name, marks=[] if name in FIRST else pytest.mark.wide)
        for name in NAMES
        for part in PARTS
        if part not in LACKING.get(oracle.family_of(name), ())
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_part_is_that_of_transformers(part, name, pairs):
    import torch

    pair = pairs(name)
    with torch.no_grad():
        ours, theirs = part(pair, torch.tensor(np.asarray(pair.x_BTD)))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=2e-5)
