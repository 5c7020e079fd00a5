"""Laws of reports: parts of a call count together."""

from __future__ import annotations

import pytest

from prompteol_jax.encoding.report import Report

pytestmark = pytest.mark.unit


def test_the_work_of_several_calls_is_added_and_the_texts_are_not():
    whole = Report(texts=2, distinct=2)
    for tokens in (3, 4):
        whole.add(Report(texts=2, distinct=2, tokens=tokens, batches=1, shapes=tokens, seconds=2.0))
    assert (whole.texts, whole.tokens, whole.batches, whole.shapes) == (2, 7, 2, 4)
    whole.waited = 1.0
    assert whole.waiting == 0.25
