"""The command of a launch: its flags, as `--flag value` or `--flag=value`."""

from __future__ import annotations

from collections.abc import Sequence


def flag_value(command: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag in a command, of several the last; None where it has none."""
    found = None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def is_training(command: Sequence[str]) -> bool:
    """Say whether a command is `python -m train.contrastive`."""
    return "train.contrastive" in command


def writes_to_bucket(command: Sequence[str]) -> bool:
    """Say whether the --output of a command is a bucket."""
    return (flag_value(command, "--output") or "").startswith("gs://")


def hosted(command: Sequence[str], *, again: bool) -> list[str]:
    """Return the command as every host runs it: its processes find each other.

    Args:
        again: Whether the command may be started again, perhaps on another slice.
    """
    words = list(command)
    joins = is_training(words) or words[:2] == ["prompteol", "encode"]
    if joins and flag_value(words, "--coordinator") is None:
        words += ["--coordinator", "auto"]
    if is_training(words) and again and flag_value(words, "--resume") is None:
        words += ["--resume"]
    return words
