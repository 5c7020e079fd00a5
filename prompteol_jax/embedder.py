"""`Embedder`, the public face: sentences in, float32 vectors out."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from prompteol_jax import search
from prompteol_jax.cosine import as_vectors, cosine_matrix
from prompteol_jax.encoding import lm_head
from prompteol_jax.encoding.lm_head import Head
from prompteol_jax.encoding.pipeline import Pipeline, Report, Seen
from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.encoding.strategy import Plan, check_plan, vector_width
from prompteol_jax.errors import UserError, WrongType
from prompteol_jax.mesh import as_mesh
from prompteol_jax.methods.edits import Edit, describe_edits
from prompteol_jax.methods.pooling import EveryLayer, Pooling, find_pooling
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained import load, provenance
from prompteol_jax.progress import Progress
from prompteol_jax.quant import formats as quant
from prompteol_jax.search import Found
from prompteol_jax.text.prompt import Prompt, Truncation, check_length
from prompteol_jax.text.template import Template, as_template
from prompteol_jax.text.texts import as_texts

_log = logging.getLogger("prompteol_jax")


class Embedder:
    """Encodes sentences with a decoder and a template.

    Several threads may use one Embedder, `use` excepted: vectors are those of calls one after
    another, and `report` is that of the thread's own last call. An Embedder cannot be pickled.

    Args:
        pretrained: a loaded model; `from_pretrained` loads one by name.
        template: a template, or the name or file of one.
        pooling: `last`, the last token's state; `mean`, the mean over all tokens of the prompt; or
            a `methods.pooling.Pooling`.
        edits: interventions between two blocks, see `methods.edits`.
        batch_tokens: tokens computed together, over all devices; chosen for the device by default.
        plan: `fixed`, `fitted` or `packed`: how sentences form batches. Except for `fixed`, a
            vector may differ by rounding (2e-5 in float32) from that of another call.
        max_tokens: largest number of ids of a prompt, template included; by default all positions
            of the model.
        truncate: what a longer text loses: its `end` or its `middle`; or it is an `error`. The
            template stays whole.
    Raises: UserError naming an argument that is not allowed, and what is.
    """

    def __init__(
        self,
        pretrained: load.Pretrained,
        template: Template | str | Path,
        *,
        pooling: str | Pooling = "last",
        edits: Sequence[Edit] = (),
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
        max_tokens: int | None = None,
        truncate: Truncation = "end",
    ):
        chosen = find_pooling(pooling)
        check_plan(plan, batch_tokens, chosen, edits)
        self.pretrained = pretrained
        self.template = as_template(template)
        self.pooling = chosen.name
        config, mesh = pretrained.config, pretrained.mesh
        check_length(max_tokens, truncate, config.P)
        short = config.layers(config.L).short_tokens
        bounds = {"max_tokens": max_tokens or config.P, "most_shared": short}
        self.prompt = Prompt(self.template, pretrained.tokenizer, truncate=truncate, **bounds)
        self._pipeline = Pipeline(
            decoder=pretrained.decoder,
            prompt=self.prompt,
            mesh=mesh,
            width=vector_width(config, pretrained.decoder, chosen),
            pooling=chosen,
            edits=tuple(edits),
            plan=plan,
            batch_tokens=batch_tokens,
        )
        self._head = Head(mesh, config.V, partial(load.read_lm_head, pretrained), config.logit_cap)
        self._last = threading.local()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        adapter: str | Path | None = None,
        template: str | Path | Template = "eol",
        mesh: str | Mesh = "1x1",
        dtype: str = "bfloat16",
        quantize: quant.Kind | None = None,
        *,
        layer: int | None = None,
        pooling: str | Pooling = "last",
        edits: Sequence[Edit] = (),
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
        max_tokens: int | None = None,
        truncate: Truncation = "end",
    ) -> Embedder:
        """Load a model by folder or hub name.

        Args:
            model: a Hugging Face folder, a hub name such as `facebook/opt-2.7b`, or `tiny`.
            adapter: a PEFT folder or hub name, or the folder of a training run.
            template: a name such as `eol` or `eol-icl-2.7b`, a file, or a Template.
            mesh: DATAxMODEL, devices along each axis; or what `make_mesh` gives.
            dtype: `float32` or `bfloat16`, for activations and weights.
            quantize: `nf4` or `int8`: keep the matrices of linear layers in 4 or 8 bits.
            layer: number of the `hidden_states` entry to take; by default the last one.
            pooling, edits, batch_tokens, plan, max_tokens, truncate: as for the class. Only the
                plan `fixed` gives the same bits in any company of texts.
        Raises: UserError, NotFound or OSError that says what to do, before any work.
        """
        load.check_precision(dtype, quantize)
        check_plan(plan, batch_tokens, find_pooling(pooling), edits)
        check_length(max_tokens, truncate)
        template = as_template(template)
        pretrained = load.load_pretrained(
            str(model),
            as_mesh(mesh),
            dtype=jnp.dtype(dtype),
            quantize=quantize,
            adapter=None if adapter is None else str(adapter),
            layer=layer,
        )
        how: dict[str, Any] = dict(pooling=pooling, edits=edits, plan=plan, truncate=truncate)
        return cls(pretrained, template, batch_tokens=batch_tokens, max_tokens=max_tokens, **how)

    @property
    def decoder(self) -> Decoder:
        """The weights that encode."""
        return self._pipeline.decoder

    @property
    def model_name(self) -> str:
        """The name the model was asked for by."""
        return self.pretrained.name

    @property
    def dtype(self) -> str:
        """The dtype of activations."""
        return str(self.decoder.dtype)

    @property
    def width(self) -> int:
        """Number of features of a vector."""
        return self._pipeline.width

    @property
    def max_tokens(self) -> int:
        """Largest number of ids of a prompt; longer texts are cut, see `truncate`."""
        return self.prompt.max_tokens

    @property
    def pipeline(self) -> Pipeline:
        """What encodes: tokenization, batches, device."""
        return self._pipeline

    @property
    def mesh(self) -> Mesh:
        """The mesh that the model is on."""
        return self._pipeline.mesh

    @property
    def report(self) -> Report:
        """What the last call of this thread did."""
        return getattr(self._last, "report", Report())

    def describe(self) -> dict[str, Any]:
        """Return what decides the vectors, for a result file; see `provenance.describe`."""
        return provenance.describe(self)

    def describe_method(self) -> dict[str, Any]:
        """Return the pooling and the edits, for a result file."""
        pipeline = self._pipeline
        edits = describe_edits(pipeline.edits)
        return {"pooling": pipeline.pooling.describe(), "edits": edits}

    @property
    def plan(self) -> str:
        """The plan by name, its batches as rows x tokens, and what the pooling cannot save."""
        pipeline = self._pipeline
        buckets = pipeline.buckets(pipeline.tokens) or "not chosen yet"
        return "; ".join([f"{pipeline.plan}: {buckets}", *pipeline.given_up])

    def with_template(self, template: Template | str | Path) -> Embedder:
        """Return an embedder of the same weights and settings with another template."""
        pipeline = self._pipeline
        other = Embedder(
            self.pretrained,
            template,
            pooling=pipeline.pooling,
            edits=pipeline.edits,
            batch_tokens=pipeline.batch_tokens,
            plan=pipeline.plan,
            max_tokens=self.max_tokens,
            truncate=self.prompt.truncate,
        )
        other.use(self.decoder)
        return other

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on, such as those of a running training."""
        self._pipeline = dataclasses.replace(self._pipeline, decoder=decoder)

    def encode(
        self,
        texts: Iterable[str],
        batch_tokens: int | None = None,
        normalize: bool = False,
        progress: Progress = None,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n D"]:
        """Return one float32 vector per text, in the order of the texts.

        A text gets the same bits in any company of texts. A text of more than `max_tokens` ids is
        cut, template and demonstrations never; the number of such texts is logged and is part of
        `report`.

        Args:
            texts: a list or other ordered collection of strings, such as a column of a table.
            batch_tokens: tokens computed together; another number may change the last bits.
            normalize: scale vectors to length one.
            progress: show a bar on standard error, or lines in a log; see `progress_bar`.
            check_finite: False lets vectors that are not finite through.
        Raises: TypeError for anything else than texts, which says what to pass; NotFinite naming
            a text whose vector is not finite.
        """
        pipeline = self._pipeline
        check_plan(pipeline.plan, batch_tokens, pipeline.pooling)
        vectors = self._run(pipeline, texts, batch_tokens, progress, check_finite=check_finite)
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def encode_layers(
        self, texts: Iterable[str], progress: bool | None = None
    ) -> list[Float[np.ndarray, "n D"]]:
        """Return the vectors of every layer: `hidden_states[1]` to the last, as a list.

        All but the last are raw; the last is what `encode` returns.

        Raises: UserError for another pooling than `last`; otherwise as `encode`.
        """
        if self.pooling != "last":
            raise UserError("every layer is read at the last token: --pooling last")
        every = EveryLayer()
        pipeline = dataclasses.replace(
            self._pipeline,
            width=vector_width(self.pretrained.config, self.decoder, every),
            pooling=every,
            plan="fixed",
            batch_tokens=None,
            seen=Seen(),
        )
        D, inner = self.pretrained.config.D, self.decoder.depth - 1
        joined = self._run(pipeline, texts, None, progress)
        return np.split(joined, [D * n for n in range(1, inner + 1)], axis=1)

    def prefix_encoder(self, batch_tokens: int | None = None) -> PrefixEncoder:
        """Return an encoder of one list of texts with many prompts, with the current weights.

        Args:
            batch_tokens: tokens computed together, over all devices and prompts.
        Raises: UserError for another pooling than `last`, or for edits.
        """
        return PrefixEncoder(self._pipeline, batch_tokens)

    def _run(
        self,
        pipeline: Pipeline,
        texts: Iterable[str],
        batch_tokens: int | None,
        progress: Progress,
        *,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n W"]:
        """Encode with a pipeline, keep the report and log how many texts were cut."""
        report = self._last.report = Report()
        vectors = pipeline.encode(
            as_texts(texts),
            report,
            batch_tokens=batch_tokens,
            progress=progress,
            check_finite=check_finite,
        )
        if report.truncated:
            of_model = self.max_tokens == self.pretrained.config.P
            _log.warning(
                "%d of %d texts were longer than %s %d %s allow and were cut",
                *(report.truncated, report.distinct),
                *("the model's" if of_model else "max_tokens", self.max_tokens),
                "positions" if of_model else "tokens",
            )
        return vectors

    def similarity(
        self,
        a: Iterable[str] | Iterable[np.ndarray] | Float[np.ndarray, "*n D"],
        b: Iterable[str] | Iterable[np.ndarray] | Float[np.ndarray, "*m D"],
    ) -> Float[np.ndarray, "n m"]:
        """Return the cosine of every text or vector in `a` with every one in `b`, float32.

        Args:
            a, b: texts, or vectors [n, D]; one vector [D] counts as a list of one.
        Raises: WrongType or UserError that says what to pass; NotFinite for a vector that has no
            direction.
        """
        return cosine_matrix(self._vectors(a), self._vectors(b))

    def _vectors(self, side: Any) -> Float[np.ndarray, "n D"]:
        """Return texts or vectors as float64 vectors."""
        if isinstance(side, (list, tuple)) and side and not isinstance(side[0], str):
            side = np.stack(side) if all(isinstance(z, np.ndarray) for z in side) else side
        if np.issubdtype(getattr(side, "dtype", np.object_), np.number):
            return as_vectors(np.asarray(side))
        return as_vectors(self.encode(side))

    def search(
        self,
        queries: Iterable[str] | Float[np.ndarray, "*q D"],
        corpus_vectors: Float[np.ndarray, "n _"],
        k: int = 10,
    ) -> Found:
        """Return the k rows of `corpus_vectors` with the highest cosine for each query, exactly.

        Equal cosines go to the lower row. The rows are read block by block, and may be on disk.

        Args:
            queries: texts, or their vectors.
            corpus_vectors: what `encode` gave for the corpus, normalized or not.
        Returns: `order_qk`, the rows' numbers, -1 beyond the last one; their cosines `score_qk`.
        Raises: UserError for k below 1, another width, or a vector without a direction.
        """
        vectors = self._vectors(queries).astype(np.float32)
        return search.search(vectors, search.rows_in_blocks(corpus_vectors), k, self.mesh)

    def words(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        """Return the k most likely next tokens after the prompt, with their probabilities.

        With PromptEOL these are the model's one-word summaries of the text.

        Raises: UserError for an inner layer or a pooled mean, which no LM head reads, and for a k
            beyond the vocabulary.
        """
        ids, p = (found[0] for found in self.next_tokens([text], k))
        decode = self.pretrained.tokenizer.decode
        return [(decode([int(i)]), float(q)) for i, q in zip(ids, p, strict=True)]

    def next_tokens(
        self, texts: Iterable[str], k: int, progress: bool | None = None
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Return the k most likely next tokens after each text's prompt: ids and probabilities.

        Raises: UserError as `words`.
        """
        self.check_words(k)
        return self.tokens_after(self.encode(texts, progress=progress), k)

    def check_words(self, k: int) -> None:
        """Refuse vectors that no LM head reads.

        Raises: UserError as `words`.
        """
        inner = isinstance(self.decoder.final_norm, build.Identity)
        lm_head.check_reads(inner=inner, pooling=self.pooling)
        self._head.check(k)

    def tokens_after(
        self, z_nD: Float[np.ndarray, "n D"], k: int
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """Return the k most likely next tokens after vectors of `encode`, not normalized."""
        return self._head.top(self.decoder, z_nD, k)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: weights on devices do not travel."""
        raise WrongType(
            "an Embedder cannot be pickled or copied, its weights are on devices; pass the "
            "arguments of Embedder.from_pretrained instead and load it in the other process"
        )
