"""The table of what fits where says what the plans say, and plans nothing twice."""

import json

import pytest

from tpu import fits

PLAN = {
    "mesh": "4x2",
    "fits": True,
    "hbm_bytes": 16 * fits.GIB,
    "needed_bytes": 13 * fits.GIB,
    "sentences_per_s": 1000.0,
    "chunks": 1,
}
LARGE = PLAN | {"fits": False, "needed_bytes": 18 * fits.GIB, "sentences_per_s": None}


@pytest.fixture
def planned(monkeypatch):
    """What was planned, in order; opt-13b is too large for one chip, and has no mesh on 2x4."""
    asked = []

    def plan(options, model, slice_):
        asked.append((options.job, model, slice_))
        if model == "opt-13b":
            return LARGE if slice_ == "v5e:1x1" else None
        return PLAN | {"chunks": 16} if options.job == "train" else PLAN

    monkeypatch.setattr(fits, "_planned", plan)
    return asked


FLAGS = ["--models", "opt-1.3b,opt-13b", "--slices", "v5e:1x1,v5e:2x4"]


def test_the_table_is_markdown_of_every_model_and_slice(planned, capsys):
    fits.main(FLAGS)
    # 8 chips for a million sentences at a thousand a second are 8,000 chip seconds.
    cell = "4x2: 1,000/s, 2.22 h, 3.0 GiB left"
    assert capsys.readouterr().out.splitlines() == [
        "| encode | v5e:1x1 | v5e:2x4 |",
        "| --- | --- | --- |",
        f"| opt-1.3b | {cell} | {cell} |",
        "| opt-13b | 2.0 GiB too much | no mesh |",
    ]


def test_a_step_that_fits_in_chunks_says_so(planned, capsys):
    fits.main(["--models", "opt-1.3b", "--slices", "v5e:2x4", "--job", "train"])
    cell = "4x2, 16 chunks: 1,000/s, 2.22 h, 3.0 GiB left"
    assert capsys.readouterr().out.splitlines()[-1] == f"| opt-1.3b | {cell} |"


def test_what_the_file_holds_is_not_planned_again(planned, tmp_path, capsys):
    file = tmp_path / "fits.json"
    fits.main([*FLAGS, "--json", str(file)])
    assert len(planned) == len(json.loads(file.read_text())) == 4
    once = capsys.readouterr().out
    fits.main([*FLAGS, "--json", str(file)])
    assert (len(planned), capsys.readouterr().out) == (4, once)
    fits.main([*FLAGS, "--json", str(file), "--job", "train"])
    assert planned[4:] == [("train", model, slice_) for _, model, slice_ in planned[:4]]
    # Encoding recomputes nothing, so how it would does not matter.
    fits.main([*FLAGS, "--json", str(file), "--remat", "none"])
    assert len(planned) == 8


def test_wrong_names_are_refused_before_anything_is_planned(planned, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fits.main(["--slices", "v5e:2x4,v5e:3", "--models", "opt-1.3b,opt-13"])
    error = capsys.readouterr().err
    assert "'v5e:3' is not CHIP:AxB" in error
    assert "did you mean opt-13b?" in error
    (tmp_path / "fits.json").write_text('[{"key": 3}]')
    with pytest.raises(SystemExit):
        fits.main([*FLAGS, "--json", str(tmp_path / "fits.json")])
    assert "is no file of python -m tpu.fits --json" in capsys.readouterr().err
    assert not planned


def test_a_plan_of_another_version_is_made_again(planned, tmp_path, monkeypatch):
    file = tmp_path / "fits.json"
    fits.main([*FLAGS, "--json", str(file)])
    monkeypatch.setattr(fits, "_versions", lambda: "libtpu 1")
    fits.main([*FLAGS, "--json", str(file)])
    assert len(planned) == 8
