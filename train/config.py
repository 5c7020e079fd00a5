"""The flags of contrastive training, and every problem of a choice of them in one error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from prompteol_jax.cli.options import flag
from prompteol_jax.errors import UserError
from train.flags import FREE_ON_RESUME, STOPPED, SYNTHETIC, RunConfig

__all__ = ["FREE_ON_RESUME", "STOPPED", "SYNTHETIC", "TrainConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Fine-tunes a decoder contrastively on triplets of sentences, as PromptEOL does.

    Without any flag it trains the random model `tiny` on sentences from a small grammar, which
    takes about a minute and needs no download.
    """

    full: bool = False  # type: ignore[misc]
    """Train every weight instead of an adapter."""
    loss: str = "infonce"
    """Name of the loss: infonce, infonce-symmetric, infonce-joint, infonce-masked, cosent, angle,
    pearson, sfp, distill-vectors, distill-scores or distill-margins."""
    loss_options: tuple[str, ...] = ()
    """Options of the loss, such as temperature=0.1 or margin=0.05."""
    matryoshka: tuple[int, ...] = ()
    """Sum the loss over the first so many numbers of the vectors, for each of these sizes."""
    teacher: Path | None = None  # type: ignore[misc]
    """A .npy file with a teacher's vectors of every row, for --loss distill-vectors."""
    cut: int = flag(32, at_least=1)
    """Tokens that a sentence is cut to before it goes into the template."""

    def problems(self) -> list[str]:
        """Return what does not fit between the flags."""
        wrong = super().problems()
        if self.full and self.adapter is not None:
            wrong.append("--full trains every weight and takes no --adapter: drop one of the two")
        if self.full and self.quantize is not None:
            wrong.append(f"--full trains every weight, --quantize {self.quantize} freezes them")
        return [*wrong, *self._misfits_of_loss()]

    def _misfits_of_loss(self) -> list[str]:
        from train.losses.choose import choose_loss  # brings jax, which --help does without

        try:
            choose_loss(self.loss, self.loss_options, self.matryoshka)
        except UserError as error:
            return [str(error)]
        return []
