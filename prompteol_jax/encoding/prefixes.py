"""Many prompts over the same texts: texts tokenized once, several prefixes in one program.

Prompts of one form (the same template but for its demonstrations) differ only in what comes before
the text. So the ids after the prefix are made once and stay on the device in batches. The prefix
of each prompt is computed once. Prefixes are padded to a few lengths and stacked, so that a few
compiled shapes serve all:

    rows_BT x caches_A  ->  encode after each of the A prefixes  ->  z_ABD

Where a prompt or a text does not fit this (ids that merge across the border, a prompt too long for
the model), the ordinary pipeline encodes it alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import jax
import numpy as np
from jaxtyping import Float, Int

from prompteol_jax.encoding.batching import Sentence, Sorter, rows_to_mesh
from prompteol_jax.encoding.buckets import Buckets
from prompteol_jax.encoding.pipeline import Pipeline, fetch_behind, refuse_not_finite
from prompteol_jax.encoding.report import Report
from prompteol_jax.encoding.runners import encode_after, prefill_padded
from prompteol_jax.encoding.strategy import default_batch_tokens
from prompteol_jax.errors import UserError
from prompteol_jax.models.decoder import Rows
from prompteol_jax.progress import Advance
from prompteol_jax.text.prompt import Prompt, PromptIds, continue_alike
from prompteol_jax.text.template import Template

TOGETHER: Final = 8  # prefixes in one program
PREFIXES: Final = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # lengths they are padded to
_LEAST_TOKENS: Final = 4096  # computed together: below, the fixed cost of a call dominates


@dataclass(frozen=True)
class Candidate:
    """A template with its prompt; it fits where texts continue it as they continue its form."""

    template: Template
    prompt: Prompt
    fits: bool

    @property
    def tokens(self) -> int:
        """Number of tokens of its prefix."""
        return len(self.prompt.prefix_C)


@dataclass(frozen=True)
class _Texts:
    """Texts after the bare template of a form: their own ids, and batches of them on the device.

    Attributes:
        batches: rows, and the indices of their texts.
    """

    texts: tuple[str, ...]
    own: PromptIds
    batches: list[tuple[Rows, list[int]]]
    max_tokens: int

    def odd(self, prefix_tokens: int) -> list[int]:
        """Return the indices of texts that cannot continue a prefix of so many tokens."""
        most = self.max_tokens - prefix_tokens
        ids, shared, cut = self.own
        return [n for n in range(len(ids)) if cut[n] or not shared[n] or len(ids[n]) > most]


class PrefixEncoder:
    """Encodes a list of texts with one template after another.

    One thread uses it at a time: batches of the last list of texts stay on the device.

    Attributes:
        runs: number of runs of each shape (A, C, B, T).
        prefills: number of runs of each shape (A, C).
        alone_texts: texts that the ordinary pipeline encoded, over all templates.
    """

    def __init__(self, pipeline: Pipeline, batch_tokens: int | None = None):
        """Encode with the decoder and mesh of a pipeline, which reads last tokens.

        Raises: UserError for another pooling, or for edits.
        """
        if pipeline.pooling.tokens != "last" or pipeline.edits or not pipeline.steps.none:
            raise UserError(
                "prompts are compared at the last token, without edits; use pooling last"
            )
        self.pipeline = replace(pipeline, batch_tokens=None, plan="fixed")
        mesh = pipeline.mesh
        least = _LEAST_TOKENS * mesh.shape["data"]
        usual = default_batch_tokens(mesh, pipeline.decoder)
        self._tokens = batch_tokens or max(least, usual)
        self.runs: Counter[tuple[int, int, int, int]] = Counter()
        self.prefills: Counter[tuple[int, int]] = Counter()
        self.alone_texts = 0
        self._forms: dict[tuple[str, str], Prompt] = {}
        self._on_device: dict[Prompt, _Texts] = {}

    def prompt(self, template: Template) -> Prompt:
        """Return the prompt of a template."""
        ours = self.pipeline.prompt
        most = {"max_tokens": ours.max_tokens, "most_shared": ours.most_shared}
        return Prompt(template, ours.tokenizer, truncate=ours.truncate, **most)

    def groups(self, templates: Sequence[Template]) -> Iterator[list[Candidate]]:
        """Yield templates that are computed together, in a way that depends on the list alone.

        Those of one form are sorted by the length of their prefixes, so that little is padding.
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
        """Encode distinct texts with each candidate of a group.

        Raises: NotFinite naming a candidate and a text whose vector is not finite.
        """
        if not group[0].fits:
            vectors = np.stack([self.alone(candidate.template, texts) for candidate in group])
            advance(len(group) * len(texts))
            return vectors
        on_device = self._texts(self._form(group[0].template), tuple(texts))
        vectors = self._together(group, on_device, advance)
        for z_nD, candidate in zip(vectors, group, strict=True):
            odd = on_device.odd(candidate.tokens)
            if odd:
                z_nD[odd] = self.alone(candidate.template, [texts[n] for n in odd])
            refuse_not_finite(z_nD, texts, f"candidate {candidate.template.name}: ")
        return vectors

    def alone(self, template: Template, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Return vectors as `Embedder.encode` gives them."""
        self.alone_texts += len(texts)
        pipeline = replace(self.pipeline, prompt=self.prompt(template))
        return pipeline.encode(texts, Report(), progress=False)

    def _together(
        self, group: Sequence[Candidate], on_device: _Texts, advance: Advance
    ) -> Float[np.ndarray, "A n D"]:
        n, decoder = len(on_device.own.ids), self.pipeline.decoder
        ids_AC, tokens_A = _stacked(group, self.pipeline.prompt.max_tokens)
        vectors = np.empty((len(group), n, self.pipeline.width), np.float32)
        with jax.set_mesh(self.pipeline.mesh):
            caches = prefill_padded(decoder, ids_AC, tokens_A)
            self.prefills[ids_AC.shape] += 1
            for rows, _ in on_device.batches:
                self.runs[*ids_AC.shape, *rows.ids_BT.shape] += 1
            launched = (
                (members, encode_after(decoder, rows, caches)[:, :, 0])
                for rows, members in on_device.batches
            )
            for members, z_ABD in fetch_behind(launched):
                vectors[:, members] = z_ABD[: len(group), : len(members)]
                advance(len(group) * len(members))
        return vectors

    def _texts(self, base: Prompt, texts: tuple[str, ...]) -> _Texts:
        """Return the texts of a form on the device, kept there until other texts are asked for."""
        known = self._on_device.get(base)
        if known is None or known.texts != texts:
            mesh, own = self.pipeline.mesh, base(texts)
            tokens = self._tokens // TOGETHER
            bounds = (base.max_tokens, base.most_shared)
            most = min(bound for bound in bounds if bound is not None)
            sorter = Sorter(Buckets.fixed(base.max_tokens, tokens, mesh.shape["data"]))
            sentences = (Sentence(n, ids, True) for n, ids in enumerate(own.ids) if own.shared[n])
            batches = [batch for sentence in sentences for batch in sorter.add(sentence)]
            batches += sorter.rest()
            on_mesh = [(rows_to_mesh(batch.rows, mesh), batch.members) for batch in batches]
            known = self._on_device[base] = _Texts(texts, own, on_mesh, most)
        return known

    def _candidate(self, template: Template) -> Candidate:
        prompt = self.prompt(template)
        fits = len(prompt.prefix_C) > 0 and continue_alike(self._form(template), prompt)
        return Candidate(template, prompt, fits)

    def _form(self, template: Template) -> Prompt:
        """Return the prompt of a template without its demonstrations."""
        form = (template.prefix, template.suffix)
        if form not in self._forms:
            self._forms[form] = self.prompt(Template("bare", *form))
        return self._forms[form]


def _stacked(
    group: Sequence[Candidate], longest: int
) -> tuple[Int[np.ndarray, "A C"], Int[np.ndarray, "A"]]:
    """Return the padded prefixes of a group, and their numbers of tokens; A is a power of two."""
    A = 1 << (len(group) - 1).bit_length()
    prefixes = [candidate.prompt.prefix_C for candidate in group]
    prefixes += prefixes[-1:] * (A - len(prefixes))
    C = max(candidate.tokens for candidate in group)
    ids_AC = np.zeros((A, next(n for n in (*PREFIXES, longest) if n >= C)), np.int32)
    for row, prefix_C in enumerate(prefixes):
        ids_AC[row, : len(prefix_C)] = prefix_C
    return ids_AC, np.array([len(prefix_C) for prefix_C in prefixes], np.int32)
