"""Several prompts share one model's weights, and each encodes as if it were loaded alone."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.cli.several import load_several, with_prompt
from prompteol_jax.errors import UserError
from prompteol_jax.methods import library
from prompteol_jax.text.template import PROMPTEOL

TEXTS = ["A man plays the guitar.", "It rains."]


def first_block(folder):
    """The folder of a method that ends at the first block."""
    method = library.plain_method(PROMPTEOL, "mean", 1)
    library.write_method(folder / library.FILE, method)
    return str(folder)


@pytest.mark.first("methods")
@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        ({}, [{"method": "{folder}"}, {"method": "attention-sum"}]),
        ({"method": "{folder}"}, [{}, {"template": "cot"}]),
        ({"layer": 1, "template": "none"}, [{"method": "reverse-eol"}, {"template": "none"}]),
    ],
    ids=["methods", "template-after-a-method", "layer"],
)
def test_each_prompt_has_the_bits_of_one_that_is_loaded_alone(flags, prompts, tmp_path, coarse):
    def placed(given):
        return {
            name: first_block(tmp_path) if value == "{folder}" else value
            for name, value in given.items()
        }

    base = ModelOptions(model="tiny", **placed(flags))
    options = [with_prompt(base, **placed(given)) if given else base for given in prompts]
    together = load_several(options, "float32")
    assert together[0].pretrained.decoder is together[1].pretrained.decoder
    for one, embedder in zip(options, together, strict=True):
        alone = one.load("float32")
        assert embedder.describe_method() == alone.describe_method()
        assert embedder.prompt.template == alone.prompt.template
        np.testing.assert_array_equal(embedder.encode(TEXTS), alone.encode(TEXTS))


def test_an_adapter_must_have_been_trained_with_each_of_them(tmp_path):
    library.write_method(tmp_path / library.FILE, library.plain_method(PROMPTEOL, "last", None))
    (tmp_path / "adapter_config.json").write_text("{}")
    base = ModelOptions(model="tiny", adapter=str(tmp_path))
    with pytest.raises(UserError, match="trained with the method eol, and cot differs"):
        load_several([base, with_prompt(base, method="cot")], "float32")
