"""The described jobs are the real ones: they trace, lower for every platform, and count right."""

import dataclasses

import jax
import pytest

from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build, tiny
from prompteol_jax.models.memory import device_bytes
from prompteol_jax.models.published import PUBLISHED
from prompteol_jax.ops import platform
from prompteol_jax.ops.einsum import matrix_flops
from tpu.lengths import read_lengths
from tpu.plan.jobs import Encode, Train, linear_weights, sentence_flops

STREAM = {job: read_lengths(None, job) for job in ("encode", "train")}
JOBS = {
    "packed": Encode(
        config=tiny.CONFIG, lengths=STREAM["encode"], C=4, packed=True, batch_tokens=1024
    ),
    "buckets": Encode(config=tiny.CONFIG, lengths=STREAM["encode"], C=4, batch_tokens=512),
    "train": Train(config=tiny.CONFIG, lengths=STREAM["train"], C=4, batch=16, remat="full"),
}


@pytest.fixture
def mesh():
    return make_mesh((2, 2))


@pytest.mark.wide
@pytest.mark.fast("packed-tpu", "train-cuda")
@pytest.mark.parametrize(
    ("job", "name"), [("packed", "cuda"), ("packed", "tpu"), ("train", "cuda"), ("train", "tpu")]
)
def test_jobs_lower_for_accelerators(job, name, mesh, monkeypatch):
    monkeypatch.setattr(platform, "current", lambda: {"cuda": "gpu"}.get(name, name))
    jax.clear_caches()  # what is traced depends on the platform, which a mesh on the CPU denies
    (step,) = JOBS[job].steps(mesh)
    text = step.trace(mesh).lower(lowering_platforms=(name,)).as_text()
    jax.clear_caches()
    kernel = "tpu_custom_call" in text
    assert kernel == (name == "tpu" and job == "packed")
    assert "bitcast_convert" not in text.split("dot_general")[0]


@pytest.mark.parametrize(("full", "bytes_of_weight"), [(False, 2), (True, 12)])
def test_fsdp_halves_what_a_device_of_two_data_shards_holds(full, bytes_of_weight, mesh):
    job, held = dataclasses.replace(JOBS["train"], full=full), {}
    for fsdp in (False, True):
        (step,) = dataclasses.replace(job, fsdp=fsdp).steps(mesh)
        held[fsdp] = device_bytes(step.arguments)
    c = job.config
    on_a_model_shard = (linear_weights(c) + c.V * c.E) // mesh.shape["model"]
    positions = c.sizes["P"] * c.D
    assert held[False] - held[True] == bytes_of_weight * (on_a_model_shard + positions) // 2
    assert job.passes == 2 + full


def test_the_shares_of_the_buckets_are_a_whole(mesh):
    steps = list(JOBS["buckets"].steps(mesh))
    assert sum(step.share for step in steps) == pytest.approx(1)
    sentences = sum(step.share * step.sentences for step in steps)
    tokens = sum(step.share * step.tokens for step in steps)
    assert tokens / sentences == pytest.approx(STREAM["encode"].mean)


@pytest.mark.parametrize(
    ("counts", "shapes", "notes"),
    [
        ({20: 1, 50: 99}, 1, 0),
        ({20: 1, 500: 99}, 2, 0),
        ({500: 10}, 1, 0),
        ({20: 10_000, 500: 1}, 1, 1),  # too few to change the plan: told, not planned
        ({20: 10, 900: 10}, 2, 1),  # cut to the 512 positions of the model
    ],
)
def test_a_packed_stream_holds_its_long_sentences(mesh, counts, shapes, notes):
    stream = dataclasses.replace(STREAM["encode"], counts=counts)
    job = dataclasses.replace(JOBS["packed"], lengths=stream)
    steps = list(job.steps(mesh))
    assert (len(steps), len(job.notes)) == (shapes, notes)
    assert sum(step.share for step in steps) == pytest.approx(1)
    sentences = sum(step.share * step.sentences for step in steps)
    tokens = sum(step.share * step.tokens for step in steps)
    planned = stream.cut(tiny.CONFIG.P - job.C)
    assert tokens / sentences == pytest.approx(planned.mean, rel=0.01 if shapes == 2 else 0.05)


def test_a_scaled_job_has_so_many_times_the_load(mesh):
    assert JOBS["packed"].scaled(2.0, 8).batch_tokens == 2048
    own = dataclasses.replace(JOBS["packed"], batch_tokens=None)
    # A TPU's own slab is 2^22 activations; 2^24 where weights are made whole for each.
    assert own.scaled(1.0, 8).batch_tokens == 8 * 2**22 // tiny.CONFIG.D
    quantized = dataclasses.replace(own, quantize="nf4")
    assert quantized.scaled(1.0, 8).batch_tokens == 8 * 2**24 // tiny.CONFIG.D
    assert own.scaled(4.0, 8) == own.scaled(1.0, 32)
    assert JOBS["train"].scaled(4.0, 8).batch == 64


def test_packed_rows_hold_little_padding(mesh):
    (step,) = JOBS["packed"].steps(mesh)
    rows = step.arguments[1].ids_BT
    assert 0.95 < step.tokens / rows.size <= 1


def test_the_linear_layers_are_counted_whole(mesh):
    for name in ("opt-1.3b", "llama-3-8b"):
        config = PUBLISHED[name]
        leaves = build.leaves(build.abstract_decoder(config, mesh, dtype="bfloat16"))
        weights = (leaf.size for path, leaf in leaves.items() if path.endswith(".w"))
        assert linear_weights(config) == sum(weights)
    assert linear_weights(PUBLISHED["opt-6.7b"]) == 12 * 32 * 4096**2


@pytest.mark.parametrize("window", [None, 2, 7, 30])
def test_the_flop_of_a_sentence_are_those_of_its_tokens_and_what_they_see(window):
    c = dataclasses.replace(PUBLISHED["gemma-2-9b"], L=2, window_L=(window, None))
    own, C, heads, half = 9, 5, c.N * c.sizes["H"], 2 * c.D * c.sizes["K"] * c.sizes["H"]
    rest = 2 * c.D * heads + 3 * c.D * c.F
    seen = sum(min(C + n, window or C + n) for n in range(1, own + 1))
    scanned = 2 * own * (half + rest) + 4 * heads * seen
    last = 2 * own * half + 2 * rest + 4 * heads * (C + own)
    assert sentence_flops(c, own, C) == scanned + last


def test_products_are_counted_through_loops(mesh):
    def f(x, w):
        def layer(x, _):
            return x @ w, None

        return jax.lax.scan(layer, x @ w, length=5)[0]

    traced = jax.jit(f).trace(
        jax.ShapeDtypeStruct((8, 16), "f4"), jax.ShapeDtypeStruct((16, 16), "f4")
    )
    assert matrix_flops(traced.jaxpr.jaxpr) == 6 * 2 * 8 * 16 * 16
