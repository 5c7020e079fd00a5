"""Kills encode, train and eval at random instants, and changes their inputs before they go on.

    python tests/support/kills.py --kills 40

A command that goes on with a changed input must be refused by the input's name, or, where vectors
are kept by content, give what an undisturbed run with that input gives. With the inputs put back it
must end with the bits of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from chaos import count_lines, gone, remains, wait

from eval.demos import command as demos
from eval.shared import vector_cache
from eval.sts import command as sts
from prompteol_jax.cli import main as cli
from prompteol_jax.models import tiny
from train import contrastive

STS_FILE = "STS/STSBenchmark/sts-dev.csv"
# A changed input, the flags that change it, and words of which a refusal must have one.
CHANGES = {
    "data": ([], ("data", "texts", "input", "pairs")),
    "weights": ([], ("weights",)),
    "template": (["--template", "none"], ("template", "prompt")),
    "dtype": (["--dtype", "bfloat16"], ("dtype",)),
    "pooling": (["--pooling", "mean"], ("pooling",)),
    "layer": (["--layer", "1"], ("layer",)),
    "method": (["--method", "attention-sum"], ("method",)),
}


@dataclass(frozen=True)
class Job:
    """A command, how far it is, and what is left of it.

    Attributes:
        flags: words of the command; those in braces are folders and files.
        again: more words, where the command goes on with what an earlier life recorded.
        record: file in the output that exists once an earlier life recorded its work.
        steps: what `progress` is at the end.
        refuses: whether a changed input is refused; it gives another result where not.
        data: file that the change of data edits.
    """

    main: Callable[[list[str]], None]
    flags: str
    record: str
    progress: Callable[[Path], int]
    steps: int
    remains: Callable[[Path], object]
    changes: tuple[str, ...]
    data: str
    again: tuple[str, ...] = ()
    refuses: bool = True


def _shards(output: Path) -> object:
    return [path.read_bytes() for path in sorted(output.glob("shard-*.npy"))]


def _scores(output: Path) -> object:
    result = json.loads((output / "result.json").read_text())
    return result["scores"], result["examples"]


def _ranking(output: Path) -> object:
    result = json.loads((output / "result.json").read_text())
    return result["best"], (output / "template.json").read_text()


JOBS = {
    "encode": Job(
        cli.main,
        "encode --model {base} --input {files}/texts.txt --output {out} --dtype float32 "
        "--shard-rows 4",
        "manifest.json",
        lambda output: len(list(output.glob("shard-*.npy"))),
        10,
        _shards,
        ("data", "weights", "template", "dtype", "pooling", "layer", "method"),
        "texts.txt",
    ),
    "train": Job(
        contrastive.main,
        "--model {base} --data {files}/rows.csv --output {out} --steps 12 --batch 8 --rank 2 "
        "--save-every 2 --eval-every 1000 --remat none --dtype float32",
        "config.json",
        count_lines,
        12,
        remains,
        ("data", "weights", "template", "dtype"),
        "rows.csv",
        ("--resume",),
    ),
    "eval": Job(
        sts.main,
        "--model {base} --data {files} --tasks STSBenchmark --split dev --cache {out}/cache "
        "--json {out}/result.json",
        "result.json",
        lambda output: len(list(output.glob("cache/*/*.npz"))),
        6,
        _scores,
        ("data", "weights", "template", "dtype", "pooling", "layer", "method"),
        STS_FILE,
        refuses=False,
    ),
    "search": Job(
        lambda words: demos.main(["search", *words]),
        "--model {base} --data {files} --candidates {files}/candidates.jsonl --output {out} "
        "--json {out}/result.json",
        "journal.jsonl",
        lambda output: count_lines(output, "journal.jsonl"),
        8,
        _ranking,
        ("data", "weights", "dtype", "layer"),
        STS_FILE,
    ),
}


class Kills:
    """Commands in a folder, and what has happened to them so far."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.count: Counter[str] = Counter()
        self.whole: dict[tuple[str, str], object] = {}  # by job and change
        self._write_files()

    def _write_files(self) -> None:
        words = lambda n: " ".join(self.random.choices(tiny.WORDS, k=n))  # noqa: E731
        files = self.folder / "files"
        (files / STS_FILE).parent.mkdir(parents=True)
        (files / "texts.txt").write_text("".join(f"{words(5)}\n" for _ in range(40)))
        rows = [",".join(words(4) for _ in range(3)) for _ in range(64)]
        (files / "rows.csv").write_text("\n".join(["sent0,sent1,hard_neg", *rows]) + "\n")
        pairs = [f"a\tb\tc\t{n}\t{n % 6}.0\t{words(4)}\t{words(5)}\n" for n in range(24)]
        (files / STS_FILE).write_text("".join(pairs))
        shown = [json.dumps({"text": words(4), "word": words(1)}) + "\n" for _ in range(8)]
        (files / "candidates.jsonl").write_text("".join(shown))
        self.end(self.fork(self._write_base, self.folder / "base.log"), self.folder / "base.log", 0)

    def _write_base(self) -> None:
        from prompteol_jax import Embedder
        from prompteol_jax.pretrained.load import save_pretrained

        base = Embedder.from_pretrained("tiny", dtype="float32").pretrained
        save_pretrained(base, base.decoder, self.folder / "base", dtype="float32")

    def fork(self, run: Callable[[], object], log: Path) -> int:
        """Start a process that has what this one imported; what it says goes to a file."""
        process = os.fork()
        if process:
            return process
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            vector_cache.CHUNK = 8  # so that there is something to keep
            run()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def start(self, job: Job, output: Path, more: tuple[str, ...] = ()) -> int:
        """Start a life of a job; it goes on with what earlier lives recorded."""
        output.mkdir(exist_ok=True)
        places = {"base": self.folder / "base", "files": self.folder / "files", "out": output}
        again = job.again if (output / job.record).exists() else ()
        words = [*job.flags.format(**places).split(), *again, *more]
        return self.fork(lambda: job.main(words), self.log(output))

    def log(self, output: Path) -> Path:
        return output.with_suffix(".log")

    def end(self, process: int, log: Path, *allowed: int) -> int:
        """Wait for a process that must end with one of these statuses."""
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in allowed, f"status {code}\n{log.read_text()[-3000:]}"
        return code

    def undisturbed(self, name: str, change: str = "") -> object:
        """Return what is left of a run from first to last, with this input changed."""
        if (name, change) not in self.whole:
            job, output = JOBS[name], self.folder / f"whole-{name}-{change}"
            with self.changed(job, change) as more:
                self.end(self.start(job, output, more), self.log(output), 0)
            self.whole[name, change] = job.remains(output)
        return self.whole[name, change]

    @contextlib.contextmanager
    def changed(self, job: Job, change: str) -> Iterator[tuple[str, ...]]:
        """Change an input, and put it back; gives the flags that change it."""
        files = {
            "data": (self.folder / "files" / job.data, lambda old: old[:-2] + b"z\n"),
            "weights": (self.folder / "base" / "model.safetensors", _changed_tensor),
        }
        if change not in files:
            yield tuple(CHANGES[change][0]) if change else ()
            return
        path, edit = files[change]
        before = path.read_bytes()
        path.write_bytes(edit(before))
        try:
            yield ()
        finally:
            path.write_bytes(before)

    def kill(self, name: str, output: Path) -> bool:
        """Start a life and end it at a random instant; say whether it was still at work."""
        job = JOBS[name]
        target = self.random.randrange(-1, job.steps)
        process = self.start(job, output)
        wait(lambda: job.progress(output) > target or gone(process))
        time.sleep(self.random.uniform(0, 0.05))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = self.end(process, self.log(output), 0, -signal.SIGKILL)
        self.count[f"kills of {name}"] += code != 0
        return code != 0

    def go_on(self, name: str, output: Path, change: str) -> None:
        """Go on with a changed input: refused by name, or what the changed input gives."""
        job = JOBS[name]
        if job.refuses and not (output / job.record).exists():
            self.count["nothing was kept"] += 1
            return
        expected = None if job.refuses else self.undisturbed(name, change)
        with self.changed(job, change) as more:
            self.end(self.start(job, output, more), self.log(output), 2 if job.refuses else 0)
        if not job.refuses:
            assert job.remains(output) == expected, f"{name} with changed {change} in {output}"
            self.count["other inputs, other results"] += 1
            return
        (line,) = [s for s in self.log(output).read_text().splitlines() if " error: " in s]
        assert any(word in line for word in CHANGES[change][1]), (change, line)
        self.count["refused by name"] += 1

    def finish(self, name: str, output: Path) -> None:
        """Go on to the end with the inputs of the beginning."""
        self.end(self.start(JOBS[name], output), self.log(output), 0)
        assert JOBS[name].remains(output) == self.undisturbed(name), f"{output} differs"
        self.count["ended as undisturbed"] += 1


def _changed_tensor(content: bytes) -> bytes:
    """Change a number in the middle of a safetensors file, by its lowest bit."""
    middle = len(content) // 2 // 4 * 4 + (8 + int.from_bytes(content[:8], "little")) % 4
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    options = parser.parse_args()
    folder, start = Path(tempfile.mkdtemp(prefix="kills-")), time.monotonic()
    kills = Kills(folder, options.seed)
    changes = {name: itertools.cycle(JOBS[name].changes) for name in options.jobs}
    for number, name in enumerate(itertools.cycle(options.jobs)):
        if sum(n for what, n in kills.count.items() if what.startswith("kills")) >= options.kills:
            break
        output = folder / f"{name}-{number}"
        kills.undisturbed(name)
        if kills.kill(name, output):
            kills.go_on(name, output, next(changes[name]))
        kills.finish(name, output)
        shutil.rmtree(output)
        sys.stderr.write(f"{dict(kills.count)}\n")
    seconds = time.monotonic() - start
    told = ", ".join(f"{n} {what}" for what, n in sorted(kills.count.items()))
    sys.stdout.write(f"{told}: none mixed, {seconds:.0f} s\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
