"""Self-attention of a block: projections, optional norms of heads, rope and attention, output."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from prompteol_jax.mesh import constrain
from prompteol_jax.nn.linear import Linear, fused_linears
from prompteol_jax.nn.norms import RMSNorm
from prompteol_jax.nn.parameters import Placeholders
from prompteol_jax.ops import dropout, select
from prompteol_jax.ops.attention import KeysValues
from prompteol_jax.ops.context import AttentionContext, AttentionSpec
from prompteol_jax.ops.rope import apply_rope
from prompteol_jax.ops.scan import Saved


class Attention(nnx.Module):
    """Grouped-query self-attention.

    y = softmax(scale * rope(norm(q)) rope(norm(k))^T + mask) v o

    Args:
        spec: scale and cap of the scores; by default scale H^-1/2 and no cap.
        bias: of queries, keys and values; out_bias: of the output, by default the same.
        head_norm_eps: epsilon of RMS norms of each head of q and k, before rope; None for no norms.
        joined_norm_eps: epsilon of RMS norms of all heads of q, and of k, joined, likewise.
        plus_one: those norms multiply by 1 + scale.
    """

    def __init__(
        self,
        make: Placeholders,
        *,
        spec: AttentionSpec | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        head_norm_eps: float | None = None,
        joined_norm_eps: float | None = None,
        plus_one: bool = False,
    ):
        self.q = Linear("BTD,NHD->BTNH", make, bias=bias)
        self.k = Linear("BTD,KHD->BTKH", make, bias=bias)
        self.v = Linear("BTD,KHD->BTKH", make, bias=bias)
        self.o = Linear("BTI,DI->BTD", make, bias=bias if out_bias is None else out_bias)
        eps, dims = (head_norm_eps, "HH") if joined_norm_eps is None else (joined_norm_eps, "IJ")
        self.q_norm, self.k_norm = (
            None if eps is None else RMSNorm(make, eps=eps, dims=letter, plus_one=plus_one)
            for letter in dims
        )
        self.spec = AttentionSpec(make.sizes["H"] ** -0.5) if spec is None else spec

    def __call__(
        self, y_BTD: jax.Array, context: AttentionContext, prefix: KeysValues | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Return the output of the context's queries, and the keys and values of every token."""
        q, k, v = self._project(y_BTD, context)
        seen = context.tap.keys_values(k, v, context)
        y_BQNH = select.attend(q, *seen, self.spec, prefix)
        y_BQNH = context.tap.heads(y_BQNH, context)
        B, Q, N, H = y_BQNH.shape  # Q is 0 in the prefix of a template without one: no -1 here
        y_BQI = constrain(y_BQNH.reshape(B, Q, N * H), "BQI")
        y_BQD = self.o(y_BQI, context.query_key(dropout.OUT), context.tape)
        context.tap.output(y_BQD, context)
        return y_BQD, _rotated(k, v, context)

    def keys_values(
        self, y_BTD: jax.Array, context: AttentionContext
    ) -> tuple[jax.Array, jax.Array]:
        """Return keys and values alone, for the last layer of a prefix."""
        k, v = self._save(self._keys_values(y_BTD, context), context)
        return _rotated(self._normed(self.k_norm, k, context), v, context)

    def _project(self, y_BTD: jax.Array, context: AttentionContext) -> list[Saved]:
        """Return q of the queries, k and v of every token, before rope."""
        if context.query_BQ is None:
            keys = [context.query_key(dropout.QUERY), *_token_keys(context)]
            q_BQNH, *kv = fused_linears([self.q, self.k, self.v], y_BTD, keys, context.tape)
        else:
            y_BQD = context.queries(y_BTD)
            q_BQNH = self.q(y_BQD, context.query_key(dropout.QUERY), context.tape)
            kv = self._keys_values(y_BTD, context)
        k, v = self._save(kv, context)
        q = context.tape.save(constrain(q_BQNH, "BQNH"))
        return [self._normed(self.q_norm, q, context), self._normed(self.k_norm, k, context), v]

    def _keys_values(self, y_BTD: jax.Array, context: AttentionContext) -> Sequence[jax.Array]:
        keys = _token_keys(context)
        return fused_linears([self.k, self.v], y_BTD, keys, context.tape)

    @staticmethod
    def _save(kv: Sequence[jax.Array], context: AttentionContext) -> list[Saved]:
        return [context.tape.save(constrain(x, "BTKH")) for x in kv]

    @staticmethod
    def _normed(norm: RMSNorm | None, x: Saved, context: AttentionContext) -> Saved:
        if norm is None:
            return x
        B, T, N, H = x.value.shape  # T may be 0, as Q above
        joined = x.value if norm.dims == "H" else x.value.reshape(B, T, N * H)
        return Saved(norm(joined, context.tape).reshape(B, T, N, H))


def _token_keys(context: AttentionContext) -> list[dropout.Keys | None]:
    return [context.token_key(site) for site in (dropout.KEYS, dropout.VALUES)]


def _rotated(k: Saved, v: Saved, context: AttentionContext) -> tuple[jax.Array, jax.Array]:
    return k.value if context.rope is None else apply_rope(k.value, context.rope), v.value
