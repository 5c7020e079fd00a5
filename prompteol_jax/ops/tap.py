"""A caller's access to the inside of a block's attention: what it changes there, and what it reads.

A block hands the tap of its context to its attention. The tap of one layer is made while that layer
is traced, so that it may keep what it reads in `found` until the layer returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jax

from prompteol_jax.ops.scan import Saved

if TYPE_CHECKING:
    from prompteol_jax.ops.context import AttentionContext


class Tap:
    """A tap that changes and reads nothing.

    Attributes:
        found: what was read in the layer; a pytree.
    """

    found: Any = None

    def keys_values(
        self, k: Saved, v: Saved, context: AttentionContext
    ) -> tuple[Saved, Saved, AttentionContext]:
        """Return the keys, before rope, and values that are attended to, and a context for them."""
        return k, v, context

    def heads(self, y_BQNH: jax.Array, context: AttentionContext) -> jax.Array:
        """Return what the output projection gets in place of the heads' outputs."""
        return y_BQNH

    def output(self, y_BQD: jax.Array, context: AttentionContext) -> None:
        """Read the attention's output, after the projection and before the residual."""


NO_TAP: Final = Tap()
