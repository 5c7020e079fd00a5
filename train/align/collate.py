"""Dialogs as rows of ids on the mesh, always of the run's one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from prompteol_jax.distributed import Channel, Share
from prompteol_jax.models.decoder import Rows
from train.align.dialogs import Dialog, Dialogs
from train.data.batches import Batches
from train.data.collate import CollatedBatch
from train.data.mixture import MixedBatches

IGNORED: Final = -1  # the target of a position that predicts nothing
_TILE: Final = 8  # tokens that the length of a row is a multiple of
_TOKENIZED: Final = 2048  # rows of data tokenized together


class AlignBatch(NamedTuple):
    """Dialogs of a global batch, a row each, chosen and rejected in turn; sharded along data.

    Attributes:
        rows: `last_BS` holds the positions that predict the answer's tokens.
        sentence_BT: number of each token's dialog, from which its dropout keys are made.
        target_BS: the token that each of these positions is to predict, or `IGNORED`.
        number_n: number of each triplet in the batch as it was read; two rows have one.
    """

    rows: Rows
    sentence_BT: Int[Any, "B T"]
    target_BS: Int[Any, "B S"]
    number_n: Int[Any, "n"]


class DialogShape(NamedTuple):
    """What all batches of a run have in common.

    Attributes:
        tokens: number of tokens of a row; answers: number of those of the longest answer.
    """

    tokens: int
    answers: int


def choose_dialog_shape(batches: Batches | MixedBatches, dialogs: Dialogs) -> DialogShape:
    """Return the shape that holds every batch of the run; all processes get the same one."""
    numbers = np.unique([batches.numbers(step) for step in range(len(batches))])
    tokens = answers = 1
    for some in np.split(numbers, range(_TOKENIZED, len(numbers), _TOKENIZED)):
        for dialog in dialogs([batches.rows[int(number)] for number in some]):
            tokens, answers = max(tokens, dialog.tokens), max(answers, dialog.answer.size)
    found = Channel("dialog shape").exchange([tokens, answers])
    tokens, answers = (max(sizes) for sizes in zip(*found, strict=True))
    return DialogShape(-(-tokens // _TILE) * _TILE, answers)


@dataclasses.dataclass(frozen=True)
class AlignCollator:
    """Tokenizes and lays out the rows that this process feeds to its devices."""

    dialogs: Dialogs
    share: Share
    shape: DialogShape

    def __call__(self, triplets: Sequence[Any]) -> CollatedBatch:
        """Return the global batch, of which `triplets` are the rows that this process reads."""
        dialogs = self.dialogs(triplets)
        parts = lay_out(dialogs, self.shape, self.share.index * len(triplets))
        batch = jax.tree.map(self.share.to_mesh, parts)
        padding = 1 - sum(dialog.tokens for dialog in dialogs) / (len(dialogs) * self.shape.tokens)
        sentences = len(dialogs) * self.share.count
        return CollatedBatch(batch, np.zeros(0, np.int32), sentences, padding)


def lay_out(dialogs: Sequence[Dialog], shape: DialogShape, first: int) -> AlignBatch:
    """Fill a row with each dialog.

    Args:
        first: number of the first triplet in the global batch.
    """
    B, (T, S) = len(dialogs), shape
    ids_BT, start_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    last_BS, target_BS = np.zeros((B, S), np.int32), np.full((B, S), IGNORED, np.int32)
    for row, (request, answer) in enumerate(dialogs):
        end = request.size + answer.size - 1
        ids_BT[row, :end] = np.concatenate([request, answer[:-1]])
        start_BT[row, end:] = end
        last_BS[row, : answer.size] = np.arange(request.size - 1, end)
        target_BS[row, : answer.size] = answer
    sentence_B = 2 * first + np.arange(B, dtype=np.int32)
    sentence_BT = np.broadcast_to(sentence_B[:, None], (B, T)).copy()
    number_n = first + np.arange(B // 2, dtype=np.int32)
    return AlignBatch(Rows(ids_BT, last_BS, start_BT), sentence_BT, target_BS, number_n)


def abstract_dialogs(mesh: Mesh, shape: DialogShape, triplets: int) -> AlignBatch:
    """Return placeholders of a batch, from which a step is compiled without data."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    one = Dialog(np.zeros(1, np.int32), np.zeros(1, np.int32))

    def placeholder(x: np.ndarray) -> jax.ShapeDtypeStruct:
        whole = (len(x) * triplets, *x.shape[1:])
        return jax.ShapeDtypeStruct(whole, x.dtype, sharding=sharding)

    return jax.tree.map(placeholder, lay_out([one, one], shape, 0))
