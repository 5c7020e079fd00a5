"""A stand-in for gcloud that keeps a slice of two hosts as folders, and runs their commands here.

The file CALLS gets every command line. The file STATE holds the state of the VM, the file REQUEST
that of the queued resource; none means that there is none. As the real gcloud does, it says
NOT_FOUND and ALREADY_EXISTS. Further files are what may happen, each once:

    preempt   a job that is started loses its slice
    drop      the connection breaks over which a job is followed
    outage    the first question after that fails
    late      the slice is taken away as many questions after a job has ended as the file says
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
STATE, REQUEST, WORKERS = CLOUD / "state", CLOUD / "request", ("0", "1")


def flag(words: list[str], name: str) -> str:
    return next(w.partition("=")[2] for w in words if w.startswith(f"--{name}="))


def host(worker: str) -> Path:
    return CLOUD / f"host{worker}"


def workers(words: list[str]) -> tuple[str, ...]:
    chosen = flag(words, "worker")
    return WORKERS if chosen == "all" else (chosen,)


def happens(name: str) -> bool:
    """Say whether an event is due, once."""
    event = CLOUD / name
    due = event.exists()
    event.unlink(missing_ok=True)
    return due


def fail(reason: str) -> int:
    sys.stderr.write(f"ERROR: (gcloud.compute.tpus) {reason}\n")
    return 1


def on_hosts(words: list[str]) -> int:
    command, status = flag(words, "command"), 0
    if "host.sh follow" in command and happens("drop"):
        (CLOUD / "dropped").touch()
        return 255
    for worker in workers(words):
        environment = os.environ | {"HOME": str(host(worker))}
        status |= subprocess.run(
            ["bash", "-c", command], cwd=host(worker), env=environment, check=False
        ).returncode
    if "host.sh start" in command and happens("preempt"):
        for worker in WORKERS:
            pid = (host(worker) / "prompteol-jax" / "job.pid").read_text().strip()
            subprocess.run(["pkill", "-KILL", "--session", pid], check=False)
        STATE.write_text("PREEMPTED")
    return status


def describe(words: list[str]) -> int:
    if (CLOUD / "dropped").exists() and happens("outage"):
        return fail("network is unreachable")
    late = CLOUD / "late"
    if late.exists() and (host("0") / "prompteol-jax" / "job.status").exists():
        looks = int(late.read_text())
        late.write_text(str(looks - 1))
        if looks == 0:
            late.unlink()
            STATE.write_text("PREEMPTED")
    held = REQUEST if words[2] == "queued-resources" else STATE
    if not held.exists():
        return fail(f"NOT_FOUND: Resource '{words[4]}' was not found")
    if held == REQUEST and held.read_text() == "WAITING_FOR_RESOURCES":
        sys.stdout.write(held.read_text())
        grant()
    elif flag(words, "format") == "value(acceleratorType)":
        sys.stdout.write((CLOUD / "kind").read_text())
    else:
        sys.stdout.write(held.read_text())
    return 0


def grant() -> None:
    for worker in WORKERS:
        host(worker).mkdir(parents=True)
    STATE.write_text("READY")
    if REQUEST.exists():
        REQUEST.write_text("ACTIVE")


def create(words: list[str]) -> int:
    held = REQUEST if words[2] == "queued-resources" else STATE
    if held.exists():
        return fail(f"ALREADY_EXISTS: Resource '{words[4]}' already exists")
    (CLOUD / "kind").write_text(flag(words, "accelerator-type"))
    if held == REQUEST:
        REQUEST.write_text("WAITING_FOR_RESOURCES")
    else:
        grant()
    return 0


def delete(words: list[str]) -> int:
    held = REQUEST if words[2] == "queued-resources" else STATE
    if not held.exists():
        return fail(f"NOT_FOUND: Resource '{words[4]}' was not found")
    for path in {held, STATE}:
        path.unlink(missing_ok=True)
    for worker in WORKERS:
        shutil.rmtree(host(worker), ignore_errors=True)
    return 0


def copy(words: list[str]) -> int:
    if "--recurse" not in words:
        for worker in workers(words):
            shutil.copy(words[4], host(worker) / words[5].partition(":")[2])
        return 0
    source = host("0") / words[words.index("--recurse") + 1].partition(":")[2]
    if not source.exists():
        return fail("scp: no such file or directory")
    shutil.copytree(source, Path(words[words.index("--recurse") + 2]) / source.name)
    return 0


def main(words: list[str]) -> int:
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(words) + "\n")
    verbs = {"create": create, "describe": describe, "delete": delete, "ssh": on_hosts, "scp": copy}
    return verbs[words[3]](words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
