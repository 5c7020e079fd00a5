"""Compare `prompteol serve` with infinity-emb: latency, throughput, changed answers.

    python tests/support/compare_servers.py --model FOLDER --peer PYTHON [--rounds 3] [--page FILE]

PYTHON is the interpreter of another virtual environment, which has infinity-emb[server,torch].
FOLDER holds an OPT model for transformers, which both serve. Both servers run all the time and are
asked in turn; needs idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from http_load import Answers, Client, Load, closed_loop
from ports import free_port

TEMPLATE = 'This sentence : "{}" means in one word:"'
STS = "senteval/downstream/STS/STSBenchmark/sts-dev.csv"
# Clients, texts of a request, and requests of all clients.
LOADS = {
    "1 client": (1, 1, 50),
    "8 clients": (8, 1, 96),
    "32 clients": (32, 1, 256),
    "2 clients of 32 texts": (2, 32, 12),
}
MIXED_CLIENTS, MIXED_TEXTS = 16, 8  # the last load: requests of 1 to 8 texts


@dataclass
class Side:
    """A server, its clients and what it answered."""

    name: str
    process: subprocess.Popen
    url: str
    model: str
    wrap: bool
    answers: Answers = field(default_factory=Answers)
    loads: dict[str, list[Load]] = field(default_factory=dict)

    def run(self, load: str, clients: int, requests: list[list[str]], keep: bool = True) -> None:
        """Put a load on the server."""
        wrap = TEMPLATE.format if self.wrap else str
        open_clients = [Client(self.url, self.model, wrap) for _ in range(clients)]
        found = closed_loop(open_clients, requests, self.answers)
        for client in open_clients:
            client.close()
        if keep:
            self.loads.setdefault(load, []).append(found)
            sys.stderr.write(
                f"{self.name}, {load}: {found.milliseconds(0.5):.0f} ms, {found.rate:.1f} texts/s\n"
            )

    def memory(self) -> float:
        """Return the resident gigabytes of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1e6 if found else 0.0


def peer_folder(model: Path, folder: Path) -> Path:
    """Write a folder for sentence-transformers with the model's files and the last token."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file.resolve())
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    kinds = {"0": ("", "Transformer"), "1": ("1_Pooling", "Pooling")}
    modules = [
        {"idx": int(n), "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in kinds.items()
    ]
    pooling = {"word_embedding_dimension": width, "pooling_mode_lasttoken": True}
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def start(name: str, command: list[str], url: str, model: str, log: Path, *, wrap: bool) -> Side:
    """Start a server."""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    offline |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    process = subprocess.Popen(command, env=offline, stdout=log.open("w"), stderr=subprocess.STDOUT)
    return Side(name, process, url, model, wrap)


def wait_for(side: Side, log: Path) -> None:
    """Return when a server answers; infinity's /health says so as ours does."""
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"{side.url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if side.process.poll() is not None:
            raise SystemExit(f"{side.name} ended:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)
    raise SystemExit(f"{side.name} is not ready:\n{log.read_text()[-3000:]}")


def requests_of(sentences: list[str], load: str, draw: random.Random, share: float) -> list:
    """Draw the requests of a load; `share` of the usual number."""
    _, texts, count = LOADS[load]
    return [draw.choices(sentences, k=texts) for _ in range(max(2, round(share * count)))]


def table(sides: list[Side]) -> list[list[str]]:
    """Return rows of a load: both sides' median of rounds, and ours over the peer's."""
    rows = []
    for load in sides[0].loads:
        for name, value in (
            ("p50 ms", lambda one: one.milliseconds(0.5)),
            ("p99 ms", lambda one: one.milliseconds(0.99)),
            ("texts/s", lambda one: one.rate),
        ):
            found = [statistics.median(map(value, side.loads[load])) for side in sides]
            rows.append([load, name, *(f"{v:.1f}" for v in found), f"{found[0] / found[1]:.2f}"])
    return rows


def write_page(path: Path, sides: list[Side], rows: list[list[str]], facts: dict[str, str]) -> None:
    """Write the figures and two charts as a page."""
    from eval.shared import charts, html

    sections = [("Figures", html.table(["load", "", *(s.name for s in sides), "ratio"], rows))]
    for heading, unit, value in (
        ("Latency", "median ms of a request", lambda one: one.milliseconds(0.5)),
        ("Throughput", "texts a second", lambda one: one.rate),
    ):
        drawing, axes = charts.empty(4.4, 3.0)
        names = list(sides[0].loads)
        for n, (side, color) in enumerate(zip(sides, (charts.BLUE, charts.ORANGE), strict=True)):
            where = [number + 0.36 * (0.5 - n) for number in range(len(names))][::-1]
            found = [[value(one) for one in side.loads[load]] for load in names]
            axes.barh(
                where, list(map(statistics.median, found)), 0.34, color=color, label=side.name
            )
            for y, values in zip(where, found, strict=True):
                axes.plot(values, [y] * len(values), "|", color="#000000", markersize=6)
        axes.set_yticks(range(len(names)), [name.replace(" of ", "\nof ") for name in names[::-1]])
        axes.set(xlabel=unit)
        charts.name_series(axes)
        caption = f"{unit.capitalize()}; bars are medians, marks the rounds"
        sections.append((heading, html.figure(drawing, caption)))
    html.write_page(path, "prompteol serve and infinity-emb", facts, sections)


def measure(sides: list[Side], sentences: list[str], options: argparse.Namespace) -> None:
    """Put each load on each side in turn, round after round, then a mixed one."""
    draw = random.Random(options.seed)
    for side in sides:
        warm = [draw.choices(sentences, k=n % MIXED_TEXTS + 1) for n in range(12)]
        side.run("warm-up", 4, warm, keep=False)
    for number in range(options.rounds):
        for load, (clients, _, _) in LOADS.items():
            requests = requests_of(sentences, load, draw, options.share)
            for side in sides[:: -1 if number % 2 else 1]:
                side.run(load, clients, requests)
    mixed, left = [], options.mixed
    while left > 0:
        mixed.append(draw.choices(sentences, k=draw.randint(1, min(MIXED_TEXTS, left))))
        left -= len(mixed[-1])
    for side in sides:
        side.run(f"{MIXED_CLIENTS} clients, mixed", MIXED_CLIENTS, mixed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the usual requests")
    parser.add_argument("--mixed", type=int, default=600, help="texts of the mixed load")
    parser.add_argument("--distinct", type=int, default=200, help="sentences to draw from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--flags", default="--max-tokens 160", help="more flags of ours")
    options = parser.parse_args()
    file = Path(os.environ["PROMPTEOL_DATA"]) / STS
    sentences = [line.split("\t")[5] for line in file.read_text().splitlines()]
    sentences = list(dict.fromkeys(sentences))[: options.distinct]
    folder = Path(tempfile.mkdtemp(prefix="compare-servers-"))
    ours, theirs = free_port(), free_port()
    serve = [sys.executable, "-m", "prompteol_jax.cli", "serve", "--model", str(options.model)]
    serve += ["--dtype", "float32", "--served-name", "m", "--port", str(ours)]
    peer = [str(Path(options.peer).with_name("infinity_emb")), "v2", "--device", "cpu"]
    peer += ["--model-id", str(peer_folder(options.model, folder / "peer")), "--dtype", "float32"]
    peer += ["--served-model-name", "m", "--engine", "torch", "--no-model-warmup"]
    peer += ["--no-bettertransformer", "--batch-size", "32", "--port", str(theirs)]
    logs = [folder / "ours.log", folder / "peer.log"]
    sides: list[Side] = []
    begun = time.monotonic()
    try:
        for name, command, port, wrap, log in (
            ("prompteol serve", serve + options.flags.split(), ours, False, logs[0]),
            ("infinity-emb", peer, theirs, True, logs[1]),
        ):
            url = f"http://127.0.0.1:{port}"
            sides.append(start(name, command, url, "m", log, wrap=wrap))
            wait_for(sides[-1], log)
            sys.stderr.write(f"{name} is ready, {time.monotonic() - begun:.0f} s\n")
        measure(sides, sentences, options)
        facts = {
            "model": f"{options.model.name}, float32",
            "cores": f"{os.cpu_count()}, {options.rounds} rounds",
            "changed answers": "; ".join(
                f"{side.name} {side.answers.changed} of {side.answers.texts}" for side in sides
            ),
            "memory": "; ".join(f"{side.name} {side.memory():.2f} GB" for side in sides),
            "seconds": f"{time.monotonic() - begun:.0f}",
        }
    finally:
        for side in sides:
            side.process.terminate()
            side.process.wait()
    rows = table(sides)
    for row in rows:
        print("  ".join(f"{cell:>22}" for cell in row))
    for name, value in facts.items():
        print(f"{name}: {value}")
    if options.page:
        write_page(options.page, sides, rows, facts)


if __name__ == "__main__":
    main()
