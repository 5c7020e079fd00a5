"""Kills short runs at random instants, damages their checkpoints, and resumes them to the end.

    python tests/support/chaos.py --kills 200 --damages 50
    python tests/support/chaos.py --kinds fsdp two-sources align --kills 20 --damages 7

Every run must end with the bits of one that nobody disturbed, or refuse with the error that names
the damaged file. Lives are forked from a process that has imported everything and started nothing.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import transformers  # noqa: F401
from orbax.checkpoint import v1  # noqa: F401

from train import contrastive, loop, trainable  # noqa: F401
from train.align import command as align
from train.align import run as align_run  # noqa: F401
from train.config import STOPPED
from train.run import step_folders

FLAGS = "--steps 40 --batch 8 --rank 2 --save-every 2 --eval-every 1000 --warmup-steps 5"
# What trains, and its flags; {0} and {1} are files of rows.
KINDS = {
    "contrastive": (contrastive.main, "--data {0} --remat none"),
    "fsdp": (contrastive.main, "--data {0} --mesh 2x1 --fsdp --remat dots"),
    "two-sources": (contrastive.main, "--data {0} {1} --weights 3 1 --remat none"),
    "align": (align.main, "--data {0} --remat none"),
}
TIMEOUT_S = 900.0
TIMES = ("step_s", "sentences_per_s")  # of metrics.jsonl


class Chaos:
    """Runs of one kind in a folder of their own, and what has happened to them so far."""

    def __init__(self, folder: Path, seed: int, kind: str):
        self.folder, self.random, self.kind = folder, random.Random(seed), kind
        self.data = [folder / "rows.csv", folder / "others.csv"]
        for file, has in zip(self.data, ("has", "had"), strict=True):
            rows = [
                f"Man {n} {has} a car.,Somebody owns a car {n}.,No car {n}." for n in range(10, 90)
            ]
            file.write_text("\n".join(["sent0,sent1,hard_neg", *rows]) + "\n")
        self.count = collections.Counter()
        self.left: set = set()  # what earlier kills left of their saves

    def __str__(self) -> str:
        return ", ".join(f"{n} {what}" for what, n in sorted(self.count.items()))

    def start(self, run: Path, *, resume: bool) -> int:
        """Fork a process that trains; what it says goes to RUN.log."""
        main, own = KINDS[self.kind]
        flags = [*FLAGS.split(), *own.format(*self.data).split(), f"--output={run}"]
        self.left = unfinished_saves(run)
        process = os.fork()
        if process:
            return process
        log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            main([*flags, "--resume"] if resume else flags)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def undisturbed(self) -> tuple:
        """What is left of a run from first to last."""
        run = self.folder / "whole"
        self.end(self.start(run, resume=False), run, 0)
        return remains(run)

    def end(self, process: int, run: Path, *allowed: int) -> int:
        """Wait for a process that must end with one of these statuses."""
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in allowed, f"status {code}\n{Path(f'{run}.log').read_text()[-3000:]}"
        return code

    def kill(self, process: int, run: Path) -> None:
        """End a process at a random instant: of its start, of its steps, or inside a save."""
        instant = self.random.choices(("start", "step", "save", "term"), (1, 5, 4, 1))[0]
        lines = count_lines(run)
        if instant == "start":
            time.sleep(self.random.uniform(0, 4))
        else:
            wait(lambda: count_lines(run) > lines or gone(process))
            if instant == "save":
                wait(lambda: unfinished_saves(run) - self.left or gone(process))
                time.sleep(self.random.uniform(0, 0.02))
            else:
                time.sleep(self.random.uniform(0, 0.4))
        os.kill(process, signal.SIGTERM if instant == "term" else signal.SIGKILL)
        code = self.end(process, run, 0, -signal.SIGKILL, -signal.SIGTERM, STOPPED)
        self.count["kills"] += code != 0
        self.count["inside a save"] += bool(unfinished_saves(run) - self.left)
        self.count["SIGTERM, saved and ended"] += code == STOPPED

    def damage(self, run: Path) -> None:
        """Flip a bit of a file, or cut it short; where all steps are damaged, a run must refuse."""
        steps = step_folders.committed(run / "checkpoints")
        if not steps:
            return
        all_of_them = self.random.random() < 0.3
        before, harmed = {}, []
        for step in steps if all_of_them else steps[-1:]:
            files = [p for p in (run / "checkpoints" / str(step)).rglob("*") if p.is_file()]
            path = self.random.choice([p for p in files if p.stat().st_size])
            before[path] = path.read_bytes()
            path.write_bytes(self.harm(before[path]))
            harmed.append(path)
        self.count["damages"] += 1
        if all_of_them or len(steps) == 1:
            self.end(self.start(run, resume=True), run, 2)
            said = Path(f"{run}.log").read_text()
            assert "Damaged checkpoint" in said, said
            assert all(path.name in said for path in harmed), (harmed, said)
            self.count["refused by name"] += 1
            for path, content in before.items():
                path.write_bytes(content)

    def harm(self, content: bytes) -> bytes:
        """The content with one bit flipped, or without its end."""
        at = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            return content[:at]
        return (
            content[:at] + bytes([content[at] ^ 1 << self.random.randrange(8)]) + content[at + 1 :]
        )


def unfinished_saves(run: Path) -> set[tuple[int, int]]:
    """Folders that are being written, or were when their process was killed, each told from all."""
    found = set()
    for path in run.glob("checkpoints/*.saving*"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            found.add((facts.st_ino, facts.st_ctime_ns))
    return found


def gone(process: int) -> bool:
    """Say whether a child has ended, and leave its status to be collected."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(ready) -> None:
    """Return when it is ready."""
    deadline = time.monotonic() + TIMEOUT_S
    while not ready():
        assert time.monotonic() < deadline, "a run takes too long"
        time.sleep(0.005)


def count_lines(run: Path, name: str = "metrics.jsonl") -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run / name).read_bytes().count(b"\n")
    return 0


def remains(run: Path) -> tuple:
    """The bits of the adapter, the numbers of every step, and the newest checkpoint's step.

    Which older one is kept depends on when SIGTERM came.
    """
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [{name: x for name, x in r.items() if name not in TIMES} for r in lines]
    return adapter, steps, step_folders.committed(run / "checkpoints")[-1]


def disturb(chaos: Chaos, kills: int, damages: int) -> None:
    """Run until so many kills and damages have happened; every run ends as an undisturbed one."""
    whole, share = chaos.undisturbed(), damages / kills

    def unfinished() -> bool:
        return chaos.count["kills"] < kills or chaos.count["damages"] < damages

    while unfinished():
        run = chaos.folder / f"run-{chaos.count['runs']}"
        process = chaos.start(run, resume=False)
        while not (run / "adapter").exists() and unfinished():
            chaos.kill(process, run)
            if chaos.count["damages"] < share * chaos.count["kills"]:
                chaos.damage(run)
            sys.stderr.write(f"{chaos.kind}: {chaos}\n")
            process = chaos.start(run, resume=(run / "config.json").exists())
        chaos.end(process, run, 0)
        assert remains(run) == whole, f"{run} is not the undisturbed run"
        chaos.count["runs"] += 1
        shutil.rmtree(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["contrastive"])
    parser.add_argument("--kills", type=int, default=200, help="of each kind")
    parser.add_argument("--damages", type=int, default=50, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    for kind in options.kinds:
        start = time.monotonic()
        (folder / kind).mkdir()
        chaos = Chaos(folder / kind, options.seed, kind)
        disturb(chaos, options.kills, options.damages)
        seconds = time.monotonic() - start
        sys.stdout.write(f"{kind}: {chaos}: all as undisturbed, {seconds:.0f} s\n")
        sys.stdout.flush()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
