"""The command line of the plan: what it refuses, how it ranks, what it writes."""

import dataclasses
import json
from pathlib import Path

import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.models.published import PUBLISHED
from tpu.chips import parse_topology
from tpu.plan import command as plan
from tpu.plan import report, search
from tpu.plan.command import PlanOptions
from tpu.plan.planning import Plan

pytestmark = pytest.mark.unit

FITTING = Plan(
    model="opt-1.3b",
    job="encode",
    topology="v5e:2x4",
    mesh="8x1",
    shapes="512 rows of 128",
    fits=True,
    hbm_bytes=16 * 2**30,
    argument_bytes=3 * 2**30,
    temp_bytes=2**30,
    needed_bytes=4 * 2**30,
    flops=1e13,
    bytes=1e9,
    collectives=[
        {"kind": "all-reduce", "source": "mlp", "count": 62, "bytes": 6200, "link_s": 0.01}
    ],
    compute_s=0.1,
    collective_s=0.01,
    copy_s=0.0,
    kernel_s=0.01,
    estimated_s=0.12,
    link_s=0.01,
    roofline_s=0.05,
    bound="compute",
    sentences_per_s=1000.0,
    useful_mfu=0.7,
    utilization=0.72,
    real_tokens=65000.0,
    unpriced={"sort": 1.0},
    compile_s=5.0,
)
SLOWER = dataclasses.replace(FITTING, mesh="4x2", estimated_s=0.2)
LARGE = dataclasses.replace(
    FITTING,
    **{"mesh": "2x4", "fits": False, "needed_bytes": 20 * 2**30},
    **dict.fromkeys(("estimated_s", "sentences_per_s", "useful_mfu", "utilization")),
)


def job_of(**options):
    return plan.make_job(PlanOptions(**{"model": "opt-1.3b"} | options))


def test_tokens_are_those_of_every_text_and_its_prompt(tmp_path):
    job = job_of(model="llama-3-8b", tokens=4096)
    assert list(job.lengths.counts) == [4096 - job.C]
    with pytest.raises(UserError, match="--tokens must be more than the ids of the .* prefix"):
        job_of(tokens=job.C)
    with pytest.raises(UserError, match="--tokens says how long all texts are"):
        job_of(tokens=4096, lengths=tmp_path / "lengths.json")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": "opt-7b"}, "Shapes known by name: opt-125m"),
        ({"model": "opt-13"}, r"did you mean opt-13b\?"),
        ({"template": "nonsense"}, "no prefix length"),
        ({"template": "eol-icl-2.7"}, r"did you mean eol-icl-2.7b\?"),
        ({"job": "train", "chunks": 0}, "--chunks 0 must be at least 1"),
        ({"job": "train", "batch": 0}, "--batch 0 must be at least 2"),
        ({"batch_tokens": -5}, "--batch-tokens -5 must be at least 1"),
        ({"batch": 128}, "--batch changes nothing in --job encode"),
        ({"job": "train", "packed": False}, "--packed changes nothing in --job train"),
        ({"full": True}, "--full changes nothing in --job encode"),
        ({"job": "train", "full": True, "quantize": "nf4"}, "--full trains every weight, --quant"),
        ({"job": "train", "fsdp": True, "remat": "none"}, "--remat none would keep what --fsdp"),
        ({"plot": Path("x.svg")}, "--plot changes nothing in a plan without --sweep"),
        ({"topology": "v5e:3x5", "mesh": "8"}, "'v5e:3x5' is no slice .*; mesh '8' is not DATAx"),
        ({"sweep": "v5e:2x4,v5e:2x5"}, "'v5e:2x5' is no slice"),
        ({"sweep": "v5e:2x4", "topology": "v5e:4x4"}, "--topology changes nothing in --sweep"),
    ],
)
def test_a_wrong_job_is_refused_before_any_work(options, match):
    with pytest.raises(UserError, match=match):
        job_of(**options)


def write_lengths(path: Path, counts: dict[int, int]) -> Path:
    path.write_text(json.dumps({"source": "mine", "prefix": {"eol": 7}, "counts": counts}))
    return path


def test_training_refuses_sentences_that_the_model_does_not_hold(tmp_path):
    path = write_lengths(tmp_path / "lengths.json", {2042: 1})
    with pytest.raises(UserError, match="a sentence of 2042 ids, opt-1.3b takes 2041"):
        job_of(job="train", lengths=path)
    assert job_of(lengths=path).notes == ("1 of 1 sentences are cut to the model's 2048 ids",)


def test_no_slice_of_a_sweep_is_planned_where_one_has_no_mesh(monkeypatch):
    monkeypatch.setattr(search, "make_plan", lambda *_: pytest.fail("planned"))
    slices = [parse_topology("v5e:2x4"), parse_topology("v5e:4x4")]
    with pytest.raises(UserError, match="v5e:4x4 has 16"):
        search.sweep("opt-1.3b", job_of(), slices, "8x1")


def test_a_mesh_decides_which_slice_auto_takes(monkeypatch):
    monkeypatch.setattr(
        search, "_ranked", lambda name, job, topology, mesh: [topology_of(topology)]
    )
    (found,) = search.ranking("opt-1.3b", job_of(), "auto", "4x2")
    assert found.topology == "v5e:2x4"
    with pytest.raises(UserError, match="mesh 3x1 has 3 devices; slices are v5e:1x1, "):
        search.ranking("opt-1.3b", job_of(), "auto", "3x1")


def topology_of(topology):
    return dataclasses.replace(FITTING, topology=str(topology))


@pytest.mark.parametrize(("mesh", "match"), [("4x1", "v5e:2x4 has 8"), ("8", "not DATAxMODEL")])
def test_a_wrong_mesh_is_refused(mesh, match):
    with pytest.raises(ValueError, match=match):
        search.meshes(job_of(), parse_topology("v5e:2x4"), mesh)


def test_auto_tries_every_mesh_that_fits_the_model_and_the_batch():
    topology = parse_topology("v5e:2x4")
    assert search.meshes(job_of(), topology, "auto") == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert search.meshes(job_of(job="train", batch=12), topology, "auto") == [
        (4, 2),
        (2, 4),
        (1, 8),
    ]
    assert search.meshes(job_of(model="opt-125m"), topology, "auto") == [(8, 1), (4, 2), (2, 4)]


def test_the_fastest_comes_first_and_what_does_not_fit_last():
    ranked = sorted([LARGE, SLOWER, FITTING], key=search.rank)
    assert [p.mesh for p in ranked] == ["8x1", "4x2", "2x4"]


def test_the_smallest_slice_that_fits_is_found(monkeypatch):
    tried = []

    def pretend(name, job, topology, mesh):
        tried.append(str(topology))
        return dataclasses.replace(FITTING, fits=topology.devices >= 8)

    monkeypatch.setattr(search, "make_plan", pretend)
    plans = search.ranking("opt-1.3b", job_of(), "auto", "auto")
    assert plans[0].fits
    assert list(dict.fromkeys(tried)) == ["v5e:1x1", "v5e:2x2", "v5e:2x4"]


def test_the_command_prints_and_writes_the_winner_and_the_ranking(monkeypatch, tmp_path, capsys):
    plans = {
        "8x1": FITTING,
        "4x2": SLOWER,
        "2x4": LARGE,
        "1x8": dataclasses.replace(LARGE, mesh="1x8"),
    }
    monkeypatch.setattr(
        search, "make_plan", lambda name, job, topology, mesh: plans[f"{mesh[0]}x{mesh[1]}"]
    )
    path = tmp_path / "plan.json"
    plan.main(["--model", "opt-1.3b", "--json", str(path)])
    written = json.loads(path.read_text())
    assert written["mesh"] == "8x1"
    assert [p["mesh"] for p in written["ranking"]] == ["8x1", "4x2", "2x4", "1x8"]
    shown = capsys.readouterr().out
    for text in ("compiler-estimated", "fits with 12.00 GiB left", "sort x1", "does not fit"):
        assert text in shown


def test_a_job_that_does_not_fit_says_by_how_much(capsys):
    report.print_plans([dataclasses.replace(LARGE, notes=["1 of 9 sentences are not planned"])])
    shown = capsys.readouterr().out
    assert "too much by 4.00 GiB" in shown
    assert "1 of 9 sentences are not planned" in shown


def test_a_sweep_has_a_table_and_a_plot(monkeypatch, tmp_path, capsys):
    def pretend(name, job, topology, mesh):
        rate = job.batch / 256 * 1000.0
        shape = f"{mesh[0]}x{mesh[1]}"
        return dataclasses.replace(FITTING, mesh=shape, sentences_per_s=rate)

    monkeypatch.setattr(search, "make_plan", pretend)
    options = ["--model", "opt-1.3b", "--job", "train", "--sweep", "v5e:2x4,v5e:4x4"]
    plot, written = tmp_path / "plot.svg", tmp_path / "sweep.json"
    plan.main([*options, "--mesh", "auto", "--plot", str(plot), "--json", str(written)])
    rows = json.loads(written.read_text())["sweep"]
    assert [(row["kind"], row["sentences_per_s"]) for row in rows] == [
        *(("weak", 1000.0), ("weak", 2000.0), ("strong", 1000.0), ("strong", 1000.0))
    ]
    assert "<svg" in plot.read_text()
    assert "scaling" in capsys.readouterr().out


def test_every_name_of_a_published_shape_gives_its_config():
    assert plan.find_config("facebook/opt-6.7b") == PUBLISHED["opt-6.7b"]
