"""How long sentences are: the histogram that a plan draws its stream from.

    python -m tpu.lengths --texts sts --data SentEval/data --tokenizer OPT --output sts-dev.json
    python -m tpu.lengths --texts nli --data nli_triplets.csv --tokenizer OPT --output nli.json

A length counts a sentence's own ids: those of its prompt after the prefix that all prompts share.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from prompteol_jax.cli.options import flag
from prompteol_jax.errors import UserError, listed, nearest
from prompteol_jax.storage import json_files

STORED: Final = {"encode": "plan/lengths_sts_dev.json", "train": "plan/lengths_nli.json"}
PROGRAM: Final = "python -m tpu.lengths"


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many sentences have how many own ids.

    Attributes:
        source: Name of what was counted.
        prefix: Ids that all prompts share, by template.
        counts: Sentences by number of own ids.
    """

    source: str
    prefix: Mapping[str, int]
    counts: Mapping[int, int]

    @property
    def mean(self) -> float:
        """Own ids of a sentence on average."""
        return self.tokens / self.total

    @property
    def tokens(self) -> int:
        """Own ids of all sentences."""
        return sum(n * count for n, count in self.counts.items())

    @property
    def total(self) -> int:
        """Sentences that were counted."""
        return sum(self.counts.values())

    def split(self, longest: int) -> tuple[Lengths, Lengths]:
        """Return the sentences of up to `longest` ids, and the longer ones."""
        short = {length: count for length, count in self.counts.items() if length <= longest}
        long = {length: count for length, count in self.counts.items() if length > longest}
        return dataclasses.replace(self, counts=short), dataclasses.replace(self, counts=long)

    def cut(self, longest: int) -> Lengths:
        """Return the same sentences, each cut to `longest` ids."""
        counts: Counter[int] = Counter()
        for length, count in self.counts.items():
            counts[min(length, longest)] += count
        return dataclasses.replace(self, counts=dict(counts))

    def all_of(self, own: int) -> Lengths:
        """Return as many sentences, all of the same number of own ids.

        Raises: UserError where the prompt alone is as long.
        """
        if own < 1:
            raise UserError("--tokens must be more than the ids of the template's prefix")
        return dataclasses.replace(self, counts={own: self.total})

    def draw(self, n: int) -> list[int]:
        """Return n lengths with the histogram's shares, in an order that is always the same.

        The shares are exact up to rounding, so that a short stream is not a lucky one.
        """
        ascending = sorted(self.counts.items())
        drawn, below = [], 0
        for length, count in ascending:
            upto = below + count
            drawn += [length] * (round(upto * n / self.total) - round(below * n / self.total))
            below = upto
        random.Random(0).shuffle(drawn)
        return drawn

    def shared(self, template: str) -> int:
        """Return the number of ids of the prefix that all prompts of a template share.

        Raises: UserError for a template that was not counted.
        """
        if template not in self.prefix:
            raise UserError(
                f"template {template!r} has no prefix length in {self.source}; there are "
                f"{listed(sorted(self.prefix))}{nearest(template, self.prefix)}; "
                f"{PROGRAM} writes a file with those of your version"
            )
        return self.prefix[template]

    def write(self, path: Path) -> None:
        """Write the file that `read_lengths` reads."""
        fields = dataclasses.asdict(self)
        path.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def read_lengths(path: Path | None, job: Literal["encode", "train"]) -> Lengths:
    """Read a file of lengths, or the job's stored one.

    Raises: UserError where it is not such a file.
    """
    source = files("tpu").joinpath(STORED[job]) if path is None else path
    try:
        fields = json_files.parse_object(source.read_bytes(), source)
        counts = {int(n): int(count) for n, count in fields["counts"].items()}
        prefix = {str(name): int(ids) for name, ids in fields["prefix"].items()}
        lengths = Lengths(str(fields["source"]), prefix, counts)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{source} is no file of lengths; {PROGRAM} writes one: {error!s:.200}"
        ) from None
    if not counts or min(counts) < 1 or min(counts.values()) < 1:
        raise UserError(f"{source}: lengths and their counts must be 1 or more")
    if min(prefix.values(), default=0) < 0:
        raise UserError(f"{source}: the ids of a prefix must be 0 or more")
    return lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthsOptions:
    """Counts the ids of sentences, for `python -m tpu.plan --lengths`."""

    data: Path
    """SentEval's folder, a triplet file, or a text file of one sentence a line."""
    tokenizer: Path
    """A folder with a tokenizer; that of any OPT model gives the stored files."""
    output: Path
    """The file to write."""
    texts: Literal["sts", "nli", "lines"] = "lines"
    """Distinct cleaned sentences of STS-B dev, all sentences of triplets, or distinct lines."""
    cut: int | None = flag(None, at_least=1)
    """Tokens that a sentence is cut to before it goes into the template; for triplets 32."""


def count(options: LengthsOptions) -> Lengths:
    """Count the own ids of sentences under template `eol`."""
    from prompteol_jax.text.prompt import Prompt, stable_prefix
    from prompteol_jax.text.template import TEMPLATES, read_template
    from prompteol_jax.text.tokenizer import load_tokenizer

    texts = _texts(options)
    tokenizer = load_tokenizer(options.tokenizer, vocab_size=2**31)
    prompt = Prompt(read_template("eol"), tokenizer, max_tokens=2048)
    cut = 32 if options.cut is None and options.texts == "nli" else options.cut
    if cut is not None:
        texts = tokenizer.cut(texts, cut)
    counts = Counter(len(ids) for ids in prompt(texts).ids)
    prefix = {name: len(stable_prefix(read_template(name), tokenizer)) for name in TEMPLATES}
    source = f"{len(texts)} sentences of {options.data.name}, {options.tokenizer.name}"
    return Lengths(source, prefix, dict(sorted(counts.items())))


def _texts(options: LengthsOptions) -> Sequence[str]:
    if options.texts == "nli":
        from train.data.triplets import read_triplets

        return [text for row in read_triplets(options.data).triplets for text in row if text]
    if options.texts == "sts":
        from eval.sts.tasks import read_tasks
        from prompteol_jax.text.template import clean_sentence

        (pairs,) = read_tasks(options.data, ("STSBenchmark",), "dev")[0].subsets
        return list(dict.fromkeys(map(clean_sentence, [*pairs.texts_a, *pairs.texts_b])))
    lines = options.data.read_text(encoding="utf-8").split("\n")
    return [line for line in dict.fromkeys(lines) if line.strip()]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    from prompteol_jax.cli.commands import run_main

    run_main(PROGRAM, LengthsOptions, run, argv)


def run(options: LengthsOptions) -> None:
    """Count as asked and write the file."""
    count(options).write(options.output)


if __name__ == "__main__":
    main()
