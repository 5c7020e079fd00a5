"""Training steps measured: those of `train.contrastive`, and a peer's in turn with ours."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from prompteol_jax import runtime
from prompteol_jax.mesh import make_mesh, parse_mesh
from prompteol_jax.pretrained import provenance
from tpu.bench import device as speed
from tpu.bench.peer_process import Peer
from tpu.plan.jobs import linear_weights

if TYPE_CHECKING:
    from tpu.bench.command import TrainBench
    from train.data.triplets import Triplet
    from train.loop import Run

_COMPILING = 2  # steps before the timed ones


def measure(options: TrainBench) -> dict[str, Any]:
    """Measure as asked; see `bench_encode.measure` for what is returned."""
    with (
        tempfile.TemporaryDirectory() as run,
        speed.compile_seconds() as compiling,
        contextlib.ExitStack() as stack,
    ):
        course = make_run(options, Path(run) / "run")
        peers = [stack.enter_context(_peer(options, course))] if options.peer else []
        seconds, losses, tokens = _rounds(options, course, peers)
        compile_s = compiling()
    ours = {"compile_s": compile_s, **_ours(course, seconds["ours"], tokens)}
    ours["losses"] = losses["ours"]
    pretrained = course.trainable.pretrained
    devices = pretrained.mesh.devices.flat
    return {
        "job": "train",
        "setting": f"{course.embedder.template.name}, {course.embedder.dtype}, "
        f"{options.quantize or 'no'} quantization, batch {options.batch}, mesh {options.mesh}",
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "ours": ours,
        "peers": {
            peer.kind: _theirs(peer, seconds) | {"losses": losses[peer.kind]} for peer in peers
        },
        "note": f"best matrix product {ours['matrix_flops'] / 1e12:,.2f} TFLOP/s; compiled in "
        f"{compile_s:.1f} s; peak memory of the {ours['peak_of']} "
        f"{ours['peak_bytes'] / 2**30:.2f} GiB",
        "record": provenance.describe(course.embedder),
        "date": time.strftime("%Y-%m-%d"),
    }


def make_run(options: TrainBench, run: Path) -> Run:
    """The very run that `train.contrastive` would make of these flags, before its first step."""
    from train import contrastive, loop
    from train.config import TrainConfig

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
        steps=_COMPILING + options.rounds + 1,
        output=run,
    )
    config.check()
    shape = parse_mesh(options.mesh)
    runtime.simulate_devices(shape[0] * shape[1])
    triplets, _ = contrastive.read_data(config)
    mesh = make_mesh(shape)
    return loop.make_run(config, mesh, triplets, None)


def _peer(options: TrainBench, course: Run) -> Peer:
    flags = {"--rank": options.rank, "--dropout": options.dropout, "--dtype": course.embedder.dtype}
    if options.base_dropout is not None:
        flags["--base-dropout"] = options.base_dropout
    words = [str(word) for pair in flags.items() for word in pair]
    return Peer("peft", options.peer_python, course.trainable.pretrained.folder, *words)


def _rounds(
    options: TrainBench, course: Run, peers: Sequence[Peer]
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Ours and the peer's in turn: seconds of timed steps, all losses; real tokens of a step."""
    names = ["ours", *(peer.kind for peer in peers)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    state = course.learner.init(course.trainable.start)
    tokens = []

    def step(number: int) -> dict[str, float]:
        nonlocal state
        start = time.perf_counter()
        batch, prefix_C, padding = course.assemble(course.batches[number])
        with jax.set_mesh(course.mesh):
            state, metrics = course.learner.step(
                state, course.trainable.frozen, batch, prefix_C, course.key
            )
        loss = float(metrics["loss"])  # which waits for the device
        tokens.append((1 - padding) * batch.rows.ids_BT.size)
        return {"seconds": time.perf_counter() - start, "loss": loss}

    for number in range(_COMPILING + options.rounds):
        took = {"ours": step(number)}
        for peer in peers:
            took[peer.kind] = peer.ask(_prompts(course, course.batches[number]))
        for name, reply in took.items():
            losses[name].append(reply["loss"])
            if number >= _COMPILING:
                seconds[name].append(reply["seconds"])
    if options.profile:
        with jax.profiler.trace(str(options.profile)):
            step(_COMPILING + options.rounds)
    return seconds, losses, round(statistics.mean(tokens[_COMPILING:]))


def _prompts(course: Run, triplets: Sequence[Triplet]) -> list[list[str]]:
    """The same sentences for a peer: cut and filled, anchors first."""
    prompt = course.assemble.prompt
    roles = 2 if triplets[0].hard_neg is None else 3
    return [
        [prompt.template.fill(text) for text in prompt.tokenizer.cut(texts, course.config.cut)]
        for texts in list(zip(*triplets, strict=True))[:roles]
    ]


def _ours(course: Run, seconds: list[float], tokens: int) -> dict[str, Any]:
    """Rates from the median step; useful FLOPs are 4 for a frozen weight and a real token."""
    pretrained, middle = course.trainable.pretrained, statistics.median(seconds)
    useful = 4 * linear_weights(pretrained.config) * tokens / middle
    matrix = speed.matrix_rate(course.embedder.dtype, pretrained.mesh.size)
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
