"""Quirks of the released evaluation script that change numbers: `--strict-original`.

The script is evaluation.py of kongds/scaling_sentemb with its copy of SentEval. Each quirk is
in `QUIRKS` with its place there. Those that are on by default are ours too, because the published
numbers cannot be had without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64

from eval.shared.padded_mean import encode_padded_mean
from eval.sts.pairs import Pairs, Task
from eval.sts.tasks import YEARS
from prompteol_jax import Embedder
from prompteol_jax.text import template


@runtime_checkable
class PoolingEncoder(Protocol):
    """An encoder such as `Embedder`, which says how it pools and may return what is not finite."""

    pooling: str

    def encode(self, texts: Sequence[str], *, check_finite: bool) -> np.ndarray: ...


class Quirk(NamedTuple):
    """One quirk of the original: what it does, where, and when this project does it too."""

    name: str
    does: str
    source: str
    here: Literal["always", "strict", "never"]
    why: str = ""


QUIRKS: Final = (
    Quirk(
        "punctuation",
        "sentences are rewritten in evaluation and not in training",
        "evaluation.py, batcher; ft_llm.py, tokenize",
        "always",
    ),
    Quirk(
        "16-bit is fp32",
        "`--load_kbit 16` gives no dtype to the loader, which then makes float32",
        "evaluation.py, from_pretrained without torch_dtype",
        "always",
    ),
    Quirk(
        "rounded average",
        "the average is that of scores already rounded to two decimals",
        "evaluation.py, print_table",
        "always",
    ),
    Quirk(
        "cosine in the vectors' precision",
        "cosines are computed in float32, in float16 where the vectors are, so that some tie",
        "SentEval/senteval/utils.py, cosine; sts.py, similarity",
        "strict",
    ),
    Quirk(
        "float16 vectors",
        "with 4 bits or tensor parallelism vectors are float16; the square of a norm above 255 "
        "overflows",
        "evaluation.py, bnb_4bit_compute_dtype and torch_dtype",
        "strict",
    ),
    Quirk(
        "nan_to_num",
        "a number or cosine that is not a number counts as 0, instead of an error",
        "SentEval/senteval/sts.py, do_prepare",
        "strict",
    ),
    Quirk(
        "padded mean",
        "`--avg` divides by the padded length of a batch of 16, sorted by words",
        "evaluation.py, (last_layer * attention_mask).mean(1); sts.py, loadFile",
        "strict",
    ),
    Quirk(
        "left padding",
        "prompts are padded on the left with id 0, in batches of 16",
        "evaluation.py, padding_side",
        "never",
        "it changes rounding only: a mask hides the padding, and positions skip it or shift alike",
    ),
    Quirk(
        "float16 inside",
        "with 4 bits or tensor parallelism the model itself computes in float16",
        "evaluation.py, bnb_4bit_compute_dtype",
        "never",
        "activations here are float32 or bfloat16, whose range does not overflow",
    ),
    Quirk(
        "float16 features",
        "transfer features of the tensor-parallel path are float16",
        "evaluation.py, torch_dtype; SentEval/senteval/tools/classifier.py",
        "never",
        "it rounds features, which the probe then reads in float32",
    ),
    Quirk(
        "LlamaTokenizer by name",
        "a path with `llama` in it gets the LLaMA 1 tokenizer with BOS 1",
        "evaluation.py, 'llama' in model_name_or_path",
        "never",
        "for LLaMA 1 and 2 it is the tokenizer that the files define; for LLaMA 3 it fails",
    ),
    Quirk(
        "lost results",
        "a lock that is held, or a run without LoRA, loses or breaks the line of a result",
        "evaluation.py, lock_and_write_file and the precedence of `+` over `if`",
        "never",
        "it ends runs and changes no number",
    ),
)


def task_cosines(
    embedder: PoolingEncoder, tasks: Sequence[Task], *, clean: bool = True, half: bool = False
) -> dict[str, tuple[Float64[np.ndarray, " _"], ...]]:
    """Compute cosines by subset as the original does, in place of `scores.task_cosines`.

    Args:
        half: Whether vectors are rounded to float16, as on its 4-bit and tensor-parallel paths.
    """
    dtype = np.float16 if half else np.float32
    return {
        task.name: tuple(
            _subset_cosines(embedder, pairs, task.name in YEARS, clean, dtype)
            for pairs in task.subsets
        )
        for task in tasks
    }


def similarity(x_D: Float[np.ndarray, " D"], y_D: Float[np.ndarray, " D"]) -> float:
    """Compute one cosine in the precision of its vectors, and 0 where there is none."""
    x_D, y_D = np.nan_to_num(x_D), np.nan_to_num(y_D)
    with np.errstate(all="ignore"):
        cosine = np.dot(x_D, y_D) / (np.linalg.norm(x_D) * np.linalg.norm(y_D))
    return float(np.nan_to_num(cosine))


def batch_order(pairs: Pairs) -> list[int]:
    """Sort a subset of STS12-16 by words of the first sentence, of the second, and gold."""
    words = [
        (len(a.split()), len(b.split())) for a, b in zip(pairs.texts_a, pairs.texts_b, strict=True)
    ]
    return sorted(range(len(pairs)), key=lambda i: (*words[i], pairs.gold[i]))


def _subset_cosines(
    embedder: PoolingEncoder, pairs: Pairs, sort: bool, clean: bool, dtype: type
) -> Float64[np.ndarray, " n"]:
    order = batch_order(pairs) if sort else list(range(len(pairs)))
    sides = []
    for texts in (pairs.texts_a, pairs.texts_b):
        given = [template.clean_sentence(texts[i]) if clean else texts[i] for i in order]
        with np.errstate(over="ignore"):
            sides.append(_encode(embedder, given).astype(dtype))
    cosines = np.empty(len(pairs))
    cosines[order] = [similarity(x_D, y_D) for x_D, y_D in zip(*sides, strict=True)]
    return cosines


def _encode(embedder: PoolingEncoder, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
    if embedder.pooling == "mean":
        return encode_padded_mean(cast("Embedder", embedder), texts)  # no other one pools a mean
    return embedder.encode(texts, check_finite=False)


def listed(when: str) -> Mapping[str, str]:
    """Return the quirks that are on `always`, when `strict`, or `never`, and what they do."""
    return {quirk.name: quirk.does for quirk in QUIRKS if quirk.here == when}
