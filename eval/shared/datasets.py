"""The scored data: its fingerprint, and whether it is as large as the published sets.

Published scores are of the published sets. A task with another number of rows is scored, but it is
reported as incomplete on standard error, in the result file and on the page, and no published score
is shown next to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

# Rows of each set as SentEval distributes them; pairs without gold are not counted.
SIZES: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        **{"STS12": (3108,), "STS13": (1500,), "STS14": (3750,), "STS15": (3000,)},
        **{"STS16": (1186,), "STSBenchmark": (1379,), "SICKRelatedness": (4927,)},
        **{"STSBenchmark-dev": (1500,), "SICKRelatedness-dev": (500,)},
        "STSBenchmark-train": (5749,),
        **{"MR": (10662,), "CR": (3775,), "SUBJ": (10000,), "MPQA": (10606,)},
        # Training, development and test set, where a task has them.
        **{"SST2": (67349, 872, 1821), "TREC": (5452, 500), "MRPC": (4076, 1725)},
    }
)
_log = logging.getLogger("eval")


def incomplete(rows: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return by task how its rows differ from the published ones, for those that differ."""
    return {
        name: f"{_joined(sizes)} rows, published {_joined(SIZES[name])}"
        for name, sizes in rows.items()
        if name in SIZES and tuple(sizes) != SIZES[name]
    }


def warn_of_incomplete(rows: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Log a warning that names every task whose rows differ from the published ones."""
    if found := incomplete(rows):
        listed = "; ".join(f"{name}: {what}" for name, what in found.items())
        _log.warning("%s is not the published data: %s", folder, listed)


def describe(
    folder: Path, split: str, rows: Mapping[str, Sequence[int]], content: Iterable[object]
) -> dict[str, Any]:
    """Return the record of the data in a result file.

    Args:
        rows: Rows of each set by task.
        content: Texts and gold in their order, as values that JSON can hold.
    Returns: `folder`, `split`, `sha256` of the content, `rows` and `incomplete` by task.
    """
    digest = hashlib.sha256()
    for part in content:
        digest.update(json.dumps(part).encode())
        digest.update(b"\n")
    return {
        "folder": str(folder),
        "split": split,
        "sha256": digest.hexdigest(),
        "rows": {name: list(sizes) for name, sizes in rows.items()},
        "incomplete": incomplete(rows),
    }


def _joined(sizes: Sequence[int]) -> str:
    return " + ".join(f"{size:,}" for size in sizes)
