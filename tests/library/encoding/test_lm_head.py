"""Laws of the LM head: it ranks what transformers ranks, in pieces, and reads last tokens only."""

import numpy as np
import pytest

from prompteol_jax.encoding import lm_head
from prompteol_jax.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("name", ["opt-tiny", "llama-tiny"])  # tied, and with its own head
def test_next_tokens_are_those_of_transformers(name, embedders, references, texts, monkeypatch):
    monkeypatch.setattr(lm_head, "_ROWS", 64)  # 200 texts in four pieces
    ids, p = embedders(name).next_tokens(texts, 5)
    logits = references(name).logits.astype(np.float64)
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(p, np.take_along_axis(expected, ids, 1), rtol=1e-3)
    np.testing.assert_allclose(p, np.sort(expected, 1)[:, :-6:-1], rtol=1e-3)


@pytest.mark.parametrize(("inner", "pooling"), [(True, "last"), (False, "mean")])
def test_a_state_that_no_head_reads_is_refused(inner, pooling):
    lm_head.check_reads(inner=False, pooling="last")
    with pytest.raises(UserError, match="words need the last layer and the last token"):
        lm_head.check_reads(inner=inner, pooling=pooling)
