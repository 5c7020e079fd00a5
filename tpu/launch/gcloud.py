"""The gcloud commands of a launch, as lists of words; nothing is run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tpu.launch.slices import Slice

TPUS: Final = ("gcloud", "compute", "tpus")
FOLDER: Final = "prompteol-jax"  # on the hosts, below the home folder


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A TPU VM, or the queued resource that becomes one, by name and zone."""

    name: str
    zone: str
    project: str | None = None
    queued: bool = False

    def create(self, slice_: Slice, *, spot: bool, extra: Sequence[str] = ()) -> list[str]:
        """Return the command that asks for the slice."""
        shared = [f"--accelerator-type={slice_.accelerator_type}", *(["--spot"] if spot else [])]
        if self.queued:
            request = [self.name, f"--node-id={self.name}", f"--runtime-version={slice_.image}"]
            return [*TPUS, "queued-resources", "create", *request, *shared, *self._zone, *extra]
        request = [self.name, f"--version={slice_.image}"]
        return [*TPUS, "tpu-vm", "create", *request, *shared, *self._zone, *extra]

    def state(self) -> list[str]:
        """Return the command that prints the state of the VM: READY, PREEMPTED, ..."""
        return [*TPUS, "tpu-vm", "describe", self.name, "--format=value(state)", *self._zone]

    def accelerator(self) -> list[str]:
        """Return the command that prints the accelerator type of the VM."""
        asked = [self.name, "--format=value(acceleratorType)"]
        return [*TPUS, "tpu-vm", "describe", *asked, *self._zone]

    def request_state(self) -> list[str]:
        """Return the command that prints the state of the queued resource: ACTIVE, FAILED, ..."""
        asked = [self.name, "--format=value(state.state)"]
        return [*TPUS, "queued-resources", "describe", *asked, *self._zone]

    def delete(self) -> list[str]:
        """Return the command that deletes the VM, or the queued resource with its VM."""
        if self.queued:
            asked = [self.name, "--force", "--quiet"]
            return [*TPUS, "queued-resources", "delete", *asked, *self._zone]
        return [*TPUS, "tpu-vm", "delete", self.name, "--quiet", *self._zone]

    def run(self, command: str, *, worker: str = "all") -> list[str]:
        """Return the command that runs a shell command on one host or on all of them."""
        asked = [self.name, f"--worker={worker}", f"--command={command}"]
        return [*TPUS, "tpu-vm", "ssh", *asked, *self._zone]

    def send(self, path: str, target: str) -> list[str]:
        """Return the command that copies a local file to every host."""
        return [*TPUS, "tpu-vm", "scp", path, f"{self.name}:{target}", "--worker=all", *self._zone]

    def fetch(self, path: str, target: str) -> list[str]:
        """Return the command that copies a file or folder of host 0 here."""
        source = f"{self.name}:{path}"
        return [*TPUS, "tpu-vm", "scp", "--recurse", source, target, "--worker=0", *self._zone]

    def unqueued(self) -> Machine:
        """Return the same VM without a queued resource."""
        return replace(self, queued=False)

    @property
    def _zone(self) -> list[str]:
        return [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
