"""One worker: it encodes a shard, writes its file whole, and returns a receipt.

Nothing here knows the engine that calls it. An error of the user travels in the receipt, since an
engine would retry an exception.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from prompteol_jax import runtime
from prompteol_jax.errors import UserError
from prompteol_jax.storage import corpus, paths, shards
from prompteol_jax.storage.corpus import Chunk

if TYPE_CHECKING:
    from prompteol_jax.cli.encode import EncodeOptions


class Receipt(NamedTuple):
    """What became of one shard.

    Attributes:
        number, sha256, width: the shard, the digest of its file, and numbers in a vector.
        distinct, truncated: texts, as in the report of an embedder.
        seconds: duration of its encoding; waited: seconds of it in which the device was idle.
        worker: host and process; device: kind of device.
        error: why the shard could not be encoded; empty where it was.
    """

    number: int
    sha256: str = ""
    width: int = 0
    distinct: int = 0
    truncated: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    worker: str = ""
    device: str = ""
    error: str = ""


class ShardWorker:
    """Encodes shards, one a call; made once in each process.

    Args:
        options: the command's.
        platform: what the devices must be: `cpu`, `gpu` or `tpu`.
        versions: versions of the driver's packages, which this process must have.
        started: function that is called with a shard's number before it is encoded.
    """

    def __init__(
        self,
        options: EncodeOptions,
        platform: str,
        versions: Mapping[str, str],
        started: Callable[[int], None],
    ):
        self._options, self._started = options, started
        self._where = f"{socket.gethostname()} {os.getpid()}"
        self._error = self._device = ""
        try:
            self._load(platform, versions)
        except UserError as error:
            self._error = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Encode the shard of a batch of one: JSON of its number and chunk, in `shard`."""
        number, *chunk = json.loads(batch["shard"][0])
        self._started(number)
        try:
            receipt = self._encoded(number, Chunk(*chunk))
        except UserError as error:
            receipt = self._signed(number, error=str(error))
        return {"receipt": [json.dumps(receipt)]}

    def _load(self, platform: str, versions: Mapping[str, str]) -> None:
        from prompteol_jax.pretrained import provenance

        own = provenance.versions()
        other = [f"{name} {own[name]}, not {v}" for name, v in versions.items() if own[name] != v]
        if other:
            raise UserError(
                f"a worker on {socket.gethostname()} has {', '.join(other)} as the driver; give "
                "all nodes one image"
            )
        self._embedder = self._options.load("bfloat16")
        found = runtime.describe_device(self._embedder.mesh.devices.flat[0])
        if found["platform"] != platform:
            raise UserError(
                f"a worker on {socket.gethostname()} computes on {found['platform']}, not on "
                f"--device {platform}; is JAX installed for it there, or JAX_PLATFORMS set?"
            )
        self._device = f"{found['platform']} {found['kind']}"
        self._corpus = corpus.open_corpus(self._options.input)
        self._folder = paths.as_path(self._options.output)

    def _encoded(self, number: int, chunk: Chunk) -> Receipt:
        if self._error:
            raise UserError(self._error)
        z_nD = self._options.encode(self._embedder, self._corpus.read(chunk), progress=False)
        report, dtype = self._embedder.report, self._options.output_dtype
        return self._signed(
            number,
            sha256=shards.write_shard(self._folder, number, z_nD, dtype),
            width=z_nD.shape[1],
            distinct=report.distinct,
            truncated=report.truncated,
            seconds=report.seconds,
            waited=report.waited,
        )

    def _signed(self, number: int, **fields: Any) -> Receipt:
        return Receipt(number, worker=self._where, device=self._device, **fields)
