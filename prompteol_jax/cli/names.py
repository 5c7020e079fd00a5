"""Top-level names that this project shares with others in `site-packages`: train, eval, tpu."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

NAMES: Final = ("train", "eval", "tpu")
_DISTRIBUTION: Final = "prompteol-jax"
_FOLDERS: Final = ("site-packages", "dist-packages")


def taken() -> list[str]:
    """Return one sentence for each of our top-level packages that another distribution writes to.

    Only an installed copy is looked at: in a checkout the folders are ours.
    """
    try:
        installed = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return []
    root = Path(str(installed.locate_file("")))
    ours = {str(file) for file in installed.files or []}
    is_copy = any(name.startswith("train/") for name in ours)  # and no link to a checkout
    if root.name not in _FOLDERS or not is_copy:
        return []
    return [
        f"another package in {root} has files in `{name}/` too ({found[0]}): one of the two can "
        "break the other; give prompteol-jax an environment"
        for name in NAMES
        if (found := sorted(_others(root, name, ours)))
    ]


def _others(root: Path, name: str, ours: set[str]) -> Iterator[str]:
    """Yield the modules and folders of a package that are not of our distribution."""
    for path in (root / name).iterdir() if (root / name).is_dir() else ():
        relative = path.relative_to(root).as_posix()
        is_ours = relative in ours or any(one.startswith(f"{relative}/") for one in ours)
        if not is_ours and (path.suffix == ".py" or (path / "__init__.py").exists()):
            yield relative
