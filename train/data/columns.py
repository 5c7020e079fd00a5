"""Names of columns that losses know."""

from __future__ import annotations

import re
from typing import Final

NEGATIVE: Final = "hard_neg"
SCORE: Final = "score"
_NEGATIVES: Final = re.compile(rf"{NEGATIVE}(_([2-9]|[1-9]\d{{1,3}}))?")


def is_negative(column: str) -> bool:
    """Say whether a column holds hard negatives: hard_neg, hard_neg_2 and so on."""
    return _NEGATIVES.fullmatch(column) is not None
