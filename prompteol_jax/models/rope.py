"""Kinds of rotary positions (RoPE): how fast each pair of a head rotates.

A kind is a class. Its own fields have the names of `rope_parameters` in a `config.json`, and its
frequencies are those of transformers' modeling_rope_utils.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from prompteol_jax.models.config import Fields, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """RoPE without scaling; the kinds that scale it derive from this class.

    angle(position, i) = position / theta^(2i/d)      d rotated features of a head, i < d/2

    Attributes:
        rotated: share of a head's features that are rotated, from its first one on.
    """

    kind: ClassVar[str] = "default"
    theta: float = 10000.0
    rotated: float = 1.0

    @property
    def magnitude(self) -> float:
        """Factor of all cosines and sines."""
        return 1.0

    @property
    def short_tokens(self) -> int | None:
        """Most tokens of a text, prompt included, before other frequencies apply; None: never."""
        return None

    def inverse_frequencies(self, H: int, *, long: bool = False) -> np.ndarray:
        """Return radians a position for each of the d/2 pairs, float32.

        Args:
            long: for texts of more than `short_tokens` tokens.
        """
        return 1 / self._wavelengths(H)

    def width(self, H: int) -> int:
        """Return the number d of rotated features."""
        return int(H * self.rotated)

    def _wavelengths(self, H: int) -> np.ndarray:
        d = self.width(H)
        exponent = np.arange(0, d, 2, dtype=np.float32) / np.float32(d)
        return self.theta**exponent

    def to_hf(self) -> dict[str, Any]:
        """Return the `rope_parameters` of transformers 5."""
        fields: dict[str, Any] = {"rope_type": self.kind, "rope_theta": self.theta}
        if self.rotated != 1.0:
            fields["partial_rotary_factor"] = self.rotated
        for name in _own_fields(type(self)):
            value = getattr(self, name)
            if value is not None:
                fields[name] = list(value) if isinstance(value, tuple) else value
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """All frequencies over a factor (Chen et al. 2023)."""

    kind: ClassVar[str] = "linear"
    factor: float

    def inverse_frequencies(self, H: int, *, long: bool = False) -> np.ndarray:
        """Return radians a position, as `Rope` does."""
        return super().inverse_frequencies(H) / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """A larger theta for texts beyond the model's positions.

    No prompt is longer than these positions, so the frequencies are always the plain ones.
    """

    kind: ClassVar[str] = "dynamic"
    factor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Low frequencies over a factor, high ones kept, a ramp between (LLaMA 3.1)."""

    kind: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def inverse_frequencies(self, H: int, *, long: bool = False) -> np.ndarray:
        """Return radians a position, as `Rope` does."""
        frequency = super().inverse_frequencies(H)
        wavelength = 2 * math.pi / frequency
        turns = self.original_max_position_embeddings / wavelength  # within the original positions
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - kept) * frequency / self.factor + kept * frequency


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (Peng et al. 2023): a ramp from plain to divided frequencies, and a magnitude.

    Attributes:
        attention_factor: the magnitude; by default derived from `factor`.
        beta_fast, beta_slow: full turns within the original positions from which a pair is plain,
            and up to which it is divided.
        truncate: the ramp begins and ends at whole pairs.
    """

    kind: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        """Factor of all cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._grown(self.mscale) / self._grown(self.mscale_all_dim)
        return self._grown(1.0)

    def _grown(self, scale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * scale * math.log(self.factor) + 1

    def inverse_frequencies(self, H: int, *, long: bool = False) -> np.ndarray:
        """Return radians a position, as `Rope` does."""
        frequency = super().inverse_frequencies(H)
        first, last = self._ramp(H)
        pair = np.arange(len(frequency), dtype=np.float32)
        divided = np.clip((pair - first) / (last - first), 0, 1)
        return divided * frequency / self.factor + (1 - divided) * frequency

    def _ramp(self, H: int) -> tuple[float, float]:
        """Return the pairs between which the ramp goes from plain to divided."""
        d = self.width(H)

        def pair(turns: float) -> float:
            longest = self.original_max_position_embeddings / (turns * 2 * math.pi)
            return d * math.log(longest) / (2 * math.log(self.theta))

        first, last = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = float(max(first, 0)), float(min(last, d - 1))
        return first, last if last != first else last + 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """LongRoPE (Ding et al. 2024): a factor for each pair, others for long texts, and a magnitude.

    A text is long where its own prompt has more tokens than the original positions. transformers
    asks the longest row of a batch instead; a text alone gets the same there.

    Attributes:
        factor: of the positions, from which the magnitude is derived by default.
        attention_factor: the magnitude.
    """

    kind: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None

    @property
    def magnitude(self) -> float:
        """Factor of all cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        original = math.log(self.original_max_position_embeddings)
        return math.sqrt(1 + math.log(self.factor) / original)

    @property
    def short_tokens(self) -> int | None:
        """Most tokens of a text that takes the short factors."""
        return self.original_max_position_embeddings

    def inverse_frequencies(self, H: int, *, long: bool = False) -> np.ndarray:
        """Return radians a position, as `Rope` does."""
        factors = self.long_factor if long else self.short_factor
        return 1 / (np.array(factors, np.float32) * self._wavelengths(H))


KINDS: Final[Mapping[str, type[Rope]]] = {
    rope.kind: rope for rope in (Rope, LinearRope, DynamicRope, Llama3Rope, YarnRope, LongRope)
}


def read_rope(
    f: Fields,
    H: int,
    P: int,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    alias: Mapping[str, str] | None = None,
    partial: bool = False,
    original: int | None = None,
) -> Rope:
    """Read RoPE's fields, as transformers 5 does where a config gives them twice.

    `rope_scaling` goes before `rope_parameters`, and `rope_theta` in either before the one at the
    top (`convert_rope_params_to_dict` in modeling_rope_utils.py).

    Args:
        kinds: those that the family has; alias: older names of kinds.
        partial: the family may rotate a part of each head.
        original: positions before scaling, where the config has them at the top.
    """
    new, old = f.fields("rope_parameters"), f.fields("rope_scaling")
    given = {name: value for name, value in (old or new).items() if value is not None}
    given.setdefault("rope_theta", f.take("rope_theta", None))
    if partial:
        given.setdefault("partial_rotary_factor", f.take("partial_rotary_factor", None))
    is_scaled = any(given.get(name) not in (None, Rope.kind) for name in ("rope_type", "type"))
    if original is not None and is_scaled:
        given["original_max_position_embeddings"] = original
    return _read(f, given, (H, P), {kind: KINDS[kind] for kind in kinds}, alias or {})


def read_ropes_by_type(
    f: Fields, H: int, P: int, tops: Mapping[str, tuple[str, float]]
) -> tuple[Rope, ...]:
    """Read a RoPE for each type of layer; `rope_scaling` changes the first one.

    Args:
        tops: by type of layer, theta's field at the top of the config, empty without one, and its
            default.
    """
    by_type, scaling = f.fields("rope_parameters"), f.fields("rope_scaling")
    found = []
    for kind, (top, theta) in tops.items():
        own = by_type.pop(kind, None)
        if own is not None and type(own) is not dict:
            f.wrong(f"rope_parameters of {kind} = {shown(own)} is not an object")
            own = None
        given = (own or {}) | scaling
        given.setdefault("rope_theta", f.take(top, theta) if top else theta)
        found.append(_read(f, given, (H, P), KINDS, {}))
        scaling = {}
    if by_type:
        f.wrong(f"rope_parameters has {shown(sorted(by_type))}, supported: {[*tops]}")
    return tuple(found)


def _read(
    f: Fields,
    given: dict[str, Any],
    sizes: tuple[int, int],
    kinds: Mapping[str, type[Rope]],
    alias: Mapping[str, str],
) -> Rope:
    """Build a RoPE from its fields; what is wrong is noted, and plain RoPE returned."""
    H, P = sizes
    given = {name: value for name, value in given.items() if value is not None}
    theta = f.check_number("rope_theta", given.pop("rope_theta", 10000.0), positive=True)
    share = given.pop("partial_rotary_factor", 1.0)
    rotated = f.check_number("partial_rotary_factor", share, positive=True)
    named = [given.pop(name) for name in ("rope_type", "type") if name in given] or [Rope.kind]
    found = [alias.get(kind, kind) for kind in named if type(kind) is str]
    if len(found) < len(named) or len(set(found)) > 1 or found[0] not in kinds:
        f.wrong(f"RoPE of type {shown(named)} is not supported; supported: {[*kinds]}")
        return Rope(theta=theta)
    kind = kinds[found[0]]
    values = _read_own(f, kind, given, P)
    rope = Rope(theta=theta) if values is None else kind(theta=theta, rotated=rotated, **values)
    _check(f, rope, H)
    return rope


def _read_own(f: Fields, kind: type[Rope], given: dict[str, Any], P: int) -> dict[str, Any] | None:
    """Read the fields of one kind; None where they are not its own ones."""
    own = _own_fields(kind)
    if "original_max_position_embeddings" in own:
        given.setdefault("original_max_position_embeddings", P)
    if kind is LongRope and type(original := given["original_max_position_embeddings"]) is int:
        given.setdefault("factor", P / max(original, 1))
    needed = [name for name, is_needed in own.items() if is_needed]
    if set(given) - set(own) or set(needed) - set(given):
        optional = [name for name in own if name not in needed]
        more = f", and may take {optional}" if optional else ""
        f.wrong(f"RoPE of type {kind.kind!r} takes {needed}{more}, found {shown(sorted(given))}")
        return None
    return {name: _READERS.get(name, _positive)(f, name, value) for name, value in given.items()}


def _own_fields(kind: type[Rope]) -> dict[str, bool]:
    """Return the fields of a kind by name, and whether it must be given."""
    plain = {field.name for field in dataclasses.fields(Rope)}
    return {
        field.name: field.default is dataclasses.MISSING
        for field in dataclasses.fields(kind)
        if field.name not in plain
    }


def _positive(f: Fields, name: str, value: Any) -> float:
    return f.check_number(f"RoPE's {name}", value, positive=True)


def _number(f: Fields, name: str, value: Any) -> float:
    return f.check_number(f"RoPE's {name}", value)


def _tokens(f: Fields, name: str, value: Any) -> int:
    return int(_positive(f, name, value))


def _flag(f: Fields, name: str, value: Any) -> bool:
    if type(value) is not bool:
        f.wrong(f"RoPE's {name} = {shown(value)} is neither true nor false")
    return value is True


def _numbers(f: Fields, name: str, value: Any) -> tuple[float, ...]:
    if type(value) is not list:
        f.wrong(f"RoPE's {name} = {shown(value)} is not a list of numbers")
        return ()
    return tuple(_positive(f, name, number) for number in value)


_READERS: Final[Mapping[str, Callable[[Fields, str, Any], Any]]] = {
    "original_max_position_embeddings": _tokens,
    **dict.fromkeys(("mscale", "mscale_all_dim"), _number),
    "truncate": _flag,
    **dict.fromkeys(("short_factor", "long_factor"), _numbers),
}


def _check(f: Fields, rope: Rope, H: int) -> None:
    """Note what does not fit a head of H features, or together."""
    d = rope.width(H)
    if H % 2 and d == H:
        f.wrong(f"head_dim = {H} is odd; RoPE rotates pairs")
    elif d % 2 or not 0 < d <= H:
        f.wrong(f"partial_rotary_factor = {rope.rotated} rotates {d} of {H} features, not pairs")
    if isinstance(rope, Llama3Rope) and rope.high_freq_factor <= rope.low_freq_factor:
        f.wrong("RoPE's high_freq_factor is not above its low_freq_factor")
    if isinstance(rope, LongRope):
        for name in ("short_factor", "long_factor"):
            if len(getattr(rope, name)) != d // 2:
                f.wrong(f"RoPE's {name} has {len(getattr(rope, name))} numbers, not {d // 2}")
