"""Laws of post stages: each is its formula, and a vector has the same bits in any company."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax.errors import NotFinite, NotFound, UserError
from prompteol_jax.methods.post import FittedMap, Post, filter_of, fit, save
from prompteol_jax.methods.record import PostStage

pytestmark = pytest.mark.unit

RANDOM = np.random.default_rng(0)
Z = RANDOM.standard_normal((300, 8)).astype(np.float32) @ np.diag(np.arange(1, 9, dtype=np.float32))
HEAD = RANDOM.standard_normal((50, 8)).astype(np.float32)


def no_head():
    raise AssertionError("the head is not needed")


def post(*stages, folder=None, head=no_head):
    return Post(stages, folder, 8, head)


def test_centering_and_whitening_make_mean_zero_and_covariance_one(tmp_path):
    for kind in ("center", "whiten"):
        save(tmp_path / f"{kind}.npz", fit(PostStage(kind), Z))
    centered = post(PostStage("center", file="center.npz"), folder=tmp_path)(Z)
    np.testing.assert_allclose(centered, Z - Z.mean(0), atol=1e-4)
    white = post(PostStage("whiten", file="whiten.npz"), folder=tmp_path)(Z)
    np.testing.assert_allclose(white.T @ white / len(Z), np.eye(8), atol=1e-4)


def test_whitening_to_fewer_dims_keeps_the_directions_of_largest_variance(tmp_path):
    save(tmp_path / "w.npz", fit(PostStage("whiten", dims=3), Z))
    stages = post(PostStage("whiten", file="w.npz", dims=3), folder=tmp_path)
    assert stages.width == 3
    whole = fit(PostStage("whiten"), Z).matrix_DE
    np.testing.assert_allclose(stages(Z), (Z - Z.mean(0)) @ whole[:, :3], atol=1e-4)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_embed_filter_is_the_middle_of_the_heads_singular_vectors(ratio):
    matrix = filter_of(HEAD, ratio)
    kept, start = 8 // ratio, (8 - 8 // ratio) // 2
    rows = np.linalg.svd(HEAD.astype(np.float64))[2][start : start + kept]
    if ratio == 1:
        rows = np.eye(8)
    np.testing.assert_allclose(np.abs(rows @ matrix), np.eye(kept), atol=1e-6)
    found = post(PostStage("embed-filter", ratio=ratio), head=lambda: HEAD)(Z)
    np.testing.assert_allclose(np.abs(found), np.abs(Z @ rows.T), atol=1e-3)


def test_stages_follow_each_other():
    stages = post(PostStage("truncate", dims=2), PostStage("normalize"))
    expected = Z[:, :2] / np.linalg.norm(Z[:, :2], axis=1, keepdims=True)
    np.testing.assert_allclose(stages(Z), expected, atol=1e-6)
    assert stages.width == 2 and stages(np.zeros((1, 8), np.float32)).tolist() == [[0, 0]]


def test_a_vector_has_the_same_bits_in_any_company():
    stages = post(PostStage("embed-filter", ratio=2), PostStage("normalize"), head=lambda: HEAD)
    whole = stages(Z)
    for n in (0, 7, 299):
        np.testing.assert_array_equal(stages(Z[n : n + 1])[0], whole[n])
    np.testing.assert_array_equal(stages(Z[::-1])[::-1], whole)


def test_too_few_texts_are_refused():
    with pytest.raises(UserError, match="vary in 4 directions, and whitening to 8 needs as many"):
        fit(PostStage("whiten"), Z[:5])


def test_what_does_not_fit_is_refused_before_any_work(tmp_path):
    save(tmp_path / "narrow.npz", FittedMap(np.zeros(3)))
    save(tmp_path / "nan.npz", FittedMap(np.full(8, np.nan)))
    (tmp_path / "text.npz").write_text("no")
    for stage, kind, message in (
        (PostStage("center"), UserError, "needs numbers fitted on texts"),
        (PostStage("center", file="none.npz"), NotFound, "none.npz does not exist"),
        (PostStage("center", file="narrow.npz"), UserError, "for vectors of another width"),
        (PostStage("center", file="nan.npz"), NotFinite, "numbers that are not finite"),
        (PostStage("center", file="text.npz"), UserError, "is no file of fitted numbers"),
        (PostStage("whiten", file="narrow.npz"), UserError, "holds .*mean.*, not .*matrix"),
        (PostStage("truncate", dims=9), UserError, "dims 9 is above the 8 features"),
        (PostStage("embed-filter", ratio=3), UserError, "8 features are no multiple of 3"),
    ):
        with pytest.raises(kind, match=message):
            post(stage, folder=tmp_path)


def test_half_a_file_of_fitted_numbers_is_refused(tmp_path):
    save(tmp_path / "half.npz", FittedMap(np.zeros(8)))
    content = (tmp_path / "half.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is no file of fitted numbers"):
        post(PostStage("center", file="half.npz"), folder=tmp_path)
