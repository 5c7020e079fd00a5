"""`Embedder`, the public face: sentences in, float32 vectors out."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from prompteol_jax import axes, distributed, models, nn
from prompteol_jax.encode import Ladder, Slab, Sorter, encode, encode_mean, prefill
from prompteol_jax.models.decoder import Decoder, KVCache, Rows
from prompteol_jax.pretrained import Pretrained, load_pretrained
from prompteol_jax.progress import progress_bar
from prompteol_jax.template import Template, read_template
from prompteol_jax.tokens import Prompt, PromptIds

Pooling = Literal["last", "mean"]
DTYPES: Final = ("float32", "bfloat16")
_CHUNK: Final = 1024  # texts tokenised at once, in a thread ahead of the device
_AHEAD: Final = 2  # slabs in flight beyond the one whose result is awaited
_log = logging.getLogger("prompteol_jax")


@dataclasses.dataclass
class Report:
    """What the last call of `encode` did.

    Attributes:
        truncated: texts that were cut to the model's positions.
        tokens: real ids computed; padded_tokens: ids computed with padding and dummy rows.
    """

    texts: int = 0
    distinct: int = 0
    truncated: int = 0
    whole: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    slabs: int = 0


class Embedder:
    """Encodes sentences with a decoder and a template.

    Args:
        pretrained: the model; `from_pretrained` loads one by name.
        pooling: the last token's state, or the mean over all tokens of the prompt.
        batch_tokens: tokens computed at once, over all devices; chosen for the device by default.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        template: Template,
        *,
        pooling: Pooling = "last",
        batch_tokens: int | None = None,
    ):
        self.pretrained = pretrained
        self.decoder = pretrained.decoder
        self.template = template
        self.pooling = pooling
        self.prompt = Prompt(template, pretrained.tokenizer, max_tokens=pretrained.config.P)
        self.report = Report()
        self._batch_tokens = batch_tokens or default_batch_tokens(pretrained.mesh)
        self._cache: KVCache | None = None
        self._untied_head: jax.Array | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        adapter: str | None = None,
        template: str | Template = "eol",
        mesh: str = "1x1",
        dtype: str = "bfloat16",
        *,
        layer: int | None = None,
        pooling: Pooling = "last",
        batch_tokens: int | None = None,
    ) -> Embedder:
        """Load a model by folder or hub name.

        Args:
            model: a Hugging Face folder, a hub name such as `facebook/opt-2.7b`, or `tiny`.
            adapter: a PEFT folder or hub name, or the folder of a training run.
            template: a name such as `eol` or `eol-icl-2.7b`, a file, or a Template.
            mesh: DATAxMODEL, devices along each axis.
            layer: take `hidden_states[layer]` instead of the last one.
        Raises: ValueError, FileNotFoundError or OSError that says what to do, before any work.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
        if isinstance(template, str):
            template = read_template(template)
        shape = axes.parse_mesh(mesh)
        distributed.simulate_devices(shape[0] * shape[1])
        pretrained = load_pretrained(
            model, axes.make_mesh(shape), dtype=jnp.dtype(dtype), adapter=adapter, layer=layer
        )
        return cls(pretrained, template, pooling=pooling, batch_tokens=batch_tokens)

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
        return config.D if isinstance(self.decoder.finish, models.Raw) else config.width

    def use(self, decoder: Decoder) -> None:
        """Encode with these weights from now on, such as those of a running training."""
        self.decoder = decoder
        self._cache = None

    def encode(
        self,
        texts: Sequence[str],
        batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool | None = None,
    ) -> Float[np.ndarray, "n D"]:
        """Encode texts, in their order; the same text gets the same bits whatever is beside it.

        A text too long for the model is cut at its end, template and demonstrations never; the
        number of such texts is logged and stands in `report`.

        Args:
            batch_tokens: tokens computed at once; another number may change the last bits.
            normalize: scale vectors to length one.
            progress: show a bar on standard error; by default where it is a terminal.
        Raises: TypeError for anything but a list of strings; FloatingPointError naming a text whose
            vector is not finite.
        """
        _check_texts(texts)
        place: dict[str, int] = {}
        index = [place.setdefault(text, len(place)) for text in texts]
        distinct = list(place)
        vectors = np.empty((len(distinct), self.width), np.float32)
        self.report = Report(texts=len(texts), distinct=len(distinct))
        with progress_bar("encode", len(distinct), progress) as advance:
            for members, z_BD in self._vectors(distinct, batch_tokens or self._batch_tokens):
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
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
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

        Raises: ValueError for an inner layer or a pooled mean, which no language-model head reads.
        """
        if self.pooling != "last" or isinstance(self.decoder.finish, models.Raw):
            raise ValueError(
                "words need the last layer and the last token: --layer -1, --pooling last"
            )
        z_BD = jnp.asarray(self.encode([text]))
        with jax.set_mesh(self.pretrained.mesh):
            logits_BV = nn.dot("BD,VD->BV", z_BD.astype(self._head().dtype), self._head())
            p, ids = jax.lax.top_k(jax.nn.softmax(logits_BV[0]), k)
        decode = self.pretrained.tokenizer.decode
        return [(decode([int(i)]), float(q)) for i, q in zip(ids, p, strict=True)]

    def _head(self) -> jax.Array:
        """The language-model head: the embedding itself where the two are tied."""
        source = self.pretrained
        if source.config.tied or source.folder is None:
            return self.decoder.stem.tokens[...]
        if self._untied_head is None:
            dtype = self.decoder.dtype
            self._untied_head = models.read_head(
                source.folder, source.config, source.mesh, dtype=dtype
            )
        return self._untied_head

    def _vectors(
        self, texts: Sequence[str], batch_tokens: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Vectors of texts as they are done, slab by slab: places in `texts`, and z_BD."""
        flying: deque[tuple[Slab, jax.Array]] = deque()
        with jax.set_mesh(self.pretrained.mesh):
            for slab in self._slabs(texts, batch_tokens):
                flying.append((slab, self._launch(slab)))
                if len(flying) > _AHEAD:
                    yield _landed(*flying.popleft())
            while flying:
                yield _landed(*flying.popleft())

    def _slabs(self, texts: Sequence[str], batch_tokens: int) -> Iterator[Slab]:
        """Tokenise ahead in a thread and sort into slabs."""
        mesh = self.pretrained.mesh
        ladder = Ladder.fixed(self.pretrained.config.P, batch_tokens, mesh.shape["data"])
        sorter = Sorter(ladder)
        report = self.report
        for start, prompts in self._tokenised(texts):
            report.truncated += int(prompts.truncated.sum())
            report.whole += int((~prompts.shared).sum())
            for offset, ids in enumerate(prompts.ids):
                shared = bool(prompts.shared[offset]) and self.pooling == "last"
                if prompts.shared[offset] and not shared:
                    ids = np.concatenate([self.prompt.prefix_C, ids])
                report.tokens += len(ids)
                yield from self._counted(sorter.add(start + offset, ids, shared))
        yield from self._counted(sorter.rest())

    def _counted(self, slabs: Iterator[Slab]) -> Iterator[Slab]:
        for slab in slabs:
            self.report.slabs += 1
            self.report.padded_tokens += slab.ids_BT.size
            yield slab

    def _tokenised(self, texts: Sequence[str]) -> Iterator[tuple[int, PromptIds]]:
        starts = range(0, len(texts), _CHUNK)
        with ThreadPoolExecutor(1) as pool:
            waiting: deque = deque()
            for start in starts:
                waiting.append((start, pool.submit(self.prompt, texts[start : start + _CHUNK])))
                if len(waiting) > 2:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()

    def _launch(self, slab: Slab) -> jax.Array:
        mesh = self.pretrained.mesh

        def on_mesh(array: np.ndarray, dims: str) -> jax.Array:
            return distributed.to_global(array, axes.sharding(dims, array.shape, mesh))

        rows = Rows(on_mesh(slab.ids_BT, "BT"), on_mesh(slab.last_BS, "BS"))
        if self.pooling == "mean":
            return encode_mean(self.decoder, rows)
        return encode(self.decoder, rows, self._prefix() if slab.shared else None)[:, 0]

    def _prefix(self) -> KVCache:
        if self._cache is None:
            self._cache = prefill(self.decoder, self.prompt.prefix_C)
        return self._cache


def default_batch_tokens(mesh: Mesh) -> int:
    """Tokens of a slab that keep the devices of a mesh busy."""
    if mesh.devices.flat[0].platform == "cpu":
        return 512 * mesh.shape["data"]
    return 16384 * mesh.shape["data"]


def _landed(slab: Slab, z_BD: jax.Array) -> tuple[list[int], np.ndarray]:
    return slab.members, distributed.to_host(z_BD)[: len(slab.members)]


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts is one string; give a list of strings: encode([text])")
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        kind = type(texts[wrong[0]]).__name__
        raise TypeError(f"texts[{wrong[0]}] is {kind}, not str ({len(wrong)} such entries)")


def _check_finite(z_BD: np.ndarray, members: list[int], texts: Sequence[str]) -> None:
    finite_B = np.isfinite(z_BD).all(axis=1)
    if not finite_B.all():
        bad = [texts[m] for m, ok in zip(members, finite_B, strict=True) if not ok]
        raise FloatingPointError(
            f"{len(bad)} vectors are not finite, the first that of {bad[0][:200]!r}; "
            "the weights may be damaged, or try dtype float32"
        )
