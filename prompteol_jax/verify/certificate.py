"""Checks of a checkpoint as it is loaded: tokenizer, parity, finite and distinct vectors, batches.

Each check looks at the whole path that `encode` takes, on sentences that are the same for everyone,
and says what it measured and what it allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float

from prompteol_jax.embedder import Embedder
from prompteol_jax.text.tokenizer import golden_ids
from prompteol_jax.verify import geometry, torch_reference
from prompteol_jax.verify.sentences import SENTENCES

Verdict = Literal["passed", "failed", "not checked"]

# Against transformers in float32: smallest cosine, and largest difference over the largest number.
# bfloat16 keeps 8 bits, and its rounding adds up over layers.
PARITY: Final = {"float32": (0.99999, 1e-3), "bfloat16": (0.99, 0.1)}
MOST_ALIKE: Final = 0.99  # mean cosine of different sentences


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its verdict, a sentence for people, and the numbers behind it."""

    name: str
    verdict: Verdict
    detail: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)


def verify(embedder: Embedder, progress: Callable[[str], object] = lambda _: None) -> list[Check]:
    """Run every check; `progress` hears the name of each before it starts."""
    progress("tokenizer")
    checks = [check_tokenizer(embedder)]
    progress("vectors")
    try:
        z_BD = embedder.encode(SENTENCES, progress=False)
    except FloatingPointError as error:
        checks += [Check("finite", "failed", str(error))]
        reason = "there are no vectors without numbers that are finite"
        return checks + [Check(n, "not checked", reason) for n in ("distinct", "batch", "parity")]
    checks += [Check("finite", "passed", f"{z_BD.size:,} numbers of {len(z_BD)} vectors")]
    checks += [check_distinct(z_BD)]
    progress("batch invariance")
    checks += [check_batches(embedder, z_BD)]
    progress("parity with transformers")
    return [*checks, check_parity(embedder, z_BD)]


def check_tokenizer(embedder: Embedder) -> Check:
    """Compare ids with those that a known vocabulary gives."""
    golden = golden_ids(embedder.prompt.tokenizer)
    if not golden:
        detail = "the vocabulary is none of those whose ids are known; BOS and range are checked"
        return Check("tokenizer", "not checked", detail)
    wrong = [g for g in golden if g.found != g.expected]
    if wrong:
        (first, *_) = wrong
        detail = f"{first.text!r} gives {first.found}, expected {first.expected}"
        return Check("tokenizer", "failed", detail)
    names = ", ".join(dict.fromkeys(g.vocabulary for g in golden))
    return Check("tokenizer", "passed", f"golden ids of {names}", {"texts": len(golden)})


def check_distinct(z_BD: Float[np.ndarray, "n D"]) -> Check:
    """Look for sentences that share one vector, and for vectors that all point one way."""
    try:
        found = geometry.spread(z_BD)
    except ValueError as error:
        return Check("distinct", "failed", str(error))
    same, mean = found.same, found.mean_cosine
    numbers = {"same": same, "mean_cosine": mean, "dimensions_used": found.dimensions}
    detail = (
        f"{same} pairs of different sentences share a vector (allowed: 0), mean cosine "
        f"{mean:.4f} (at most {MOST_ALIKE}), {found.dimensions:.1f} dimensions used"
    )
    good = same == 0 and mean <= MOST_ALIKE
    return Check("distinct", "passed" if good else "failed", detail, numbers)


def check_batches(embedder: Embedder, z_BD: Float[np.ndarray, "n D"]) -> Check:
    """Encode each sentence alone, and all in reverse, and compare every bit."""
    alone = np.concatenate([embedder.encode([text], progress=False) for text in SENTENCES])
    backwards = embedder.encode(SENTENCES[::-1], progress=False)[::-1]
    changed = (alone != z_BD).any(axis=1) | (backwards != z_BD).any(axis=1)
    numbers = {"changed": int(changed.sum()), "sentences": len(SENTENCES)}
    if not changed.any():
        detail = f"{len(SENTENCES)} sentences, alone, together and in reverse: the same bits"
        return Check("batch", "passed", detail, numbers)
    apart = max(float(np.abs(other - z_BD).max()) for other in (alone, backwards))
    first = SENTENCES[int(np.argmax(changed))]
    detail = (
        f"{numbers['changed']} of {len(SENTENCES)} vectors change with what is encoded beside "
        f"them, by up to {apart:.1e}, the first that of {first!r}"
    )
    return Check("batch", "failed", detail, numbers | {"largest_difference": apart})


def check_parity(embedder: Embedder, z_BD: Float[np.ndarray, "n D"]) -> Check:
    """Compare with transformers in float32, from the same ids."""
    source = embedder.pretrained
    if source.folder is None:
        return Check("parity", "not checked", f"{source.name} has no files for transformers")
    if missing := torch_reference.missing(source.adapter):
        return Check("parity", "not checked", f"{' and '.join(missing)} is not installed")
    settings = embedder.describe()
    unknown = settings["pooling"] not in torch_reference.POOLINGS or settings["edits"]
    if unknown or embedder.method is not None:
        given = f"pooling {settings['pooling']}, {len(settings['edits'])} edits"
        given += "" if embedder.method is None else f", method {embedder.method.name}"
        known = " or ".join(torch_reference.POOLINGS)
        detail = f"{given}: the reference knows pooling {known}, without edits"
        return Check("parity", "not checked", detail)
    prefix = embedder.prompt.prefix_C.tolist()
    found = embedder.prompt(SENTENCES)  # cut as `encode` cuts
    ids = [
        [*(prefix if shared else []), *row.tolist()]
        for row, shared in zip(found.ids, found.shared, strict=True)
    ]
    theirs = torch_reference.vectors(
        source.folder,
        ids,
        adapter=source.adapter,
        layer=source.layer,
        pooling=embedder.pooling,
    )
    check = compare(z_BD, theirs, embedder.dtype, SENTENCES)
    if source.quantize is None:
        whole = embedder.pooling == "last" and source.layer is None
        return _located(embedder, ids, check) if check.verdict == "failed" and whole else check
    detail = f"{source.quantize} against transformers' unquantized base: {check.detail}"
    return dataclasses.replace(check, verdict="not checked", detail=detail)


def _located(embedder: Embedder, ids: Sequence[Sequence[int]], check: Check) -> Check:
    """Say behind which layer the states of the last tokens first differ."""
    source = embedder.pretrained
    assert source.folder is not None  # the weights were read from there
    theirs = torch_reference.layers(source.folder, ids, adapter=source.adapter)
    ours = embedder.encode_layers(SENTENCES, progress=False)
    found = [compare(*pair, embedder.dtype, SENTENCES) for pair in zip(ours, theirs, strict=True)]
    bad = [number for number, layer in enumerate(found, 1) if layer.verdict == "failed"]
    first = bad[0] if bad else len(found)
    detail = f"{check.detail}; the first layer that differs is {first} of {len(found)}"
    cosines = [layer.numbers["smallest_cosine"] for layer in found]
    return dataclasses.replace(
        check, detail=detail, numbers={**check.numbers, "smallest_cosine_by_layer": cosines}
    )


def compare(
    ours: Float[np.ndarray, "n D"],
    theirs: Float[np.ndarray, "n D"],
    dtype: str,
    texts: Sequence[str],
) -> Check:
    """Hold our vectors to theirs: the cosine of each pair, and the largest difference."""
    least, most = PARITY[dtype]
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    apart = float(np.abs(a - b).max())
    relative = apart / float(np.abs(b).max())
    worst = int(np.argmin(cosines))
    numbers = {
        "smallest_cosine": float(cosines[worst]),
        "largest_difference": apart,
        "largest_number": float(np.abs(b).max()),
        "cosines": [float(c) for c in cosines],
    }
    good = cosines[worst] >= least and relative <= most
    detail = (
        f"{len(texts)} vectors, smallest cosine {cosines[worst]:.7f} (at least {least}), largest "
        f"difference {apart:.1e}, {relative:.1e} of the largest number (at most {most})"
    )
    detail += "" if good else f"; the worst is that of {texts[worst]!r}"
    return Check("parity", "passed" if good else "failed", detail, numbers)
