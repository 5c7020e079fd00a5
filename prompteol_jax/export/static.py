"""What a static pipeline can hold of a method: one prompt, last token or mean, linear stages.

A folder of sentence-transformers is a model, a pooling, and modules that change the vector. So a
method with one prompt, read at the last token or averaged over all, exports with the same vectors.
Stages that are linear (centering, whitening, projection, truncation) are one dense module each, up
to a normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from prompteol_jax.errors import UserError
from prompteol_jax.methods.post import Post
from prompteol_jax.methods.record import Method, PostStage
from prompteol_jax.pretrained import sentence_folder

POOLINGS = {ours: theirs for theirs, ours in sentence_folder.POOLINGS.items()}


@dataclass(frozen=True)
class LinearStage:
    """z @ weight.T + bias; in a list of these None is a normalization."""

    weight: Float[np.ndarray, "out D"]
    bias: Float[np.ndarray, " out"]


Apply = Callable[[Sequence[PostStage], np.ndarray], np.ndarray]  # stages, on vectors [n, D]


def why_not(method: Method) -> list[str]:
    """List what of a method a static pipeline cannot hold; nothing where it holds all."""
    edits = {
        "copy": "copies the last token's state to another position",
        "subtract": "changes attention in one block, from a second prompt",
        "collect": "reads attention outputs of inner blocks",
        "slot": "adds a key and a value in some blocks",
    }
    found = [said for name, said in edits.items() if getattr(method, name) is not None]
    if len(method.prompts) > 1:
        found.append(f"averages {len(method.prompts)} prompts")
    found += [
        f"changes texts first ({view.transform.kind})" for view in method.prompts if view.transform
    ]
    if any(view.template.pieces for view in method.prompts):
        found.append("tokenizes the pieces of its prompt one by one")
    if method.layer is not None:
        found.append(f"reads layer {method.layer}, before the final norm")
    if method.pooling not in POOLINGS:
        found.append(f"reads {method.pooling}, not the last token or the mean")
    return found


def check(method: Method) -> None:
    """Refuse a method that a static pipeline cannot hold.

    Raises: UserError naming every reason.
    """
    reasons = why_not(method)
    if reasons:
        raise UserError(
            f"method {method.name} cannot be exported: it {'; it '.join(reasons)}. A folder for "
            "sentence-transformers holds one prompt, the last layer, the last token or the mean, "
            "and stages after the vector; encode here with --method instead"
        )


def modules(method: Method, apply: Apply, width: int) -> list[LinearStage | None]:
    """Return the stages of a method as modules: linear ones, and None for a normalization.

    Args:
        apply: what applies stages to vectors.
        width: D, of the vectors before them.
    """
    found: list[LinearStage | None] = []
    for stages in _runs(method):
        if stages is None:
            found.append(None)
            continue
        # An affine map is known from what it makes of zero and of the unit vectors.
        probes = np.concatenate([np.zeros((1, width)), np.eye(width)]).astype(np.float32)
        made = np.asarray(apply(stages, probes), np.float64)
        dense = LinearStage((made[1:] - made[0]).T.astype(np.float32), made[0].astype(np.float32))
        found.append(dense)
        width = len(dense.bias)
    return found


def applying(post: Post | None) -> Apply:
    """Return what applies some of a method's stages by themselves."""

    def apply(stages: Sequence[PostStage], z_nD: np.ndarray) -> np.ndarray:
        assert post is not None  # a method without stages has none to apply
        return post.of(stages, z_nD.shape[1])(z_nD)

    return apply


def _runs(method: Method) -> list[list[PostStage] | None]:
    """Split the stages at normalizations."""
    found: list[list[PostStage] | None] = []
    run: list[PostStage] = []
    for stage in method.post:
        if stage.kind == "normalize":
            found += [run] if run else []
            found.append(None)
            run = []
        else:
            run.append(stage)
    return found + ([run] if run else [])
