"""Losses over the vectors of a global batch, and the table that `--loss` chooses from.

A new loss is one file and one row of `LOSSES`: what is collated, logged and drawn follows from the
columns it needs and the metrics it returns.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from train.losses import angle, cosent, distill, infonce, options, pearson, sfp
from train.losses.loss import Loss

_PAIR: Final = ("sent0", "sent1")
_HARD: Final = ("hard_neg",)
_SCORE: Final = ("score",)
_WARM: Final = {"temperature": options.above_zero}
_AROUND: Final = {**_WARM, "directions": options.some_of(infonce.ALL, first=infonce.FORWARD[0])}
_contrast = infonce.infonce

LOSSES: Final = {
    "infonce": Loss(_PAIR, _HARD, _contrast, options=_WARM),
    "infonce-symmetric": Loss(
        _PAIR, _HARD, partial(_contrast, directions=infonce.BOTH, partition="each"), options=_WARM
    ),
    "infonce-joint": Loss(
        _PAIR, _HARD, partial(_contrast, directions=infonce.ALL), options=_AROUND
    ),
    "infonce-masked": Loss(
        _PAIR,
        _HARD,
        partial(_contrast, margin=infonce.MARGIN),
        needs=("text",),
        options={**_AROUND, "margin": options.number_or_none},
    ),
    "cosent": Loss(_PAIR, (), cosent.cosent, needs=_SCORE, options=_WARM),
    "angle": Loss(_PAIR, (), angle.angle, needs=_SCORE, options=_WARM),
    "pearson": Loss(_PAIR, (), pearson.pearson, needs=_SCORE),
    "sfp": Loss(("sent0",), (), sfp.sfp, positions=("middle", "last"), options=_WARM),
    "distill-vectors": Loss(
        ("sent0",), ("sent1", *_HARD), distill.distill_vectors, needs=("teacher",)
    ),
    "distill-scores": Loss(_PAIR, _HARD, distill.distill_scores, needs=_SCORE, options=_WARM),
    "distill-margins": Loss(_PAIR, _HARD, distill.distill_margins, needs=_SCORE),
}
