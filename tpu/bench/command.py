"""Measure speed on this machine's CPU, GPUs or TPUs, against torch on the same checkpoint.

    python -m tpu.bench encode --model facebook/opt-1.3b --texts texts.txt --peer transformers
    python -m tpu.bench encode --model random:opt-6.7b --tokenizer OPT-TOKENIZER --texts texts.txt
    python -m tpu.bench train --model facebook/opt-125m --peer

Ours and the peer, torch in a second process, take turns on the same texts; every round has a new
order of texts, and a ratio is the median over rounds. The table goes to standard output,
everything to `--json FILE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from prompteol_jax import runtime
from prompteol_jax.cli.commands import run_one_of
from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic, json_files

PROGRAM: Final = "python -m tpu.bench"
RANDOM: Final = "random:"  # before the name of a published shape, in --model


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeBench(ModelOptions):
    """Measures encoding on this machine's CPU, GPUs or TPUs, in bfloat16 by default.

    `--model random:opt-1.3b` makes a random checkpoint of that shape.
    """

    texts: Path | None = None
    """.txt, .jsonl, .csv or .parquet, as `prompteol encode` reads them; distinct ones are taken."""
    lengths: Path | None = None
    """Lengths of made-up texts, without --texts: a file of `python -m tpu.lengths`, by default that
    of STS-B dev."""
    n: int = flag(512, at_least=1)
    """Number of texts, from the first; fewer if there are no more."""
    clean: bool = False
    """Rewrite each text with the punctuation rules of the original's evaluation."""
    peer: tuple[Literal["transformers", "sentence-transformers"], ...] = ()
    """Peers: `transformers` as the released code uses it, or the package sentence-transformers."""
    peer_batch: int | None = flag(None, at_least=1)
    """Texts that a peer computes together, instead of its own number: 16 and 32."""
    peer_python: Path = Path(sys.executable)
    """The Python that peers run in, which needs torch."""
    tokenizer: Path | None = None
    """Folder of the tokenizer of a random: model."""
    rounds: int = flag(3, at_least=1)
    """Timed runs of each."""
    planned: Path | None = None
    """Plan of the same job, from `python -m tpu.plan --json`, to show in the table."""
    json: Path | None = None
    """File for everything that was measured."""
    profile: Path | None = None
    """Folder for a trace of one more run: scopes prefix, attention, mlp and pool."""

    def problems(self) -> list[str]:
        """List what cannot be measured together."""
        found = _problems(self)
        if self.peer and (self.adapter or self.layer is not None or self.pooling != "last"):
            found.append("a peer knows no --adapter, --layer or --pooling but last")
        if self.texts and self.lengths:
            found.append("--texts and --lengths exclude each other")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Measures steps of `python -m train.contrastive` on this machine's CPU, GPUs or TPUs.

    A step includes the collation of its batch. With --peer peft in torch has the same sentences and
    dropout rates.
    """

    model: str
    """A model as `tpu.bench encode` takes it, also random:SHAPE."""
    data: str = "synthetic"
    """`synthetic`, or a .csv or .jsonl file of triplets."""
    template: str = "eol"
    """A template's name or file."""
    mesh: str = "1x1"
    """DATAxMODEL: devices along each axis; a CPU simulates what it lacks."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of activations and frozen weights; float32 on a CPU, bfloat16 elsewhere by default."""
    quantize: Literal["nf4", "int8"] | None = None
    """Kind of the frozen matrices of linear layers; the peer does not quantize them."""
    batch: int = flag(64, at_least=2, why="every anchor needs negatives")
    """Triplets of a batch."""
    rank: int = flag(64, at_least=1)
    """LoRA: rank of the updates of every linear layer."""
    dropout: float = flag(0.05, at_least=0, below=1)
    """LoRA: dropout of the updates' inputs."""
    base_dropout: float | None = flag(None, at_least=0, below=1)
    """The model's own dropout, instead of its config's (OPT: 0.1)."""
    chunks: int = flag(1, at_least=1)
    """Parts that a batch is encoded in."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes."""
    peer: bool = False
    """Take turns with peft in torch."""
    peer_python: Path = Path(sys.executable)
    """The Python that the peer runs in, which needs torch and peft."""
    tokenizer: Path | None = None
    """Folder of the tokenizer of a random: model."""
    rounds: int = flag(5, at_least=1)
    """Timed steps of each, after two that compile."""
    planned: Path | None = None
    """Plan of the same job, from `python -m tpu.plan --json`, to show in the table."""
    json: Path | None = None
    """File for everything that was measured."""
    profile: Path | None = None
    """Folder for a trace of one more step: scopes prefix, attention, mlp, pool and loss."""

    def problems(self) -> list[str]:
        """List what cannot be measured together."""
        return _problems(self)


def _problems(options: EncodeBench | TrainBench) -> list[str]:
    found = []
    if options.model.startswith(RANDOM) and options.tokenizer is None:
        found.append(f"--model {options.model} needs --tokenizer FOLDER")
    if options.peer and options.model == "tiny":
        found.append("tiny has no folder that a peer could read; give another --model")
    if options.json is not None and not options.json.parent.is_dir():
        found.append(f"the folder of --json {options.json} does not exist")
    return found


def encode(options: EncodeBench) -> dict[str, Any]:
    """Measure encoding, print the table and return what was measured."""
    from tpu.bench.encode import measure

    return _run("encode", options, measure)


def train(options: TrainBench) -> dict[str, Any]:
    """Measure training, print the table and return what was measured."""
    from tpu.bench.train import measure

    return _run("train", options, measure)


COMMANDS: Final[dict[str, tuple[type, Callable[[Any], object]]]] = {
    "encode": (EncodeBench, encode),
    "train": (TrainBench, train),
}


def _run(job: str, options: Any, measure: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    if options.peer:  # two frameworks share a GPU: neither may take all of its memory
        runtime.share_gpu_memory()
    planned = None if options.planned is None else read_plan(options.planned, job)
    atomic.prepare(options.json)
    with _made(options) as ready:
        result = measure(ready)
    result |= {"model": options.model, "planned": planned}
    print_table(result)
    if options.json:
        json_files.write_object(options.json, result)
    return result


@contextlib.contextmanager
def _made(options: Any) -> Iterator[Any]:
    """Yield the options, a random: model in them replaced by a folder for as long as needed."""
    if not options.model.startswith(RANDOM):
        yield options
        return
    from tpu.random_checkpoint import write_random_checkpoint

    with tempfile.TemporaryDirectory(prefix="random-checkpoint-") as folder:
        shape = options.model.removeprefix(RANDOM)
        dtype = options.dtype or "bfloat16"
        write_random_checkpoint(shape, Path(folder), options.tokenizer, dtype=dtype)
        yield dataclasses.replace(options, model=folder)


def read_plan(path: Path, job: str) -> dict[str, Any]:
    """Read the rates of a plan.

    Raises: UserError where a file is no plan of this job, or of one that does not fit.
    """
    try:
        plan = json_files.read_object(path)
        if plan["job"] != job or not plan["fits"]:
            raise UserError(f"it plans {plan['job']}, which fits: {plan['fits']}")
        return {name: plan[name] for name in _PLANNED}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no plan of {job}, as `python -m tpu.plan --json` writes it: {error}"
        ) from None


_PLANNED: Final = ("topology", "mesh", "shapes", "sentences_per_s", "estimated_s", "useful_mfu")


def print_table(result: Mapping[str, Any]) -> None:
    """Print ours and the peers under what they had to do."""
    from rich import console, table, text

    header = f"{result['job']}: {result['model']}, {result['setting']}, on {result['device']}"
    grid = table.Table(title=text.Text(header), title_justify="left")
    names = list(result["ours"]["shown"])
    grid.add_column("", no_wrap=True)
    for name in (*names, "ours / it"):
        grid.add_column(name, justify="right")
    grid.add_row("ours", *result["ours"]["shown"].values(), "")
    for peer, measured in result["peers"].items():
        shown = [measured["shown"].get(name, "") for name in names]
        grid.add_row(peer, *shown, f"{measured['ratio']:.2f}")
    if result["planned"] is not None:
        plan = result["planned"]
        planned = {
            "sentences/s": f"{plan['sentences_per_s']:,.1f}",
            "seconds a step": f"{plan['estimated_s']:.3f}",
            "useful MFU": f"{plan['useful_mfu']:.1%}",
        }
        shown = [planned.get(name, "") for name in names]
        grid.add_row(f"planned {plan['topology']}", *shown, "")
    shown = console.Console()
    shown.print(grid)
    shown.print(text.Text(result["note"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    description = "Measures encoding and training on a CPU, GPUs or TPUs, against torch."
    run_one_of(PROGRAM, description, COMMANDS, argv)
