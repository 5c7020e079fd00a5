"""The flags that all kinds of training runs have, and every problem of a choice of them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar, Final, Literal

from prompteol_jax.cli import options
from prompteol_jax.cli.options import DistributedOptions, flag
from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths

SYNTHETIC: Final = "synthetic"
# Flags that may differ in a resumed run; any other changes what it computes.
FREE_ON_RESUME: Final = frozenset(
    "mesh fsdp resume output json keep save_minutes final_eval license".split()
    + [field.name for field in dataclasses.fields(DistributedOptions)]
)
MAX_SEED: Final = 2**32 - 1
REMAT_WITH_FSDP: Final = "--remat none would keep what --fsdp gathers: choose dots, full or auto"
STOPPED: Final = 75  # exit status of a run that SIGTERM stopped: EX_TEMPFAIL, "try again later"
ADAPTER: Final = ("rank", "alpha", "lora_targets", "rslora")  # of a fresh adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DistributedOptions):
    """The flags of every kind of training run."""

    full: ClassVar[bool] = False
    teacher: ClassVar[Path | None] = None

    model: str = "tiny"
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny` (random weights)."""
    adapter: str | None = None
    """Start from this PEFT folder, hub name or training run instead of a fresh adapter."""
    template: str = "eol"
    """A template's name or file."""
    data: str | tuple[str, ...] = SYNTHETIC
    """`synthetic`; files (.csv, .jsonl, .txt, each also .gz, or .parquet), folders of a data set on
    disk, or folders that `python -m train.prepare` wrote. Of several, each batch is of one."""
    weights: tuple[float, ...] = ()
    """Share of the steps that each source of --data gets; by default by its number of rows."""
    columns: tuple[str, ...] = ()
    """Columns of the files, where they have other names: sent0=premise sent1=hypothesis."""
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
    fsdp: bool = False
    """Shard matrices over DATA too, and gather each layer's when it runs. It is
    chosen by itself where the weights would not fit otherwise."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and frozen weights; float32 on a CPU, bfloat16 elsewhere by default."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the frozen matrices of linear layers in 4 or 8 bits; the adapter stays float32."""
    rank: int = flag(64, at_least=1)
    """LoRA: rank of a fresh adapter's updates of every linear layer."""
    alpha: float = flag(16.0, above=0)
    """LoRA: a fresh adapter's updates are scaled by alpha / rank."""
    dropout: float = flag(0.05, at_least=0, below=1)
    """LoRA: dropout of the updates' inputs."""
    lora_targets: tuple[str, ...] = ()
    """LoRA: layers to adapt, as PEFT names them (q_proj v_proj); all linear layers by default."""
    rslora: bool = False
    """LoRA: scale a fresh adapter's updates by alpha / sqrt(rank) instead."""
    base_dropout: float | None = flag(None, at_least=0, below=1)
    """The model's own dropout, instead of its config's (OPT: 0.1)."""

    batch: int = flag(256, at_least=2, why="every anchor needs negatives")
    """Triplets of the global batch; every other one's sentences are its negatives."""
    chunks: int = flag(1, at_least=1)
    """Parts that a batch is encoded in one after another, to save memory; same result."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass recomputes to save memory: nothing, all but products, everything, or
    the first of these that fits the device."""
    epochs: float = flag(1.0, above=0)
    """Passes over the data, in whole batches."""
    steps: int | None = flag(None, at_least=1)
    """Stop after this many steps instead."""
    lr: float = flag(5e-4, above=0)
    """Peak learning rate."""
    optimizer: str = "adamw"
    """adamw, adam, nadamw, radam, lion or sgd, after a clip of the gradient at norm 1."""
    weight_decay: float = flag(0.0, at_least=0)
    """Decay of the weights a step, times the learning rate, for adamw, nadamw and lion."""
    schedule: str = "linear"
    """Learning rate after the warm-up: linear or cosine, down to 0; or constant."""
    warmup_steps: int | None = flag(None, at_least=0)
    """Steps from 0 up to the peak; 100, or a tenth of a run below 1,000 steps."""
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
    license: str = "unknown"
    """License of the exported weights, as their README names it."""

    def check(self) -> None:
        """Refuse flags that cannot work, and data that is not there, all in one error.

        Raises: UserError.
        """
        wrong = options.misfits(self)
        for name in self.sources:
            paths.check_bucket(name)
            if self.data != SYNTHETIC and not paths.as_path(name).exists():
                wrong.append(f"--data {name} is neither `{SYNTHETIC}` nor a file or folder")
            if self.skip_bad and paths.as_path(name).is_dir():
                wrong.append("--skip-bad is for files: give it to train.prepare instead")
        if wrong:
            raise UserError("; ".join(wrong))

    @property
    def sources(self) -> tuple[str, ...]:
        """The files and folders of --data."""
        return (self.data,) if isinstance(self.data, str) else self.data

    def problems(self) -> list[str]:
        """Return what does not fit between the flags."""
        wrong = [*super().problems(), *self._without_effect(), *self._misfits()]
        if self.fsdp and self.remat == "none":
            wrong.append(REMAT_WITH_FSDP)
        if self.final_eval and self.dev is None:
            wrong.append("--final-eval needs --dev, the folder of the STS tasks")
        if self.patience is not None and self.dev is None and self.data != SYNTHETIC:
            wrong.append("--patience needs --dev, the folder of the development pairs")
        if self.resume and self.output is None:
            wrong.append("--resume needs --output, the folder of the run to continue")
        return wrong

    def _without_effect(self) -> list[str]:
        """Return the flags that another one leaves without effect."""
        unused = {"adapter": ADAPTER} if self.adapter else {}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        unused |= {"full": (*ADAPTER, "dropout")} if self.full else {}
        return [
            f"{options.spelled(name)} has no effect with --{cause}: leave it out"
            for cause, names in unused.items()
            for name in names
            if getattr(self, name) != defaults[name]
        ]

    def _misfits_of_data(self) -> list[str]:
        """Return what is wrong with the sources."""
        from train.data.triplets import renamed

        wrong = []
        if not self.sources or len(set(self.sources)) < len(self.sources):
            wrong.append(f"--data {' '.join(self.sources)}: give sources, each one time")
        if not all(0 < weight < math.inf for weight in self.weights):
            wrong.append("--weights must be numbers above 0")
        if self.weights and len(self.sources) < 2:
            wrong.append("--weights has no effect with one source of --data: leave it out")
        if self.teacher is not None and len(self.sources) > 1:
            wrong.append("--teacher has the vectors of one source of --data: give one")
        try:
            renamed(self.columns)
        except UserError as error:
            wrong.append(str(error))
        return wrong

    def _misfits(self) -> list[str]:
        """Return what is wrong with the data, the optimizer and the mesh."""
        from prompteol_jax.mesh import parse_mesh  # brings jax, which --help does without
        from train.optimizer import optimizer_problems

        wrong = self._misfits_of_data()
        wrong += optimizer_problems(self.optimizer, self.schedule, self.weight_decay)
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
