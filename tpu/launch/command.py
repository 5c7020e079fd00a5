"""Starts a command on a slice of TPUs.

    python -m tpu.launch v5e-8 --zone us-west4-a -- python -m train.contrastive --mesh 8x1

The story of a launch, in order: create or reuse the slice, copy the checkout, set up every host,
start the command on all of them, stream the log of host 0, fetch the results, delete the slice if
asked to. A spot slice that is taken away is asked for again, for the same command: with --resume a
training begins where there is no run yet, and goes on where there is one.
`--dry-run` prints the commands instead.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import tyro

from prompteol_jax.cli.commands import run_command
from prompteol_jax.errors import NotFound, UserError
from tpu.launch.gcloud import FOLDER, Machine
from tpu.launch.slices import Slice, parse_slice

PROGRAM: Final = "python -m tpu.launch"
ROOT: Final = Path(__file__).resolve().parents[2]
LOST: Final = ("PREEMPTED", "TERMINATED", "STOPPED", "")  # states of a VM that will not come back
REFUSED: Final = ("FAILED", "SUSPENDED")  # states of a request that will not be granted
HOST: Final = f"{FOLDER}/tpu/launch/host.sh"
BROKEN: Final = 255  # status of ssh where the connection broke; host.sh never ends with it
_ARCHIVE: Final = "prompteol-jax.tar.gz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Starts a command on every host of a slice of TPUs; put the command behind `--`."""

    slice: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SLICE")]
    """The slice: v5e-8, v6e-16, v4-8, v5p-8 ..., sizes as Google Cloud counts them."""
    zone: str
    """The zone to create it in, such as us-west4-a."""
    project: str | None = None
    """The project; gcloud's own setting by default."""
    name: str = "prompteol"
    """The name of the slice; one that exists is reused."""
    queued: bool = False
    """Ask through a queued resource and wait for it, instead of failing where none is free."""
    spot: bool = False
    """Take a spot slice; when it is taken away, ask again. A training gets --resume."""
    restarts: int = 20
    """How often a spot slice is asked for again."""
    fetch: tuple[str, ...] = ("runs",)
    """Files and folders of the checkout on host 0 to copy here at the end; none where the command
    writes to a bucket."""
    fetch_to: Path = Path()
    """Folder to copy them to."""
    delete: bool = False
    """Delete the slice at the end, also after an error."""
    create_flags: str = ""
    """More flags for the creation, in one string: "--network=mine --reserved"."""
    poll_s: float = 30.0
    """Seconds between looks at a slice that is not ready."""
    dry_run: bool = False
    """Print the commands and run none."""


class SliceLost(Exception):
    """The slice was taken away, or went away, while it was used."""


class Launch:
    """One launch: its options, the slice, and the command that every host runs."""

    def __init__(self, options: LaunchOptions, command: Sequence[str]):
        self.options, self.command = options, list(command)
        self.slice: Slice = parse_slice(options.slice)
        self.machine = Machine(
            name=options.name, zone=options.zone, project=options.project, queued=options.queued
        )

    def run(self) -> int:
        """Run the story; the status of the command on host 0."""
        try:
            return self._run_to_the_end()
        finally:
            if self.options.delete:
                self._call(self.machine.delete())

    def _run_to_the_end(self) -> int:
        for attempt in range(self.options.restarts + 1):
            try:
                self.create()
                self.prepare()
                status = self.work()
                break
            except SliceLost as error:
                if not self.options.spot or attempt == self.options.restarts:
                    raise UserError(f"the slice {self.options.name} is gone: {error}") from error
                _say(f"the slice was taken away ({error}); asking for another")
                self._call(self.machine.delete(), check=False)
        there = () if _in_bucket(self.command) else self.options.fetch
        for path in there:  # what a failed run has written tells why, and may be resumed
            fetch = self.machine.fetch(f"{FOLDER}/{path}", str(self.options.fetch_to))
            self._call(fetch, check=status == 0)
        return status

    def create(self) -> None:
        """Create the slice, or reuse the one of this name, and wait until it is ready."""
        state = self._answer(self.machine.state(), dry="")
        if state in LOST:
            if state:
                self._call(self.machine.delete())
            extra = shlex.split(self.options.create_flags)
            self._call(self.machine.create(self.slice, spot=self.options.spot, extra=extra))
        else:
            _say(f"reusing {self.options.name}, which is {state}")
        while (state := self._answer(self.machine.state(), dry="READY")) != "READY":
            if self.machine.queued:
                request = self._answer(self.machine.request_state(), dry="ACTIVE")
                if request in REFUSED:
                    raise SliceLost(f"its request is {request}")
                state = state or request
            elif state in LOST:
                raise SliceLost(state or "no such slice")
            _say(f"{self.options.name} is {state or 'unknown'}; waiting")
            time.sleep(self.options.poll_s)

    def prepare(self) -> None:
        """Copy the last commit to every host, and set each up; changes behind it stay here."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / _ARCHIVE
            self._call(["git", "-C", str(ROOT), "archive", "--output", str(archive), "HEAD"])
            self._call(self.machine.send(str(archive), _ARCHIVE))
        unpack = f"mkdir -p {FOLDER} && tar -xzf {_ARCHIVE} -C {FOLDER}"
        self._call(self.machine.run(f"{unpack} && bash {HOST} setup"))

    def work(self) -> int:
        """Start the command on every host and stream the log of host 0; its status."""
        command = hosted(self.command, again=self.options.spot)
        self._call(self.machine.run(f"bash {HOST} start {shlex.join(command)}"))
        follow = self.machine.run(f"bash {HOST} follow", worker="0")
        while status := self._call(follow, check=False):
            state = self._answer(self.machine.state(), dry="READY")
            if state != "READY":
                raise SliceLost(state or "no such slice")
            if status != BROKEN:
                break
            _say("the connection to host 0 broke; following again, from the first line")
            time.sleep(self.options.poll_s)
        return status

    def _call(self, words: Sequence[str], *, check: bool = True) -> int:
        """Run a command with its output on ours; it must succeed unless `check` says otherwise."""
        if self.options.dry_run:
            sys.stdout.write(shlex.join(words) + "\n")
            return 0
        status = _started(words).wait()
        if status and check:
            if self._answer(self.machine.state(), dry="READY") in LOST[:3]:
                raise SliceLost(f"{shlex.join(words[:5])} failed")
            raise UserError(f"status {status} from: {shlex.join(words)}")
        return status

    def _answer(self, words: Sequence[str], *, dry: str) -> str:
        """What a command prints; nothing where it fails."""
        if self.options.dry_run:
            sys.stdout.write(shlex.join(words) + "\n")
            return dry
        process = _started(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        answer, _ = process.communicate()
        return answer.strip() if process.returncode == 0 else ""


def hosted(command: Sequence[str], *, again: bool) -> list[str]:
    """The command as every host runs it: processes find each other.

    Args:
        again: it may be started again, on another slice.
    """
    words = list(command)
    trains = "train.contrastive" in words
    if (trains or words[:2] == ["prompteol", "encode"]) and "--coordinator" not in words:
        words += ["--coordinator", "auto"]
    if trains and again and "--resume" not in words:
        words += ["--resume"]
    return words


def check(options: LaunchOptions, command: Sequence[str]) -> None:
    """Refuse, all at once, what cannot work.

    Raises: UserError.
    """
    wrong = []
    try:
        parse_slice(options.slice)
    except ValueError as error:
        wrong.append(str(error))
    if not command:
        wrong.append("no command: put it behind --, as in `v5e-8 --zone Z -- python -m eval.sts`")
    trains = "train.contrastive" in command
    if options.spot and trains and not _in_bucket(command):
        wrong.append(
            "--spot: what a spot slice holds is lost with it; give the training --output gs://..."
        )
    if options.restarts < 0 or options.poll_s <= 0:
        wrong.append("--restarts must be 0 or more, --poll-s above 0")
    if wrong:
        raise UserError("; ".join(wrong))


def _in_bucket(command: Sequence[str]) -> bool:
    """Say whether a command writes to a bucket."""
    output = command[command.index("--output") + 1 :][:1] if "--output" in command else []
    return bool(output) and output[0].startswith("gs://")


def _started(words: Sequence[str], **pipes: object) -> subprocess.Popen:
    try:
        return subprocess.Popen(list(words), **pipes)
    except FileNotFoundError as error:
        raise NotFound(
            f"no command {words[0]}; install the Google Cloud CLI and run `gcloud auth login`"
        ) from error


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = tyro.cli(
        LaunchOptions, args=words[:cut], prog=PROGRAM, config=(tyro.conf.FlagCreatePairsOff,)
    )
    statuses: list[int] = []
    run_command(PROGRAM, lambda o: statuses.append(run(o, words[cut + 1 :])), options)
    if statuses[0]:
        raise SystemExit(statuses[0])


def run(options: LaunchOptions, command: Sequence[str]) -> int:
    """Launch, and return the status of the command on host 0."""
    check(options, command)
    return Launch(options, command).run()
