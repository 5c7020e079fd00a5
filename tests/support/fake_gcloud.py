"""A stand-in for gcloud that keeps a slice of two hosts as folders, and runs their commands here.

The file CALLS gets every command line; the file STATE holds the state of the VM, and none means
there is no VM. The file PREEMPT takes the slice away, once, when a job is started on it; the file
DROP breaks the connection, once, over which a job is followed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
STATE, WORKERS = CLOUD / "state", ("0", "1")


def flag(words: list[str], name: str) -> str:
    return next(w.partition("=")[2] for w in words if w.startswith(f"--{name}="))


def host(worker: str) -> Path:
    return CLOUD / f"host{worker}"


def workers(words: list[str]) -> tuple[str, ...]:
    chosen = flag(words, "worker")
    return WORKERS if chosen == "all" else (chosen,)


def on_hosts(words: list[str]) -> int:
    command, status = flag(words, "command"), 0
    dropped = CLOUD / "drop"
    if "host.sh follow" in command and dropped.exists():
        dropped.unlink()
        return 255
    for worker in workers(words):
        environment = os.environ | {"HOME": str(host(worker))}
        status |= subprocess.run(
            ["bash", "-c", command], cwd=host(worker), env=environment, check=False
        ).returncode
    once = CLOUD / "preempt"
    if "host.sh start" in command and once.exists():
        once.unlink()
        for worker in WORKERS:
            pid = (host(worker) / "prompteol-jax" / "job.pid").read_text().strip()
            subprocess.run(["pkill", "-KILL", "--session", pid], check=False)
        STATE.write_text("PREEMPTED")
    return status


def main(words: list[str]) -> int:
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(words) + "\n")
    kind, verb = words[2:4]
    if verb == "create":
        for worker in WORKERS:
            host(worker).mkdir(parents=True)
        STATE.write_text("READY")
    elif verb == "describe":
        if not STATE.exists():
            return 1
        sys.stdout.write("ACTIVE" if kind == "queued-resources" else STATE.read_text())
    elif verb == "delete":
        STATE.unlink()
        for worker in WORKERS:
            shutil.rmtree(host(worker))
    elif verb == "ssh":
        return on_hosts(words)
    elif "--recurse" in words:
        source = host("0") / words[words.index("--recurse") + 1].partition(":")[2]
        shutil.copytree(source, Path(words[words.index("--recurse") + 2]) / source.name)
    else:
        for worker in workers(words):
            shutil.copy(words[4], host(worker) / words[5].partition(":")[2])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
