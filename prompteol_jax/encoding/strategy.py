"""Plans: which ladder a model encodes with, and when it may be another one.

    fixed      the same ladder always, everywhere: same texts, same mesh, same machine, same bits
    measured   chosen for the device by a cost model, once; kept in the user's cache folder
    fitted     chosen for the lengths of the first texts that are encoded
    packed     short sentences share rows

A plan never changes by itself. `fixed` is the default and measures nothing. Whoever asks for
`measured` gets the stored choice of the first process that asked for it with this model, mesh,
device and version of jax; a process that finds none measures for some seconds and stores it, and of
two that measure at once the first to store wins. Within a process a ladder, once chosen, stays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from prompteol_jax.encoding.buckets import Costs, Ladder, cheapest, expected
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.runtime import cache_folder

Plan = Literal["fixed", "measured", "fitted", "packed"]


def identity(decoder: Decoder, mesh: Mesh, suffix: int) -> dict[str, Any]:
    """What a measured ladder depends on, for its file."""
    leaves = jax.tree_util.tree_leaves_with_path(decoder)
    shapes = "".join(f"{jax.tree_util.keystr(p)} {a.shape} {a.dtype}" for p, a in leaves)
    device = mesh.devices.flat[0]
    return {
        "model": hashlib.sha256(shapes.encode()).hexdigest()[:16],
        "mesh": dict(mesh.shape),
        "device": f"{device.platform} {device.device_kind}",
        "cores": os.cpu_count() if device.platform == "cpu" else None,
        "suffix": suffix,
        "jax": jax.__version__,
    }


def stored(key: Mapping[str, Any], choose: Callable[[], Ladder]) -> Ladder:
    """The ladder that was stored under this key, or else the one chosen now, which is stored."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "plans" / f"{name}.json"
    if not path.is_file():
        text = json.dumps({"key": key, **dataclasses.asdict(choose())}, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_suffix(f".{os.getpid()}")
        mine.write_text(text, encoding="utf-8")
        try:
            os.link(mine, path)  # fails where another process was first, whose choice then counts
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Ladder(tuple(fields["lengths"]), tuple(fields["rows"]))


def measured(
    seconds: Callable[[int, int], float],
    batch_tokens: int,
    suffix: int,
    longest: int,
    multiple: int,
) -> Ladder:
    """The ladder for texts of which nothing is known, by the costs of this device.

    Args:
        seconds: a slab's, by rows and tokens of a row.
        batch_tokens: about what keeps the device busy.
        suffix: ids that the template puts behind a sentence.
    """
    T = min(16, longest)
    rows = [max(1, n // T // multiple) * multiple for n in (batch_tokens // 4, batch_tokens * 2)]
    if rows[0] == rows[1]:
        rows[1] *= 2
    few, many = rows
    costs = Costs.fit((few * T, many * T), (seconds(few, T), seconds(many, T)))
    # A busy machine makes small slabs look dear; no slab costs more than this before its tokens.
    costs = Costs(min(costs.slab, batch_tokens / 8 * costs.token), costs.token)
    return cheapest(expected(suffix, longest), longest, costs, multiple)


def fitted(lengths: Mapping[int, int], batch_tokens: int, longest: int, multiple: int) -> Ladder:
    """The ladder for these lengths; a slab's own cost is taken for a tenth of a usual slab's."""
    return cheapest(lengths, longest, Costs(batch_tokens / 10, 1.0), multiple)
