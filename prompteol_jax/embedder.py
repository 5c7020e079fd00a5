"""`Embedder`, the public face: sentences in, float32 vectors out."""

from __future__ import annotations

import dataclasses
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
from prompteol_jax.cosine import cosine_matrix, vectors_of
from prompteol_jax.encoding import lm_head
from prompteol_jax.encoding.lm_head import Head
from prompteol_jax.encoding.pipeline import Pipeline, Seen
from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.encoding.report import Report
from prompteol_jax.encoding.strategy import Plan, check_plan, vector_width
from prompteol_jax.encoding.views import Views, make_views
from prompteol_jax.errors import UserError, WrongType
from prompteol_jax.mesh import as_mesh
from prompteol_jax.methods import on_model
from prompteol_jax.methods.edits import Edit, describe_edits
from prompteol_jax.methods.library import describe, plain_method
from prompteol_jax.methods.pooling import EveryLayer, Pooling, find_pooling
from prompteol_jax.methods.record import Method, with_template
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained import load, provenance, source
from prompteol_jax.progress import Progress
from prompteol_jax.quant import formats as quant
from prompteol_jax.search import Found
from prompteol_jax.text.prompt import Truncation, check_length
from prompteol_jax.text.template import PROMPTEOL, Template, as_template
from prompteol_jax.text.texts import as_texts


class Embedder:
    """Encodes sentences with a decoder and a template.

    Several threads may use one Embedder, `use` excepted: vectors are those of calls one after
    another, and `report` is that of the thread's own last call. An Embedder cannot be pickled.

    Args:
        pretrained: a loaded model; `from_pretrained` loads one by name.
        template: a template, or the name or file of one; `eol` by default.
        method: a record, or the name or file of one, in place of a template and a pooling.
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
        template: Template | str | Path | None = None,
        *,
        method: str | Path | Method | None = None,
        pooling: str | Pooling = "last",
        edits: Sequence[Edit] = (),
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
        max_tokens: int | None = None,
        truncate: Truncation = "end",
    ):
        self.method = on_model.choose(method, template, pooling, None)
        chosen = find_pooling(self.method.pooling if self.method else pooling)
        check_plan(plan, batch_tokens, chosen, edits)
        self.pretrained = pretrained
        config = pretrained.config
        check_length(max_tokens, truncate, config.P)
        given = as_template(template or PROMPTEOL)
        run = self.method or plain_method(given, chosen.name, pretrained.layer)
        read = partial(load.read_lm_head, pretrained)
        self._head = Head(pretrained.mesh, config.V, read, config.logit_cap)
        self.views = make_views(
            *(pretrained, run, partial(self._head.to_host, pretrained.decoder)),
            bounds={"max_tokens": max_tokens or config.P, "truncate": truncate},
            pooling=chosen,
            edits=edits,
            plan=plan,
            batch_tokens=batch_tokens,
        )
        self.prompt, self.pooling = self.pipeline.prompt, chosen.name
        self.template = self.prompt.template
        self._edits, self._last = tuple(edits), threading.local()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        adapter: str | Path | None = None,
        template: str | Path | Template | None = None,
        mesh: str | Mesh = "1x1",
        dtype: str = "bfloat16",
        quantize: quant.Kind | None = None,
        *,
        method: str | Path | Method | None = None,
        any_method: bool = False,
        layer: int | None = None,
        pooling: str | Pooling = "last",
        edits: Sequence[Edit] = (),
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
        max_tokens: int | None = None,
        truncate: Truncation = "end",
        fsdp: bool = False,
    ) -> Embedder:
        """Load a model by folder or hub name; other arguments are those of the class.

        Args:
            model: a Hugging Face folder, a hub name such as `facebook/opt-2.7b`, or `tiny`.
            adapter: a PEFT folder or hub name, or the folder of a training run.
            mesh: DATAxMODEL, devices along each axis; or what `make_mesh` gives.
            dtype: `float32` or `bfloat16`, for activations and weights.
            quantize: `nf4` or `int8`, for the linear layers' matrices; fsdp: shard them over data.
            any_method: take an adapter that was trained with another method or template.
            layer: number of the `hidden_states` entry to take; the method's or last by default.
        Raises: UserError, NotFound or OSError that says what to do, before any work.
        """
        load.check_precision(dtype, quantize)
        chosen = on_model.choose(method, template, pooling, layer)
        pooled = find_pooling(chosen.pooling if chosen else pooling)
        run = chosen or plain_method(as_template(template or PROMPTEOL), pooled.name, layer)
        check_plan(plan, batch_tokens, pooled, edits)
        check_length(max_tokens, truncate)
        layer = on_model.layer_to_load(chosen, source.resolve_config(model).L) if chosen else layer
        weights: dict[str, Any] = {"dtype": jnp.dtype(dtype), "quantize": quantize, "layer": layer}
        weights |= {"adapter": adapter, "method": None if any_method else run, "fsdp": fsdp}
        pretrained = load.load_pretrained(str(model), as_mesh(mesh), **weights)
        how: dict[str, Any] = {"plan": plan, "batch_tokens": batch_tokens, "truncate": truncate}
        how |= {"method": chosen, "pooling": pooling, "edits": edits, "max_tokens": max_tokens}
        return cls(pretrained, None if chosen else run.prompts[0].template, **how)

    @property
    def decoder(self) -> Decoder:
        """The weights that encode."""
        return self.pipeline.decoder

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
        return self.views.width

    @property
    def max_tokens(self) -> int:
        """Largest number of ids of a prompt; longer texts are cut, see `truncate`."""
        return self.prompt.max_tokens

    @property
    def pipeline(self) -> Pipeline:
        """What encodes with the first prompt: tokenization, batches, device."""
        return self.views.pipelines[0]

    @property
    def mesh(self) -> Mesh:
        """The mesh that the model is on."""
        return self.pipeline.mesh

    @property
    def report(self) -> Report:
        """What the last call of this thread did."""
        return getattr(self._last, "report", Report())

    def describe(self) -> dict[str, Any]:
        """Return what decides the vectors, for a result file; see `provenance.describe`."""
        return provenance.describe(self)

    def describe_method(self) -> dict[str, Any]:
        """Return the pooling, the edits and the method's record, for a result file."""
        method = {} if self.method is None else {"method": describe(self.method)}
        edits = describe_edits(self._edits)
        return {"pooling": self.pipeline.pooling.describe(), **method, "edits": edits}

    @property
    def plan(self) -> str:
        """The plan by name, its batches as rows x tokens, and what the method cannot save."""
        return self.views.plan

    def with_template(self, template: Template | str | Path) -> Embedder:
        """Return an embedder of the same weights and settings with another template.

        Raises: UserError where a method has several prompts, or marks a place in its own.
        """
        if self.method is None:
            return self._with(template=as_template(template), pooling=self.pipeline.pooling)
        return self._with(method=with_template(self.method, as_template(template)))

    def with_method(self, method: str | Path | Method) -> Embedder:
        """Return an embedder of the same weights and settings with another method.

        Raises: UserError where it ends at a later layer than the loaded one.
        """
        return self._with(method=method)

    def _with(self, **how: Any) -> Embedder:
        kept = dict(edits=self._edits, max_tokens=self.max_tokens, plan=self.pipeline.plan)
        how |= kept | {"batch_tokens": self.pipeline.batch_tokens, "truncate": self.prompt.truncate}
        return Embedder(self.pretrained, **how)

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on, such as those of a running training."""
        layer = None if decoder.depth == self.pretrained.config.L else decoder.depth
        self.pretrained = dataclasses.replace(self.pretrained, decoder=decoder, layer=layer)
        self.views = self.views.use(decoder)

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
        check_plan(self.pipeline.plan, batch_tokens, self.pipeline.pooling)
        vectors = self._run(self.views, texts, batch_tokens, progress, check_finite=check_finite)
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def encode_layers(
        self, texts: Iterable[str], progress: bool | None = None
    ) -> list[Float[np.ndarray, "n D"]]:
        """Return the vectors of every layer: `hidden_states[1]` to the last, as a list.

        All but the last are raw; the last is what `encode` returns. Of a method that collects
        attention outputs, they are the outputs of every block, to be summed. Post stages are left
        out.

        Raises: UserError for another pooling than `last`; otherwise as `encode`.
        """
        if self.pooling != "last":
            raise UserError("every layer is read at the last token: --pooling last")
        every, collects = EveryLayer(), self.pipeline.steps.collect is not None
        config = self.pretrained.config
        views = self.views.each(
            width=vector_width(config, self.decoder, every, collects=collects),
            pooling=every,
            plan="fixed",
            batch_tokens=None,
            seen=Seen(),
            steps=on_model.every_block(self.pipeline.steps, self.decoder.depth),
        )
        joined = self._run(views, texts, None, progress)
        return np.split(joined, [config.D * n for n in range(1, self.decoder.depth)], axis=1)

    def prefix_encoder(self, batch_tokens: int | None = None) -> PrefixEncoder:
        """Return an encoder of one list of texts with many prompts, with the current weights.

        Args:
            batch_tokens: tokens computed together, over all devices and prompts.
        Raises: UserError for another pooling than `last`, for edits, or for a method of more than
            one prompt.
        """
        if not self.views.single:
            raise UserError("prompts are compared one by one: give a method of one prompt")
        return PrefixEncoder(self.pipeline, batch_tokens)

    def _run(
        self,
        views: Views,
        texts: Iterable[str],
        batch_tokens: int | None,
        progress: Progress,
        *,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n W"]:
        """Encode with views, keep the report and log how many texts were cut."""
        report = self._last.report = Report()
        vectors = views.encode(
            as_texts(texts),
            report,
            batch_tokens=batch_tokens,
            progress=progress,
            check_finite=check_finite,
        )
        report.log_truncated(self.max_tokens, self.pretrained.config.P)
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
        return cosine_matrix(*(vectors_of(side, self.encode) for side in (a, b)))

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
        vectors = vectors_of(queries, self.encode).astype(np.float32)
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
        one = self.views.single and self.pipeline.steps.collect is None
        lm_head.check_reads(inner=inner, pooling=self.pooling, one=one)
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
