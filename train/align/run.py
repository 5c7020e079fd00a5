"""A run of alignment: the run of contrastive training, over dialogs in place of sentences."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import numpy as np

from prompteol_jax.distributed import Share
from prompteol_jax.pretrained.load import read_lm_head
from train.align.collate import AlignBatch, AlignCollator, abstract_dialogs, choose_dialog_shape
from train.align.config import AlignConfig
from train.align.dialogs import Dialogs
from train.align.frames import read_frame, read_instruction
from train.align.step import AlignStep
from train.loop import Run
from train.step import TrainStep


class AlignRun(Run):
    """One run of alignment, its model loaded."""

    collate: AlignCollator  # type: ignore[assignment]

    def _collator(self) -> Any:
        pretrained, flags = self.trainable.pretrained, cast(AlignConfig, self.settings.flags)
        dialogs = Dialogs(
            pretrained.tokenizer,
            read_frame(flags.frame),
            read_instruction(flags.instruction),
            flags.cut,
            pretrained.config.P,
        )
        shape = choose_dialog_shape(self.settings.batches, dialogs)
        return AlignCollator(dialogs, Share.of(self.settings.mesh), shape)

    def _step(self) -> TrainStep:
        step = super()._step()
        fields = {f.name: getattr(step, f.name) for f in dataclasses.fields(step)}
        return AlignStep(**fields, softcap=self.trainable.pretrained.config.logit_cap)

    def _frozen(self) -> Any:
        base = dataclasses.replace(self.trainable.pretrained, adapter=None)
        return self.trainable.frozen, read_lm_head(base)

    def _abstract(self) -> tuple[AlignBatch, jax.ShapeDtypeStruct]:
        batch = abstract_dialogs(self.settings.mesh, self.collate.shape, self.settings.flags.batch)
        return batch, jax.ShapeDtypeStruct((0,), np.int32)

    def _method(self) -> str:
        return "alignment, DPO"

    def _described(self) -> str:
        shape = self.collate.shape
        rows = 2 * self.settings.flags.batch
        return f"{rows} rows of {shape.tokens} tokens, {shape.answers} of an answer at most"
