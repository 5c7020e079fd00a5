"""The residual stream."""

from __future__ import annotations

import jax

from prompteol_jax.mesh import constrain
from prompteol_jax.ops.scan import NONE, Saved, Tape


def residual(x_BQD: jax.Array, y_BQD: jax.Array, tape: Tape = NONE) -> Saved:
    """Return x + y, pinned to its layout and saved for the backward pass.

    The last sum of a block needs no tape: the scan saves the input of every layer.
    """
    return tape.save(constrain(x_BQD + y_BQD, "BQD"))
