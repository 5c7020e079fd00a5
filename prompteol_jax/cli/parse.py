"""From the words of a command line to options; a mistake is one error that names it.

tyro parses. Its hook for errors is private, so this is the one module that uses it, and
pyproject.toml bounds tyro's version.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from prompteol_jax.cli.options import spelled
from prompteol_jax.errors import UserError, listed, nearest

Options = TypeVar("Options")

_KINDS: Final = {"INT": "a whole number", "FLOAT": "a number"}
_HELP: Final = ("-h", "--help", "--tyro-print-completion", "--tyro-write-completion")


def parse(
    program: str, kind: type[Options], argv: Sequence[str] | None, description: str | None = None
) -> Options:
    """Return the options of a kind that a command line gives; `--help` ends the process.

    Args:
        argv: the words after the program's name; those of this process by default.
        description: first sentence of the help; the docstring of `kind` by default.
    Raises: UserError that names every word that does not fit, with the nearest name that would.
    """
    import tyro
    from tyro import _errors

    words = list(sys.argv[1:] if argv is None else argv)

    def refuse(event: Any) -> None:
        raise UserError("; ".join(_problems(event, words, kind, program)))

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    with _errors.on_parse_error(refuse):
        options = tyro.cli(kind, args=words, prog=program, description=description, config=config)
    return _at_home(options)


def _at_home(options: Any) -> Any:
    """Expand `~` in paths, which a shell leaves in `--flag=~/file`."""
    fields = dataclasses.fields(options)
    return dataclasses.replace(
        options, **{field.name: _expanded(getattr(options, field.name)) for field in fields}
    )


def _expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise UserError(f"{value}: there is no user of this name") from None


def split_command(
    program: str,
    description: str,
    commands: Mapping[str, tuple[type, Any]],
    argv: Sequence[str] | None,
) -> tuple[str, list[str]]:
    """Return a command's name, the first word of a command line, and the words after it.

    Args:
        commands: options of each command, and what it does; `--help` imports all of them.
    Raises: UserError where the first word is no command.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in commands:
        return words[0], words[1:]
    if words and words[0] in _HELP:
        import tyro

        tyro.extras.subcommand_cli_from_dict(
            {name: kind for name, (kind, _) in commands.items()},
            prog=program,
            description=description,
            args=words,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
    there = f"there are {', '.join(commands)}"
    if not words:
        raise UserError(f"no command was given; {there}")
    if words[0].startswith("-"):
        raise UserError(f"{words[0]} is before the command, which comes first; {there}")
    raise UserError(f"no command {words[0]!r}{nearest(words[0], commands)}; {there}")


def _problems(event: Any, words: Sequence[str], kind: type, program: str) -> list[str]:
    """Say what an event of tyro's means; it has the fields that its class documents."""
    from tyro import _errors

    match event:
        case _errors.UnrecognizedArgs():
            return _unknown(event.tokens, words, kind, program)
        case _errors.MissingArgs():
            missing = [_spelled(given.arg) for given in event.missing_arguments]
            unknown = _unknown(event.unrecognized_tokens, words, kind, program)
            return [*unknown, f"{listed(missing)} must be given; see {program} --help"]
        case _errors.InvalidChoice():
            return [_not_a_choice(event.argument, event.value)]
        case _errors.BadValue():
            flags = [word for word in words if word.startswith("--")]
            return [*_unknown(flags, words, kind, program), _without_value(event.argument)]
        case _errors.InstantiationFailure() if event.argument is not None:
            name = _spelled(event.argument)
            given = _given(words, name)
            if _choices(event.argument):  # None, which tyro takes for a choice
                return [_not_a_choice(event.argument, given)]
            return [f"{name} {given!r} must be {_wanted(event.argument)}"]
    return [str(getattr(event, "message", event))]


def _unknown(tokens: Sequence[str], words: Sequence[str], kind: type, program: str) -> list[str]:
    """Say of each word that no option takes what it is, with the nearest flag."""
    known = [name for field in dataclasses.fields(kind) for name in _names(field)]
    problems, after_unknown = [], False
    for token in tokens:
        name = token.partition("=")[0].replace("_", "-")
        if name in known:
            continue
        if token.startswith("-"):
            found = nearest(name, known) or f"; {program} --help lists the flags"
            problems.append(f"unknown flag {token.partition('=')[0]}{found}")
        elif not after_unknown:
            flag = _flag_before(token, words, known)
            takes = f"{flag} takes no value" if flag else "no flag or text was expected there"
            problems.append(f"{token!r} does not fit: {takes}")
        after_unknown = token.startswith("-") and "=" not in token
    return problems


def _names(field: dataclasses.Field) -> tuple[str, ...]:
    name = spelled(field.name)
    return (name, f"--no-{name[2:]}") if isinstance(field.default, bool) else (name,)


def _flag_before(token: str, words: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the flag that a word was meant for: `--flag word` or `--flag=word`."""
    for before, word in zip(["", *words], words, strict=False):
        name, _, value = word.replace("_", "-").partition("=")
        if name in known and value == token:
            return name
        if word == token and before.replace("_", "-") in known:
            return before
    return None


def _given(words: Sequence[str], name: str) -> str:
    """Return the value that was given to a flag."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == name:
            return value if equals else after
    return ""


def _not_a_choice(argument: Any, given: str) -> str:
    known = _choices(argument)
    found = nearest(given, known)
    return f"{_spelled(argument)} has no choice {given!r}{found}; there are {', '.join(known)}"


def _choices(argument: Any) -> list[str]:
    """Return the choices of an argument in their order; those of tyro's event have none."""
    listed_ones = re.search(r"\{([^{}]+)\}", str(argument.lowered.metavar))
    return listed_ones[1].split(",") if listed_ones else []


def _without_value(argument: Any) -> str:
    if argument.is_positional():
        return f"{argument.lowered.metavar} must be given"
    return f"{_spelled(argument)} needs a value, {_wanted(argument)}"


def _spelled(argument: Any) -> str:
    """Return a flag as it is written, or the name of a positional argument."""
    if argument.is_positional():
        return str(argument.lowered.metavar)
    return argument.lowered.name_or_flags[0]


def _wanted(argument: Any) -> str:
    """Return what kind of value an argument takes."""
    kind = str(argument.lowered.metavar)
    return _KINDS.get(kind, kind)
