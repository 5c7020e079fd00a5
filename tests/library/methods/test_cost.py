"""Laws of costs: what is computed for a text, against PromptEOL."""

from __future__ import annotations

import dataclasses

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.methods.cost import cost, gives_up, needs
from prompteol_jax.methods.library import find_method, shipped
from prompteol_jax.methods.record import Copy

pytestmark = pytest.mark.unit


def test_eol_costs_one_and_every_shipped_method_something():
    assert cost(find_method("eol")) == 1.0
    assert all(0.5 < cost(find_method(name)) < 10 for name in shipped())


def test_costs_follow_from_tokens_and_blocks():
    assert cost(find_method("attention-sum")) == 1.0
    assert cost(find_method("reverse-eol")) == 2.0
    last = dataclasses.replace(find_method("cp-ns/eol"), layer=None)
    assert cost(last) == pytest.approx(1 + 5 / 32)
    assert cost(find_method("tp/eol")) == pytest.approx((15 + 7 + 2) / (15 + 7) * 27 / 32)
    assert 8 < cost(find_method("metaeol")) < 10


def test_needs_are_named():
    assert needs(find_method("geneol")) == ["an expansion file"]
    assert needs(find_method("whitening/eol")) == ["fitted numbers (prompteol fit)"]
    assert needs(find_method("embed-filter/eol")) == ["the LM head"]
    assert needs(find_method("eol")) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, []) for name in ("eol", "cot", "tp/eol", "cp-ns/eol", "attention-sum")),
        ("ck", ["2 prompts, each with its own cached prefix"]),
        ("cp-self-scaled/eol", ["scaled heads: prefix computed for every text"]),
        ("echo", ["pooling second-mean: last block for every token", "no packed rows"]),
        (
            "kv-embedding/context",
            [
                "pooling mean-last: last block for every token",
                "pooling mean-last, extra slot: prefix computed for every text",
                *("no packed rows", "no prompts beyond 1024 tokens"),
            ],
        ),
    ],
)
def test_what_a_method_gives_up_is_named(name, expected):
    assert gives_up(find_method(name)) == expected


def test_a_method_that_does_not_fit_has_no_cost():
    method = dataclasses.replace(find_method("tp/eol"), copy=Copy(1, 40))
    with pytest.raises(UserError, match="copy.exit 40"):
        cost(method)
