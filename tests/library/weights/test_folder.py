"""Laws of hf: a folder written is the folder read, and transformers reads it the same."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from prompteol_jax.weights import folder as hf
from prompteol_jax.weights import load, mapping
from prompteol_jax.weights.mapping import TensorMap
from prompteol_jax.weights.safetensors import open_safetensors

SIZES = {"L": 3, "D": 8, "N": 4, "H": 2, "V": 10}
TABLE = (
    TensorMap("embed.weight", "stem.tokens", "V D -> V D"),
    TensorMap("layers.{l}.q.weight", "block.q.w", "(N H) D -> D N H"),
    TensorMap("layers.{l}.norm.weight", "block.norm.scale", "D -> D"),
)
SHAPES = {
    "stem.tokens": (10, 8),
    "blocks.q.w": (2, 8, 4, 2),
    "last.q.w": (8, 4, 2),
    "blocks.norm.scale": (2, 8),
    "last.norm.scale": (8,),
}


def drawn(dtype: Any = jnp.float32, sharding: Any = None) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    return {
        name: jax.device_put(random.standard_normal(shape).astype(dtype), sharding)
        for name, shape in SHAPES.items()
    }


def write(folder: Path, arrays: dict[str, jax.Array], dtype: Any = np.float32, **more: Any) -> None:
    hf.write_weights(
        folder, arrays, TABLE, SIZES, dtype=dtype, rename=lambda name: f"model.{name}", **more
    )


def read(folder: Path, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    leaves = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in SHAPES.items()}
    return load.read_weights(hf.open_tensors(folder), TABLE, leaves, SIZES, layers=3)


def same(a: dict[str, jax.Array], b: dict[str, jax.Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_round_trip_in_one_file(tmp_path: Path, dtype: Any) -> None:
    write(tmp_path, drawn(dtype), dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read(tmp_path, dtype), drawn(dtype))


def test_round_trip_from_a_mesh_with_replicas(tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    arrays = drawn()
    for name, spec in {"blocks.q.w": P(None, "data", "model"), "stem.tokens": P("model")}.items():
        arrays[name] = jax.device_put(arrays[name], NamedSharding(mesh, spec))
    write(tmp_path, arrays)
    assert same(read(tmp_path), drawn())


@settings(max_examples=20, deadline=None)
@given(max_shard_bytes=st.integers(0, 1500))
def test_round_trip_in_shards_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, max_shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write(folder, drawn(), max_shard_bytes=max_shard_bytes)
    assert same(read(folder), drawn())
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if len(shards) == 1:
        assert not index.exists()
        return
    contents = [safetensors.numpy.load_file(path) for path in shards]
    for content in contents:
        assert len(content) == 1 or sum(a.nbytes for a in content.values()) <= max_shard_bytes
    fields = json.loads(index.read_text())
    assert fields["weight_map"] == {
        name: path.name for path, content in zip(shards, contents, strict=True) for name in content
    }
    assert fields["metadata"]["total_size"] == sum(
        array.nbytes for content in contents for array in content.values()
    )


def test_writing_again_leaves_nothing_of_the_old_shards(tmp_path: Path) -> None:
    write(tmp_path, drawn(), max_shard_bytes=300)
    assert len(list(tmp_path.iterdir())) > 2
    write(tmp_path, {name: array + 1 for name, array in drawn().items()})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read(tmp_path), {name: array + 1 for name, array in drawn().items()})


def test_an_adapter_beside_the_model_is_written_and_leaves_it_alone(tmp_path: Path) -> None:
    write(tmp_path, drawn())
    write(tmp_path, {name: array + 1 for name, array in drawn().items()}, stem="adapter_model")
    assert same(read(tmp_path), drawn())
    found = open_safetensors(tmp_path / "adapter_model.safetensors")
    np.testing.assert_array_equal(found["model.embed.weight"], drawn()["stem.tokens"] + 1)


def test_a_broken_off_writing_leaves_the_old_weights(tmp_path: Path) -> None:
    write(tmp_path, drawn())
    broken = drawn() | {"last.norm.scale": jnp.full(8, jnp.inf)}
    with pytest.raises(ValueError, match=r"'layers\.2\.norm\.weight' holds NaN or infinity"):
        write(tmp_path, broken, max_shard_bytes=300)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read(tmp_path), drawn())


def test_refuses_arrays_that_are_not_the_tables(tmp_path: Path) -> None:
    arrays = drawn()
    arrays["other"] = arrays.pop("last.q.w")
    arrays["stem.tokens"] = jnp.ones((10, 9))
    message = (
        r"weights cannot be written: other: not in the weight table; stem\.tokens: has shape "
        r"\(10, 9\), should be \(10, 8\); last\.q\.w: missing"
    )
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "new", arrays)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "safetensors-shards", "bin-shards"])
def test_every_layout_of_a_folder_gives_the_same_tensors(
    tmp_path: Path, kind: str, prefix: str
) -> None:
    tensors = {f"{prefix}layers.{n}.w": torch.full((2, 3), float(n)) for n in range(3)}
    suffix, _, sharded = kind.partition("-")
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    save = {"safetensors": safetensors.torch.save_file, "bin": torch.save}[suffix]
    if sharded:
        files = {name: f"{stem}-{n + 1:05}-of-00003.{suffix}" for n, name in enumerate(tensors)}
        for name, file in files.items():
            save({name: tensors[name]}, tmp_path / file)
        index = {"metadata": {}, "weight_map": files}
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    else:
        save(tensors, tmp_path / f"{stem}.{suffix}")
    found = hf.open_tensors(tmp_path)
    assert found.keys() == {f"layers.{n}.w" for n in range(3)}
    assert all((found[f"layers.{n}.w"] == n).all() for n in range(3))


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert hf.open_tensors(tmp_path)["w"][0] == 0
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert hf.open_tensors(tmp_path)["w"][0] == 1


def test_lm_head_keeps_its_name(data: Path) -> None:
    found = hf.open_tensors(data / "weights" / "tinystories-656k")
    assert found["lm_head.weight"].shape == (2048, 128)
    assert "layers.0.self_attn.q_proj.weight" in found


def test_refuses_two_tensors_of_one_name(tmp_path: Path) -> None:
    tensors = {"model.w": torch.ones(1), "w": torch.zeros(1)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'w' occurs twice|'model.w' occurs twice"):
        hf.open_tensors(tmp_path)


def test_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no weights .* Found: none"):
        hf.open_tensors(tmp_path / "absent")
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"Wanted: model\.safetensors .* Found: flax_model"):
        hf.open_tensors(tmp_path)


INDEX = "model.safetensors.index.json"


def test_refuses_missing_shards_all_at_once(tmp_path: Path) -> None:
    shards = {"a": "a.safetensors", "b": "b.safetensors", "c": "c.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    safetensors.torch.save_file({"b": torch.ones(1)}, tmp_path / "b.safetensors")
    message = "2 of 3 shards are missing: a.safetensors, c.safetensors"
    with pytest.raises(FileNotFoundError, match=message):
        hf.open_tensors(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        *("../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", "..", ""),
        *("a\0.safetensors", "\ud800.safetensors", "a" * 250 + ".safetensors"),
    ],
)
def test_refuses_shards_outside_the_folder(tmp_path: Path, shard: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(
        ValueError, match=r"shards must be \.safetensors files in the folder of the index"
    ):
        hf.open_tensors(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'),
        *('{"weight_map": ' + "[" * 100_000, '{"weight_map": {"\\n": "a.safetensors"}}'),
    ],
)
def test_refuses_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ValueError, match=r"index\.json(:| is not)"):
        hf.open_tensors(tmp_path)


def test_an_index_naming_absent_tensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys("abc", "s.safetensors")}))
    safetensors.torch.save_file({"b": torch.ones(1)}, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="the index names tensors that its shards lack: a, c"):
        hf.open_tensors(tmp_path)


def llama_table() -> tuple[TensorMap, ...]:
    layer = "layers.{l}."
    return (
        TensorMap("embed_tokens.weight", "embed", "V D -> V D"),
        TensorMap("norm.weight", "norm", "D -> D"),
        TensorMap("lm_head.weight", "head", "V D -> D V"),
        TensorMap(f"{layer}self_attn.q_proj.weight", "block.q", "(N H) D -> D N H"),
        TensorMap(f"{layer}self_attn.k_proj.weight", "block.k", "(K H) D -> D K H"),
        TensorMap(f"{layer}self_attn.v_proj.weight", "block.v", "(K H) D -> D K H"),
        TensorMap(f"{layer}self_attn.o_proj.weight", "block.o", "D (N H) -> N H D"),
        TensorMap(f"{layer}mlp.gate_proj.weight", "block.gate", "F D -> D F"),
        TensorMap(f"{layer}mlp.up_proj.weight", "block.up", "F D -> D F"),
        TensorMap(f"{layer}mlp.down_proj.weight", "block.down", "D F -> F D"),
        TensorMap(f"{layer}input_layernorm.weight", "block.norm1", "D -> D"),
        TensorMap(f"{layer}post_attention_layernorm.weight", "block.norm2", "D -> D"),
    )


def test_transformers_loads_what_was_read_and_written(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "there", max_shard_size="5KB")
    config.save_pretrained(tmp_path / "back")
    table = llama_table()
    sizes = {"L": 3, "D": 16, "N": 4, "K": 2, "H": 4, "F": 24, "V": 40}
    leaves = {}
    for target, (names, stacked, dims) in mapping.expand(table, 3).items():
        shape = (len(names),) * stacked + tuple(sizes[a] for a in dims.split("->")[1].split())
        leaves[target] = jax.ShapeDtypeStruct(shape, jnp.float32)
    tensors = hf.open_tensors(tmp_path / "there")
    arrays = load.read_weights(tensors, table, leaves, sizes, layers=3)
    hf.write_weights(
        tmp_path / "back",
        arrays,
        table,
        sizes,
        dtype="float32",
        rename=lambda name: name if name.startswith("lm_head") else f"model.{name}",
        max_shard_bytes=5000,
    )
    again, notes = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(notes.values())
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
