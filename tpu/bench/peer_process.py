"""A peer in a second process, with requests and replies as lines: see `tpu.bench.peer`."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompteol_jax.errors import UserError


class Peer:
    """A running peer; use it in a `with` statement.

    Attributes:
        about: Device of the peer and versions of its libraries.
    Raises: UserError where it does not start.
    """

    def __init__(self, kind: str, python: Path, folder: Path, *flags: str):
        self.kind = kind
        command = [str(python), "-m", "tpu.bench.peer", kind, str(folder), *flags]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # they are pipes
        self._stdin, self._stdout = stdin, stdout
        try:
            self.about = self._reply()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its error was raised
            self._stdin.close()
        self._stdout.close()
        self._process.wait()

    def ask(self, prompts: Sequence[Any], **more: Any) -> dict[str, Any]:
        """Let the peer work on prompts and return its reply, which holds `seconds`."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no reply
            self._stdin.write(json.dumps({"prompts": prompts, **more}) + "\n")
            self._stdin.flush()
        return self._reply()

    def compared(self, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
        """Return what a result says of a peer: its seconds and their median ratio to ours."""
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        return {"seconds": theirs, "ratio": statistics.median(ratios), **self.about}

    def _reply(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line:
            raise UserError(
                f"the peer {self.kind} ended with status {self._process.wait()}, see above; what "
                "--peer-python names needs torch, transformers and the peer's own package"
            )
        return json.loads(line)
