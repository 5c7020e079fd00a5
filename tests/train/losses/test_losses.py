"""Laws of all losses: those of sentence-transformers in float64, however they are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as theirs

from prompteol_jax import axes
from prompteol_jax.mesh import make_mesh
from train.losses import LOSSES, blockwise
from train.losses.choose import choose_loss

B, D = 24, 16
ALL = ("query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc")


class Width:
    """What a loss of sentence-transformers asks of a model that it does not run."""

    def get_embedding_dimension(self) -> int:
        return D


def vectors(columns: int, seed: int = 0) -> list[jax.Array]:
    """Anchors, and columns that resemble them, of lengths far from one."""
    rng = np.random.default_rng(seed)
    anchor = rng.standard_normal((B, D))
    similar = [anchor + 2 * rng.standard_normal((B, D)) for _ in range(columns - 1)]
    scaled = [z * rng.uniform(0.1, 30, (B, 1)) for z in (anchor, *similar)]
    return [jnp.asarray(z, jnp.float32) for z in scaled]


def graded(seed: int = 1) -> np.ndarray:
    """Scores with ties."""
    return np.random.default_rng(seed).integers(0, 6, B).astype(np.float32)


def lists(columns: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((B, columns)).astype(np.float32)


def ranking(**how):
    def loss(z, _):
        return theirs.MultipleNegativesRankingLoss(None, **how).compute_loss_from_embeddings(
            z, None
        )

    return loss


def labelled(kind, name, **how):
    def loss(z, needs):
        return kind(None, **how).compute_loss_from_embeddings(z, torch.tensor(needs[name]).double())

    return loss


def pearson(z, needs):
    cos = util.pairwise_cos_sim(*z)
    return 1 - torch.corrcoef(torch.stack([cos, torch.tensor(needs["score"]).double()]))[0, 1]


def distilled(z, needs):
    teacher = torch.tensor(needs["teacher"]).double()
    return theirs.EmbedDistillLoss(Width(), distance_metric="cosine").compute_loss_from_embeddings(
        z, [teacher[:, n] for n in range(len(z))]
    )


def sums(loss, sizes):
    return lambda z, needs: sum(loss([x[:, :size] for x in z], needs) for size in sizes)


def sfp(z, _):
    return ranking()([z[1], z[0]], _)


SCORE, TEACHER = {"score": graded()}, {"teacher": lists(3 * D).reshape(B, 3, D)}
COSINE = dict(similarity_fct=util.pairwise_cos_sim)
CASES = {
    # name: loss, options, columns, needs, theirs
    "pairs": ("infonce", (), 2, {}, ranking()),
    "triplets": ("infonce", (), 3, {}, ranking()),
    "three negatives": ("infonce", ("temperature=0.1",), 5, {}, ranking(scale=10.0)),
    "symmetric": (
        *("infonce-symmetric", (), 3, {}),
        ranking(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"),
    ),
    "joint": ("infonce-joint", (), 4, {}, ranking(directions=ALL)),
    "joint pairs": ("infonce-joint", (), 2, {}, ranking(directions=ALL)),
    "some directions": (
        *("infonce-joint", ("directions=query-doc+doc-doc",), 3, {}),
        ranking(directions=("query_to_doc", "doc_to_doc")),
    ),
    "cosent": ("cosent", (), 2, SCORE, labelled(theirs.CoSENTLoss, "score")),
    "angle": ("angle", (), 2, SCORE, labelled(theirs.AnglELoss, "score")),
    "pearson": ("pearson", (), 2, SCORE, pearson),
    "sfp": ("sfp", (), 2, {}, sfp),
    "vectors": ("distill-vectors", (), 3, TEACHER, distilled),
    "scores": (
        *("distill-scores", ("temperature=0.5",), 4, {"score": lists(3)}),
        labelled(theirs.DistillKLDivLoss, "score", temperature=0.5, **COSINE),
    ),
    "margins": (
        *("distill-margins", (), 4, {"score": lists(3)}),
        labelled(theirs.MarginMSELoss, "score", **COSINE),
    ),
}


def ours(name, options, needs, sizes=()):
    function = choose_loss(name, options, sizes).function
    needs = {k: jnp.asarray(v) for k, v in needs.items()}

    def evaluate(z, needs):
        return jax.value_and_grad(lambda z: function(*z, **needs), has_aux=True)(z)

    return lambda z: jax.jit(evaluate)(z, needs)


def check(found, loss, z, needs, tolerance=1e-6):
    """Loss and gradients are those of a function of torch, in float64."""
    (value, _), gradients = found
    columns = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in z]
    expected = loss(columns, needs)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=tolerance)
    for mine, column in zip(gradients, columns, strict=True):
        wanted = column.grad.numpy()
        assert np.linalg.norm(mine - wanted) <= tolerance * np.linalg.norm(wanted)


@pytest.mark.first("pairs", "three negatives", "some directions", "cosent", "sfp", "vectors")
@pytest.mark.parametrize("case", CASES)
def test_a_loss_and_its_gradients_are_those_of_sentence_transformers(case):
    name, options, columns, needs, loss = CASES[case]
    z = vectors(columns)
    # A rounded cosine is divided by the temperature, 0.05 or 0.1, before it is an exponent.
    cold = name.startswith("infonce") or name in ("sfp", "cosent", "angle")
    tolerance = 5e-6 if cold else 1e-6
    check(ours(name, options, needs)(z), loss, z, needs, tolerance)


@pytest.mark.parametrize("name", ["infonce", "infonce-symmetric", "infonce-joint"])
def test_at_temperature_1_infonce_is_as_exact_as_float32(name):
    how = {
        "infonce": {},
        "infonce-symmetric": dict(
            directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        ),
        "infonce-joint": dict(directions=ALL),
    }
    z = vectors(4)
    found = ours(name, ("temperature=1",), {})(z)
    check(found, ranking(scale=1.0, **how[name]), z, {})


@pytest.mark.first("triplets", "vectors")
@pytest.mark.parametrize("case", ["triplets", "cosent", "vectors"])
def test_matryoshka_sums_a_loss_over_the_first_numbers(case):
    name, options, columns, needs, loss = CASES[case]
    z, sizes = vectors(columns), (4, 9, D)

    def shrunk(z, needs):
        cut = {k: v[..., : z[0].shape[1]] if k == "teacher" else v for k, v in needs.items()}
        return loss(z, cut)

    found = ours(name, options, needs, sizes)(z)
    check(found, sums(shrunk, sizes), z, needs, 1e-6 if name == "distill-vectors" else 5e-6)
    assert {"loss_4", "loss_9", "loss_16"} <= found[0][1].keys()


@pytest.mark.first("some directions", "cosent", "sfp")
@pytest.mark.parametrize("case", CASES)
def test_blocks_and_a_mesh_change_nothing(case, monkeypatch):
    name, options, columns, needs, _ = CASES[case]
    z = vectors(columns)
    alone = ours(name, options, needs)(z)
    monkeypatch.setattr(blockwise, "BLOCK", 100)
    mesh = make_mesh((4, 2))
    place = axes.sharding("BD", (B, D), mesh)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = {k: jax.device_put(v, rows) for k, v in needs.items()}
    with jax.set_mesh(mesh):
        shared = jax.jit(ours(name, options, spread))([jax.device_put(x, place) for x in z])
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max() + 1e-6)


def masked(z, text, margin):
    """Query to document in torch, with the alternatives that the masks leave out."""
    queries, positives, *others = (torch.nn.functional.normalize(x, dim=1) for x in z)
    documents = torch.cat([positives, *others])
    cos = queries @ documents.T
    names = text[:, 1:].T.reshape(-1)
    own = torch.eye(B, len(documents), dtype=torch.bool)
    out = torch.tensor((text[:, :2, None] == names[None, None]).any(1))
    if margin is not None:
        out |= cos > cos[own][:, None] + margin
    cos = cos.masked_fill(out & ~own, -torch.inf)
    return torch.nn.functional.cross_entropy(cos / 0.05, torch.arange(B))


@pytest.mark.first("one-0.1", "blocks-0.0")
@pytest.mark.parametrize("margin", [None, 0.0, 0.1], ids=str)
@pytest.mark.parametrize("block", [2**24, 100], ids=["one", "blocks"])
def test_probable_positives_are_left_out(margin, block, monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    z = vectors(4)
    text = np.random.default_rng(3).integers(0, 30, (B, 4))
    needs = {"text": np.stack([text, text], axis=2).astype(np.int32)}
    found = ours("infonce-masked", (f"margin={margin}".lower(),), needs)(z)
    check(found, lambda z, _: masked(z, text, margin), z, needs, 5e-6)
    plain = ours("infonce", (), {})(z)
    assert abs(plain[0][0] - found[0][0]) > 1e-3


@pytest.mark.slow
def test_an_anchor_that_leaves_out_all_but_its_own_has_no_loss():
    z = vectors(3)
    needs = {"text": np.zeros((B, 3, 2), np.int32)}
    for options in ((), ("directions=query-doc+query-query+doc-doc",)):
        (value, metrics), gradients = ours("infonce-masked", options, needs)(z)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        assert metrics["accuracy"] == 1
        assert all(np.abs(g).max() < 1e-6 for g in gradients)


def test_scores_that_do_not_vary_have_no_gradient():
    z, same = vectors(2), {"score": np.ones(B, np.float32)}
    for name, value in (("pearson", 1.0), ("cosent", 0.0), ("angle", 0.0)):
        (found, _), gradients = ours(name, (), same)(z)
        np.testing.assert_allclose(found, value, atol=1e-7)
        assert all(not g.any() for g in gradients)


@pytest.mark.slow
def test_metrics_of_every_loss_are_scalars_of_their_own():
    for name, options, columns, needs, _ in CASES.values():
        (_, metrics), _ = ours(name, options, needs)(vectors(columns))
        assert metrics and all(jnp.ndim(x) == 0 for x in metrics.values())
    assert {name for name, *_ in CASES.values()} | {"infonce-masked"} == LOSSES.keys()


@pytest.mark.parametrize(
    ("name", "options", "sizes", "message"),
    [
        (
            "infonse",
            (),
            (),
            r"infonse is unknown \(did you mean infonce\?\): choose one of infonce,",
        ),
        ("infonce", ("temp=1",), (), r"temp=1: infonce has the options temperature"),
        ("infonce", ("temperature",), (), "each given as NAME=VALUE"),
        ("infonce", ("temperature=0",), (), "temperature is a number above 0"),
        ("infonce", ("temperature=1", "temperature=2"), (), "gives temperature twice"),
        ("infonce-masked", ("margin=x",), (), "margin is a number, or `none`"),
        ("infonce-joint", ("directions=doc-doc",), (), "directions is query-doc, joined by"),
        ("infonce", (), (4, 4), "--matryoshka 4 4: sizes differ"),
        ("infonce", (), (0,), "--matryoshka 0: sizes differ, from 1 up"),
    ],
)
def test_refuses_a_choice_that_cannot_be(name, options, sizes, message):
    with pytest.raises(ValueError, match=message):
        choose_loss(name, options, sizes)


@pytest.mark.parametrize(
    ("name", "columns", "needs", "sizes", "message"),
    [
        ("infonce", 2, {}, (D + 1,), "--matryoshka 17: the model's vectors have 16 numbers"),
        ("distill-scores", 2, {"score": lists(1)}, (), "1 scores a row for 1 documents"),
        ("distill-margins", 3, {"score": graded()}, (), "1 scores a row for 2 documents"),
        ("distill-vectors", 3, {"teacher": lists(2 * D).reshape(B, 2, D)}, (), "2 vectors of 16"),
        ("distill-vectors", 1, {"teacher": lists(D + 1)}, (), "1 vectors of 17 numbers a row"),
    ],
)
def test_refuses_needs_of_another_shape(name, columns, needs, sizes, message):
    with pytest.raises(ValueError, match=message):
        ours(name, (), needs, sizes)(vectors(columns))
