"""The flags of an alignment run."""

from __future__ import annotations

import dataclasses

from prompteol_jax.cli.options import flag
from prompteol_jax.errors import UserError
from train.flags import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignConfig(RunConfig):
    """Aligns a decoder with preferences, by DPO on the triplets that contrastive training takes.

    The model is asked to say the anchor otherwise; the positive is the preferred answer, the hard
    negative the rejected one. The adapter then encodes with --template, as SemPA's does.
    """

    rank: int = flag(8, at_least=1)
    """LoRA: rank of a fresh adapter's updates of every linear layer."""
    alpha: float = flag(32.0, above=0)
    """LoRA: a fresh adapter's updates are scaled by alpha / rank."""
    base_dropout: float | None = flag(0.0, at_least=0, below=1)
    """The model's own dropout; `None` for its config's."""
    lr: float = flag(1e-4, above=0)
    """Peak learning rate."""
    warmup_steps: int | None = flag(None, at_least=0)
    """Steps from 0 up to the peak; a twentieth of the run by default."""
    beta: float = flag(0.1, above=0)
    """Weight of the reference: how strongly log-probabilities may move away from its own."""
    frame: str = "plain"
    """What is around a conversation: plain, llama-2, llama-3, chatml, or a JSON file."""
    instruction: str = "rephrase"
    """The request around the anchor: `rephrase`, SemPA's, or a template's file."""
    cut: int | None = flag(None, at_least=1)
    """Tokens that a sentence is cut to before it goes into the conversation; none by default."""

    def problems(self) -> list[str]:
        """Return what does not fit between the flags."""
        from train.align.frames import read_frame, read_instruction

        wrong = super().problems()
        for read, name in ((read_frame, self.frame), (read_instruction, self.instruction)):
            try:
                read(name)
            except UserError as error:
                wrong.append(str(error))
        return wrong
