"""What all commands do with errors: one line for the user, no traceback."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from prompteol_jax import processes
from prompteol_jax.cli.options import check
from prompteol_jax.cli.parse import parse, split_command
from prompteol_jax.errors import UserError

Options = TypeVar("Options")

# What a user can mend: a wrong input, or a machine that refuses. Anything else is a bug of ours and
# shows its traceback.
USER_ERRORS: Final = (UserError, OSError)


class Commands(Mapping[str, tuple[type, Callable[[Any], object]]]):
    """Commands by name: the options that each takes and what it does with them.

    Args:
        commands: `MODULE:CLASS` and `MODULE:FUNCTION` by name, imported when they are asked for.
    """

    def __init__(self, **commands: tuple[str, str]):
        self._commands = commands

    def __getitem__(self, name: str) -> tuple[type, Callable[[Any], object]]:
        options, function = map(_imported, self._commands[name])
        return options, function

    def __iter__(self) -> Iterator[str]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


def _imported(name: str) -> Any:
    module, _, member = name.partition(":")
    return getattr(importlib.import_module(module), member)


def run_one_of(
    program: str,
    description: str,
    commands: Mapping[str, tuple[type, Callable[[Any], object]]],
    argv: Sequence[str] | None,
) -> None:
    """Parse a command line that begins with a command's name, and run that command.

    Args:
        commands: by name, the options that each takes and what it does with them.
    """

    def run(argv: Sequence[str] | None) -> None:
        name, words = split_command(program, description, commands, argv)
        kind, function = commands[name]
        options = parse(f"{program} {name}", kind, words)
        check(options)
        function(options)

    run_command(program, run, argv)


def run_main(
    program: str, kind: type, run: Callable[[Any], object], argv: Sequence[str] | None
) -> None:
    """Parse a command line into options of a kind, and run the command with them."""

    def parsed(argv: Sequence[str] | None) -> None:
        options = parse(program, kind, argv)
        check(options)
        run(options)

    run_command(program, parsed, argv)


def _line(error: Exception) -> str | None:
    """Return the line for an error that a user can mend; None for any other."""
    if isinstance(error, USER_ERRORS):
        return str(error) or type(error).__name__
    reason = (str(error).splitlines() or [""])[0]
    if isinstance(error, MemoryError) or reason.startswith("RESOURCE_EXHAUSTED"):
        return (
            f"the memory is full ({reason or 'no more was given'}); compute less together "
            "(--batch-tokens, --batch, --chunks), or on more devices (--mesh)"
        )
    return None


def run_command(program: str, run: Callable[[Options], object], options: Options) -> None:
    """Run a command; an error of the user ends it with `PROGRAM: error: ...` and exit status 2.

    PROMPTEOL_TRACEBACK=1 in the environment lets such an error through, for a report of a bug.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a text can hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        processes.fail(f"{program}: interrupted", 130)
        raise SystemExit(130) from None
    except Exception as error:
        line = _line(error)
        if line is not None and os.environ.get("PROMPTEOL_TRACEBACK") != "1":
            line = f"{program}: error: {line}"
            sys.stderr.write(f"{line}\n")
            processes.fail(line, 2)
            raise SystemExit(2) from None
        # a bug of ours
        if processes.joined():
            traceback.print_exc()
            processes.fail(f"{program}: {type(error).__name__}: {error}", 1)
        raise
