"""Triplets built from the files of SNLI and MultiNLI: premise, entailment, contradiction.

A premise's n-th entailment goes with its n-th contradiction, each hypothesis once, and premises
come in the order in which they first occur. Pairs that the annotators did not agree on (label `-`)
and neutral ones make no triplet.

Source: Gao et al. 2021 (SimCSE), section 5, for the idea; its own file differs in order and number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import NotFound, UserError, listed_lines
from prompteol_jax.storage import tables
from train.data.triplets import ReadTriplets, Triplet

FIELDS: Final = ("gold_label", "sentence1", "sentence2")
LABELS: Final = ("entailment", "contradiction", "neutral", "-")


class Pair(NamedTuple):
    """A premise and a hypothesis with the label that most annotators gave them."""

    label: str
    premise: str
    hypothesis: str


def read_nli(files: Sequence[Path], *, skip_bad: bool = False) -> ReadTriplets:
    """Read the `.jsonl` or `.txt` files of either corpus, in the order given.

    Args:
        skip_bad: drop malformed lines and count them, where the default is to refuse them.
    Raises:
        NotFound: files that are not there, all in one error.
        UserError: other kinds of file, malformed lines (all in one error), or no triplet.
    """
    _check_files(files)
    premises: dict[str, dict[str, list[str]]] = {}
    bad: list[str] = []
    for path in files:
        for found in _pairs(path):
            if isinstance(found, str):
                bad.append(found)
                continue
            kinds = premises.setdefault(found.premise, {label: [] for label in LABELS})
            if found.hypothesis not in kinds[found.label]:
                kinds[found.label].append(found.hypothesis)
    if bad and not skip_bad:
        raise UserError(
            f"{len(bad)} lines are malformed:{listed_lines(bad)}\n"
            "Correct them, or drop them with --skip-bad."
        )
    triplets = [
        Triplet(premise, *hypotheses)
        for premise, kinds in premises.items()
        for hypotheses in zip(kinds["entailment"], kinds["contradiction"], strict=False)
    ]
    if not triplets:
        raise UserError(f"{', '.join(map(str, files))}: no premise has both kinds of hypothesis")
    return ReadTriplets(triplets, skipped=len(bad))


def _check_files(files: Sequence[Path]) -> None:
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        raise NotFound(f"no files {', '.join(missing)}" if missing else "no files given")
    strange = [str(path) for path in files if path.suffix not in (".jsonl", ".txt")]
    if strange:
        raise UserError(
            f"{', '.join(strange)}: give the .jsonl or .txt files of SNLI and MultiNLI, such as "
            "snli_1.0_train.jsonl and multinli_1.0_train.jsonl"
        )


def _pairs(path: Path) -> Iterator[Pair | str]:
    """Yield the pairs of a file; for a line that holds none, what is wrong with it."""
    for line, cells in tables.read_rows(path) if path.suffix == ".jsonl" else _txt_rows(path):
        place = f"{path}:{line}"
        yield f"{place}: {cells.what}" if isinstance(cells, tables.Bad) else _pair(cells, place)


def _txt_rows(path: Path) -> Iterator[tables.Row]:
    names: list[str] | None = None
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if names is None:
                names = _header(line, path)
                continue
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) < len(names):
                yield number, tables.Bad(f"{len(cells)} cells, the first line names {len(names)}")
            else:  # MultiNLI's lines can hold one more label
                yield number, dict(zip(names, cells, strict=False))


def _header(line: str, path: Path) -> list[str]:
    names = line.rstrip("\r\n").split("\t")
    lacking = [name for name in FIELDS if name not in names]
    if lacking:
        raise UserError(f"{path}: its first line names no column {', '.join(lacking)}")
    return names


def _pair(cells: dict[str, Any], place: str) -> Pair | str:
    texts: list[Any] = [cells.get(name) for name in FIELDS]
    pair = Pair(*texts)
    if pair.label not in LABELS:
        return f"{place}: gold_label {pair.label!r} is none of {', '.join(LABELS)}"
    for name, text in zip(FIELDS[1:], pair[1:], strict=True):
        if not isinstance(text, str) or (not text.strip() and pair.label in LABELS[:2]):
            return f"{place}: no text in {name}"
    return pair
