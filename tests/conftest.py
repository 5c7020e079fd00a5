"""What every test runs under: eight CPU devices, no network, one compilation cache."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_DEVICES = "--xla_force_host_platform_device_count"

# jax reads these when it is imported, so they are set here, before any test module is.
# Subprocesses started by tests inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    # As `distributed.simulate_devices` sets them, which comes too late once a test has started jax.
    _wait = "--xla_cpu_collective_call_{}_timeout_seconds={}"
    _patient = f"{_wait.format('warn_stuck', 600)} {_wait.format('terminate', 3600)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8 {_patient}".strip()

# `import oracle` works by this name alone: with tests/ on the path, tests/prompteol_jax would take
# the place of the library.
if "oracle" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parent / "oracle.py")
    sys.modules["oracle"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["oracle"])


@pytest.hookimpl(tryfirst=True)  # before marks choose among them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is huge is slow too."""
    for item in items:
        if item.get_closest_marker("huge"):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data and checkpoints named by PROMPTEOL_DATA; skips without it."""
    folder = os.environ.get("PROMPTEOL_DATA")
    if not folder:
        pytest.skip("PROMPTEOL_DATA is unset: it names the folder of real data and checkpoints")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"PROMPTEOL_DATA={folder} is not a folder")
    return path


@pytest.fixture
def coarse(monkeypatch):
    """One shape for all ordinary sentences: a model is compiled once and not eight times."""
    from prompteol_jax.ladder import Ladder

    def fixed(longest, batch_tokens, multiple):
        return Ladder((96, longest), (40, multiple))

    monkeypatch.setattr(Ladder, "fixed", fixed)
