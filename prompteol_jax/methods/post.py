"""Post stages: what follows the mean over prompts, as one affine map after another.

Computed in float64 and in blocks of a fixed number of rows, so that a vector has the same bits in
any company.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from prompteol_jax.errors import NotFinite, NotFound, UserError
from prompteol_jax.methods.record import FITTED, PostStage
from prompteol_jax.storage import atomic

ROWS: Final = 256  # vectors that are computed together
_FLAT: Final = 1e-9  # a direction with less than this part of the largest variance has none
ReadHead = Callable[[], np.ndarray]  # the LM head, float32 [V, D]


@dataclass(frozen=True)
class FittedMap:
    """Numbers fitted on vectors: z -> (z - mean) matrix."""

    mean_D: Float[np.ndarray, "D"]
    matrix_DE: Float[np.ndarray, "D E"] | None = None


class Post:
    """The stages of a record for vectors of one width.

    Attributes:
        width: features of a vector after all stages.
    """

    def __init__(
        self, stages: Sequence[PostStage], folder: Path | None, width: int, read_head: ReadHead
    ):
        """Read the fitted numbers; the LM head is read when it is first needed.

        Raises: UserError, NotFound where a stage does not fit the vectors.
        """
        self._read_head, self._folder = read_head, folder
        self._stages: list[tuple[PostStage, FittedMap | None]] = []
        self.width = width
        for stage in stages:
            fitted = _read(stage, folder, self.width) if stage.kind in FITTED else None
            self._stages.append((stage, fitted))
            self.width = _width(stage, fitted, self.width)
        self._filters: dict[PostStage, np.ndarray] = {}

    def __call__(self, z_nD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n E"]:
        """Return the vectors after all stages, float32."""
        found = np.empty((len(z_nD), self.width), np.float32)
        for start in range(0, len(z_nD), ROWS):
            block = np.zeros((ROWS, z_nD.shape[1]))
            own = z_nD[start : start + ROWS]
            block[: len(own)] = own
            found[start : start + ROWS] = self._block(block)[: len(own)]
        return found

    def of(self, stages: Sequence[PostStage], width: int) -> Post:
        """Return some of the stages for vectors of a width, with the same files and LM head."""
        return Post(stages, self._folder, width, self._read_head)

    def __bool__(self) -> bool:
        return bool(self._stages)

    def _block(self, z_BD: np.ndarray) -> np.ndarray:
        for stage, fitted in self._stages:
            if fitted is not None:
                z_BD = z_BD - fitted.mean_D
                z_BD = z_BD if fitted.matrix_DE is None else z_BD @ fitted.matrix_DE
            elif stage.kind == "embed-filter":
                z_BD = z_BD @ self._filter(stage, z_BD.shape[1])
            elif stage.kind == "truncate":
                z_BD = z_BD[:, : stage.dims]
            else:
                length_B1 = np.linalg.norm(z_BD, axis=1, keepdims=True)
                z_BD = z_BD / np.where(length_B1 == 0, 1, length_B1)
        return z_BD

    def _filter(self, stage: PostStage, D: int) -> np.ndarray:
        if stage not in self._filters:
            assert stage.ratio is not None  # a record without it is refused
            self._filters[stage] = filter_of(self._read_head(), stage.ratio)
        matrix_DE = self._filters[stage]
        if len(matrix_DE) != D:
            raise UserError(
                f"the LM head reads {len(matrix_DE)} features, and embed-filter got {D}; put it "
                "first among the post stages"
            )
        return matrix_DE


def filter_of(head_VD: Float[np.ndarray, "V D"], ratio: int) -> Float[np.ndarray, "D E"]:
    """Return EmbedFilter's projection: right singular vectors of the LM head, the middle D / ratio.

    They are the eigenvectors of the Gram matrix W^T W, in the order of falling singular values.
    With ratio 1 it is the identity.
    """
    D = head_VD.shape[1]
    if ratio == 1:
        return np.eye(D)
    gram_DD = np.zeros((D, D))
    for start in range(0, len(head_VD), 4096):
        rows = head_VD[start : start + 4096].astype(np.float64)
        gram_DD += rows.T @ rows
    _, vectors_DD = np.linalg.eigh(gram_DD)
    kept = D // ratio
    start = (D - kept) // 2
    return vectors_DD[:, ::-1][:, start : start + kept]


def fit(stage: PostStage, z_nD: Float[np.ndarray, "n D"]) -> FittedMap:
    """Fit the numbers of a stage on vectors.

    Raises: UserError for too few vectors, or vectors without variance in as many directions.
    """
    z_nD = z_nD.astype(np.float64)
    mean_D = z_nD.mean(0)
    if stage.kind == "center":
        return FittedMap(mean_D)
    n, D = z_nD.shape
    dims = stage.dims or D
    centered_nD = z_nD - mean_D
    variance_D, vectors_DD = np.linalg.eigh(centered_nD.T @ centered_nD / n)
    variance_D, vectors_DD = variance_D[::-1], vectors_DD[:, ::-1]
    enough = int((variance_D > _FLAT * variance_D[0]).sum())
    if enough < dims:
        raise UserError(
            f"{n} vectors of {D} features vary in {enough} directions, and whitening to {dims} "
            f"needs as many; fit on more texts, or give the stage dims of at most {enough}"
        )
    return FittedMap(mean_D, vectors_DD[:, :dims] / np.sqrt(variance_D[:dims]))


def save(file: Path, fitted: FittedMap) -> None:
    """Write fitted numbers."""
    arrays: dict[str, Any] = {"mean": fitted.mean_D}
    if fitted.matrix_DE is not None:
        arrays["matrix"] = fitted.matrix_DE
    atomic.write_whole(file, lambda handle: np.savez(handle, **arrays))


def _read(stage: PostStage, folder: Path | None, width: int) -> FittedMap:
    if stage.file is None or folder is None:
        raise UserError(
            f"post {stage.kind} needs numbers fitted on texts, and the record names no file; "
            "`prompteol fit` makes a record with them"
        )
    file = folder / stage.file
    if not file.is_file():
        raise NotFound(f"post {stage.kind}: {file} does not exist")
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"post {stage.kind}: {file} is no file of fitted numbers: {error}"
        ) from None
    wanted = {"mean"} | ({"matrix"} if stage.kind == "whiten" else set())
    if set(arrays) != wanted:
        raise UserError(f"post {stage.kind}: {file} holds {sorted(arrays)}, not {sorted(wanted)}")
    fitted = FittedMap(arrays["mean"], arrays.get("matrix"))
    _check(stage, fitted, file, width)
    return fitted


def _check(stage: PostStage, fitted: FittedMap, file: Path, width: int) -> None:
    arrays: list[Any] = [a for a in (fitted.mean_D, fitted.matrix_DE) if a is not None]
    ranks = [array.ndim for array in arrays]
    if ranks not in ([1], [1, 2]) or any(len(array) != width for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise UserError(
            f"post {stage.kind}: {file} is for vectors of another width: {shapes}, and the "
            f"vectors have {width} features; fit it with this model and method"
        )
    if not all(array.dtype.kind == "f" and np.isfinite(array).all() for array in arrays):
        raise NotFinite(f"post {stage.kind}: {file} holds numbers that are not finite")
    if stage.kind == "whiten" and stage.dims not in (None, arrays[1].shape[1]):
        raise UserError(
            f"post whiten: {file} gives {arrays[1].shape[1]} features, not {stage.dims}"
        )


def _width(stage: PostStage, fitted: FittedMap | None, width: int) -> int:
    if fitted is not None:
        return width if fitted.matrix_DE is None else fitted.matrix_DE.shape[1]
    if stage.kind == "embed-filter":
        assert stage.ratio is not None
        if width % stage.ratio:
            raise UserError(f"embed-filter: {width} features are no multiple of {stage.ratio}")
        return width // stage.ratio
    if stage.kind == "truncate":
        assert stage.dims is not None
        if stage.dims > width:
            raise UserError(f"truncate: dims {stage.dims} is above the {width} features there are")
        return stage.dims
    return width
