"""Start a command on a slice of TPUs.

    python -m tpu.launch v5e-8 --zone us-west4-a -- python -m train.contrastive --mesh 8x1

The story of a launch, in order: create or reuse the slice, copy the checkout, set up every host,
start the command on all of them, stream the log of host 0, fetch the results, delete the slice if
asked to. A spot slice that is taken away is asked for again, for the same command: with --resume a
training begins where there is no run yet, and goes on where there is one. SIGTERM, SIGHUP and
Ctrl-C end a launch as an error does: with --delete the slice is deleted.
`--dry-run` prints the commands instead.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import tyro

from prompteol_jax.cli.commands import run_command
from prompteol_jax.cli.options import check, flag
from prompteol_jax.cli.parse import parse
from prompteol_jax.errors import UserError
from tpu.launch.job import is_training, writes_to_bucket
from tpu.launch.launch import DEFAULT_FETCH, Launch
from tpu.launch.slices import parse_slice

PROGRAM: Final = "python -m tpu.launch"


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
    """The name of the slice; a slice or a request of this name that exists is reused."""
    queued: bool = False
    """Ask through a queued resource and wait for it, instead of failing where none is free."""
    spot: bool = False
    """Take a spot slice; when it is taken away, or a training saved and ended because it will be,
    ask again. A training gets --resume."""
    restarts: int = flag(20, at_least=0)
    """How often a spot slice is asked for again."""
    fetch: tuple[str, ...] = DEFAULT_FETCH
    """Files and folders of the checkout on host 0 to copy here at the end; none where the command
    writes to a bucket. Without this flag: runs, where the command made it."""
    fetch_to: Path = Path()
    """Folder to copy them to."""
    delete: bool = False
    """Delete the slice at the end, also after an error, Ctrl-C, SIGTERM or SIGHUP."""
    create_flags: str = ""
    """More flags for the creation, in one string: "--network=mine --reserved"."""
    poll_s: float = flag(30.0, above=0)
    """Seconds between looks at a slice that is not ready."""
    dry_run: bool = False
    """Print the commands and run none."""

    def problems(self) -> list[str]:
        """List what is wrong with the names of the slice, the folder and the flags for gcloud."""
        found = []
        try:
            parse_slice(self.slice)
        except UserError as error:
            found.append(str(error))
        if not self.fetch_to.is_dir():
            found.append(f"--fetch-to {self.fetch_to} is no folder: make it first")
        try:
            shlex.split(self.create_flags)
        except ValueError as error:
            found.append(f"--create-flags {self.create_flags!r}: {error}")
        return found


def check_launch(options: LaunchOptions, command: Sequence[str]) -> None:
    """Refuse a launch that cannot work.

    Raises: UserError that lists every problem.
    """
    wrong = []
    try:
        check(options)
    except UserError as error:
        wrong.append(str(error))
    if not command:
        wrong.append("no command: put it behind --, as in `v5e-8 --zone Z -- python -m eval.sts`")
    if options.spot and is_training(command) and not writes_to_bucket(command):
        wrong.append(
            "--spot: what a spot slice holds is lost with it; give the training --output gs://..."
        )
    if wrong:
        raise UserError("; ".join(wrong))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    statuses: list[int] = []

    def parsed(words: Sequence[str]) -> None:
        statuses.append(run(parse(PROGRAM, LaunchOptions, words[:cut]), words[cut + 1 :]))

    run_command(PROGRAM, parsed, words)
    if statuses[0]:
        raise SystemExit(statuses[0])


def run(options: LaunchOptions, command: Sequence[str]) -> int:
    """Launch a command and return its status on host 0."""
    check_launch(options, command)
    return Launch(options, command).run()
