"""What every test runs under: eight CPU devices, no network, one compilation cache.

With PROMPTEOL_DEVICES=0, as `make unit` sets it, jax has no device at all: a unit test that starts
one fails.
"""

import gc
import itertools
import os
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_DEVICES = "--xla_force_host_platform_device_count"

# jax reads these when it is imported, so they are set here, before any test module is.
# Subprocesses started by tests inherit them.
WITHOUT_DEVICES = os.environ.get("PROMPTEOL_DEVICES") == "0"
os.environ["JAX_PLATFORMS"] = "none" if WITHOUT_DEVICES else "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    # As `runtime.simulate_devices` sets them, which comes too late once a test has started jax.
    _wait = "--xla_cpu_collective_call_{}_timeout_seconds={}"
    _patient = f"{_wait.format('warn_stuck', 600)} {_wait.format('terminate', 3600)}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8 {_patient}".strip()

# Oracles and stand-ins are imported by their own names: `import oracle`.
sys.path.insert(0, str(Path(__file__).parent / "support"))
pytest_plugins = ("durations",)


@pytest.hookimpl(tryfirst=True)  # before marks choose among them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark huge tests slow too, and the parametrizations that `fast` and `first` do not name."""
    named, seen = set(), set()
    for item in items:
        for name, others in (("fast", "slow"), ("first", "wide")):
            if mark := item.get_closest_marker(name):
                test = item.nodeid.partition("[")[0]
                named |= {(name, test, i) for i in mark.args}
                seen.add((name, test, item.callspec.id))
                if item.callspec.id not in mark.args:
                    item.add_marker(others)
        if item.get_closest_marker("huge"):
            item.add_marker("slow")
    if named - seen and config.args == config.getini("testpaths"):
        raise pytest.UsageError(f"marks name what is no parametrization: {sorted(named - seen)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every search for garbage; that takes 5 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def devices() -> None:
    """Start jax with all devices; the mesh of the first test would bring only its own."""
    if WITHOUT_DEVICES:
        return
    import jax

    assert jax.device_count() == 8


_MAPPINGS = 30_000  # of 65,530 that Linux gives a process; a compiled program takes about 27
_FINISHED = itertools.count(1)


def pytest_runtest_logfinish() -> None:
    """Forget compiled programs before a process runs out of memory mappings and crashes."""
    jax, mappings = sys.modules.get("jax"), Path("/proc/self/maps")
    if jax is None or next(_FINISHED) % 20 or not mappings.exists():
        return
    if mappings.read_bytes().count(b"\n") > _MAPPINGS:
        jax.clear_caches()


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


@pytest.fixture(scope="session")
def _store():
    import fake_gcs

    with fake_gcs.Bucket().running() as bucket:
        os.environ.update(bucket.environment)  # subprocesses are to find it too
        yield bucket


@pytest.fixture
def bucket(_store, tmp_path, monkeypatch):
    """An empty bucket `gs://bucket` of a stand-in for Google's store; copies from it go to tmp."""
    pytest.importorskip("gcsfs", reason="the extra `gcs` is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _store.objects.clear()
    _store.log.clear()
    return _store


@pytest.fixture
def coarse(monkeypatch):
    """One shape for all ordinary sentences: a model is compiled once and not eight times."""
    from prompteol_jax.encoding.buckets import Buckets

    def fixed(longest, batch_tokens, multiple):
        return Buckets((96, longest), (40, multiple))

    monkeypatch.setattr(Buckets, "fixed", fixed)
