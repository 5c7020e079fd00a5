"""The same sentences behind many prefixes: tokenized once, several prefixes to a program.

Candidates of one form differ in what stands before the sentence alone. So the sentences' own ids
are made once and lie on the device in slabs, the prefix of each candidate is computed once, and
prefixes are padded to a few lengths and stacked, so that a handful of compiled shapes serves all:

    rows_BT x caches_A  ->  encode behind each of the A prefixes  ->  z_ABD

Where a candidate or a sentence does not fit this (ids that merge across the border, a prompt too
long for the model), the ordinary `Embedder.encode` takes its place.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from prompteol_jax import Embedder, axes, distributed
from prompteol_jax.encoding.batching import Slab, Sorter, encode_after, prefill_padded
from prompteol_jax.encoding.buckets import Ladder
from prompteol_jax.encoding.pipeline import default_batch_tokens
from prompteol_jax.errors import NotFinite
from prompteol_jax.models.decoder import Rows
from prompteol_jax.progress import Advance
from prompteol_jax.text.prompt import Prompt, PromptIds, continue_alike
from prompteol_jax.text.template import Template

TOGETHER: Final = 8  # prefixes in one program
PREFIXES: Final = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # lengths they are padded to
_LEAST_TOKENS: Final = 4096  # computed at once: below, a small model waits for its own overhead
_AHEAD: Final = 2  # slabs in flight


@dataclasses.dataclass(frozen=True)
class _Part:
    """A slab on the device, and the places of its rows in the list of sentences."""

    rows: Rows
    members: list[int]


@dataclasses.dataclass(frozen=True)
class _Sentences:
    """Sentences behind the bare template of a form: their own ids, and slabs of them."""

    texts: tuple[str, ...]
    own: PromptIds
    parts: list[_Part]
    max_tokens: int

    def odd(self, prefix_tokens: int) -> list[int]:
        """Places of the sentences that cannot continue a prefix of so many tokens as they are."""
        most = self.max_tokens - prefix_tokens
        ids, shared, cut = self.own
        return [n for n in range(len(ids)) if cut[n] or not shared[n] or len(ids[n]) > most]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A template with its prompt; it fits where sentences go on behind it as they always do."""

    template: Template
    prompt: Prompt
    fits: bool

    @property
    def tokens(self) -> int:
        """Tokens of its prefix."""
        return len(self.prompt.prefix_C)


class SharedEncoder:
    """Encodes a list of sentences with one template after another.

    Attributes:
        runs: how often each shape (A, C, B, T) was run.
        prefills: how often each shape (A, C).
        singly: sentences that were encoded by themselves, over all candidates.
    """

    def __init__(self, embedder: Embedder, batch_tokens: int | None = None):
        self.embedder = embedder
        mesh = embedder.pretrained.mesh
        least = _LEAST_TOKENS * mesh.shape["data"]
        usual = default_batch_tokens(mesh, embedder.decoder)
        self._tokens = batch_tokens or max(least, usual)
        self.runs: Counter[tuple[int, int, int, int]] = Counter()
        self.prefills: Counter[tuple[int, int]] = Counter()
        self.singly = 0
        self._forms: dict[tuple[str, str], Prompt] = {}
        self._kept: dict[Prompt, _Sentences] = {}

    def groups(self, templates: Sequence[Template]) -> Iterator[list[Candidate]]:
        """Templates that are computed together, in a way that depends on the list alone.

        Those of one form go by the length of their prefixes, so that little of it is padding.
        """
        forms: dict[tuple[str, str, bool], list[Candidate]] = {}
        for template in templates:
            candidate = self._candidate(template)
            form = (template.prefix, template.suffix, candidate.fits)
            forms.setdefault(form, []).append(candidate)
        for (_, _, fits), members in forms.items():
            size = TOGETHER if fits else 1
            members.sort(key=lambda candidate: -candidate.tokens)
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def encode(
        self, group: Sequence[Candidate], texts: Sequence[str], advance: Advance
    ) -> Float[np.ndarray, "A n D"]:
        """Vectors of distinct texts behind each candidate of a group.

        Raises:
            NotFinite: a vector that is not finite, naming its candidate and text.
        """
        if not group[0].fits:
            vectors = np.stack([self.alone(candidate.template, texts) for candidate in group])
            advance(len(group) * len(texts))
            return vectors
        sentences = self._sentences(self._form(group[0].template), tuple(texts))
        vectors = self._together(group, sentences, advance)
        for place, candidate in enumerate(group):
            odd = sentences.odd(candidate.tokens)
            if odd:
                vectors[place, odd] = self.alone(candidate.template, [texts[n] for n in odd])
            bad = np.flatnonzero(~np.isfinite(vectors[place]).all(axis=1))
            if len(bad):
                raise NotFinite(
                    f"candidate {candidate.template.name}: {len(bad)} vectors are not finite, the "
                    f"first that of {texts[bad[0]][:200]!r}; try --dtype float32"
                )
        return vectors

    def _together(
        self, group: Sequence[Candidate], sentences: _Sentences, advance: Advance
    ) -> Float[np.ndarray, "A n D"]:
        decoder, mesh = self.embedder.decoder, self.embedder.pretrained.mesh
        ids_AC, tokens_A = _stacked(group, self.embedder.pretrained.config.P)
        n = len(sentences.own.ids)
        vectors = np.empty((len(group), n, self.embedder.width), np.float32)
        flying: deque[tuple[_Part, jax.Array]] = deque()

        def land() -> None:
            part, z_ABD = flying.popleft()
            landed = distributed.to_host(z_ABD)[: len(group), : len(part.members)]
            vectors[:, part.members] = landed
            advance(len(group) * len(part.members))

        with jax.set_mesh(mesh):
            caches = prefill_padded(decoder, ids_AC, tokens_A)
            self.prefills[ids_AC.shape] += 1
            for part in sentences.parts:
                z_ABD = encode_after(decoder, part.rows, caches)[:, :, 0]
                self.runs[(*ids_AC.shape, *part.rows.ids_BT.shape)] += 1
                flying.append((part, z_ABD))
                if len(flying) > _AHEAD:
                    land()
            while flying:
                land()
        return vectors

    def _sentences(self, base: Prompt, texts: tuple[str, ...]) -> _Sentences:
        """The sentences of a form, made when they are first asked for and kept until others are."""
        known = self._kept.get(base)
        if known is None or known.texts != texts:
            mesh = self.embedder.pretrained.mesh
            own = base(texts)
            tokens = self._tokens // TOGETHER
            ladder = Ladder.fixed(base.max_tokens, tokens, mesh.shape["data"])
            parts = [
                _Part(_on_mesh(slab.rows, mesh), slab.members)
                for slab in _slabs(own, Sorter(ladder))
            ]
            known = self._kept[base] = _Sentences(texts, own, parts, base.max_tokens)
        return known

    def _candidate(self, template: Template) -> Candidate:
        pretrained = self.embedder.pretrained
        prompt = Prompt(template, pretrained.tokenizer, max_tokens=pretrained.config.P)
        fits = len(prompt.prefix_C) > 0 and continue_alike(self._form(template), prompt)
        return Candidate(template, prompt, fits)

    def _form(self, template: Template) -> Prompt:
        """The prompt of a template without its demonstrations."""
        pretrained = self.embedder.pretrained
        form = (template.prefix, template.suffix)
        if form not in self._forms:
            bare = Template("bare", *form)
            self._forms[form] = Prompt(bare, pretrained.tokenizer, max_tokens=pretrained.config.P)
        return self._forms[form]

    def alone(self, template: Template, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Vectors as `Embedder.encode` gives them."""
        self.singly += len(texts)
        return Embedder(self.embedder.pretrained, template).encode(texts, progress=False)


def _stacked(
    group: Sequence[Candidate], longest: int
) -> tuple[Int[np.ndarray, "A C"], Int[np.ndarray, "A"]]:
    """The prefixes of a group, padded, and their tokens; A is a power of two."""
    A = 1 << (len(group) - 1).bit_length()
    prefixes = [candidate.prompt.prefix_C for candidate in group]
    prefixes += prefixes[-1:] * (A - len(prefixes))
    C = max(candidate.tokens for candidate in group)
    ids_AC = np.zeros((A, next(n for n in (*PREFIXES, longest) if n >= C)), np.int32)
    for row, prefix_C in enumerate(prefixes):
        ids_AC[row, : len(prefix_C)] = prefix_C
    return ids_AC, np.array([len(prefix_C) for prefix_C in prefixes], np.int32)


def _slabs(own: PromptIds, sorter: Sorter) -> Iterator[Slab]:
    for member, ids in enumerate(own.ids):
        if own.shared[member]:
            yield from sorter.add(member, ids, True)
    yield from sorter.rest()


def _on_mesh(rows: Rows, mesh: Mesh) -> Rows:
    ids_BT, last_BS, _ = rows
    return Rows(
        distributed.to_global(ids_BT, axes.sharding("BT", ids_BT.shape, mesh)),
        distributed.to_global(last_BS, axes.sharding("BS", last_BS.shape, mesh)),
    )
