"""The folder of a run: its config, and what may continue it.

A run in a bucket has a folder here too, in the user's cache, where lines are appended and pages
made. `publish` brings the bucket up to date, before each checkpoint there is committed and at the
end; a run that is resumed takes from the bucket what it goes on writing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import threading
from pathlib import Path
from typing import Any, Final

from prompteol_jax import distributed
from prompteol_jax.errors import AlreadyExists, NotFound, UserError
from prompteol_jax.storage import atomic, paths
from train.config import FREE_ON_RESUME, TrainConfig
from train.run.checkpoints import Checkpoints

CONFIG: Final = "config.json"
METRICS: Final = "metrics.jsonl"
DEV: Final = "dev.jsonl"
BEST: Final = "best.json"
NOT_FINITE: Final = "not_finite.jsonl"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """RUN/, with config.json, metrics.jsonl, dev.jsonl, checkpoints/, adapter/ and report.html.

    Attributes:
        home: where the run lies; path: where its files are written, `home` unless that is a bucket.
    """

    home: Any
    path: Path
    _published: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    _publishing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def at(cls, home: Any) -> RunFolder:
        """The folder of a run that lies there."""
        if not paths.is_bucket(home):
            return cls(home, home)
        from prompteol_jax.runtime import cache_folder

        name = hashlib.sha256(str(home).encode()).hexdigest()[:16]
        return cls(home, cache_folder() / "runs" / name)

    @classmethod
    def find(cls, config: TrainConfig) -> RunFolder:
        """The folder of a new run, or that of one to be resumed; nothing is written yet.

        A run that is to be resumed but never began is a new one, so that one command is enough for
        a job that may be started again.

        Raises: AlreadyExists where a new run would write over another; NotFound where
            what is there lacks its config; ValueError that lists every flag that differs on resume.
        """
        folder = cls.at(paths.as_path(config.output or _fresh(config)))
        paths.check_bucket(folder.home)
        if config.resume:
            folder._check_same(_fields(config))
        elif (folder.home / CONFIG).exists():
            raise AlreadyExists(
                f"{folder.home} holds a run already: continue it with --resume, or choose another "
                "--output"
            )
        return folder

    def begin(self, config: TrainConfig) -> None:
        """Make the folder and write the run's config, once every process has looked at it."""
        distributed.wait_for_all("run folder")
        if distributed.is_primary():
            self._take_over()
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_fields(config), indent=2) + "\n"
            (self.path / CONFIG).write_text(text, encoding="utf-8")
            (self.path / DEV).touch()  # stays empty without development pairs
            self.publish()

    def checkpoints(self, keep: int) -> Checkpoints:
        """The run's checkpoints, of which the newest are kept."""
        return Checkpoints(self.home / "checkpoints", keep=keep, beforehand=self.publish)

    def publish(self) -> None:
        """Copy what has changed since the last time to where the run lies, the exported step first:
        a bucket never holds weights that it does not know of."""
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

    def _take_over(self) -> None:
        """Begin with what the bucket holds of this run, whatever is here of an earlier one."""
        if self.home == self.path:
            return
        paths.remove(self.path)
        self.path.mkdir(parents=True)
        for name in (METRICS, DEV, BEST):
            if (self.home / name).exists():
                (self.path / name).write_bytes((self.home / name).read_bytes())

    def _check_same(self, fields: dict[str, Any]) -> None:
        path = self.home / CONFIG
        if not path.exists():
            strange = [n for n in (METRICS, "checkpoints") if (self.home / n).exists()]
            if strange:
                raise NotFound(
                    f"{self.home} holds {' and '.join(strange)} but no {CONFIG}: the run cannot be "
                    "told from others; put its file back, or choose another --output"
                )
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        differ = [
            f"--{name.replace('_', '-')} was {saved.get(name)!r}, is {fields[name]!r}"
            for name in fields
            if name not in FREE_ON_RESUME and saved.get(name) != fields[name]
        ]
        if differ:
            raise UserError(f"{self.home} cannot be resumed with other flags: {'; '.join(differ)}")

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add a line to one of the run's jsonl files."""
        if distributed.is_primary():
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def begin_export(self, step: int) -> None:
        """Note the step whose weights are about to be written, before any of them is."""
        if distributed.is_primary():
            line = json.dumps({"step": step}) + "\n"
            atomic.write_whole(self.path / BEST, lambda file: file.write(line.encode()))

    def exported(self) -> int:
        """The step whose weights were last exported, perhaps not completely; 0 for none."""
        path = self.path / BEST
        return json.loads(path.read_text(encoding="utf-8"))["step"] if path.exists() else 0

    def forget(self, after: int) -> None:
        """Drop what the jsonl files say of steps behind the one that is resumed."""
        if not distributed.is_primary():
            return
        for path in (self.path / name for name in (METRICS, DEV, NOT_FINITE)):
            if path.exists():
                _truncate(path, after)


def _truncate(path: Path, after: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A line that a kill broke off has no end.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after]
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


def _fields(config: TrainConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return {k: str(paths.as_path(v)) if isinstance(v, Path) else v for k, v in fields.items()}


def _fresh(config: TrainConfig) -> Path:
    """runs/MODEL-DATA, with the first number that is free where that exists."""
    name = f"{Path(config.model).name}-{Path(config.data).stem}"
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    return next(path for n in names if not (path := Path("runs") / n).exists())
