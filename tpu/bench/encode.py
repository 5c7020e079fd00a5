"""Measure encoding: sentences, tokens and useful FLOP a second, in turn with peers."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jax
import numpy as np

from prompteol_jax.embedder import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.models import tiny
from prompteol_jax.pretrained import provenance
from prompteol_jax.progress import progress_bar
from prompteol_jax.storage import corpus
from prompteol_jax.text.template import clean_sentence
from tpu.bench import device
from tpu.bench.peer_process import Peer
from tpu.chips import GIB
from tpu.lengths import Lengths, read_lengths
from tpu.plan.jobs import linear_weights

if TYPE_CHECKING:
    from tpu.bench.command import EncodeBench

_OPENING: Final = "A"  # first word of every text that is made up
_WORDS: Final = 50  # words of one id that a tokenizer needs for enough distinct texts
_SAME: Final = 0.99  # smallest cosine of two bfloat16 vectors of a text that differ by rounding


def measure(options: EncodeBench) -> dict[str, Any]:
    """Measure encoding and return what `--json` gets.

    It has `ours` and `peers` with the seconds of every round and the rates, and under `shown` the
    cells of the table.
    """
    texts = None if options.texts is None else read_texts(options)
    with device.compile_seconds() as compiling, contextlib.ExitStack() as stack:
        start = time.perf_counter()
        embedder = options.load("bfloat16")
        load_s = time.perf_counter() - start
        if texts is None:
            texts = made_texts(embedder, read_lengths(options.lengths, "encode"), options.n)
        embedder.encode(texts)
        compile_s = compiling()
        peers = [stack.enter_context(_peer(kind, options, embedder)) for kind in options.peer]
        agreement = {peer.kind: _agreement(embedder, peer, texts) for peer in peers}
        seconds = _rounds(embedder, peers, texts, options.rounds)
    if options.profile:
        embedder.use(embedder.pretrained.decoder)  # so that the prefix is computed again
        with jax.profiler.trace(str(options.profile)):
            embedder.encode(texts)
    peak, whose = device.peak_bytes()
    ours = {
        "load_s": load_s,
        "compile_s": compile_s,
        "peak_bytes": peak,
        "peak_of": whose,
        **_ours(embedder, seconds["ours"]),
    }
    return {
        "job": "encode",
        "setting": f"{embedder.template.name}, {embedder.dtype}, "
        f"{options.quantize or 'no'} quantization, {len(texts)} texts, mesh {options.mesh}",
        "device": _device(embedder),
        "ours": ours,
        "peers": {
            peer.kind: _theirs(peer, seconds, len(texts)) | {"cosine_min": agreement[peer.kind]}
            for peer in peers
        },
        "note": "; ".join([_note(ours), *_others(agreement)]),
        "record": provenance.describe(embedder),
        "date": time.strftime("%Y-%m-%d"),
    }


def _others(agreement: Mapping[str, float]) -> list[str]:
    """Name the peers whose vectors are not those of our model."""
    return [
        f"{kind} computes another model (smallest cosine with ours {cosine:.2f})"
        for kind, cosine in agreement.items()
        if not cosine > _SAME
    ]


def read_texts(options: EncodeBench) -> list[str]:
    """Read the first distinct texts of the file.

    Raises: UserError where it holds no text.
    """
    assert options.texts is not None  # the caller asked
    chunks = corpus.open_corpus(options.texts).chunks(4096)
    read = chain.from_iterable(chunks)
    if options.clean:
        read = map(clean_sentence, read)
    texts = list(islice(dict.fromkeys(read), options.n))
    if not texts:
        raise UserError(f"{options.texts} holds no text")
    return texts


def made_texts(embedder: Embedder, lengths: Lengths, n: int) -> list[str]:
    """Make n distinct texts of random words with so many ids as the lengths say.

    Raises: UserError where the tokenizer has too few words of one id.
    """
    words = [f" {word}" for word in tiny.WORDS]
    ids = embedder.pretrained.tokenizer.ids(words)
    single = [word for word, own in zip(words, ids, strict=True) if len(own) == 2]  # BOS is one
    if len(single) < _WORDS:
        raise UserError(f"{len(single)} words of one id are too few for texts; give --texts")
    (shortest,) = embedder.prompt([_OPENING]).ids
    draw = random.Random(0)
    texts: dict[str, None] = {}
    for length in lengths.draw(n):
        more = max(1, length - len(shortest))
        text = _OPENING + "".join(draw.choices(single, k=more))
        while text in texts:
            text = _OPENING + "".join(draw.choices(single, k=more))
        texts[text] = None
    return list(texts)


def _peer(kind: str, options: EncodeBench, embedder: Embedder) -> Peer:
    batch = [] if options.peer_batch is None else ["--batch", str(options.peer_batch)]
    python, folder = options.peer_python, embedder.pretrained.folder
    assert folder is not None  # only `tiny` has none, and the options refuse it for a peer
    return Peer(kind, python, folder, "--dtype", embedder.dtype, *batch)


def _agreement(embedder: Embedder, peer: Peer, texts: Sequence[str]) -> float:
    """Return the smallest cosine between our vector of a text and the peer's, over the first texts.

    The peer also warms up on this batch, before it is timed.
    """
    some = list(texts[:64])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        peer.ask([embedder.template.fill(text) for text in some], save=str(path))
        theirs = np.load(path).astype(np.float64)
    ours = embedder.encode(some).astype(np.float64)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(1) / norms).min())


def _rounds(
    embedder: Embedder, peers: Sequence[Peer], texts: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of ours and each peer, in turn, the texts in a new order every round."""
    seconds: dict[str, list[float]] = {"ours": [], **{peer.kind: [] for peer in peers}}
    with progress_bar("rounds", rounds) as advance:
        for number in range(rounds):
            shuffled = random.Random(number).sample(texts, len(texts))
            start = time.perf_counter()
            embedder.encode(shuffled, progress=False)
            seconds["ours"].append(time.perf_counter() - start)
            prompts = [embedder.template.fill(text) for text in shuffled]
            for peer in peers:
                seconds[peer.kind].append(peer.ask(prompts)["seconds"])
            advance()
    return seconds


def _ours(embedder: Embedder, seconds: list[float]) -> dict[str, Any]:
    """Return the rates of the median round; useful FLOP are 2 for a weight and a real token."""
    report, middle = embedder.report, statistics.median(seconds)
    weights = linear_weights(embedder.pretrained.config)
    useful = 2 * weights * report.tokens / middle
    mesh = embedder.mesh
    peak = device.matrix_rate(embedder.dtype, mesh.size)
    chip = device.chip_peak(mesh.devices.flat[0])
    return {
        "seconds": seconds,
        "sentences_per_s": report.distinct / middle,
        "tokens_per_s": report.tokens / middle,
        "useful_flops": useful,
        "matrix_flops": peak,
        "useful_mfu": useful / peak,
        "useful_mfu_of_chip": chip and useful / (chip * mesh.size),
        "plan": embedder.plan,
        "waiting": report.waiting,
        "report": dataclasses.asdict(report),
        "shown": {
            "sentences/s": f"{report.distinct / middle:,.1f}",
            "tokens/s": f"{report.tokens / middle:,.0f}",
            "useful MFU": f"{useful / peak:.1%}",
        },
    }


def _theirs(peer: Peer, seconds: dict[str, list[float]], n: int) -> dict[str, Any]:
    theirs = seconds[peer.kind]
    rate = n / statistics.median(theirs)
    return {
        **peer.compared(seconds["ours"], theirs),
        "sentences_per_s": rate,
        "shown": {"sentences/s": f"{rate:,.1f}"},
    }


def _device(embedder: Embedder) -> str:
    devices = embedder.mesh.devices.flat
    return f"{len(devices)} x {devices[0].device_kind}"


def _note(ours: dict[str, Any]) -> str:
    report = ours["report"]
    return "; ".join(
        [
            f"plan {ours['plan']}",
            f"{report['padded_tokens'] / report['tokens']:.2f} tokens computed for a real one",
            f"the device waited {ours['waiting']:.1%} of the last run",
            f"best matrix product {ours['matrix_flops'] / 1e12:,.2f} TFLOP/s",
            f"loaded in {ours['load_s']:.1f} s, compiled in {ours['compile_s']:.1f} s",
            f"peak memory of the {ours['peak_of']} {ours['peak_bytes'] / GIB:.2f} GiB",
        ]
    )
