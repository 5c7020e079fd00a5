"""Jobs keep within stored bounds on TPUs, as libtpu's compiler sees them.

Needs libtpu: `make plan-test` runs this in an environment of its own. After a change that is meant,
`PLAN_BOUNDS=write make plan-test` stores what it found.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tpu.plan import command as plan
from tpu.plan import search

BOUNDS = Path(__file__).with_name("bounds.json")
CASES = {
    f"{job} opt-1.3b {topology} {mesh}": plan.PlanOptions(
        model="opt-1.3b", job=job, topology=topology, mesh=mesh
    )
    for topology, mesh in (("v5e:2x4", "4x2"), ("v6e:2x4", "8x1"))
    for job in ("encode", "train")
} | {
    f"train {model} v5e:4x4 16x1": plan.PlanOptions(
        model=model, job="train", topology="v5e:4x4", mesh="16x1"
    )
    for model in ("opt-6.7b", "llama-2-7b")  # the kernels of either family, on one model shard
}
CASES["encode opt-1.3b nf4 v5p:2x2x1 4x1"] = plan.PlanOptions(  # libtpu once aborted over it
    model="opt-1.3b", topology="v5p:2x2x1", mesh="4x1", quantize="nf4"
)
# Long texts; and a family whose matrices are sharded over data too, and gathered, to fit.
CASES |= {
    f"encode {model} {topology} 8x1, texts of {tokens}": plan.PlanOptions(
        model=model, topology=topology, mesh="8x1", tokens=tokens
    )
    for model, topology, tokens in (
        ("llama-3-8b", "v5e:2x4", 4096),
        ("llama-3-8b", "v6e:2x4", 4096),
        ("qwen3-8b", "tpu7x:2x2x1", 16384),
    )
}
CASES["encode gemma-2-9b v5e:2x4 8x1, fsdp"] = plan.PlanOptions(
    model="gemma-2-9b", topology="v5e:2x4", mesh="8x1", fsdp=True, batch_tokens=32768
)
RELATIVE = {"needed_bytes": 0.02, "estimated_s": 0.05}

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is missing: `make plan-test` runs this in an environment that has it",
)


def measured(found):
    """What is held to the bounds: memory, time, and every kind of collective."""
    kinds = {}
    for collective in found.collectives:
        entry = kinds.setdefault(collective["kind"], {"runs": 0, "bytes": 0})
        entry["runs"] += round(collective["count"])
        entry["bytes"] += round(collective["bytes"])
    return {
        "needed_bytes": found.needed_bytes,
        "estimated_s": found.estimated_s,
        "collectives": dict(sorted(kinds.items())),
    }


def differences(stored, now):
    """What left its bounds, one readable line each."""
    lines = [
        f"{name}: {stored[name]:.6g} stored, {now[name]:.6g} now ({change:+.1%})"
        for name, most in RELATIVE.items()
        if abs(change := now[name] / stored[name] - 1) > most
    ]
    for kind in sorted({*stored["collectives"], *now["collectives"]}):
        was, is_ = (x["collectives"].get(kind, {"runs": 0, "bytes": 0}) for x in (stored, now))
        if was["runs"] != is_["runs"] or abs(was["bytes"] - is_["bytes"]) > 0.02 * was["bytes"]:
            lines.append(
                f"{kind}: {was['runs']} runs of {was['bytes']:,} bytes in all stored, "
                f"{is_['runs']} of {is_['bytes']:,} now"
            )
    return lines


@needs_libtpu
@pytest.mark.parametrize("case", CASES)
def test_plans_keep_within_their_bounds(case):
    options = CASES[case]
    job = plan.make_job(options)
    (found,) = search.ranking(options.model, job, options.topology, options.mesh)
    assert found.fits
    now = measured(found)
    bounds = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    if os.environ.get("PLAN_BOUNDS") == "write":
        BOUNDS.write_text(json.dumps(bounds | {case: now}, indent=1, sort_keys=True) + "\n")
        return
    left = differences(bounds[case], now)
    assert not left, "\n".join([f"{case} left its bounds:", *left])
    if options.job == "encode" and not options.fsdp:
        assert "all-gather" not in now["collectives"], "frozen weights are gathered"


@needs_libtpu
def test_chips_described_core_by_core_are_refused():
    options = plan.PlanOptions(model="opt-125m", job="encode", topology="v4:2x2x1", mesh="4x1")
    with pytest.raises(ValueError, match="v4:2x2x1 is described core by core .* can be planned"):
        search.ranking(options.model, plan.make_job(options), options.topology, options.mesh)


def test_a_difference_is_readable():
    stored = {
        "needed_bytes": 1000,
        "estimated_s": 0.1,
        "collectives": {"all-reduce": {"runs": 2, "bytes": 100}},
    }
    now = {
        "needed_bytes": 1010,
        "estimated_s": 0.12,
        "collectives": {"all-gather": {"runs": 1, "bytes": 7}},
    }
    assert differences(stored, stored) == []
    assert differences(stored, now) == [
        "estimated_s: 0.1 stored, 0.12 now (+20.0%)",
        "all-gather: 0 runs of 0 bytes in all stored, 1 of 7 now",
        "all-reduce: 2 runs of 100 bytes in all stored, 0 of 0 now",
    ]
