"""Laws of weights: every device holds exactly its part of the file, and misfits come at once."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prompteol_jax.weights import load, mapping
from prompteol_jax.weights.mapping import TensorMap

SIZES = {"L": 3, "D": 8, "N": 4, "H": 2, "V": 10}
TABLE = (
    TensorMap("embed.weight", "stem.tokens", "V D -> V D"),
    TensorMap("layers.{l}.q.weight", "block.q.w", "(N H) D -> D N H"),
    TensorMap("layers.{l}.norm.weight", "block.norm.scale", "D -> D"),
)
RULES = {"D": "data", "N": "model"}


def tensors(dtype: Any = np.float32, layers: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    names = {"embed.weight": (10, 8)}
    for layer in range(layers):
        names |= {f"layers.{layer}.q.weight": (8, 8), f"layers.{layer}.norm.weight": (8,)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in names.items()}


def leaves(
    mesh: jax.sharding.Mesh | None = None, dtype: Any = jnp.float32, layers: int = 3
) -> dict[str, jax.ShapeDtypeStruct]:
    made = {}
    for target, (names, stacked, dims) in mapping.expand(TABLE, layers).items():
        axes = dims.split("->")[1].split()
        shape = (len(names),) * stacked + tuple(SIZES[axis] for axis in axes)
        spec = P(*(None,) * stacked, *(RULES.get(axis) for axis in axes))
        sharding = None if mesh is None else NamedSharding(mesh, spec)
        made[target] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return made


def expected(found: Mapping[str, np.ndarray], layers: int = 3) -> dict[str, np.ndarray]:
    q = [found[f"layers.{n}.q.weight"].reshape(4, 2, 8).transpose(2, 0, 1) for n in range(layers)]
    norm = [found[f"layers.{n}.norm.weight"] for n in range(layers)]
    return {
        "stem.tokens": found["embed.weight"],
        "blocks.q.w": np.stack(q[:-1]) if layers > 1 else np.empty((0, 8, 4, 2), q[0].dtype),
        "last.q.w": q[-1],
        "blocks.norm.scale": np.stack(norm[:-1]) if layers > 1 else np.empty((0, 8), q[0].dtype),
        "last.norm.scale": norm[-1],
    }


def check(arrays: Mapping[str, jax.Array], wanted: Mapping[str, np.ndarray]) -> None:
    assert arrays.keys() == wanted.keys()
    for target, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array), wanted[target].astype(array.dtype))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (4, 2), (2, 4)])
def test_any_mesh_holds_the_same_weights(shape: tuple[int, int], axis_type: AxisType) -> None:
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(axis_type,) * 2)
    wanted = leaves(mesh)
    arrays = load.read_weights(tensors(), TABLE, wanted, SIZES, layers=3)
    check(arrays, expected(tensors()))
    assert all(arrays[target].sharding == leaf.sharding for target, leaf in wanted.items())


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("held", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_any_float_dtype_is_cast_to_the_leafs(stored: Any, held: Any) -> None:
    arrays = load.read_weights(tensors(stored), TABLE, leaves(dtype=held), SIZES, layers=3)
    assert {array.dtype for array in arrays.values()} == {jnp.dtype(held)}
    check(arrays, expected(tensors(stored)))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_early_exit_reads_the_first_layers_only(layers: int) -> None:
    found = tensors()
    found["layers.2.norm.weight"][:] = 0 if layers == 3 else np.nan
    arrays = load.read_weights(found, TABLE, leaves(layers=layers), SIZES, layers=layers)
    check(arrays, expected(found, layers))


def test_one_layer_needs_no_stacked_leaves() -> None:
    wanted = {t: leaf for t, leaf in leaves(layers=1).items() if not t.startswith("blocks.")}
    arrays = load.read_weights(tensors(), TABLE, wanted, SIZES, layers=1)
    assert arrays.keys() == wanted.keys()


def test_strided_tensors_and_large_ones_are_read_whole() -> None:
    """More than one tile in both directions, and a source in column order."""
    random = np.random.default_rng(0)
    sizes = {"L": 1, "D": 700, "F": 900}
    found = {"w": np.asfortranarray(random.standard_normal((900, 700)).astype("f4"))}
    table = (TensorMap("w", "w", "F D -> D F"),)
    wanted = {"w": jax.ShapeDtypeStruct((700, 900), jnp.float32)}
    (array,) = load.read_weights(found, table, wanted, sizes, layers=1).values()
    np.testing.assert_array_equal(np.asarray(array), found["w"].T)


def test_donated_weights_leave_their_replicas_alone() -> None:
    """Devices of one process share the host's copy; donating it on one must not change another."""
    mesh = jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    wanted = leaves(mesh) | {
        "stem.tokens": jax.ShapeDtypeStruct(
            (10, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, None))
        )
    }
    array = load.read_weights(tensors(), TABLE, wanted, SIZES, layers=3)["stem.tokens"]
    first, *others = [shard.data for shard in array.addressable_shards]
    jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(first))
    assert first.is_deleted()
    for other in others:
        np.testing.assert_array_equal(np.asarray(other), tensors()["embed.weight"])


def test_alias_is_taken_only_for_a_missing_tensor() -> None:
    alias = {"embed.weight": "lm_head.weight"}
    found = tensors()
    found["lm_head.weight"] = found["embed.weight"] + 1
    arrays = load.read_weights(found, TABLE, leaves(), SIZES, layers=3, alias=alias)
    np.testing.assert_array_equal(np.asarray(arrays["stem.tokens"]), found["embed.weight"])
    del found["embed.weight"]
    arrays = load.read_weights(found, TABLE, leaves(), SIZES, layers=3, alias=alias)
    np.testing.assert_array_equal(np.asarray(arrays["stem.tokens"]), found["lm_head.weight"])


def test_ignored_names_match_whole_patterns() -> None:
    found = tensors() | {"layers.0.rotary.inv_freq": np.ones(2)}
    ignore = (r"layers\.\d+\.rotary\.inv_freq",)
    load.read_weights(found, TABLE, leaves(), SIZES, layers=3, ignore=ignore)
    with pytest.raises(load.WeightMismatch, match=r"unexpected \(1\): layers\.0\.rotary"):
        load.read_weights(found, TABLE, leaves(), SIZES, layers=3, ignore=("layers", "inv_freq"))


def test_refuses_all_misfits_in_one_error() -> None:
    found = tensors()
    found["layers.0.q.weight"] = np.ones((8, 6), np.float32)
    found["layers.1.norm.weight"] = np.ones(8, np.int8)
    found["layers.3.norm.weight"] = np.ones(8, np.float32)
    del found["embed.weight"], found["layers.2.q.weight"]
    with pytest.raises(load.WeightMismatch) as caught:
        load.read_weights(
            found, TABLE, leaves(), SIZES, layers=3, alias={"embed.weight": "lm_head.weight"}
        )
    assert caught.value.missing == ("embed.weight (or lm_head.weight)", "layers.2.q.weight")
    assert caught.value.unexpected == ("layers.3.norm.weight",)
    assert caught.value.misshapen == (
        "layers.0.q.weight is float32 (8, 6), should be float (8, 8)",
        "layers.1.norm.weight is int8 (8,), should be float (8,)",
    )
    text = str(caught.value)
    assert text.startswith("the checkpoint does not fit the model:\n  missing (2): embed.weight")
    assert text.endswith(
        "Check that configuration, weight files and model belong together and are complete."
    )


def test_a_long_list_is_shortened() -> None:
    names = [f"t{n}" for n in range(300)]
    text = str(load.WeightMismatch("m", (), names, ()))
    assert "unexpected (300): t0, t1" in text
    assert "t19 and 280 more" in text
    assert "missing" not in text


@pytest.mark.parametrize("layers", [0, 4])
def test_refuses_layers_the_checkpoint_has_not(layers: int) -> None:
    with pytest.raises(ValueError, match=f"{layers} layers asked for; the checkpoint has 3"):
        load.read_weights(tensors(), TABLE, leaves(), SIZES, layers=layers)


def test_refuses_a_model_that_is_not_the_tables() -> None:
    wanted = leaves()
    wanted["other"] = wanted.pop("last.q.w")
    wanted["stem.tokens"] = jax.ShapeDtypeStruct((10, 9), jnp.float32)
    message = (
        r"other: no row makes it; stem\.tokens: its row gives \(10, 8\), the leaf is \(10, 9\); "
        r"last\.q\.w: no such leaf"
    )
    with pytest.raises(ValueError, match=message):
        load.read_weights(tensors(), TABLE, wanted, SIZES, layers=3)


@pytest.mark.parametrize(
    ("value", "stored", "held"),
    [
        (np.nan, np.float32, jnp.float32),
        (-np.inf, np.float16, jnp.bfloat16),
        (np.nan, ml_dtypes.bfloat16, jnp.float16),
        (1e30, np.float32, jnp.float16),
    ],
)
def test_refuses_values_that_are_not_finite_in_the_leafs_dtype(
    value: float, stored: Any, held: Any
) -> None:
    found = tensors(stored)
    found["layers.1.q.weight"][7, 7] = value
    file = found["embed.weight"].dtype
    message = f"'layers.1.q.weight' holds NaN or infinity as {jnp.dtype(held)} .in the file: {file}"
    with pytest.raises(ValueError, match=message):
        load.read_weights(found, TABLE, leaves(dtype=held), SIZES, layers=3)


MEMORY = """
import re, sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from prompteol_jax.weights import load
from prompteol_jax.weights.folder import open_tensors
from prompteol_jax.weights.mapping import TensorMap

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, dtype = Path(sys.argv[1]), sys.argv[2]
sizes = {"L": 12, "D": 1024, "F": 4096, "V": 20000}
table = [TensorMap("embed", "embed", "V D -> V D"),
         TensorMap("layers.{l}.up", "block.up", "F D -> D F"),
         TensorMap("layers.{l}.down", "block.down", "D F -> F D")]
shapes = {"embed": (20000, 1024), "blocks.up": (11, 1024, 4096), "last.up": (1024, 4096),
          "blocks.down": (11, 4096, 1024), "last.down": (4096, 1024)}
leaves = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
jax.block_until_ready(jnp.zeros(8) + 1)
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
arrays = load.read_weights(open_tensors(folder), table, leaves, sizes, layers=12)
jax.block_until_ready(arrays)
done.set()
thread.join()
print((peak - before) / sum(array.nbytes for array in arrays.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "file"), [("bfloat16", "model.safetensors"), ("float32", "pytorch_model.bin")]
)
def test_loading_takes_little_more_memory_than_the_weights(
    tmp_path: Any, dtype: str, file: str
) -> None:
    """On CPU devices nothing is held twice, though the largest leaf is 0.38 of the weights."""
    import torch
    from safetensors.torch import save_file

    state = {"embed": torch.ones(20000, 1024).half()}
    for layer in range(12):
        state[f"layers.{layer}.up"] = torch.ones(4096, 1024).half()
        state[f"layers.{layer}.down"] = torch.ones(1024, 4096).half()
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(
        state, tmp_path / file
    )
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, dtype], capture_output=True, text=True, check=True
    )
    assert 0.95 <= float(run.stdout.split()[-1]) <= 1.1
