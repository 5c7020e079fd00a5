"""Hard negatives by our own encoder and exact search: `python -m train.mine --model M ...`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prompteol_jax.cli import options
from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.errors import AlreadyExists, UserError
from prompteol_jax.storage import atomic, paths

PROGRAM: Final = "python -m train.mine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineOptions(ModelOptions):
    """Finds hard negatives of pairs: texts near an anchor that are none of its positives.

    Writes a .jsonl file of the pairs with hard_neg, hard_neg_2 and so on, for `--loss infonce`.
    """

    data: str
    """Pairs, sent0 and sent1, in any file that `python -m train.contrastive --data` reads."""
    output: Path
    """The .jsonl file to write."""
    corpus: str | None = None
    """A file of texts (.txt, or with the column sent0) to mine from; by default all positives."""
    columns: tuple[str, ...] = ()
    """Columns of the files, where they have other names: sent0=question sent1=answer."""
    negatives: int = flag(1, at_least=1)
    """Hard negatives of each pair; pairs with fewer are dropped and counted."""
    range_min: int = flag(0, at_least=0)
    """Nearest candidates that are passed over."""
    range_max: int = flag(100, at_least=1)
    """Candidates that are looked at, from the nearest on."""
    min_score: float | None = flag(None, at_least=-1, at_most=1)
    """Lowest cosine of anchor and negative."""
    max_score: float | None = flag(None, at_least=-1, at_most=1)
    """Highest cosine of anchor and negative."""
    margin: float | None = flag(None, at_least=0)
    """A negative's cosine is lower than the pair's by at least this: others may be positives."""
    relative_margin: float | None = flag(None, at_least=0, at_most=1)
    """The same as a share of the pair's cosine: 0.05 keeps those up to 95 % of it."""
    sampling: str = "top"
    """Take the nearest of the candidates (`top`), or any of them (`random`)."""
    seed: int = flag(42, at_least=0, at_most=2**32 - 1)
    """Of `--sampling random`."""
    json: Path | None = None
    """File for the counts: pairs, mined, dropped, candidates removed by each condition."""

    def problems(self) -> list[str]:
        """Return what does not fit between the flags."""
        wrong = []
        if self.range_min + self.negatives > self.range_max:
            wrong.append(
                f"--range-max {self.range_max} leaves fewer than --negatives {self.negatives} "
                f"candidates after --range-min {self.range_min}"
            )
        if self.sampling not in ("top", "random"):
            wrong.append(f"--sampling {self.sampling}: choose top or random")
        if self.output.suffix != ".jsonl":
            wrong.append(f"--output {self.output}: give a .jsonl file")
        return wrong


def run(config: MineOptions) -> dict[str, Any]:
    """Mine as the flags say, write the file, and return the counts.

    Raises: UserError, AlreadyExists.
    """
    options.check(config)
    from eval.shared import results

    if paths.as_path(config.output).exists():
        raise AlreadyExists(f"{config.output} exists; remove it, or choose another --output")
    results.prepare(config.output, config.json)
    from train.data.triplets import columns_of, read_triplets, renamed
    from train.mine.negatives import MiningLimits, candidates_of, choose

    names = renamed(config.columns)
    pairs = read_triplets(paths.local_copy(config.data), columns=names).triplets
    if "sent1" not in columns_of(pairs[0]):
        raise UserError(f"{config.data} holds sentences; mining needs pairs, sent0 and sent1")
    texts = _documents(config, pairs, names)
    embedder = config.load("bfloat16")
    found = candidates_of(pairs, texts, embedder.encode, embedder.mesh, config.range_max)
    limits = MiningLimits(
        config.range_min,
        config.range_max,
        config.min_score,
        config.max_score,
        config.margin,
        config.relative_margin,
    )
    seed = config.seed if config.sampling == "random" else None
    chosen, removed = choose(found, limits, config.negatives, seed)
    rows = [
        {"sent0": pair.sent0, "sent1": pair.sent1}
        | {_name(n): texts[document] for n, document in enumerate(documents)}
        for pair, documents in zip(pairs, chosen, strict=True)
        if len(documents) == config.negatives
    ]
    counts = {"pairs": len(pairs), "mined": len(rows), "dropped": len(pairs) - len(rows)}
    result = {**counts, "removed": removed}
    _write(config, rows, result)
    return result


def _documents(
    config: MineOptions, pairs: Sequence[Any], names: Mapping[str, str] | None
) -> list[str]:
    """Return the texts to mine from, all different: the positives, and those of --corpus."""
    from train.data.files import has_columns
    from train.data.triplets import read_triplets

    texts = [row.sent1 for row in pairs]
    if config.corpus is not None:
        corpus = paths.local_copy(config.corpus)
        alone = {"sent0": names["sent0"]} if names and has_columns(corpus) else None
        texts += [row.sent0 for row in read_triplets(corpus, columns=alone).triplets]
    return list(dict.fromkeys(texts))


def _name(number: int) -> str:
    return "hard_neg" if number == 0 else f"hard_neg_{number + 1}"


def _write(config: MineOptions, rows: Sequence[dict[str, str]], counts: dict[str, Any]) -> None:
    """Write rows and counts; the file of rows appears whole."""
    from eval.shared import results

    if not rows:
        raise UserError(
            f"no pair has --negatives {config.negatives}: {counts['removed']} candidates removed; "
            "wider limits or a larger --range-max help"
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    output = paths.as_path(config.output)
    atomic.write_whole(output, lambda file: file.write(lines.encode()))
    if config.json is not None:
        results.write(config.json, counts)
    removed = ", ".join(f"{name} {n}" for name, n in counts["removed"].items())
    sys.stderr.write(
        f"{config.output}: {counts['mined']} of {counts['pairs']} pairs with {config.negatives} "
        f"hard negatives, {counts['dropped']} dropped; candidates removed: {removed}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, MineOptions, run, argv)
