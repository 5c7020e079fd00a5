"""The folder of a run: one process writes there, and only the same run is continued there.

A run in a bucket has a folder here too, in the user's cache, where lines are appended and pages
made. `publish` brings the bucket up to date, before each checkpoint there is committed and at the
end; a run that is resumed takes from the bucket what it goes on writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prompteol_jax import distributed
from prompteol_jax.cli import options
from prompteol_jax.errors import AlreadyExists, NotFound, UserError
from prompteol_jax.storage import json_files, lease, paths, same_work
from train.flags import FREE_ON_RESUME, RunConfig
from train.run.checkpoints import Checkpoints

CONFIG: Final = "config.json"
METRICS: Final = "metrics.jsonl"
DEV: Final = "dev.jsonl"
BEST: Final = "best.json"
NOT_FINITE: Final = "not_finite.jsonl"
WORK: Final = "work"  # in config.json
_CONTENT: Final = ("weights", "adapter", "prompt", "vectors")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """RUN/, with config.json, metrics.jsonl, dev.jsonl, checkpoints/, adapter/ and report.html.

    Attributes:
        home: folder of the run for the user.
        path: folder where its files are written, `home` unless that is a bucket.
        record: flags of the run and its work, by content, as config.json holds them.
        lease: what keeps other processes out; None where another process of this run holds it.
    """

    home: Any
    path: Path
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    lease: lease.Lease | None = None
    _published: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    _publishing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def at(cls, home: Any) -> RunFolder:
        """Return the folder of a run, without any look at it."""
        if not paths.is_bucket(home):
            return cls(home, home)
        from prompteol_jax.runtime import cache_folder

        name = hashlib.sha256(str(home).encode()).hexdigest()[:16]
        return cls(home, cache_folder() / "runs" / name)

    @classmethod
    @contextlib.contextmanager
    def claim(cls, flags: RunConfig, data: Mapping[str, Any]) -> Iterator[RunFolder]:
        """Hold the folder of a new run, or that of one to be resumed; `begin` writes into it.

        A run that is to be resumed but never began is a new one, so that one command is enough for
        a job that may be started again. The first process of several holds the folder for all.

        Args:
            data: description of the data by its content.
        Raises: UserError in every process where another run writes there, or for everything that
            differs on resume; AlreadyExists where a new run would write over another; NotFound
            where what is there lacks its config.
        """
        channel = distributed.Channel("run folder")
        with contextlib.ExitStack() as stack:
            found, problem = None, None
            if distributed.is_primary():
                try:
                    found = stack.enter_context(_held(cls, flags, data))
                except UserError as error:
                    problem = error
            said = [str(found.home) if found else "", str(problem) if problem else ""]
            home, message = channel.exchange(said)[0]
            if message:
                raise problem or UserError(message)
            yield found or cls.at(paths.as_path(home))

    def begin(self) -> None:
        """Write the run's config."""
        if distributed.is_primary():
            self._take_over()
            text = json.dumps(self.record, indent=2) + "\n"
            (self.path / CONFIG).write_text(text, encoding="utf-8")
            (self.path / DEV).touch()  # stays empty without development pairs
            self.publish()

    def checkpoints(self, keep: int) -> Checkpoints:
        """Return the run's checkpoints, of which the newest are kept."""
        return Checkpoints(self.home / "checkpoints", keep=keep, beforehand=self.publish)

    def publish(self) -> None:
        """Upload changed files, the record of the exported step first, so that the bucket never has
        weights without a record.

        Raises: UserError where another process took the folder over.
        """
        if self.lease is not None:
            self.lease.check()
        if self.home == self.path or not distributed.is_primary():
            return
        with self._publishing:
            names = [n for n in paths.files(self.path) if not n.endswith((".new", ".part"))]
            for name in sorted(names, key=lambda name: (name != BEST, name)):
                facts = (self.path / name).stat()
                state = (facts.st_size, facts.st_mtime_ns)
                if self._published.get(name) != state:
                    paths.upload(self.path / name, self.home / name)
                    self._published[name] = state

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add a line to one of the run's jsonl files."""
        if distributed.is_primary():
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def begin_export(self, step: int) -> None:
        """Record the step whose weights are about to be written, before any of them is."""
        if distributed.is_primary():
            json_files.write_object(self.path / BEST, {"step": step})

    def exported(self) -> int:
        """Return the step whose weights were last exported, perhaps in part; 0 for none."""
        path = self.path / BEST
        return json_files.read_object(path)["step"] if path.exists() else 0

    def forget(self, after: int) -> None:
        """Drop what the jsonl files say of steps after the one that is resumed."""
        if not distributed.is_primary():
            return
        for path in (self.path / name for name in (METRICS, DEV, NOT_FINITE)):
            if path.exists():
                _truncate(path, after)

    def _take_over(self) -> None:
        """Begin with what the bucket holds of this run, and drop what an earlier one left here."""
        if self.home == self.path:
            return
        for path in self.path.iterdir():
            paths.remove(path) if path.is_dir() else path.unlink()
        for name in (METRICS, DEV, BEST):
            if (self.home / name).exists():
                (self.path / name).write_bytes((self.home / name).read_bytes())


@contextlib.contextmanager
def _held(kind: type[RunFolder], flags: RunConfig, data: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Make a run's folder, hold it and check that the run may write there."""
    folder = kind.at(paths.as_path(flags.output) if flags.output else _fresh(flags))
    paths.check_bucket(folder.home)
    is_new = flags.output is None or not folder.path.exists()
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        with lease.held(folder.home, "a training run") as held:
            record = _record(flags, data)
            if flags.resume:
                _check_same(folder.home, record, _defaults(flags))
            elif (folder.home / CONFIG).exists():
                raise AlreadyExists(
                    f"{folder.home} holds a run already: continue it with --resume, or choose "
                    "another --output"
                )
            yield dataclasses.replace(folder, record=record, lease=held)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # a run that was begun is not empty
                folder.path.rmdir()


def _check_same(home: Any, record: dict[str, Any], defaults: dict[str, Any]) -> None:
    if not (home / CONFIG).exists():
        strange = [name for name in (METRICS, "checkpoints") if (home / name).exists()]
        if strange:
            raise NotFound(
                f"{home} holds {' and '.join(strange)} but no {CONFIG}, so its run is unknown; "
                "put that file back, or choose another --output"
            )
        return
    # A flag that did not exist when the run was begun had its default's effect.
    before = defaults | json_files.read_object(home / CONFIG)
    same_work.check_same(
        home,
        before,
        record,
        # The first version recorded flags alone.
        ignore=FREE_ON_RESUME if WORK in before else FREE_ON_RESUME | {WORK},
        label=lambda name: name if name.startswith(WORK) else options.spelled(name),
        advice="Resume it with the flags it was begun with, or choose another --output",
    )


def _defaults(flags: RunConfig) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(flags)}


def _record(flags: RunConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags, and under `work` the content behind those that name a file."""
    fields = dataclasses.asdict(flags)
    fields = {k: str(paths.as_path(v)) if isinstance(v, Path) else v for k, v in fields.items()}
    model = options.ModelOptions(
        model=flags.model, adapter=flags.adapter, template=flags.template
    ).work("float32")
    return {**fields, WORK: {**{name: model[name] for name in _CONTENT}, **data}}


def _fresh(flags: RunConfig) -> Path:
    """Make runs/MODEL-DATA, with the first number that is free where that exists."""
    data = "+".join(Path(name).stem for name in flags.sources)
    name = f"{Path(flags.model).name}-{data}"
    for folder in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2))):
        path = Path("runs") / folder
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()  # atomic: of two runs one makes it
            return path
    raise AssertionError("numbers do not end")


def _truncate(path: Path, after: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line that a kill broke off has no end.
    left = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(left), encoding="utf-8")
    part.replace(path)
