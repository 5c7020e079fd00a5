"""Checkpoints of a run that are either complete and unaltered, or not there.

Orbax writes the arrays, in the background, and reads them onto any mesh; it neither notices a
flipped byte nor tells an empty folder from a step. So a step is written under another name, sealed
by a manifest of its leaves and of the checksums of its files, and takes its number in one rename
(`train.run.step_folders`). Whenever a run is killed, the steps committed before it are intact.

A step of training waits only until its state is copied on the devices, where it may be donated
next. Several processes wait until it is copied off them: orbax compares their paths by a collective
of devices, which must not cross those of steps.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from prompteol_jax import distributed, runtime
from prompteol_jax.errors import NotFound, UserError, listed
from prompteol_jax.storage import manifest, paths
from train.run import step_folders

_CAUSES: Final = (OSError, UserError, ValueError)  # of a save that failed; others are our bugs
_UNSTORABLE: Final = ("uint2", "uint4")  # types orbax 0.12 cannot write

_log = logging.getLogger(__name__)


class NotSaved(UserError, RuntimeError):
    """A checkpoint that could not be written, as on a full disk."""


class Checkpoints:
    """The numbered checkpoints of one run, saved in the background and verified when restored.

    Args:
        folder: made by the first save. Only one run at a time may save into it.
        keep: number of newest steps kept.
        beforehand: called in the background before each step is committed.
    Raises: UserError if `keep` is less than 1.
    """

    def __init__(
        self, folder: Any, *, keep: int = 2, beforehand: Callable[[], object] = lambda: None
    ) -> None:
        if keep < 1:
            raise UserError(f"keep={keep}: at least 1 checkpoint must be kept.")
        self._folder = paths.as_path(folder if paths.is_bucket(folder) else folder.resolve())
        self._keep, self._beforehand = keep, beforehand
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._attempts = 0
        # Failures are raised by `wait`; orbax logs the traceback of each of its threads as well.
        runtime.hide_errors_of("orbax", logger="absl")
        if distributed.is_primary():
            step_folders.recover(self._folder)

    def prepare(self, state: PyTree) -> None:
        """Compile what `save` runs on such a state, so that the first one takes no longer."""
        jax.block_until_ready(_copied(_named_leaves(state)))

    def busy(self) -> bool:
        """Say whether a save is still running, so that the next one would wait for it."""
        return self._pending is not None and not self._pending.done()

    def save(self, step: int, state: PyTree, meta: Mapping[str, Any]) -> None:
        """Save `state` and `meta` as `step`; return once the arrays are copied.

        Waits for a save that is still running. Committing a step replaces the one of the same
        number and deletes later ones, which belong to steps that the run has gone back behind.

        Args:
            state: jax arrays; they may be donated as soon as this returns.
            meta: what JSON can hold, without NaN and infinities.
        Raises: UserError if `state` or `meta` cannot be saved; NotSaved if the save before this
            one failed in the background.
        """
        self.wait()
        if step < 0:
            raise UserError(f"Step {step}: a step is 0 or more.")
        leaves = _named_leaves(state)
        _check_savable(leaves)
        content = {"step": int(step), "meta": _plain(meta), "leaves": _described(leaves)}
        self._attempts += 1
        staging = step_folders.staging(self._folder, step, self._attempts)
        if jax.process_count() == 1:
            finish = functools.partial(self._write, staging, _copied(leaves))
        else:
            finish = self._begin(staging, leaves)
        self._pending = self._thread.submit(self._commit, finish, staging, content)

    def steps(self) -> list[int]:
        """List the committed steps, oldest first; `restore` verifies their files."""
        return step_folders.committed(self._folder)

    def restore(self, like: PyTree, step: int | None = None) -> tuple[int, PyTree, dict[str, Any]]:
        """Restore `(step, state, meta)`, of the newest undamaged step unless one is asked for.

        Args:
            like: arrays or `jax.ShapeDtypeStruct`s of the structure, shapes and types that were
                saved. Each leaf arrives with the sharding it has here, not that it was saved with.
            step: must be restored: damaged, it is an error, not a reason to take an older one.
        Raises: NotFound if there is no such step; UserError naming the damaged files if
            no candidate is intact, or the leaves if `like` is not what was saved.
        """
        self.wait()
        chosen = _agree(functools.partial(self._newest_intact, step))
        folder = self._folder / str(chosen)
        content = manifest.read(folder / manifest.NAME)
        leaves = _named_leaves(like)
        _check_same(chosen, content["leaves"], _described(leaves))
        targets = {name: _target(leaf) for name, leaf in leaves.items()}
        loaded = ocp.load(str(folder), _with_elements(targets))
        arrays = [loaded[name] if name in loaded else _empty(x) for name, x in targets.items()]
        return chosen, jax.tree.unflatten(jax.tree.structure(like), arrays), content["meta"]

    def wait(self) -> None:
        """Wait for a save that is still running.

        Raises: NotSaved if it failed; earlier steps are untouched then.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except _CAUSES as error:
            raise NotSaved(
                f"The last checkpoint could not be written to {self._folder}: {_reason(error)}. "
                f"Complete steps: {listed(self.steps())}. Free space or mend the folder, "
                "then resume."
            ) from error

    def close(self) -> None:
        """Wait for a save that is still running and end the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _newest_intact(self, step: int | None) -> int:
        present = self.steps()
        if not present or (step is not None and step not in present):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise NotFound(
                f"No complete {wanted} in {self._folder}; complete steps: {listed(present)}."
            )
        damaged = []
        for candidate in reversed(present) if step is None else [step]:
            problems = manifest.damage(self._folder / str(candidate))
            if not problems:
                return candidate
            damaged.append(f"step {candidate}: {listed(problems)}")
            _log.warning("Damaged checkpoint in %s, %s", self._folder, damaged[-1])
        raise UserError(
            f"Damaged checkpoint in {self._folder}, {'; '.join(damaged)}. "
            f"Steps there: {listed(present)}. Restore another step or delete the damaged ones."
        )

    def _begin(self, staging: Any, leaves: Mapping[str, Any]) -> Callable[[], object]:
        # Returns a function that waits for the files; the arrays are on the host by now.
        if distributed.is_primary():
            step_folders.sweep(self._folder, staging)
        context = ocp.Context()
        # Replicas would be cut on their devices, which is compiled; weights hardly compress.
        context.array.saving.use_replica_parallel = False
        context.array.saving.use_compression = False
        with context:
            return ocp.save_async(staging, _with_elements(leaves)).result

    def _write(self, staging: Any, leaves: Mapping[str, Any]) -> None:
        self._begin(staging, leaves)()

    def _commit(
        self, finish: Callable[[], object], staging: Any, content: Mapping[str, Any]
    ) -> None:
        # On process 0 this returns when every process has written its part.
        finish()
        if not distributed.is_primary():
            return
        self._beforehand()
        manifest.seal(staging, content)
        step_folders.publish(staging, self._folder, content["step"], keep=self._keep)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in pairs}


@jax.jit
def _copied(leaves: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.copy, leaves)


def _with_elements(leaves: Mapping[str, Any]) -> dict[str, Any]:
    # Orbax refuses empty arrays, such as the stacked blocks of a one-layer model.
    return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _described(leaves: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for name, leaf in leaves.items()
    }


def _check_savable(leaves: Mapping[str, Any]) -> None:
    bad = [
        f"{name} is {x.dtype if isinstance(x, jax.Array) else type(x).__name__}"
        for name, x in leaves.items()
        if not isinstance(x, jax.Array) or str(x.dtype) in _UNSTORABLE
    ]
    if bad:
        raise UserError(
            f"A checkpoint holds jax arrays of any type but {', '.join(_UNSTORABLE)}: "
            f"{listed(bad)}. Convert them first."
        )
    if not _with_elements(leaves):
        raise UserError("The state to save has no elements; a checkpoint needs at least one.")


def _check_same(step: int, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    misfits = [f"{n} is not in the checkpoint" for n in wanted if n not in saved]
    misfits += [f"{n} is only in the checkpoint" for n in saved if n not in wanted]
    misfits += [
        f"{n} is {saved[n]} in the checkpoint and {described} here"
        for n, described in wanted.items()
        if saved.get(n, described) != described
    ]
    if misfits:
        raise UserError(
            f"Checkpoint {step} is not of this run: {listed(misfits)}. "
            "Resume with the settings it was saved with, or use another folder."
        )


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Checkpoint meta must be plain JSON without NaN: {error}; given {dict(meta)}."
        ) from error


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _empty(target: jax.ShapeDtypeStruct) -> jax.Array:
    return distributed.to_global(np.zeros(target.shape, target.dtype), target.sharding)


def _agree(choose: Callable[[], int]) -> int:
    """Let process 0 choose the step for all processes."""
    if jax.process_count() == 1:
        return choose()
    chosen, failure = -1, None
    if distributed.is_primary():
        try:
            chosen = choose()
        except (OSError, ValueError) as error:
            failure = error
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
        raise failure or FileNotFoundError("Process 0 found no checkpoint; see its error.")
    return chosen


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
