"""Training steps measured: those of `train.contrastive`, and a peer's in turn with ours."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax

from prompteol_jax.pretrained import provenance
from prompteol_jax.progress import progress_bar
from tpu.bench import device as speed
from tpu.bench.peer_process import Peer
from tpu.plan.jobs import linear_weights

if TYPE_CHECKING:
    from tpu.bench.command import TrainBench
    from train.loop import Run

_WARM_UP: Final = 2  # steps before the timed ones


def measure(options: TrainBench) -> dict[str, Any]:
    """Measure as asked; see `tpu.bench.encode.measure` for what is returned."""
    with (
        tempfile.TemporaryDirectory() as folder,
        speed.compile_seconds() as compiling,
        contextlib.ExitStack() as stack,
    ):
        run = make_run(options, Path(folder) / "run")
        peers = [stack.enter_context(_peer(options, run))] if options.peer else []
        seconds, losses, tokens = _rounds(options, run, peers)
        compile_s = compiling()
    ours = {"compile_s": compile_s, **_ours(run, seconds["ours"], tokens)}
    ours["losses"] = losses["ours"]
    devices = run.settings.mesh.devices.flat
    return {
        "job": "train",
        "setting": f"{run.embedder.template.name}, {run.embedder.dtype}, "
        f"{options.quantize or 'no'} quantization, batch {options.batch}, mesh {options.mesh}",
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "ours": ours,
        "peers": {
            peer.kind: _theirs(peer, seconds) | {"losses": losses[peer.kind]} for peer in peers
        },
        "note": f"best matrix product {ours['matrix_flops'] / 1e12:,.2f} TFLOP/s; compiled in "
        f"{compile_s:.1f} s; peak memory of the {ours['peak_of']} "
        f"{ours['peak_bytes'] / 2**30:.2f} GiB",
        "record": provenance.describe(run.embedder),
        "date": time.strftime("%Y-%m-%d"),
    }


def make_run(options: TrainBench, folder: Path) -> Run:
    """Return the run that `train.contrastive` makes of these flags, before its first step."""
    from train.config import TrainConfig
    from train.contrastive import start_devices
    from train.data.read import read_data
    from train.loop import Run
    from train.resolve import resolve
    from train.run.folder import RunFolder

    config = TrainConfig(
        model=options.model,
        data=options.data,
        template=options.template,
        mesh=options.mesh,
        dtype=options.dtype,
        quantize=options.quantize,
        batch=options.batch,
        rank=options.rank,
        dropout=options.dropout,
        base_dropout=options.base_dropout,
        chunks=options.chunks,
        remat=options.remat,
        steps=_WARM_UP + options.rounds + 1,
        output=folder,
    )
    config.check()
    mesh, data = start_devices(config), read_data(config)
    return Run(resolve(config, mesh, data.rows), RunFolder.at(folder), data)


def _peer(options: TrainBench, run: Run) -> Peer:
    flags = {"--rank": options.rank, "--dropout": options.dropout, "--dtype": run.embedder.dtype}
    if options.base_dropout is not None:
        flags["--base-dropout"] = options.base_dropout
    words = [str(word) for pair in flags.items() for word in pair]
    folder = run.trainable.pretrained.folder
    assert folder is not None  # only `tiny` has none, and the options refuse it for a peer
    return Peer("peft", options.peer_python, folder, *words)


def _rounds(
    options: TrainBench, run: Run, peers: Sequence[Peer]
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Take ours and the peer's steps in turn.

    Returns: seconds of the timed steps and all losses, by name; real tokens of a step of ours.
    """
    names = ["ours", *(peer.kind for peer in peers)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    ours, tokens = _steps(run), []
    with progress_bar("steps", _WARM_UP + options.rounds) as advance:
        for number in range(_WARM_UP + options.rounds):
            took = {"ours": next(ours)}
            tokens.append(took["ours"]["tokens"])
            prompts = run.collate.sentences.filled(run.settings.batches[number])
            for peer in peers:
                took[peer.kind] = peer.ask(prompts)
            for name, reply in took.items():
                losses[name].append(reply["loss"])
                if number >= _WARM_UP:
                    seconds[name].append(reply["seconds"])
            advance()
    if options.profile:
        with jax.profiler.trace(str(options.profile)):
            next(ours)
    return seconds, losses, round(statistics.mean(tokens[_WARM_UP:]))


def _steps(run: Run) -> Iterator[dict[str, float]]:
    """Yield seconds, loss and real tokens of each step of the run; collation counts."""
    start = time.perf_counter()
    for taken in run.steps(run.train_step.init(run.trainable.start), run.collated(0)):
        loss = float(taken.metrics["loss"])  # waits for the device
        tokens = (1 - taken.batch.padding) * taken.batch.batch.rows.ids_BT.size
        yield {"seconds": time.perf_counter() - start, "loss": loss, "tokens": tokens}
        start = time.perf_counter()


def _ours(run: Run, seconds: list[float], tokens: int) -> dict[str, Any]:
    """Return rates of the median step; useful FLOPs are 4 for a frozen weight and a real token."""
    middle = statistics.median(seconds)
    useful = 4 * linear_weights(run.trainable.pretrained.config) * tokens / middle
    matrix = speed.matrix_rate(run.embedder.dtype, run.settings.mesh.size)
    peak, whose = speed.peak_bytes()
    return {
        "seconds": seconds,
        "tokens": tokens,
        "useful_flops": useful,
        "matrix_flops": matrix,
        "useful_mfu": useful / matrix,
        "peak_bytes": peak,
        "peak_of": whose,
        "shown": {
            "seconds a step": f"{middle:.3f}",
            "tokens/s": f"{tokens / middle:,.0f}",
            "useful MFU": f"{useful / matrix:.1%}",
        },
    }


def _theirs(peer: Peer, seconds: dict[str, list[float]]) -> dict[str, Any]:
    theirs = seconds[peer.kind]
    shown = {"seconds a step": f"{statistics.median(theirs):.3f}"}
    return {**peer.compared(seconds["ours"], theirs), "shown": shown}
