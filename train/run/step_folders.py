"""Folders of the steps of a run, each named by its number; none of them is ever half there.

10.saving/          being written
10.replaced/        the former 10, between the two renames that replace it
8.deleted/          being deleted
10/                 a step: a folder named by its number that holds a manifest

A bucket cannot rename. There a step is written under its number, and it is its manifest, the last
object to be written and the first to be deleted, that makes a step of it.
"""

from __future__ import annotations

import shutil
from typing import Any, Final

from prompteol_jax.storage import atomic, manifest, paths

_SAVING: Final = ".saving"
_REPLACED: Final = ".replaced"
_DELETED: Final = ".deleted"


def committed(folder: Any) -> list[int]:
    """List the steps in a folder, oldest first."""
    found = [p.parent.name for p in folder.glob(f"*/{manifest.NAME}")]
    return sorted(int(name) for name in found if name.isdecimal() and str(int(name)) == name)


def staging(folder: Any, step: int, attempt: int) -> Any:
    """Name the folder in which a step is written before it is published.

    Each attempt has its own: threads of a failed save may go on writing for a while.
    """
    if paths.is_bucket(folder):
        return folder / str(step)
    return folder / f"{step}{_SAVING}-{attempt}"


def publish(staged: Any, folder: Any, step: int, *, keep: int) -> None:
    """Make the sealed folder `staged` the step, in place of a former one, and drop old steps.

    The `keep` newest stay. Steps later than this one were left behind by a resumed run: they go.
    """
    final, former = folder / str(step), folder / f"{step}{_REPLACED}"
    if staged != final:
        if final.exists():
            final.rename(former)
        staged.rename(final)
        atomic.sync(folder)
        if former.exists():
            shutil.rmtree(former)
    present = committed(folder)
    kept = [s for s in present if s <= step][-keep:]
    for stale in (s for s in present if s not in kept):
        _delete(folder / str(stale))


def _delete(path: Any) -> None:
    if paths.is_bucket(path):
        (path / manifest.NAME).unlink(missing_ok=True)
        paths.remove(path)
        return
    doomed = path.with_name(f"{path.name}{_DELETED}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def recover(folder: Any) -> None:
    """Bring back a step whose replacement was cut short between its two renames."""
    if paths.is_bucket(folder):
        return
    for former in folder.glob(f"*{_REPLACED}"):
        final = former.with_suffix("")
        if not final.exists():
            former.rename(final)


def sweep(folder: Any, staged: Any) -> None:
    """Make room for `staged` and delete what killed runs left; no save may be running."""
    if paths.is_bucket(folder):
        started = {name.split("/")[0] for name in paths.files(folder)}
        for name in started - ({str(s) for s in committed(folder)} - {staged.name}):
            _delete(folder / name)
        return
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    for path in list(folder.iterdir()):
        if path.suffix in (_REPLACED, _DELETED) or _SAVING in path.name:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
