"""The flags of a training run, and every problem of a choice of them in one error."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, Literal

from prompteol_jax.cli import options
from prompteol_jax.cli.options import DistributedOptions, flag
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths

SYNTHETIC: Final = "synthetic"
# Flags that may differ in a resumed run; any other changes what it computes.
FREE_ON_RESUME: Final = frozenset(
    "mesh resume output json keep save_minutes final_eval".split()
    + [field.name for field in dataclasses.fields(DistributedOptions)]
)
MAX_SEED: Final = 2**32 - 1
STOPPED: Final = 75  # exit status of a run that SIGTERM stopped: EX_TEMPFAIL, "try again later"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(DistributedOptions):
    """Fine-tunes a decoder contrastively on triplets of sentences, as PromptEOL does.

    Without any flag it trains the random model `tiny` on sentences from a small grammar, which
    takes about a minute and needs no download.
    """

    model: str = "tiny"
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny` (random weights)."""
    adapter: str | None = None
    """Start from this PEFT folder, hub name or training run instead of a fresh adapter."""
    template: str = "eol"
    """A template's name or file."""
    data: str = SYNTHETIC
    """`synthetic`, a .csv or .jsonl file (sent0, sent1 and, in all rows or none, hard_neg), or the
    folder of triplets that `python -m train.prepare` wrote."""
    skip_bad: bool = False
    """Drop malformed rows and count them, instead of refusing the file."""
    dev: Path | None = None
    """SentEval's or a prepared folder, for Spearman on STS-B dev; synthetic data has its own."""
    output: Path | None = None
    """The run's folder, here or in a bucket (gs://BUCKET/NAME); runs/MODEL-DATA by default, with a
    number where that exists."""
    resume: bool = False
    """Continue the run in --output from its newest intact checkpoint; begin it if there is none."""
    json: Path | None = None
    """File for the result: dev_before, dev_after, dev_last, best_step, steps, loss, seconds."""

    mesh: str = "1x1"
    """DATAxMODEL: devices along each axis; a CPU simulates what it lacks."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and frozen weights; float32 on a CPU, bfloat16 elsewhere by default."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the frozen matrices of linear layers in 4 or 8 bits; the adapter stays float32."""
    full: bool = False
    """Train every weight instead of an adapter."""
    rank: int = flag(64, at_least=1)
    """LoRA: rank of a fresh adapter's updates of every linear layer."""
    alpha: float = flag(16.0, above=0)
    """LoRA: a fresh adapter's updates are scaled by alpha / rank."""
    dropout: float = flag(0.05, at_least=0, below=1)
    """LoRA: dropout of the updates' inputs."""
    base_dropout: float | None = flag(None, at_least=0, below=1)
    """The model's own dropout, instead of its config's (OPT: 0.1)."""

    loss: str = "infonce"
    """Name of the loss: `infonce`, over in-batch positives and hard negatives."""
    batch: int = flag(256, at_least=2, why="every anchor needs negatives")
    """Triplets of the global batch; every other one's sentences are its negatives."""
    chunks: int = flag(1, at_least=1)
    """Parts that a batch is encoded in one after another, to save memory; same result."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass recomputes to save memory: nothing, all but products, everything, or
    the first of these that fits the device."""
    cut: int = flag(32, at_least=1)
    """Tokens that a sentence is cut to before it goes into the template."""
    epochs: float = flag(1.0, above=0)
    """Passes over the data, in whole batches."""
    steps: int | None = flag(None, at_least=1)
    """Stop after this many steps instead."""
    lr: float = flag(5e-4, above=0)
    """Peak learning rate."""
    warmup_steps: int | None = flag(None, at_least=0)
    """Steps from 0 up to the peak, then down to 0; 100, or a tenth of a run below 1,000 steps."""
    seed: int = flag(42, at_least=0, at_most=MAX_SEED)
    """Of data order, dropout and fresh weights."""

    eval_every: int = flag(50, at_least=1)
    """Steps between development scores; the best weights are kept, later ties win."""
    patience: int | None = flag(None, at_least=1)
    """Stop after this many development scores in a row below the best."""
    final_eval: bool = False
    """Score the best weights on all STS tasks of --dev at the end."""
    save_every: int = flag(50, at_least=1)
    """Steps between checkpoints."""
    save_minutes: float | None = flag(None, above=0)
    """Largest number of minutes between checkpoints."""
    keep: int = flag(2, at_least=1)
    """Newest checkpoints kept."""

    def check(self) -> None:
        """Refuse flags that cannot work, and data that is not there, all in one error.

        Raises: UserError.
        """
        paths.check_bucket(self.data)
        wrong = options.misfits(self)
        if self.data != SYNTHETIC and not paths.as_path(self.data).exists():
            wrong.append(f"--data {self.data} is neither `{SYNTHETIC}` nor a file or folder")
        if self.skip_bad and paths.as_path(self.data).is_dir():
            wrong.append("--skip-bad is for files: give it to train.prepare instead")
        if wrong:
            raise UserError("; ".join(wrong))

    def problems(self) -> list[str]:
        """Return what does not fit between the flags."""
        wrong = [*super().problems(), *self._without_effect(), *self._misfits()]
        if self.full and self.adapter is not None:
            wrong.append("--full trains every weight and takes no --adapter: drop one of the two")
        if self.full and self.quantize is not None:
            wrong.append(f"--full trains every weight, --quantize {self.quantize} freezes them")
        if self.final_eval and self.dev is None:
            wrong.append("--final-eval needs --dev, the folder of the STS tasks")
        if self.patience is not None and self.dev is None and self.data != SYNTHETIC:
            wrong.append("--patience needs --dev, the folder of the development pairs")
        if self.resume and self.output is None:
            wrong.append("--resume needs --output, the folder of the run to continue")
        return wrong

    def _without_effect(self) -> list[str]:
        """Return the flags that another one leaves without effect."""
        unused = {"adapter": ("rank", "alpha")} if self.adapter else {}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused |= {"full": ("rank", "alpha", "dropout")} if self.full else {}
        return [
            f"--{name} has no effect with --{cause}: leave it out"
            for cause, names in unused.items()
            for name in names
            if getattr(self, name) != defaults[name]
        ]

    def _misfits(self) -> list[str]:
        """Return what is wrong with the loss and the mesh."""
        from prompteol_jax.mesh import parse_mesh  # brings jax, which --help does without
        from train.losses import find_loss

        wrong = []
        try:
            find_loss(self.loss)
        except UserError as error:
            wrong.append(str(error))
        try:
            data, model = parse_mesh(self.mesh)
        except UserError as error:
            return [*wrong, f"--mesh: {error}"]
        if self.batch % data:
            wrong.append(
                f"--batch {self.batch} must be a multiple of the {data} of --mesh {self.mesh}"
            )
        if self.coordinator and self.processes and data * model % self.processes:
            wrong.append(f"--mesh {self.mesh} cannot be shared by --processes {self.processes}")
        return wrong
