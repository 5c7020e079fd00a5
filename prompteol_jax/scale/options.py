"""The flags that choose what schedules a corpus; nothing here needs the extra `ray`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

TPU_CHIPS = (1, 2, 4, 8)  # chips of one host that Ray gives to a worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What encodes the shards of a corpus: this process, or workers of a Ray cluster."""

    engine: Literal["local", "ray"] = "local"
    """local: this process, or those of --coordinator; ray: workers that Ray places and restarts.
    Either engine continues what the other one began."""
    workers: str | None = None
    """With --engine ray: N workers, or N:M for a pool that grows; by default as many as fit."""
    device: Literal["auto", "tpu", "gpu", "cpu"] = "auto"
    """With --engine ray: what a worker asks for, as many as --mesh has; auto: what there is."""
    address: str | None = None
    """With --engine ray: HOST:PORT of a cluster, or `auto`; by default that of RAY_ADDRESS, or one
    that is started here."""
    mixed_workers: bool = False
    """With --engine ray: allow several kinds of devices, whose vectors differ by rounding."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        found = []
        given = [name for name in ("workers", "address") if getattr(self, name) is not None]
        given += ["device"] * (self.device != "auto") + ["mixed_workers"] * self.mixed_workers
        if self.engine == "local":
            flags = [f"--{name.replace('_', '-')}" for name in given]
            return [f"{flag} needs --engine ray" for flag in flags]
        if self.workers is not None and pool(self.workers) is None:
            found.append(f"--workers {self.workers} is neither N nor N:M with 1 <= N <= M")
        return found + _beside_ray(self)


def pool(workers: str) -> tuple[int, int] | None:
    """Return the smallest and largest number of workers; None where they cannot be read."""
    match = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", workers)
    if match is None:
        return None
    least, most = int(match[1]), int(match[2] or match[1])
    return (least, most) if 1 <= least <= most else None


def _beside_ray(options: Any) -> list[str]:
    conditions = (
        (
            getattr(options, "coordinator", None) is not None,
            "--engine ray and --coordinator are two ways to use several machines; give one",
        ),
        (str(options.input) == "-", "--input - reaches no worker; give a file or folder"),
    )
    return [message for is_wrong, message in conditions if is_wrong]
