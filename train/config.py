"""The flags of a training run, and every problem of a choice of them in one error."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Final, Literal

from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths

SYNTHETIC: Final = "synthetic"
# What a resumed run may be given anew; anything else changes what it computes.
FREE_ON_RESUME: Final = frozenset(
    "mesh resume output json keep save_minutes final_eval coordinator processes process".split()
)
MAX_SEED: Final = 2**32 - 1
STOPPED: Final = 75  # exit status of a run that SIGTERM stopped: EX_TEMPFAIL, "try again later"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
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
    rank: int = 64
    """LoRA: rank of a fresh adapter's updates of every linear layer."""
    alpha: float = 16.0
    """LoRA: a fresh adapter's updates are scaled by alpha / rank."""
    dropout: float = 0.05
    """LoRA: dropout of the updates' inputs."""
    base_dropout: float | None = None
    """The model's own dropout, instead of its config's (OPT: 0.1)."""

    loss: str = "infonce"
    """Name of the loss: `infonce`, over in-batch positives and hard negatives."""
    batch: int = 256
    """Triplets of the global batch; every other one's sentences are its negatives."""
    chunks: int = 1
    """Parts that a batch is encoded in one after another, to save memory; same result."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass recomputes to save memory: nothing, all but products, everything, or
    the first of these that fits the device."""
    cut: int = 32
    """Tokens that a sentence is cut to before it goes into the template."""
    epochs: float = 1.0
    """Passes over the data, in whole batches."""
    steps: int | None = None
    """Stop after this many steps instead."""
    lr: float = 5e-4
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Steps from 0 up to the peak, then down to 0; 100, or a tenth of a run below 1,000 steps."""
    seed: int = 42
    """Of data order, dropout and fresh weights."""

    eval_every: int = 50
    """Steps between development scores; the best weights are kept, later ties win."""
    patience: int | None = None
    """Stop after this many development scores in a row below the best."""
    final_eval: bool = False
    """Score the best weights on all STS tasks of --dev at the end."""
    save_every: int = 50
    """Steps between checkpoints."""
    save_minutes: float | None = None
    """Minutes between checkpoints at most, whatever the steps."""
    keep: int = 2
    """Newest checkpoints kept."""

    coordinator: str | None = None
    """HOST:PORT of process 0 of several, or `auto` on a TPU pod."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""

    def check(self) -> None:
        """Refuse flags that cannot work, all of them at once.

        Raises: UserError.
        """
        wrong = [
            f"--{name.replace('_', '-')} {getattr(self, name)} must be {allowed}"
            for name, allowed, fine in (
                ("batch", "2 or more: every anchor needs negatives", self.batch >= 2),
                ("chunks", "1 or more", self.chunks >= 1),
                ("cut", "1 or more", self.cut >= 1),
                ("epochs", "above 0 and finite", 0 < self.epochs < math.inf),
                ("steps", "1 or more", self.steps is None or self.steps >= 1),
                ("lr", "above 0 and finite", 0 < self.lr < math.inf),
                ("warmup_steps", "0 or more", (self.warmup_steps or 0) >= 0),
                ("rank", "1 or more", self.rank >= 1),
                ("alpha", "above 0 and finite", 0 < self.alpha < math.inf),
                ("dropout", "from 0 to below 1", 0 <= self.dropout < 1),
                ("base_dropout", "from 0 to below 1", 0 <= (self.base_dropout or 0) < 1),
                ("seed", f"from 0 to {MAX_SEED}", 0 <= self.seed <= MAX_SEED),
                ("eval_every", "1 or more", self.eval_every >= 1),
                ("patience", "1 or more", self.patience is None or self.patience >= 1),
                ("save_every", "1 or more", self.save_every >= 1),
                ("save_minutes", "above 0", self.save_minutes is None or self.save_minutes > 0),
                ("keep", "1 or more", self.keep >= 1),
            )
            if not fine
        ]
        wrong += self._misfits()
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
        paths.check_bucket(self.data)
        if self.data != SYNTHETIC and not paths.as_path(self.data).exists():
            wrong.append(f"--data {self.data} is neither `{SYNTHETIC}` nor a file or folder")
        if self.skip_bad and paths.as_path(self.data).is_dir():
            wrong.append("--skip-bad is for files: give it to train.prepare instead")
        if wrong:
            raise UserError("; ".join(wrong))

    def _misfits(self) -> list[str]:
        """Return what is wrong with the loss, the mesh, and the processes that share it."""
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
        missing = [self.processes, self.process].count(None)
        if self.coordinator in (None, "auto"):
            if missing < 2:
                wrong.append("--processes and --process need --coordinator HOST:PORT beside them")
        elif missing:
            wrong.append(f"--coordinator {self.coordinator} needs --processes N and --process I")
        elif not 0 <= self.process < self.processes:
            wrong.append(f"--process {self.process} must be from 0 to --processes - 1")
        elif data * model % self.processes:
            wrong.append(f"--mesh {self.mesh} cannot be shared by --processes {self.processes}")
        return wrong
