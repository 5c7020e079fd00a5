"""Laws of poolings: one class adds one, and what it reads decides what the encoder saves."""

from dataclasses import dataclass
from typing import ClassVar, get_args, get_type_hints

import jax.numpy as jnp
import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.methods.pooling import POOLINGS, Mean, Pooling, find_pooling

TEXTS = ["A dog runs.", "Two women are playing guitar together", "x", "(a) man, eating bread."]


@dataclass(frozen=True)
class TextMean(Mean):
    """Mean over the text's own tokens, template left out."""

    name: ClassVar[str] = "text-mean"
    tokens: ClassVar[str] = "own"

    def span(self, ids_T, prompt):
        return len(prompt.prefix_C), len(ids_T) - prompt.suffix_tokens


@dataclass(frozen=True)
class WeightedMean(Pooling):
    """Mean with weights that grow with the position."""

    name: ClassVar[str] = "weighted"
    tokens: ClassVar[str] = "all"
    power: float = 1.0

    def span(self, ids_T, prompt):
        return 0, len(ids_T)

    def pool(self, x_BTD, span_BT):
        weight_BT = (jnp.cumsum(span_BT, 1) ** self.power) * span_BT
        return (x_BTD * weight_BT[..., None]).sum(1) / weight_BT.sum(1, keepdims=True)


@pytest.fixture(scope="module")
def states(checkpoints):
    """What transformers gives for every token of a prompt in its last layer."""
    import oracle
    import torch

    def run(name, prompts):
        folder = checkpoints(name)
        model = oracle.load(folder)
        with torch.no_grad():
            for ids in oracle.ids(folder, prompts):
                out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
                yield out.hidden_states[-1][0].numpy()

    return run


@pytest.mark.parametrize("name", ["opt-tiny", "llama-gqa-tiny"])
def test_a_pooling_of_a_span_is_one_class_and_keeps_the_prefix(name, embedders, states):
    usual = embedders(name)
    embedder = Embedder(usual.pretrained, usual.template, pooling=TextMean())
    z_nD = embedder.encode(TEXTS)
    prompt, expected = embedder.prompt, []
    for text, x_TD in zip(
        TEXTS, states(name, [prompt.template.fill(t) for t in TEXTS]), strict=True
    ):
        shared = prompt([text]).shared[0]
        assert shared or text.startswith("(")
        first, end = TextMean().span(np.arange(len(x_TD)), prompt)
        expected.append(x_TD[first:end].mean(0))
    np.testing.assert_allclose(z_nD, expected, atol=1e-4)
    assert embedder.plan.endswith("; pooling text-mean: last block for every token")
    assert embedder.report.tokens < sum(
        len(ids)
        for ids in usual.pretrained.tokenizer.ids([prompt.template.fill(text) for text in TEXTS])
    )
    assert embedder.describe()["pooling"] == "TextMean()"
    assert usual.describe()["pooling"] == "last"


def test_a_pooling_of_all_tokens_gives_up_the_prefix_and_says_so(embedders, states):
    usual = embedders("llama-gqa-tiny")
    embedder = Embedder(usual.pretrained, usual.template, pooling=WeightedMean(power=2.0))
    z_nD = embedder.encode(TEXTS)
    prompts = [embedder.template.fill(text) for text in TEXTS]
    for z_D, x_TD in zip(z_nD, states("llama-gqa-tiny", prompts), strict=True):
        weight_T = np.arange(1, len(x_TD) + 1) ** 2.0
        np.testing.assert_allclose(z_D, weight_T @ x_TD / weight_T.sum(), atol=1e-4)
    assert embedder.plan.endswith("; pooling weighted: prefix computed for every text")
    assert embedder.describe()["pooling"] == "WeightedMean(power=2.0)"


@pytest.mark.slow
def test_the_mean_of_a_span_of_everything_is_the_mean(embedders):
    @dataclass(frozen=True)
    class Own(Mean):
        name: ClassVar[str] = "own"
        tokens: ClassVar[str] = "own"  # though its span begins before

    tiny = embedders("tiny")
    own, mean = (Embedder(tiny.pretrained, "eol", pooling=p) for p in (Own(), "mean"))
    np.testing.assert_allclose(own.encode(TEXTS), mean.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mean", "unknown pooling 'Mean'; nearest: mean. Allowed: last, mean"),
        ("means", "unknown pooling 'means'; nearest: mean"),
        ("cls", "unknown pooling 'cls'. Allowed: last, mean"),
    ],
)
def test_an_unknown_pooling_is_refused_before_anything_is_loaded(name, message):
    with pytest.raises(UserError, match=message):
        find_pooling(name)
    with pytest.raises(UserError, match=message):
        Embedder.from_pretrained("/no/such/folder", pooling=name)


def test_a_span_outside_of_the_prompt_is_an_error_that_names_the_pooling(embedders):
    @dataclass(frozen=True)
    class Beyond(TextMean):
        def span(self, ids_T, prompt):
            return 0, len(ids_T) + 1

    tiny = embedders("tiny")
    with pytest.raises(ValueError, match=r"pooling text-mean reads positions 0 to"):
        Embedder(tiny.pretrained, "eol", pooling=Beyond()).encode(["a dog"])


def test_the_command_line_takes_every_pooling_of_the_table():
    assert get_args(get_type_hints(ModelOptions)["pooling"]) == tuple(POOLINGS)
