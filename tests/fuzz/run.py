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
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

_MEMORY: Final = 2**30  # bytes above the child's own and the input's
_SECONDS: Final = 10.0
_LONGEST_MESSAGE: Final = 10_000  # characters of an error
_BATCH: Final = 50  # inputs between two reports of a child


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    options = _options()
    if options.child is not None:
        _child(options.reader, options.child, options.inputs, Path(options.folder))
        os._exit(0)  # a slow end of the interpreter is no fault of a reader
    from readers import READERS

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


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", default="all")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--keep", help="folder for inputs that ended in a fault")
    parser.add_argument("--child", type=int, help="first input of a child process")
    parser.add_argument("--folder", help="scratch folder of a child process")
    return parser.parse_args()


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
    command = [sys.executable, __file__, "--reader", name, "--inputs", str(count)]
    child = subprocess.Popen(
        [*command, "--child", str(first), "--folder", str(folder)], stderr=subprocess.DEVNULL
    )
    status, at, since = folder / "status", first, time.monotonic() + 60
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
        now = int(status.read_text() or first) if status.exists() else first
        if now != at:
            at, since = now, time.monotonic()
        if time.monotonic() - since > 2 * _SECONDS:
            break
    hung = child.poll() is None
    child.kill()
    code = child.wait()
    if not status.exists():
        raise SystemExit(f"{name}: not even the first valid input is read")
    at = int(status.read_text() or first) if status.exists() else first
    report = folder / "report"
    figures = json.loads(report.read_text()) if report.exists() else {}
    for key in ("inputs", "answers", "errors"):
        total[key] += figures.get(key, 0)
    for key in ("slowest_s", "peak_mib"):
        total[key] = round(max(total[key], figures.get(key, 0.0)), 2)
    total["faults"] += figures.get("faults", [])
    if hung and time.monotonic() >= end:
        return count
    if code != 0:
        what = "no answer" if hung else f"the process ended with status {code}"
        total["faults"].append({"input": at, "what": what})
        return at + 1
    return count


def _child(name: str, first: int, count: int, folder: Path) -> None:
    from readers import READERS, damaged, inputs

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
    from prompteol_jax.errors import UserError

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
    from readers import damaged, inputs

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"input-{number}").write_bytes(damaged(name, number, inputs(name)))


if __name__ == "__main__":
    sys.exit(main())
