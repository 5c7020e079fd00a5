"""Calls of gcloud: those that must succeed, and questions whose answer may be missing."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prompteol_jax.errors import NotFound

READY: Final = "READY"
NOT_FOUND: Final = "NOT_FOUND"  # gcloud says that there is no such resource
UNKNOWN: Final = "UNKNOWN"  # gcloud failed otherwise: this says nothing about the resource
_GRACE_S: Final = 10.0  # for a child to end after SIGTERM


class Cloud:
    """Commands of this machine, run with their output on ours, or printed in a dry run."""

    def __init__(self, *, dry_run: bool):
        self.dry_run = dry_run

    def call(self, words: Sequence[str], *, survives: bool = False) -> int:
        """Run a command and return its status.

        Args:
            survives: Whether the command goes on where this process and its terminal go away.
        """
        if self._printed(words):
            return 0
        return _wait(_started(words, start_new_session=survives))

    def call_heard(self, words: Sequence[str]) -> tuple[int, str]:
        """Run a command; return its status and its standard error, which is shown as well."""
        if self._printed(words):
            return 0, ""
        process = _started(words, stderr=subprocess.PIPE, text=True, errors="replace")
        assert process.stderr is not None  # it is a pipe
        lines = []
        with _ended_with_us(process), process.stderr as stream:
            for line in stream:
                lines.append(line)
                sys.stderr.write(line)
        return _wait(process), "".join(lines)

    def state(self, words: Sequence[str], *, dry: str) -> str:
        """Return the state that a command prints, NOT_FOUND, or UNKNOWN where the command failed.

        Args:
            dry: Answer in a dry run.
        """
        if self._printed(words):
            return dry
        status, answer, error = self._heard(words)
        if status == 0:
            return answer or UNKNOWN
        if NOT_FOUND in error:
            return NOT_FOUND
        why = (error.splitlines() or [f"status {status}"])[-1]
        say(f"no answer from `{shlex.join(words[:5])}`: {why}")
        return UNKNOWN

    def answer(self, words: Sequence[str]) -> str | None:
        """Return what a command prints; None where it fails."""
        status, answer, _ = self._heard(words)
        return answer if status == 0 else None

    def _printed(self, words: Sequence[str]) -> bool:
        if self.dry_run:
            sys.stdout.write(shlex.join(words) + "\n")
        return self.dry_run

    def _heard(self, words: Sequence[str]) -> tuple[int, str, str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = _started(words, **pipes, errors="replace")
        with _ended_with_us(process):
            answer, error = process.communicate()
        return process.returncode, answer.strip(), error.strip()


def say(line: str) -> None:
    """Write a line to standard error; where the terminal is gone, write nothing from then on."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)


def _started(words: Sequence[str], **how: Any) -> subprocess.Popen:
    """Start a command.

    Raises: NotFound where the program is not installed.
    """
    try:
        return subprocess.Popen(list(words), **how)
    except FileNotFoundError as error:
        program = {"gcloud": "the Google Cloud CLI and run `gcloud auth login`"}
        wanted = program.get(words[0], words[0])
        raise NotFound(f"no command {words[0]}; install {wanted}") from error


def _wait(process: subprocess.Popen) -> int:
    with _ended_with_us(process):
        return process.wait()


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen) -> Iterator[None]:
    """End a child where a signal ends this process: an ssh that goes on would hold the terminal."""
    try:
        yield
    except BaseException:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
