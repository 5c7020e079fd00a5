"""The story of a launch: create, prepare, work, fetch, delete."""

from __future__ import annotations

import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prompteol_jax.errors import UserError
from tpu.launch.cloud import NOT_FOUND, READY, UNKNOWN, Cloud, say
from tpu.launch.gcloud import FOLDER, Machine
from tpu.launch.job import hosted, writes_to_bucket
from tpu.launch.signals import ended_by_signals, ignore_signals
from tpu.launch.slices import Slice, parse_slice
from train.config import STOPPED

if TYPE_CHECKING:
    from tpu.launch.command import LaunchOptions

ROOT: Final = Path(__file__).resolve().parents[2]
HOST: Final = f"{FOLDER}/tpu/launch/host.sh"
TAKEN: Final = ("PREEMPTED", "TERMINATED", "STOPPED")  # states of a VM that will not come back
LOST: Final = (*TAKEN, NOT_FOUND)
REFUSED: Final = ("FAILED", "SUSPENDED")  # states of a request that will not be granted
LEAVING: Final = ("DELETING", "STOPPING", "SUSPENDING")  # on the way to one of those
BROKEN: Final = 255  # status of ssh where the connection broke; host.sh never ends with it
BUSY: Final = 3  # status of `host.sh start` where another job runs
TRIES: Final = 10  # of what must not fail because the network does: delete, fetch
LOOKS: Final = 4  # at a slice whose job was asked to stop: a preemption shows a while later
DEFAULT_FETCH: Final = ("runs",)
_ARCHIVE: Final = "prompteol-jax.tar.gz"


class SliceLost(Exception):
    """The slice was taken away, or went away, while it was used."""


class NotOurs(UserError):
    """The slice of this name is used by another job, or is another slice: it is not deleted."""


class Launch:
    """One launch: its options, the slice, and the command that every host runs."""

    def __init__(self, options: LaunchOptions, command: Sequence[str]):
        self.options, self.command = options, list(command)
        self.slice: Slice = parse_slice(options.slice)
        self.machine = Machine(
            name=options.name, zone=options.zone, project=options.project, queued=options.queued
        )
        self.cloud = Cloud(dry_run=options.dry_run)
        self._held = False  # whether there may be a slice that this launch answers for
        self._reused = False  # whether another launch may use that slice, too

    def run(self) -> int:
        """Run the story and return the status of the command on host 0."""
        with ended_by_signals():
            try:
                status = self._run_to_the_end()
            except NotOurs:
                raise
            except BaseException:
                self._leave()
                raise
            if not self._leave():
                raise UserError(f"the slice {self.options.name} could not be deleted, see above")
            return status

    def _run_to_the_end(self) -> int:
        spot, restarts = self.options.spot, self.options.restarts
        for attempt in range(restarts + 1):
            last = not spot or attempt == restarts
            try:
                self.create()
                self.prepare()
                status = self.work()
                if status != STOPPED or last:
                    break
                say(f"the job was asked to stop: it saved and ended with status {STOPPED}")
                self._await_loss()
                say("starting it again")
            except SliceLost as error:
                if last:
                    raise UserError(f"the slice {self.options.name} is gone: {error}") from error
                say(f"the slice was taken away ({error}); asking for another")
                self._delete()
                self._pause()
        for path in () if writes_to_bucket(self.command) else self.options.fetch:
            self.fetch(path, succeeded=status == 0)  # a failed run's files tell why it failed
        return status

    def create(self) -> None:
        """Take up the slice, or the request, of this name, or create it; wait until it is ready."""
        state, request = self._found()
        while state in LEAVING or request in LEAVING:
            say(f"{self.options.name}: {_known(state, request)}; waiting for its end")
            self._pause()
            state, request = self._found()
        if state in TAKEN or request in REFUSED:
            say(f"deleting what is left of {self.options.name}: {_known(state, request)}")
            self._held = True
            if not self._delete():
                raise UserError(f"{self.options.name} is {state} and could not be deleted")
            state = request = NOT_FOUND
        there = _known(state, request)
        self._reused = bool(there) and not self._held
        self._held = True
        if there:
            say(f"reusing {self.options.name}: {there}")
        else:
            self._create()
        self._await_ready()
        if self._reused:
            self._check_size()

    def _found(self) -> tuple[str, str]:
        """Return the states of the VM and of its request."""
        state = self.cloud.state(self.machine.state(), dry=NOT_FOUND)
        if not self.machine.queued or state == READY:
            return state, NOT_FOUND
        return state, self.cloud.state(self.machine.request_state(), dry=NOT_FOUND)

    def _create(self) -> None:
        """Ask for the slice; one of this name that is there after all is taken up."""
        extra = shlex.split(self.options.create_flags)
        words = self.machine.create(self.slice, spot=self.options.spot, extra=extra)
        status, error = self.cloud.call_heard(words)
        if status and "ALREADY_EXISTS" in error:
            say(f"there is a {self.options.name} already; waiting for it")
            self._reused = True
        else:
            self._must(words, status)

    def _await_ready(self) -> None:
        while (state := self.cloud.state(self.machine.state(), dry=READY)) != READY:
            request = NOT_FOUND
            if self.machine.queued:
                request = self.cloud.state(self.machine.request_state(), dry=NOT_FOUND)
            if request in REFUSED:
                raise SliceLost(f"its request is {request}")
            if state in TAKEN or (state == NOT_FOUND and request == NOT_FOUND):
                raise SliceLost(state)
            say(f"{self.options.name}: {_known(state, request) or state}; waiting")
            self._pause()

    def _check_size(self) -> None:
        """Refuse a slice that was there already and is not the one that is asked for."""
        kind = "" if self.options.dry_run else self.cloud.answer(self.machine.accelerator()) or ""
        if re.fullmatch(r"v\d\w*-\d+", kind) and kind != self.slice.accelerator_type:
            raise NotOurs(
                f"the slice {self.options.name} is a {kind}, not a {self.slice.accelerator_type}: "
                "delete it, or give this launch another --name"
            )

    def prepare(self) -> None:
        """Copy the last commit to every host and set each up; uncommitted changes stay here."""
        with tempfile.TemporaryDirectory() as made:
            # A dry run prints a folder that is there when its lines are run.
            archive = Path(tempfile.gettempdir() if self.options.dry_run else made) / _ARCHIVE
            self._call(["git", "-C", str(ROOT), "archive", "--output", str(archive), "HEAD"])
            self._call(self.machine.send(str(archive), _ARCHIVE))
        unpack = f"mkdir -p {FOLDER} && tar -xzf {_ARCHIVE} -C {FOLDER}"
        self._call(self.machine.run(f"{unpack} && bash {HOST} setup"))

    def work(self) -> int:
        """Start the command on every host, stream the log of host 0 and return its status."""
        command = hosted(self.command, again=self.options.spot)
        start = self.machine.run(f"bash {HOST} start {shlex.join(command)}")
        status = self.cloud.call(start)
        if status == BUSY and self._reused:
            raise NotOurs(
                f"another job runs on the slice {self.options.name}, which is left alone: wait for "
                "its end, or give this launch another --name"
            )
        self._must(start, status)
        self._reused = False
        follow = self.machine.run(f"bash {HOST} follow", worker="0")
        while status := self.cloud.call(follow):
            self._await_settled()
            if (ended := self._job_status(status)) is not None:
                return ended
            say("the connection to host 0 broke; following again, from the first line")
            self._pause()
        return status

    def _await_settled(self) -> None:
        """Return when the slice is ready. A failed question says nothing: ask again.

        Raises: SliceLost.
        """
        while (state := self.cloud.state(self.machine.state(), dry=READY)) != READY:
            if state in LOST:
                raise SliceLost(state)
            say(f"{self.options.name} is {state}; looking again")
            self._pause()

    def _await_loss(self) -> None:
        """Wait as long as a preemption takes to show.

        Raises: SliceLost as soon as it shows.
        """
        for _ in range(LOOKS):
            self._pause()
            state = self.cloud.state(self.machine.state(), dry=READY)
            if state in LOST:
                raise SliceLost(state)

    def _job_status(self, followed: int) -> int | None:
        """Ask host 0 for the status of its job; None while the job runs, or nobody can tell.

        Args:
            followed: Status of the connection: the job's, or a failure of gcloud itself.
        """
        asked = self.machine.run(f"bash {HOST} status", worker="0")
        for _ in range(LOOKS):
            answer = (self.cloud.answer(asked) or "").split()[-1:]
            if answer:
                return int(answer[0]) if answer[0].isdecimal() else None
            if followed == BROKEN:
                return None
            self._pause()
        return followed

    def fetch(self, path: str, *, succeeded: bool) -> None:
        """Copy a file or folder of host 0 here.

        Raises: UserError where that fails, after a command that succeeded.
        """
        words = self.machine.fetch(f"{FOLDER}/{path}", str(self.options.fetch_to))
        looks = self.machine.run(f"test -e {shlex.quote(f'{FOLDER}/{path}')}", worker="0")
        for _ in range(TRIES):
            if not (status := self.cloud.call(words)):
                return
            if self.cloud.call(looks) == 1:
                say(f"there is no {path} on host 0: nothing to fetch")
                if succeeded and self.options.fetch != DEFAULT_FETCH:
                    raise UserError(f"the command wrote no {path}, which --fetch names")
                return
            self._pause()
        if succeeded:
            raise UserError(f"status {status} from: {shlex.join(words)}")

    def _leave(self) -> bool:
        """Delete the slice if asked to, or say that it stays; return False where that failed."""
        if not self._held:
            return True
        if self.options.delete:
            ignore_signals()
            say(f"deleting {self.options.name}; wait for it")
            return self._delete()
        if not self.options.dry_run:
            say(f"{self.options.name} is kept; delete it with: {shlex.join(self.machine.delete())}")
        return True

    def _delete(self) -> bool:
        """Delete the slice and its request; say how to do it by hand where that fails."""
        for _ in range(TRIES):
            if not self.cloud.call(self.machine.delete(), survives=True):
                return True
            state = self.cloud.state(self.machine.state(), dry=NOT_FOUND)
            request = NOT_FOUND
            if self.machine.queued:
                request = self.cloud.state(self.machine.request_state(), dry=NOT_FOUND)
            if state == request == NOT_FOUND:
                return True
            if self.machine.queued and request == NOT_FOUND:
                self.machine = self.machine.unqueued()  # it was created without a queue
            else:
                self._pause()
        by_hand = shlex.join(self.machine.delete())
        say(f"{self.options.name} could not be deleted and goes on costing; run: {by_hand}")
        return False

    def _call(self, words: Sequence[str]) -> None:
        self._must(words, self.cloud.call(words))

    def _must(self, words: Sequence[str], status: int) -> None:
        """Raise an error for a command that failed.

        Raises: SliceLost where the slice was taken away, else UserError.
        """
        if status:
            if self.cloud.state(self.machine.state(), dry=READY) in TAKEN:
                raise SliceLost(f"{shlex.join(words[:5])} failed")
            raise UserError(f"status {status} from: {shlex.join(words)}")

    def _pause(self) -> None:
        if not self.options.dry_run:
            time.sleep(self.options.poll_s)


def _known(state: str, request: str) -> str:
    """Return what is known of a VM and its request, for a line; empty where neither is there."""
    parts = [] if state in (NOT_FOUND, UNKNOWN) else [f"the slice is {state}"]
    parts += [] if request in (NOT_FOUND, UNKNOWN) else [f"its request is {request}"]
    return ", ".join(parts)
