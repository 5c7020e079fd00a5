"""SentEval's folder and the lines of its files; all problems of the data come in one error."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from prompteol_jax.errors import NotFound, UserError, listed_lines
from prompteol_jax.storage import paths as places

_MARK: Final = b"\xef\xbb\xbf"  # of UTF-8, which some editors put before the first line


def downstream(folder: str | Path, inside: Sequence[str]) -> Path:
    """Return SentEval's `downstream` folder: the one given, or the one within it.

    Raises: NotFound where there is no such folder, or none of the folders expected inside it.
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


def check_names(
    kind: str, names: Sequence[str], known: Sequence[str], short: Mapping[str, str]
) -> None:
    """Check that every name is known.

    Args:
        kind: What the names are, such as "test split".
        short: Names that papers use, by what they stand for here.
    Raises: UserError naming every unknown name, and the nearest known one.
    """
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    by_lower = {name.lower(): name for name in known}
    by_lower |= {name.lower(): full for name, full in short.items() if full in known}
    lines = []
    for name in unknown:
        nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
        hint = f" (nearest: {by_lower[nearest[0]]})" if nearest else ""
        hint = " (separate names by spaces)" if "," in name else hint
        lines.append(f"{name!r}{hint}")
    raise UserError(f"no {kind} {', '.join(lines)}; allowed: {', '.join(known)}")


def check(root: Path, paths: Sequence[Path]) -> None:
    """Check that all files are there.

    Raises: NotFound naming all missing files.
    """
    missing = [str(path.relative_to(root)) for path in paths if not path.is_file()]
    if missing:
        raise NotFound(
            f"{root} lacks {len(missing)} of the {len(paths)} files asked for; add them or name "
            f"fewer tasks:{listed_lines(missing)}"
        )


def refuse(root: Path, problems: Sequence[str]) -> None:
    """Raise a UserError with all problems, where there are any."""
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{count} in {root}:{listed_lines(problems)}")


def content(file: Path, problems: list[str]) -> bytes:
    """Read a file without a byte-order mark; a file of UTF-16, or of no text, becomes a problem."""
    data = file.read_bytes().removeprefix(_MARK)
    if b"\0" in data:
        problems.append(f"{file}: holds NUL bytes, so it is UTF-16 or no text; save it as UTF-8")
        return b""
    return data


def lines(file: Path, problems: list[str]) -> Iterator[tuple[int, str]]:
    """Yield numbered lines, ended by line feeds only, since sentences may hold other breaks."""
    rows = content(file, problems).split(b"\n")
    if not rows[-1]:
        rows.pop()
    for number, line in enumerate(rows, start=1):
        try:
            yield number, line.decode().removesuffix("\r")
        except UnicodeDecodeError as error:
            problems.append(f"{file}:{number}: not UTF-8 ({error.reason})")
            yield number, line.decode(errors="replace")
