"""What a static pipeline can hold of each shipped method, and why not of the others."""

import dataclasses

import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.export import static
from prompteol_jax.methods.library import find_method, shipped
from prompteol_jax.methods.record import Method, PostStage

pytestmark = pytest.mark.unit

HELD = {"eol", "sum", "sth", "mean", "mean-removal/eol", "whitening/eol", "embed-filter/eol"}


def test_methods_of_one_prompt_and_linear_stages_are_held_and_no_others():
    held = {name for name in shipped() if not static.why_not(find_method(name))}
    assert held >= HELD
    assert all(name.startswith(("eol-", *HELD)) for name in held)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("metaeol", "it averages 8 prompts"),
        ("tp/eol", "it copies the last token's state .*; it reads layer 27, before the final"),
        ("cp-ns/eol", "it changes attention in one block"),
        ("attention-sum", "it reads attention outputs of inner blocks"),
        ("kv-embedding/context", "it adds a key .*; it reads mean-last"),
        ("echo", "it tokenizes the pieces of its prompt one by one; it reads second-mean"),
        ("reverse-eol", r"it averages 2 prompts; it changes texts first \(reversed-words\)"),
        ("cot", "it reads layer -2, before the final norm"),
    ],
)
def test_another_method_is_refused_with_every_reason(name, reason):
    with pytest.raises(UserError, match=f"method {name} cannot be exported: {reason}"):
        static.check(find_method(name))


def test_stages_between_normalizations_are_one_affine_map():
    rng = np.random.default_rng(0)
    mean_D, w_DE = rng.normal(size=6), rng.normal(size=(6, 4))

    def apply(stages, z_nD):
        for stage in stages:
            if stage.kind == "center":
                z_nD = z_nD - mean_D
            elif stage.kind == "whiten":
                z_nD = z_nD @ w_DE
            else:
                z_nD = z_nD[:, : stage.dims]
        return z_nD

    post = (PostStage("center"), PostStage("whiten"), PostStage("normalize"))
    post += (PostStage("truncate", dims=3), PostStage("normalize"))
    method = dataclasses.replace(
        Method.from_json({"name": "m", "prompts": ["eol"]}, "m"), post=post
    )
    first, second, third, fourth = static.modules(method, apply, 6)
    z_nD = rng.normal(size=(5, 6))
    np.testing.assert_allclose(z_nD @ first.weight.T + first.bias, apply(post[:2], z_nD), atol=1e-5)
    assert second is None and fourth is None
    np.testing.assert_allclose(third.weight, np.eye(4)[:3], atol=1e-6)
    assert not third.bias.any()
