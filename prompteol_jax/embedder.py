"""`Embedder`, the public face: sentences in, float32 vectors out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, get_args

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from prompteol_jax import runtime
from prompteol_jax.encoding import lm_head
from prompteol_jax.encoding.lm_head import Head
from prompteol_jax.encoding.pipeline import Pipeline, Pooling, Report
from prompteol_jax.encoding.strategy import Plan
from prompteol_jax.errors import NotFinite, UserError, WrongType
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained import provenance
from prompteol_jax.pretrained.load import Pretrained, load_pretrained
from prompteol_jax.progress import progress_bar
from prompteol_jax.quant import formats as quant
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import Template, read_template

DTYPES: Final = ("float32", "bfloat16")
_log = logging.getLogger("prompteol_jax")


class Embedder:
    """Encodes sentences with a decoder and a template.

    Args:
        pretrained: the model; `from_pretrained` loads one by name.
        pooling: the last token's state, or the mean over all tokens of the prompt.
        batch_tokens: tokens computed at once, over all devices; chosen for the device by default.
        plan: how sentences are put together, see `plan`; but for `fixed`, a vector may differ by
            rounding (2e-5 in float32) from what another call gives.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        template: Template,
        *,
        pooling: Pooling = "last",
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
    ):
        _check_plan(plan, batch_tokens, pooling)
        self.pretrained = pretrained
        self.template = template
        self.pooling = pooling
        self.prompt = Prompt(template, pretrained.tokenizer, max_tokens=pretrained.config.P)
        self.report = Report()
        self._pipeline = Pipeline(pretrained.decoder, self.prompt, pretrained.mesh, pooling, plan)
        self._batch_tokens = batch_tokens
        self._head = Head(pretrained)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        adapter: str | None = None,
        template: str | Template = "eol",
        mesh: str | Mesh = "1x1",
        dtype: str = "bfloat16",
        quantize: quant.Kind | None = None,
        *,
        layer: int | None = None,
        pooling: Pooling = "last",
        batch_tokens: int | None = None,
        plan: Plan = "fixed",
    ) -> Embedder:
        """Load a model by folder or hub name.

        Args:
            model: a Hugging Face folder, a hub name such as `facebook/opt-2.7b`, or `tiny`.
            adapter: a PEFT folder or hub name, or the folder of a training run.
            template: a name such as `eol` or `eol-icl-2.7b`, a file, or a Template.
            mesh: DATAxMODEL, devices along each axis; or what `make_mesh` gives.
            quantize: `nf4` or `int8`: keep the matrices of linear layers in 4 or 8 bits.
            layer: take `hidden_states[layer]` instead of the last one.
            plan: `fixed`, `measured`, `fitted` or `packed`; only `fixed` promises the same bits
                whatever else is encoded, everywhere.
        Raises: UserError, NotFound or OSError that says what to do, before any work.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
        if quantize not in (None, *quant.KINDS):
            raise UserError(
                f"quantize {quantize!r} is not supported; supported: {', '.join(quant.KINDS)}"
            )
        _check_plan(plan, batch_tokens, pooling)
        if isinstance(template, str):
            template = read_template(template)
        if isinstance(mesh, str):
            shape = parse_mesh(mesh)
            runtime.simulate_devices(shape[0] * shape[1])
            mesh = make_mesh(shape)
        pretrained = load_pretrained(
            model,
            mesh,
            dtype=jnp.dtype(dtype),
            quantize=quantize,
            adapter=adapter,
            layer=layer,
        )
        return cls(pretrained, template, pooling=pooling, batch_tokens=batch_tokens, plan=plan)

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
        """Numbers in a vector."""
        config = self.pretrained.config
        return config.D if isinstance(self.decoder.finish, build.Identity) else config.width

    def describe(self) -> dict[str, Any]:
        """What decides the vectors, for a result file; see `provenance.describe`."""
        return provenance.describe(self)

    @property
    def plan(self) -> str:
        """The plan by name, and its slabs as rows x tokens where they are known by now."""
        ladder = self._pipeline.known_ladder(self._batch_tokens)
        return f"{self._pipeline.plan}: {ladder or 'not chosen yet'}"

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on, such as those of a running training."""
        self._pipeline.use(decoder)

    def encode(
        self,
        texts: Sequence[str],
        batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool | None = None,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n D"]:
        """Encode texts, in their order; the same text gets the same bits whatever is beside it.

        A text too long for the model is cut at its end, template and demonstrations never; the
        number of such texts is logged and stands in `report`.

        Args:
            batch_tokens: tokens computed at once; another number may change the last bits.
            normalize: scale vectors to length one.
            progress: show a bar on standard error; by default where it is a terminal.
            check_finite: False lets vectors that are not finite through.
        Raises: TypeError for anything but a list of strings; NotFinite naming a text whose
            vector is not finite.
        """
        _check_plan(self._pipeline.plan, batch_tokens, self.pooling)
        vectors = self._run(
            self._pipeline, self.width, texts, batch_tokens, progress, check_finite=check_finite
        )
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def encode_layers(
        self, texts: Sequence[str], progress: bool | None = None
    ) -> list[Float[np.ndarray, "n D"]]:
        """Encode texts once for every layer: `hidden_states[1]` to the last, in the texts' order.

        All but the last are raw; the last is what `encode` returns.

        Raises: UserError for a pooled mean; otherwise as `encode`.
        """
        if self.pooling != "last":
            raise UserError("every layer is read at the last token: --pooling last")
        pipeline = Pipeline(self.decoder, self.prompt, self.pretrained.mesh, "layers")
        D, inner = self.pretrained.config.D, self.decoder.depth - 1
        joined = self._run(pipeline, inner * D + self.width, texts, None, progress)
        return np.split(joined, [D * n for n in range(1, inner + 1)], axis=1)

    def _run(
        self,
        pipeline: Pipeline,
        width: int,
        texts: Sequence[Any],
        batch_tokens: int | None,
        progress: bool | None,
        *,
        check_finite: bool = True,
    ) -> Float[np.ndarray, "n D"]:
        """Let a pipeline compute the distinct texts, and put its rows in the order of the texts."""
        _check_texts(texts)
        place: dict[str, int] = {}
        index = [place.setdefault(text, len(place)) for text in texts]
        distinct = list(place)
        vectors = np.empty((len(distinct), width), np.float32)
        self.report = Report(texts=len(texts), distinct=len(distinct))
        with progress_bar("encode", len(distinct), progress) as advance:
            tokens = batch_tokens or self._batch_tokens
            for members, z_BD in pipeline.run(distinct, tokens, self.report):
                if check_finite:
                    _check_finite(z_BD, members, distinct)
                vectors[members] = z_BD
                advance(len(members))
        if self.report.truncated:
            _log.warning(
                "%d of %d texts were longer than the model's %d positions allow and were cut",
                self.report.truncated,
                len(distinct),
                self.pretrained.config.P,
            )
        return vectors[np.asarray(index, np.int64)]

    def similarity(
        self, a: Sequence[str] | np.ndarray, b: Sequence[str] | np.ndarray
    ) -> Float[np.ndarray, "n m"]:
        """Cosine of every text or vector in `a` with every one in `b`, float32."""
        unit = []
        for side in (a, b):
            z = side if isinstance(side, np.ndarray) else self.encode(side)
            z = z.astype(np.float64)
            unit.append(z / np.linalg.norm(z, axis=1, keepdims=True))
        return (unit[0] @ unit[1].T).astype(np.float32)

    def words(self, text: str, k: int = 10) -> list[tuple[str, float]]:
        """The k most likely next tokens after the prompt, with their probabilities.

        With PromptEOL these are the model's one-word summaries of the text.

        Raises: UserError for an inner layer or a pooled mean, which no language-model head reads.
        """
        ids, p = (found[0] for found in self.next_tokens([text], k))
        decode = self.pretrained.tokenizer.decode
        return [(decode([int(i)]), float(q)) for i, q in zip(ids, p, strict=True)]

    def next_tokens(
        self, texts: Sequence[str], k: int, progress: bool | None = None
    ) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
        """The k most likely next tokens after each text's prompt: ids, and their probabilities.

        Raises: UserError as `words`.
        """
        lm_head.check_reads(
            inner=isinstance(self.decoder.finish, build.Identity), pooling=self.pooling
        )
        return self._head.top(self.decoder, self.encode(texts, progress=progress), k)


def _check_plan(plan: str, batch_tokens: int | None, pooling: Pooling) -> None:
    problems = []
    if plan not in get_args(Plan):
        problems.append(f"plan {plan!r} is not one of {', '.join(get_args(Plan))}")
    if batch_tokens is not None and batch_tokens < 1:
        problems.append(f"batch_tokens {batch_tokens} must be 1 or more")
    if batch_tokens is not None and plan in ("measured", "fitted"):
        problems.append(f"plan {plan} chooses batch_tokens itself; leave one of them out")
    if plan == "packed" and pooling == "mean":
        problems.append("plan packed gives last tokens only, not pooling mean")
    if problems:
        raise UserError("; ".join(problems))


def _check_texts(texts: Sequence[object]) -> None:
    if isinstance(texts, str):
        raise WrongType("texts is one string; give a list of strings: encode([text])")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        kind = type(texts[wrong[0]]).__name__
        raise WrongType(f"texts[{wrong[0]}] is {kind}, not str ({len(wrong)} such entries)")


def _check_finite(z_BD: np.ndarray, members: list[int], texts: Sequence[str]) -> None:
    finite_B = np.isfinite(z_BD).all(axis=1)
    if not finite_B.all():
        bad = [texts[m] for m, ok in zip(members, finite_B, strict=True) if not ok]
        raise NotFinite(
            f"{len(bad)} vectors are not finite, the first that of {bad[0][:200]!r}; "
            "the weights may be damaged, or try dtype float32"
        )
