"""A vocabulary is recognized by its entries, and only one is."""

from __future__ import annotations

import pytest
import tokenizers

from prompteol_jax.text.vocabularies import KNOWN, recognized

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_a_vocabulary_is_recognized_by_all_of_its_entries(known):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(known.entries)))
    assert recognized(backend) == [known]
    lacking = dict(list(known.entries.items())[1:])
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(lacking))
    assert known not in recognized(backend)
