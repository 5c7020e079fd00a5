"""The only writer of JAX's settings, of XLA's flags, of the environment and of library logs.

jax reads most of them once, when it starts its devices: call these functions before any array.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Final

# Simulated devices share cores: one waits for another longer than the 40 seconds after which XLA
# ends the process.
_PATIENT: Final = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
)
_FILLED: Final = 0.9  # of a device's memory; the rest is for what runs with a step or a batch


def cache_folder() -> Path:
    """Return the folder, in the user's cache folder, for what this project can make again."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "prompteol-jax"


def keep_compiled() -> None:
    """Keep compiled programs in the user's cache folder, unless jax has another folder for them.

    `JAX_COMPILATION_CACHE_DIR` names that folder; `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.
    """
    import jax

    # jax adds the attributes of its options at run time.
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def simulate_devices(devices: int) -> None:
    """Let the CPU simulate this many devices, if jax has not started and finds nothing else.

    They wait an hour for each other, or as long as `XLA_FLAGS` says already.
    """
    if devices < 2:
        return
    import jax

    given = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_collective_call" not in given:
        os.environ["XLA_FLAGS"] = f"{given} {_PATIENT}".strip()
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # jax runs already, with the devices it has
        return


def device_memory() -> int:
    """Return the bytes of a device that a run may fill; simulated devices share the machine's."""
    import jax

    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
    return int(_FILLED * limit)


def run_on_cpu() -> None:
    """Let jax start no other device than the CPU; libtpu can still compile."""
    import jax

    os.environ["JAX_PLATFORMS"] = "cpu"  # for child processes
    jax.config.update("jax_platforms", "cpu")


def compile_for_absent_tpus() -> None:
    """Let libtpu describe TPUs that are not here, in several processes, and cache nothing.

    What is compiled for devices that are not there cannot be read back from the cache.
    """
    import jax

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_enable_compilation_cache", False)


def share_gpu_memory() -> None:
    """Let jax take a GPU's memory as it needs it, so that another framework can use the rest."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def keep_ray_quiet() -> None:
    """Let Ray send no usage statistics, unless the user wants that; call it before ray's import."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def list_buckets_afresh() -> None:
    """Let fsspec ask a bucket for its listing each time: other machines write there too."""
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def hide_errors_of(package: str, logger: str) -> None:
    """Drop the log records of errors that a package writes, where the caller raises them."""

    def is_other(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or package not in record.pathname

    log = logging.getLogger(logger)
    if not any(getattr(known, "package", None) == package for known in log.filters):
        is_other.package = package
        log.addFilter(is_other)


def on_cpu() -> bool:
    """Return whether jax's default device is the CPU."""
    import jax

    return jax.default_backend() == "cpu"


def default_dtype() -> str:
    """Return the dtype of activations that suits jax's default device."""
    return "float32" if on_cpu() else "bfloat16"


def describe_device(device: Any) -> dict[str, str]:
    """Return what a result file says of a device."""
    return {"kind": device.device_kind, "platform": device.platform}


def is_simulated(mesh: Any) -> bool:
    """Return whether the devices of a `jax.sharding.Mesh` are simulated on the CPU."""
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def side_by_side(total: int, cpu_limit: int) -> int:
    """Return how many of `total` small fits to run together: on a CPU at most `cpu_limit`."""
    return min(total, cpu_limit) if on_cpu() else total
