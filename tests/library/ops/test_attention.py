"""Laws of attention: whom a query sees, and that a prefix is as good as tokens before the row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.ops import attention, rope
from prompteol_jax.ops.context import AttentionContext, AttentionSpec, LayerInfo, visible
from prompteol_jax.ops.scan import Saved

B, T, C, N, K, H = 2, 6, 3, 4, 2, 8


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


Q_BTNH, K_BTKH, V_BTKH = draw(B, T, N, H), draw(B, T, K, H, seed=1), draw(B, T, K, H, seed=2)
PREFIX = draw(C, K, H, seed=3), draw(C, K, H, seed=4)
START_BT = jnp.array([[0, 0, 0, 3, 3, 3], [0, 0, 2, 2, 2, 2]])


SPEC = AttentionSpec(H**-0.5)


def attend(q, k, v, mask, prefix=None, spec=SPEC, **context):
    q, k, v = map(Saved, (q, k, v))
    return attention.attend(q, k, v, AttentionContext(mask, **context), spec, prefix)


def by_hand(q, k, v, mask, spec=SPEC):
    """Attention of one head at a time in float64."""
    y = np.zeros(q.shape)
    for b, n in np.ndindex(q.shape[0], q.shape[2]):
        kv_head = n // (q.shape[2] // k.shape[2])
        scores = np.float64(q[b, :, n]) @ np.float64(k[b, :, kv_head]).T * spec.scale
        scores = scores if spec.softcap is None else spec.softcap * np.tanh(scores / spec.softcap)
        p = np.where(mask[b % len(mask)], np.exp(scores), 0)
        y[b, :, n] = p / p.sum(-1, keepdims=True) @ np.float64(v[b, :, kv_head])
    return y


def test_a_query_sees_itself_and_what_is_before_it():
    assert (np.asarray(visible(4)) == np.tril(np.ones((1, 4, 4)))).all()
    chosen = visible(4, jnp.array([[2], [0]]))
    assert chosen.astype(int).tolist() == [[[1, 1, 1, 0]], [[1, 0, 0, 0]]]


def test_a_packed_query_sees_nothing_before_its_sentence():
    mask = visible(T, None, START_BT)
    assert mask[0, 4].tolist() == [False, False, False, True, True, False]
    assert mask[1, 1].tolist() == [True, True, False, False, False, False]
    chosen = visible(T, jnp.array([[4, 1], [5, 1]]), START_BT)
    assert (chosen[0] == mask[0, jnp.array([4, 1])]).all()
    assert (chosen[1] == mask[1, jnp.array([5, 1])]).all()


def test_a_head_is_seen_by_every_sentence_of_its_row_and_sees_only_itself():
    start_BT = jnp.array([[2, 2, 2, 2, 4, 4]])  # two tokens at the head, then two sentences
    mask = np.asarray(visible(T, None, start_BT, prefix_tokens=2))[0].astype(int)
    assert mask[1].tolist() == [1, 1, 0, 0, 0, 0]
    assert mask[3].tolist() == [1, 1, 1, 1, 0, 0]
    assert mask[5].tolist() == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("start_BT", [None, START_BT], ids=["rows", "packed"])
def test_grouped_heads_attend_as_written_out_head_by_head(start_BT):
    mask = visible(T, None, start_BT)
    y = attend(Q_BTNH, K_BTKH, V_BTKH, mask)
    np.testing.assert_allclose(y, by_hand(Q_BTNH, K_BTKH, V_BTKH, np.asarray(mask)), atol=2e-6)


def test_a_prefix_is_the_same_as_tokens_before_every_row():
    wide = [jnp.broadcast_to(p, (B, *p.shape)) for p in PREFIX]
    k, v = (jnp.concatenate(two, axis=1) for two in zip(wide, (K_BTKH, V_BTKH), strict=True))
    mask = visible(C + T, jnp.arange(C, C + T)[None].repeat(B, 0))
    y = attend(Q_BTNH, K_BTKH, V_BTKH, visible(T), PREFIX)
    np.testing.assert_allclose(y, by_hand(Q_BTNH, k, v, np.asarray(mask)), atol=2e-6)


def test_an_empty_prefix_changes_nothing():
    empty = tuple(p[:0] for p in PREFIX)
    mask = visible(T)
    with_empty = attend(Q_BTNH, K_BTKH, V_BTKH, mask, empty)
    np.testing.assert_array_equal(with_empty, attend(Q_BTNH, K_BTKH, V_BTKH, mask))


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["alone", "prefix"])
@pytest.mark.parametrize("place", range(T))
def test_no_gradient_flows_from_a_query_to_what_it_does_not_see(place, prefix):
    mask = visible(T, None, START_BT)

    def loss(k, v):
        return jnp.square(attend(Q_BTNH, k, v, mask, prefix)[:, place]).sum()

    for gradient in jax.grad(loss, argnums=(0, 1))(K_BTKH, V_BTKH):
        reached_BT = np.abs(gradient).max((2, 3)) > 0
        # A token that is seen alone has a fixed weight of one, and its key no gradient.
        seen_BT = np.asarray(mask[:, place])
        assert not reached_BT[~seen_BT].any()
        assert reached_BT[seen_BT].all() or (prefix is None and seen_BT.sum(1).min() == 1)


def test_large_scores_stay_finite():
    y = attend(1e4 * Q_BTNH, 1e4 * K_BTKH, V_BTKH, visible(T))
    assert np.isfinite(y).all()


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone():
    frequency = jnp.asarray(1.0 / 100.0 ** (np.arange(0, H, 2) / H), jnp.float32)
    q, k = draw(1, 1, 1, H), draw(1, 1, 1, H, seed=1)

    def turned(x, place):
        return rope.apply_rope(x, rope.rope_table(jnp.array([[place]]), frequency))

    np.testing.assert_array_equal(turned(q, 0), q)
    np.testing.assert_allclose(jnp.linalg.norm(turned(q, 7)), jnp.linalg.norm(q), rtol=1e-6)
    products = [float((turned(q, p) * turned(k, p + 3)).sum()) for p in (0, 5, 30)]
    np.testing.assert_allclose(products, products[0], rtol=1e-5)
    assert abs(float((turned(q, 0) * turned(k, 4)).sum()) - products[0]) > 1e-2


@pytest.mark.parametrize(
    ("mesh", "heads", "expected"),
    [
        ((2, 4), 2, [0, 0, 1, 1]),  # one copy for each of four devices
        ((4, 2), 2, [0, 1]),
        ((8, 1), 2, [0, 1]),
        ((1, 8), 1, [0] * 8),
        ((2, 4), 3, [0, 1, 2]),  # divides nothing: whole everywhere
    ],
)
@pytest.mark.parametrize("lead", [(5,), (8, 5)], ids=["prefix", "rows"])
def test_heads_fewer_than_the_model_axis_are_repeated_in_groups(mesh, heads, expected, lead):
    number = jnp.broadcast_to(jnp.arange(heads)[:, None], (*lead, heads, 3))
    with jax.set_mesh(make_mesh(mesh)):
        spread = jax.jit(attention.repeat_kv)(number)
    assert np.asarray(spread)[(0,) * len(lead)][:, 0].tolist() == expected


@pytest.mark.parametrize("spec", [AttentionSpec(0.25), AttentionSpec(0.5, 3.0)], ids=str)
@pytest.mark.parametrize("window", [None, 1, 2, 4])
@pytest.mark.parametrize("queries", [None, [[4, 1], [5, 1]]], ids=["all", "last tokens"])
@pytest.mark.parametrize("has_prefix", [False, True], ids=["alone", "prefix"])
def test_window_cap_and_scale_act_in_packed_rows_behind_a_prefix_and_for_last_tokens(
    spec, window, queries, has_prefix
):
    start = np.asarray(START_BT)
    offset = C if has_prefix else 0
    position_BT = offset + np.arange(T) - start
    context = AttentionContext(
        visible(T, None, START_BT),
        position_BT=jnp.asarray(position_BT),
        segment_start_BT=START_BT,
        window=window,
    )
    context = context if queries is None else context.of_queries(jnp.array(queries))
    q = Q_BTNH if queries is None else context.queries(Q_BTNH)
    prefix = PREFIX if has_prefix else None
    y = attention.attend(Saved(q), Saved(K_BTKH), Saved(V_BTKH), context, spec, prefix)

    index = np.tile(np.arange(T), (B, 1)) if queries is None else np.array(queries)
    position_q = np.take_along_axis(position_BT, index, 1)
    own = np.take_along_axis(start, index, 1)
    mask = (np.arange(T) <= index[..., None]) & (np.arange(T) >= own[..., None])
    mask &= position_q[..., None] - position_BT[:, None] < (window or 99)
    keys, values = np.asarray(K_BTKH), np.asarray(V_BTKH)
    if has_prefix:
        near = position_q[..., None] - np.arange(C) < (window or 99)
        mask = np.concatenate([near, mask], axis=-1)
        keys, values = (
            np.concatenate([np.broadcast_to(p, (B, *p.shape)), x], axis=1)
            for p, x in zip(PREFIX, (keys, values), strict=True)
        )
    np.testing.assert_allclose(y, by_hand(q, keys, values, mask, spec), atol=3e-6)


def test_a_window_is_chosen_by_layer_and_a_rope_table_too():
    ropes = tuple((jnp.full((1, T, 4), n), jnp.full((1, T, 4), -n)) for n in (1.0, 2.0))
    context = AttentionContext(visible(T), jnp.arange(T)[None], ropes)
    for number in (1, jnp.int32(1)):
        chosen = context.of_layer(LayerInfo(0, window=number, rope=number))
        assert (int(chosen.window), float(chosen.rope[0].max())) == (1, 2.0)
    assert context.of_layer(LayerInfo(0)).rope is ropes[0]
