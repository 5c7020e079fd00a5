"""The views of a method on a model: one pipeline a prompt, the mean of their vectors, post stages.

    texts -> transform -> pipeline of prompt 1 -+
    texts -> transform -> pipeline of prompt 2 -+-> mean of raw vectors -> post stages

The pipelines share weights, compiled programs and, where prompts allow it, one tokenization. Each
has its own cached prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from prompteol_jax.encoding.pipeline import Pipeline
from prompteol_jax.encoding.report import Report
from prompteol_jax.encoding.strategy import vector_width
from prompteol_jax.methods import on_model
from prompteol_jax.methods.edits import Edit
from prompteol_jax.methods.pooling import Pooling
from prompteol_jax.methods.post import Post, ReadHead
from prompteol_jax.methods.record import PLACEHOLDER, Method
from prompteol_jax.methods.transforms import Variants, flattened, variants_of
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained.load import Pretrained
from prompteol_jax.text.bodies import sharing
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Views:
    """What encodes texts with a method.

    Attributes:
        pipelines: one a prompt; variants: of a text, for each prompt, or None.
    """

    pipelines: tuple[Pipeline, ...]
    variants: tuple[Variants | None, ...]
    post: Post | None

    @property
    def single(self) -> bool:
        """Whether a text has one vector, which nothing follows."""
        return len(self.pipelines) == 1 and self.variants == (None,) and not self.post

    @property
    def width(self) -> int:
        """Number of features of a vector."""
        return self.post.width if self.post else self.pipelines[0].width

    @property
    def plan(self) -> str:
        """The plan by name, its batches as rows x tokens, and what the method cannot save."""
        first = self.pipelines[0]
        buckets = first.buckets(first.tokens) or "not chosen yet"
        return "; ".join([f"{first.plan}: {buckets}", *self.given_up])

    @property
    def given_up(self) -> list[str]:
        """What the method keeps the encoder from saving."""
        found = list(self.pipelines[0].given_up)
        if len(self.pipelines) > 1:
            alone = sum(pipeline.bodies is None for pipeline in self.pipelines)
            found.append(f"{len(self.pipelines)} prompts, each with its own cached prefix")
            found += [f"{alone} of them tokenized alone"] if alone else []
        return found

    def encode(self, texts: Sequence[str], report: Report, **how: Any) -> Float[np.ndarray, "n W"]:
        """Return one vector a text; see `Pipeline.encode` for arguments and errors."""
        first = self.pipelines[0]
        if self.single:
            return first.encode(texts, report, **how)
        z_nW = self._mean(self._parts(texts, report, how), len(texts))
        report.texts, report.distinct = len(texts), len(set(texts))
        self.forget_bodies()
        return z_nW

    def _parts(
        self, texts: Sequence[str], report: Report, how: Mapping[str, Any]
    ) -> Iterator[tuple[np.ndarray, Sequence[int]]]:
        """Yield the vectors of each prompt, and whose each of them is."""
        for pipeline, chosen, owners in self.each_prompt(texts):
            own = Report()
            counted = pipeline is self.pipelines[0] and chosen is texts  # a bar counts a text once
            quiet = {} if counted else {"progress": False}
            yield pipeline.encode(chosen, own, **{**how, **quiet}), owners
            report.add(own)

    def each_prompt(
        self, texts: Sequence[str]
    ) -> Iterator[tuple[Pipeline, Sequence[str], Sequence[int]]]:
        """Yield what encodes each prompt, the texts that it reads, and whose each of them is."""
        for pipeline, variants in zip(self.pipelines, self.variants, strict=True):
            if variants is None:
                yield pipeline, texts, range(len(texts))
            else:
                yield pipeline, *flattened(variants, texts)

    def forget_bodies(self) -> None:
        """Free the ids that prompts shared."""
        for pipeline in self.pipelines:
            if pipeline.bodies is not None:
                pipeline.bodies.forget()

    def combine(
        self, z_mD: Float[np.ndarray, "m D"], owners: Sequence[int], texts: int
    ) -> Float[np.ndarray, "n W"]:
        """Return one vector a text from those of all prompts, in the order of `each_prompt`.

        Args:
            owners: number of the text of each vector.
            texts: number of texts.
        """
        return z_mD if self.single else self._mean([(z_mD, owners)], texts)

    def _mean(
        self, parts: Iterable[tuple[np.ndarray, Sequence[int]]], texts: int
    ) -> Float[np.ndarray, "n W"]:
        """Return the mean of each text's vectors, after the post stages."""
        total_nD, count_n = np.zeros((texts, self.pipelines[0].width)), np.zeros(texts)
        for z_mD, owners in parts:
            if isinstance(owners, range):  # each text once: far faster, with the same bits
                total_nD += z_mD
                count_n += 1
            else:
                np.add.at(total_nD, owners, z_mD)
                np.add.at(count_n, owners, 1)
        mean_nD = (total_nD / count_n[:, None]).astype(np.float32)
        return self.post(mean_nD) if self.post else mean_nD

    def each(self, **changed: Any) -> Views:
        """Return the same views with fields of all pipelines replaced, and without post stages."""
        pipelines = with_lender([replace(p, lender=None, **changed) for p in self.pipelines])
        return Views(pipelines, self.variants, None)

    def with_batch_tokens(self, batch_tokens: int) -> Views:
        """Return the same views with batches of so many tokens."""
        pipelines = [replace(p, lender=None, batch_tokens=batch_tokens) for p in self.pipelines]
        return replace(self, pipelines=with_lender(pipelines))

    def use(self, decoder: Decoder) -> Views:
        """Return the same views with other weights."""
        pipelines = [replace(p, lender=None, decoder=decoder) for p in self.pipelines]
        return replace(self, pipelines=with_lender(pipelines))


def make_views(
    pretrained: Pretrained,
    method: Method,
    read_head: ReadHead,
    *,
    pooling: Pooling,
    edits: Sequence[Edit],
    bounds: Mapping[str, Any],
    **settings: Any,
) -> Views:
    """Return the views of a method on a loaded model.

    Args:
        read_head: function that returns the LM head, for a post stage that projects with it.
        edits: more interventions, after those of the method.
        bounds: of the prompts, as `Prompt` takes them.
        settings: other fields of `Pipeline`.
    Raises: UserError, NotFound where the method does not fit the model.
    """
    config, decoder, tokenizer = pretrained.config, pretrained.decoder, pretrained.tokenizer
    cut = on_model.depth_on(method, config.L, pretrained.layer)
    decoder = decoder if cut is None else build.truncate(decoder, cut)
    bounds = {**bounds, "most_shared": config.layers(config.L).short_tokens}
    prompts = make_prompts(method, tokenizer, bounds)
    bodies = sharing(prompts)
    auxiliary = method.subtract and method.subtract.template
    first = Pipeline(
        decoder=decoder,
        prompt=prompts[0],
        mesh=pretrained.mesh,
        width=vector_width(config, decoder, pooling, collects=method.collect is not None),
        pooling=pooling,
        edits=(*on_model.edits_of(method, decoder.width), *edits),
        steps=on_model.steps_of(method, config.L, decoder.depth),
        auxiliary=auxiliary and Prompt(auxiliary, tokenizer, **bounds),
        prefix_length=max(len(p.prefix_C) for p in prompts) if len(prompts) > 1 else None,
        bodies=bodies[0],
        **settings,
    )
    others = zip(prompts[1:], bodies[1:], strict=True)
    pipelines = [first, *(replace(first, prompt=prompt, bodies=own) for prompt, own in others)]
    variants = tuple(variants_of(view.transform, method.folder) for view in method.prompts)
    post = Post(method.post, method.folder, first.width, read_head) if method.post else None
    return Views(with_lender(pipelines), variants, post)


def make_prompts(method: Method, tokenizer: Tokenizer, bounds: Mapping[str, Any]) -> list[Prompt]:
    """Return the prompts of a method; see `Prompt` for their bounds."""
    placeholder = None if method.copy is None else PLACEHOLDER
    return [
        Prompt(view.template, tokenizer, placeholder=placeholder, **bounds)
        for view in method.prompts
    ]


def with_lender(pipelines: Sequence[Pipeline]) -> tuple[Pipeline, ...]:
    """Return pipelines of one decoder that all use the runner of the first."""
    first, *others = pipelines
    return (first, *(replace(pipeline, lender=first) for pipeline in others))
