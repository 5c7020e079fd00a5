"""SentEval's folder and the lines of its files; all problems of the data come in one error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.storage import paths as places

SHOWN_PROBLEMS: Final = 20


def downstream(folder: str | Path, inside: Sequence[str]) -> Path:
    """Returns SentEval's `downstream` folder: the one given, or the one within it.

    Raises:
        NotFound: no such folder, or none of the folders expected inside it.
    """
    folder = places.local_copy(folder)
    if not folder.is_dir():
        raise NotFound(f"no folder {folder}; give SentEval's `downstream` folder")
    for root in (folder, folder / "downstream"):
        if any((root / name).is_dir() for name in inside):
            return root
    *first, last = [f"{name}/" for name in inside]
    neither = f"neither {', '.join(first)} nor {last}" if first else f"no {last}"
    raise NotFound(
        f"{folder} holds {neither}, nor downstream/ with {'them' if first else 'it'}; give "
        "SentEval's `downstream` folder as its data/downstream/get_transfer_data.bash makes it"
    )


def check(root: Path, paths: Sequence[Path]) -> None:
    """Checks that all files are there.

    Raises:
        NotFound: missing files, all in one error.
    """
    missing = [str(path.relative_to(root)) for path in paths if not path.is_file()]
    if missing:
        raise NotFound(
            f"{root} lacks {len(missing)} of the {len(paths)} files asked for; add them or name "
            "fewer tasks:\n  " + _shortened(missing)
        )


def refuse(root: Path, problems: Sequence[str]) -> None:
    """Raises a ValueError with all problems, where there are any."""
    if problems:
        raise UserError(f"{len(problems)} problems in {root}:\n  " + _shortened(problems))


def lines(file: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """Yields numbered lines, ended by line feeds only, since sentences may hold other breaks."""
    rows = file.read_bytes().split(b"\n")
    if not rows[-1]:
        rows.pop()
    for number, line in enumerate(rows, start=1):
        try:
            yield number, line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            problems.append(f"{file}:{number}: not UTF-8 ({error.reason})")
            yield number, line.decode(errors="replace")


def _shortened(problems: Sequence[str]) -> str:
    shown = problems[:SHOWN_PROBLEMS]
    rest = len(problems) - len(shown)
    return "\n  ".join([*shown, f"and {rest} more"] if rest else shown)
