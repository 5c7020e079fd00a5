"""Read damaged files, and report what is neither an answer nor one clear error.

    python tests/fuzz/run.py --reader bin --inputs 10000 --minutes 10

Each reader runs in a child process, which may take 1 GiB of memory above what it takes when it
starts. A child that dies, or takes more than 10 seconds for one input, is started again behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from readers import READERS, damaged, inputs

from prompteol_jax.errors import UserError

_MEMORY: Final = 2**30  # bytes above the child's own and the input's
_SECONDS: Final = 10.0
_LONGEST_MESSAGE: Final = 10_000  # characters of an error
_BATCH: Final = 50  # inputs between two reports of a child


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", default="all")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--keep", help="folder for inputs that ended in a fault")
    options = parser.parse_args()
    bad = 0
    for name in READERS if options.reader == "all" else [options.reader]:
        found = run(name, options.inputs, 60 * options.minutes)
        faults = found.pop("faults")
        sys.stdout.write(json.dumps(found | {"faults": len(faults), "first": faults[:5]}) + "\n")
        sys.stdout.flush()
        for fault in faults if options.keep else ():
            _keep(Path(options.keep) / name, name, fault["input"])
        bad += bool(faults)
    return int(bad > 0)


def run(name: str, count: int, seconds: float) -> dict[str, Any]:
    """Read so many damaged inputs; return the figures, and the faults with their input's number."""
    end, first = time.monotonic() + seconds, 0
    total = {"reader": name, "inputs": 0, "answers": 0, "errors": 0, "slowest_s": 0.0}
    total |= {"peak_mib": 0.0, "faults": []}
    while first < count and time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            first = _watch(name, first, count, Path(folder), total, end)
    return total


def _watch(
    name: str, first: int, count: int, folder: Path, total: dict[str, Any], end: float
) -> int:
    """Run a child until it ends, dies or hangs; return the number of the next input."""
    child = _fork(name, first, count, folder)
    at, since, code = first, time.monotonic(), None
    while code is None and time.monotonic() < end and time.monotonic() - since < 2 * _SECONDS:
        time.sleep(0.1)
        code = _status(child, os.WNOHANG)
        if _number(folder, first) != at:
            at, since = _number(folder, first), time.monotonic()
    if code is None:
        os.kill(child, signal.SIGKILL)
        _status(child, 0)
    if not (folder / "status").exists():
        raise SystemExit(f"{name}: not even the first valid input is read")
    report = folder / "report"
    figures = json.loads(report.read_text()) if report.exists() else {}
    for key in ("inputs", "answers", "errors"):
        total[key] += figures.get(key, 0)
    for key in ("slowest_s", "peak_mib"):
        total[key] = round(max(total[key], figures.get(key, 0.0)), 2)
    total["faults"] += figures.get("faults", [])
    if code == 0 or (code is None and time.monotonic() >= end):
        return count
    what = "no answer" if code is None else f"the process ended with status {code}"
    at = _number(folder, first)
    total["faults"].append({"input": at, "what": what})
    return at + 1


def _fork(name: str, first: int, count: int, folder: Path) -> int:
    """Start a child process; it has all that this one has imported."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _child(name, first, count, folder)
        os._exit(0)
    finally:
        os._exit(1)


def _status(child: int, options: int) -> int | None:
    """The status of a child that has ended, negative for a signal; None while it runs."""
    found, status = os.waitpid(child, options)
    return os.waitstatus_to_exitcode(status) if found else None


def _number(folder: Path, first: int) -> int:
    """The input that a child is reading."""
    status = folder / "status"
    return int(status.read_text() or first) if status.exists() else first


def _child(name: str, first: int, count: int, folder: Path) -> None:
    reader, known = READERS[name], inputs(name)
    path = folder / reader.file
    path.write_bytes(known[0])
    reader.read(path)  # imports what is imported late
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + _MEMORY,) * 2)
    start = _peak()
    figures: dict[str, Any] = {"inputs": 0, "answers": 0, "errors": 0, "faults": []}
    figures |= {"slowest_s": 0.0, "peak_mib": 0.0}
    for number in range(first, count):
        (folder / "status").write_text(str(number))
        path.write_bytes(damaged(name, number, known))
        before = time.monotonic()
        kind, what = _read(reader, path)
        figures["slowest_s"] = max(figures["slowest_s"], time.monotonic() - before)
        figures["peak_mib"] = (_peak() - start) / 2**20
        figures["inputs"] += 1
        figures[kind] = (
            [*figures[kind], {"input": number, "what": what}] if what else (figures[kind] + 1)
        )
        if number % _BATCH == 0 or number == count - 1 or what:
            (folder / "report").write_text(json.dumps(figures))


def _read(reader: Any, path: Path) -> tuple[str, str]:
    """Read one input; return where it counts, and what is wrong with that."""
    try:
        reader.read(path)
    except UserError as error:
        if len(str(error)) > _LONGEST_MESSAGE:
            return "faults", f"an error of {len(str(error))} characters"
        return "errors", ""
    except Exception as error:
        return "faults", f"{type(error).__name__}: {str(error)[:200]}"
    return "answers", ""


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _keep(folder: Path, name: str, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"input-{number}").write_bytes(damaged(name, number, inputs(name)))


if __name__ == "__main__":
    sys.exit(main())
