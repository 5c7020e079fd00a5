"""Damage to valid bytes: flips, cuts, repeats, splices, large numbers, deep nesting."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

_NUMBERS: Final = (b"0", b"-1", b"1e400", b"2147483648", b"9223372036854775808", b"9" * 5000)
_TOKENS: Final = (
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"'", b"\\", b"\t", b",", b"{}"),
    *(b"[]", b"null", b"true", b"NaN", b"../", b"\\ud800", b"\x1b[31m", b"*sent_0*", b"{text}"),
    *(b"\x80\x02", b"(", b")", b"\x85", b"b", b"R", b"Q", b"r\xff\xff\xff\x7f", b"\x8a\x08"),
)
_MOST_NESTED: Final = 100_000


def mutate(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return bytes damaged in one to four ways."""
    for _ in range(random.randint(1, 4)):
        content = random.choice(_WAYS)(content, others, random)
    return content


def _place(content: bytes, random: Random) -> int:
    return random.randint(0, len(content))


def _flip(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(random.randint(1, 8)):
        if flipped:
            flipped[random.randrange(len(flipped))] = random.randrange(256)
    return bytes(flipped)


def _cut(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    start, end = sorted((_place(content, random), _place(content, random)))
    return content[:start] + content[end:]


def _truncate(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    return content[: _place(content, random)]


def _repeat(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    start = _place(content, random)
    piece = content[start : start + random.choice((1, 8, 100))]
    return content[:start] + piece * random.choice((2, 10, 1000)) + content[start:]


def _insert(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    at = _place(content, random)
    return content[:at] + random.choice(_TOKENS) * random.choice((1, 1, 3, 200)) + content[at:]


def _nest(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    at = _place(content, random)
    opening = random.choice((b"[", b'{"a":', b"(", b"\x85"))
    return content[:at] + opening * random.choice((10, 1000, _MOST_NESTED)) + content[at:]


def _splice(content: bytes, others: Sequence[bytes], random: Random) -> bytes:
    other = random.choice(others)
    return content[: _place(content, random)] + other[_place(other, random) :]


def _number(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    found = list(re.finditer(rb"\d+", content))
    if not found:
        return content
    one = random.choice(found)
    return content[: one.start()] + random.choice(_NUMBERS) + content[one.end() :]


def _value(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    """Replace a JSON value by one of another type."""
    found = list(re.finditer(rb'(?<=: )("[^"]*"|[\d.]+|true|false|null)', content))
    if not found:
        return content
    one = random.choice(found)
    other = random.choice((b'"text"', b"[1, 2]", b'{"a": 1}', b"1.5", b"true", b"null", b"-3"))
    return content[: one.start()] + other + content[one.end() :]


def _field(content: bytes, _: Sequence[bytes], random: Random) -> bytes:
    """Change, add or remove one field of a JSON object, at any depth."""
    try:
        whole = json.loads(content)
        holder = _holder(whole, random)
    except (ValueError, RecursionError):
        return content
    if isinstance(holder, dict) and holder:
        name = random.choice(sorted(holder))
        value = holder.pop(name)
        if random.random() < 0.9:
            renamed = random.choice((name, name, name, name + "_", name[:1], "../" + name))
            holder[renamed] = random.choice((*_VALUES, [value], {name: value}, str(value)))
    return json.dumps(whole).encode()


def _holder(value: Any, random: Random) -> Any:
    inner = [v for v in value.values() if isinstance(v, dict)] if isinstance(value, dict) else []
    return _holder(random.choice(inner), random) if inner and random.random() < 0.5 else value


_VALUES: Final = (
    *(None, True, False, 0, 1, -1, 2, 7, 64, 2**31, 2**63, 10**400, 0.5, 1e308, -0.0, 1e-320),
    *(float("nan"), float("inf"), "", "7", "1e-6", "\ud800", "\x00", "\x1b[31m", "x" * 100_000),
    *("../x.safetensors", "/etc/passwd", [], {}, [1], ["a", 1], {"a": {}}, [[[]]] * 3),
)
_WAYS: Final[tuple[Callable[[bytes, Sequence[bytes], Random], bytes], ...]] = (
    *(_flip, _cut, _truncate, _repeat, _insert, _nest, _splice, _number, _value),
    *(_field, _field, _field),
)
