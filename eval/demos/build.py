"""Make sets of candidates: sentences with the word a model has for them, and dictionary entries.

The paper's set was a hundred sentences of STS-B's training part, summed up in one word by a chat
model, and two hundred definitions of a dictionary with the word they define. Here the words come
from the model itself, or from a file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.demos import candidates
from eval.shared import results
from eval.sts.tasks import read_tasks
from prompteol_jax import Embedder
from prompteol_jax.cli.options import ModelOptions, check, flag
from prompteol_jax.errors import NotFound, UserError, listed, listed_lines
from prompteol_jax.storage import paths, tables
from prompteol_jax.text.template import Demonstration, Template, clean_sentence

CHOICES: Final = 50  # next tokens among which a word's first piece is looked for
PIECES: Final = 8  # of one word, at most
_SPACES: Final = ("\u0120", "\u2581")  # how vocabularies write the space before a word


@dataclass(frozen=True, kw_only=True)
class BuildOptions(ModelOptions):
    """Make candidates: sentences with words of a model or a file, and dictionary entries."""

    output: Path
    """.jsonl file for the candidates, one demonstration a line."""
    model: str | None = None
    """The model whose words sum up the sentences; not needed with --words or --n 0."""
    data: Path | None = None
    """SentEval's folder: sentences are drawn from STS-B's training part."""
    sentences: Path | None = None
    """Take these sentences instead, one a line, all of them in their order."""
    words: Path | None = None
    """Words for --sentences, one a line, instead of a model's."""
    n: int = flag(100, at_least=0)
    """Sentences to draw from --data."""
    dictionary: Path | None = None
    """A csv file with columns word and definition."""
    entries: int = flag(200, at_least=0)
    """Entries to draw from --dictionary, or all where it has fewer."""
    seed: int = flag(0, at_least=0)
    """Seed of what is drawn."""

    def problems(self) -> list[str]:
        """List what does not fit between the flags."""
        wants_model = (self.sentences or (self.data and self.n)) and not self.words
        return [
            message
            for wrong, message in (
                (
                    self.output.suffix.lower() != ".jsonl",
                    f"--output {self.output} must end in .jsonl",
                ),
                (
                    self.data and self.sentences,
                    "--data and --sentences both name sentences; give one of them",
                ),
                (
                    not (self.data or self.sentences or self.dictionary),
                    "give --data or --sentences, or --dictionary, or both kinds",
                ),
                (
                    self.words and not self.sentences,
                    "--words needs --sentences, whose words they are",
                ),
                (
                    wants_model and self.model is None,
                    "give --model, whose words sum up the sentences, or --words",
                ),
                (
                    self.layer is not None or self.pooling != "last",
                    "words are read from the last layer: no --layer, only --pooling last",
                ),
            )
            if wrong
        ]


def build(options: BuildOptions) -> list[Demonstration]:
    """Write the candidates and returns them; sentences without a word are counted on stderr."""
    check(options)
    paths.refuse_buckets(options.output)
    results.prepare(options.output)
    rng = np.random.default_rng(options.seed)
    sentences = [clean_sentence(text) for text in _sentences(options, rng)]
    entries = _entries(options, rng)
    if options.words:
        words = _lines(options.words)
        if len(words) != len(sentences):
            raise UserError(
                f"{options.words} has {len(words)} words for the {len(sentences)} sentences of "
                f"{options.sentences}; give one a line for each"
            )
    elif sentences:
        words = model_words(options.load("float32"), sentences)
    else:
        words = []
    shown = [Demonstration(*two) for two in zip(sentences, words, strict=True) if two[1]]
    lacking = len(sentences) - len(shown)
    shown += entries
    if not shown:
        raise UserError("there is nothing to make candidates of")
    candidates.write_candidates(options.output, shown)
    said = f"; the model had no word for {lacking} more sentences" if lacking else ""
    sys.stderr.write(f"{options.output}: {len(shown)} candidates{said}\n")
    return shown


def model_words(embedder: Embedder, texts: Sequence[str]) -> list[str]:
    """Return the word that the model goes on with after each text's prompt; empty for none.

    The most likely next token of letters begins it, the most likely ones after it carry it on as
    long as they belong to the same word.
    """
    entry = embedder.pretrained.tokenizer.entry
    ids_nk, _ = embedder.next_tokens(texts, min(CHOICES, embedder.pretrained.config.V))
    words = []
    for ids_k in ids_nk:
        pieces = (_bare(entry(number)) for number in ids_k)
        words.append(next((piece for piece in pieces if _is_of_letters(piece)), ""))
    going = [n for n, word in enumerate(words) if word]
    asker = embedder.with_template(Template("as it is", "", ""))
    for _ in range(PIECES - 1):
        if not going:
            break
        prompts = [embedder.template.fill(texts[n]) + words[n] for n in going]
        ids_nk, _ = asker.next_tokens(prompts, 1)
        pieces = [entry(ids_k[0]) for ids_k in ids_nk]
        goes_on = [_is_of_letters(piece) for piece in pieces]  # a space before it is no letter
        for n, piece, more in zip(going, pieces, goes_on, strict=True):
            words[n] += piece if more else ""
        going = [n for n, more in zip(going, goes_on, strict=True) if more]
    return words


def _bare(piece: str | None) -> str:
    return "" if piece is None else piece[1:] if piece.startswith(_SPACES) else piece


def _is_of_letters(piece: str | None) -> bool:
    return bool(piece) and piece.replace("-", "").isascii() and piece.replace("-", "").isalpha()


def _sentences(options: BuildOptions, rng: np.random.Generator) -> list[str]:
    if options.sentences:
        return _lines(options.sentences)
    if not options.data:
        return []
    (task,) = read_tasks(options.data, split="train")
    sides = [side for pairs in task.subsets for side in (pairs.texts_a, pairs.texts_b)]
    distinct = list(dict.fromkeys(text for side in sides for text in side))
    if options.n > len(distinct):
        raise UserError(f"--n {options.n}: STS-B's training part has {len(distinct)} sentences")
    return [distinct[n] for n in rng.permutation(len(distinct))[: options.n]]


def _entries(options: BuildOptions, rng: np.random.Generator) -> list[Demonstration]:
    if not options.dictionary:
        return []
    path = options.dictionary
    if not path.is_file():
        raise NotFound(f"--dictionary {path} does not exist")
    entries, problems = [], []
    with path.open("rb") as file:
        rows = list(tables.csv_rows(file, str(path), partial(_check_dictionary, path)))
    for line, row in rows:
        problem = _entry_problem(row)
        if isinstance(row, tables.Bad) or problem:
            problems.append(f"line {line}: {problem}")
        else:
            entries.append((row["definition"].strip(), row["word"].strip()))
    if problems:
        raise UserError(f"{path}:{listed_lines(problems)}")
    chosen = rng.permutation(len(entries))[: options.entries]
    return [Demonstration(clean_sentence(entries[n][0]), entries[n][1]) for n in chosen]


def _check_dictionary(path: Path, names: Sequence[str]) -> Sequence[str]:
    missing = {"word", "definition"} - set(names)
    if missing:
        raise UserError(f"{path} lacks the column {' and '.join(sorted(missing))}")
    return names


def _entry_problem(row: dict[str, Any] | tables.Bad) -> str | None:
    if isinstance(row, tables.Bad):
        return row.what
    cells = row.get("word"), row.get("definition")
    if not all(isinstance(cell, str) and cell.strip() for cell in cells):
        return "word or definition is empty"
    return None if all(tables.is_utf8(str(cell)) for cell in cells) else "not UTF-8"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise NotFound(f"{path} does not exist")
    with path.open("rb") as file:
        tables.skip_mark(file, str(path))
        lines = tables.escaped(file.read()).split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    bad = [n for n, line in enumerate(lines, start=1) if not line.strip()]
    if bad or not lines:
        raise UserError(f"{path}: " + (f"empty lines: {listed(bad)}" if bad else "empty"))
    bad = [n for n, line in enumerate(lines, start=1) if not tables.is_utf8(line)]
    if bad:
        raise UserError(f"{path}: not UTF-8 in lines {listed(bad)}")
    return [line.strip() for line in lines]
