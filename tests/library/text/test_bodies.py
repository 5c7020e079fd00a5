"""Laws of shared bodies: the ids are those of each prompt, and a text is tokenized once."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax.methods.library import find_method
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.bodies import sharing
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.unit

TEXTS = ["A dog runs.", "x", '"quoted"', "(a)", "two women", "", "a dog " * 60, "A dog runs."]


def prompts_of(name, tokenizer, max_tokens=512):
    views = find_method(name).prompts
    return [Prompt(view.template, tokenizer, max_tokens=max_tokens) for view in views]


@pytest.mark.parametrize("name", ["tiny", "opt-tokenizer", "llama-tokenizer", "qwen2-tokenizer"])
def test_the_eight_prompts_of_metaeol_share_one_tokenization(name, request):
    if name == "tiny":
        tokenizer = tiny_tokenizer()
    else:
        tokenizer = load_tokenizer(request.getfixturevalue("data") / "weights" / name)
    prompts = prompts_of("metaeol", tokenizer)
    shared = sharing(prompts)
    assert shared[0] is not None and all(own is shared[0] for own in shared)
    for prompt in prompts:
        found, expected = shared[0].ids(prompt, TEXTS), prompt(TEXTS)
        for ours, theirs in zip(found.ids, expected.ids, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(found.shared, expected.shared)
        np.testing.assert_array_equal(found.truncated, expected.truncated)
    assert shared[0].tokenized == len(TEXTS)
    shared[0].forget()
    shared[0].ids(prompts[1], ["x"])
    assert shared[0].tokenized == len(TEXTS) + 1


def test_a_text_that_is_cut_is_tokenized_in_each_prompt():
    tokenizer = tiny_tokenizer()
    prompts = [
        Prompt(Template(str(n), prefix, '" means'), tokenizer, max_tokens=40)
        for n, prefix in enumerate(['This : "', 'This other sentence : "'])
    ]
    first, second = sharing(prompts)
    assert first is second and first is not None
    for prompt in prompts:
        found, expected = first.ids(prompt, TEXTS), prompt(TEXTS)
        assert [ids.tolist() for ids in found.ids] == [ids.tolist() for ids in expected.ids]
        np.testing.assert_array_equal(found.truncated, expected.truncated)


def test_prompts_that_end_a_text_differently_share_nothing():
    tokenizer = tiny_tokenizer()
    prompts = [
        Prompt(Template(end, 'This : "', end), tokenizer, max_tokens=90) for end in ('" x', "ing x")
    ]
    assert sharing(prompts) == [None, None]
