"""What all commands do with errors: one line for the user, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from prompteol_jax.errors import UserError

Options = TypeVar("Options")

# What a user can mend: a wrong input, or a machine that refuses. Anything else is a bug of ours and
# shows its traceback.
USER_ERRORS: Final = (UserError, OSError)


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
    import tyro

    def run(argv: Sequence[str] | None) -> None:
        options = tyro.extras.subcommand_cli_from_dict(
            {name: kind for name, (kind, _) in commands.items()},
            prog=program,
            description=description,
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        next(run for kind, run in commands.values() if type(options) is kind)(options)

    run_command(program, run, argv)


def run_command(program: str, run: Callable[[Options], object], options: Options) -> None:
    """Run a command; an error of the user ends it with `PROGRAM: error: ...` and exit status 2.

    PROMPTEOL_TRACEBACK=1 in the environment lets such an error through, for a report of a bug.
    """
    try:
        run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted\n")
        raise SystemExit(130) from None
    except USER_ERRORS as error:
        if os.environ.get("PROMPTEOL_TRACEBACK") == "1":
            raise
        sys.stderr.write(f"{program}: error: {str(error) or type(error).__name__}\n")
        raise SystemExit(2) from None
