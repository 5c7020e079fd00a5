"""The search: score candidates on pairs, and keep the best; all on all pairs, or by halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float64, Int

from eval.demos.candidates import extended, key
from eval.shared.journal import Journal
from eval.sts import scores
from eval.sts.tasks import Pairs, Task
from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.progress import progress_bar
from prompteol_jax.text.template import Template, clean_sentence

FIRST_PART: Final = 8  # halving begins with this part of the pairs
ORDER_SEED: Final = 0  # of the order in which halving takes the pairs up


@dataclasses.dataclass(frozen=True)
class Scored:
    """A template with its score, the pairs that it was scored on, and its shots.

    Attributes:
        examples: Gold and cosine of these pairs.
    """

    template: Template
    score: float
    pairs: int
    shots: int
    examples: Mapping[str, np.ndarray] = dataclasses.field(compare=False, repr=False)


class Search:
    """Score templates on the pairs of one task, best first.

    Args:
        halving: Whether all are scored on an eighth of the pairs, the better half on a quarter, and
            so on; the last ones on all. The parts are nested, and the same in every search.
        clean: Whether the original's punctuation rules are applied to sentences.
        progress: Whether progress is shown on standard error; see `progress_bar`.
    """

    def __init__(
        self,
        encoder: PrefixEncoder,
        pairs: Pairs,
        journal: Journal,
        *,
        halving: bool = False,
        clean: bool = True,
        progress: bool | None = None,
    ):
        self.encoder, self.pairs, self.journal = encoder, pairs, journal
        self.clean, self.progress = clean, progress
        self.stages = stages(len(pairs), halving)
        everything = np.arange(len(pairs))
        self._order = (
            np.random.default_rng(ORDER_SEED).permutation(everything) if halving else everything
        )

    def base(self, template: Template) -> Scored:
        """Score the template without a candidate's demonstrations, on all pairs."""
        name, n = f"base {key(template)}", len(self.pairs)
        cosines = self.journal.find(name, 0, n)
        if cosines is None:
            texts, a, b = self._texts(self._order)
            z_nD = self.encoder.alone(template, texts)
            cosines = scores.cosine(z_nD[a], z_nD[b])
            self.journal.add(0, n, {name: cosines})
        return self._scored(template, cosines, 0)

    def run(self, templates: Sequence[Template], shots: int = 1) -> list[Scored]:
        """Rank templates: those scored on more pairs first, then by score, then as given."""
        active, out, ranked = list(templates), [], []
        cosines: dict[str, list[np.ndarray]] = {key(template): [] for template in active}
        for start, stop in self._parts():
            for name, values in self._cosines(active, start, stop).items():
                cosines[name].append(values)
            ranked = sorted(
                (self._scored(t, np.concatenate(cosines[key(t)]), shots) for t in active),
                key=lambda scored: -scored.score,
            )
            keep = len(ranked) if stop == len(self.pairs) else -(-len(ranked) // 2)
            out[:0] = ranked[keep:]
            active = [scored.template for scored in ranked[:keep]]
        return ranked + out

    def extend(
        self, best: Template, pool: Sequence[Scored], shots: int, common: int = 0
    ) -> list[Scored]:
        """Rank the best template with each other candidate's demonstrations behind its own.

        Args:
            pool: Candidates of the first round; the best one is left out.
            common: Number of demonstrations that all candidates begin with.
        """
        grown: dict[str, Template] = {}
        for other in (scored.template for scored in pool):
            shown = other.demonstrations[common:]
            of_one_form = (other.prefix, other.suffix) == (best.prefix, best.suffix)
            if of_one_form and shown and shown != best.demonstrations[-len(shown) :]:
                template = extended(best, shown, f"{best.name}+{other.name}")
                grown.setdefault(key(template), template)
        return self.run(list(grown.values()), shots) if grown else []

    def texts(self) -> list[str]:
        """Return the distinct sentences of all pairs."""
        return self._texts(self._order)[0]

    def _parts(self) -> list[tuple[int, int]]:
        return list(zip((0, *self.stages), self.stages, strict=False))

    def _cosines(
        self, templates: Sequence[Template], start: int, stop: int
    ) -> Mapping[str, Float64[np.ndarray, " n"]]:
        """Return cosines of the pairs from start to stop behind every template; note new ones."""
        texts, a, b = self._texts(self._order[start:stop])
        total = len(templates) * len(texts)
        with progress_bar(f"pairs {start} to {stop}", total, self.progress) as advance:
            for group in self.encoder.groups(templates):
                names = [key(candidate.template) for candidate in group]
                new = [name for name in names if self.journal.find(name, start, stop) is None]
                if not new:
                    advance(len(group) * len(texts))
                    continue
                vectors = dict(zip(names, self.encoder.encode(group, texts, advance), strict=True))
                cosines = {name: scores.cosine(vectors[name][a], vectors[name][b]) for name in new}
                self.journal.add(start, stop, cosines)
        found = {key(t): self.journal.find(key(t), start, stop) for t in templates}
        return {name: cosines for name, cosines in found.items() if cosines is not None}

    def _texts(
        self, chosen: Int[np.ndarray, " n"]
    ) -> tuple[list[str], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return the distinct sentences of some pairs, and for each pair the indices of its two."""
        index: dict[str, int] = {}
        sides = []
        for side in (self.pairs.texts_a, self.pairs.texts_b):
            texts = [clean_sentence(side[n]) if self.clean else side[n] for n in map(int, chosen)]
            sides.append(np.array([index.setdefault(text, len(index)) for text in texts]))
        return list(index), *sides

    def _scored(self, template: Template, cosines: Float64[np.ndarray, " n"], shots: int) -> Scored:
        chosen = self._order[: len(cosines)]
        ascending = np.argsort(chosen)
        part = Pairs(
            f"{self.pairs.name}, {template.name}",
            [self.pairs.texts_a[n] for n in map(int, chosen[ascending])],
            [self.pairs.texts_b[n] for n in map(int, chosen[ascending])],
            self.pairs.gold[chosen[ascending]],
        )
        detail = scores.score_task(Task(part.name, (part,)), [cosines[ascending]])
        examples = {"gold": part.gold, "cosine": cosines[ascending]}
        return Scored(template, detail["spearman"]["all"], len(part), shots, examples)


def stages(pairs: int, halving: bool) -> tuple[int, ...]:
    """Return how many pairs each stage of a search has seen at its end."""
    if not halving:
        return (pairs,)
    parts = {-(-pairs // part) for part in (FIRST_PART, 4, 2, 1)}
    return tuple(sorted(parts))
