"""Paired bootstrap: exact statistics, honest intervals, and files that must not be compared."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval.compare import command as compare
from eval.shared import bootstrap, results
from prompteol_jax.cli import main as cli
from prompteol_jax.errors import UserError

pytestmark = pytest.mark.unit


def graded(n, noise, seed, gold=None):
    """Gold scores with many ties, and cosines that follow them with some noise."""
    state = np.random.default_rng(seed)
    gold = np.round(2 * state.uniform(0, 5, n)) / 2 if gold is None else gold
    return {"gold": gold, "cosine": np.round(gold + noise * state.normal(size=n), 1)}


def test_spearman_of_each_resample_is_that_of_scipy():
    a, b = graded(40, 3, 0), graded(40, 2, 1, graded(40, 3, 0)["gold"])
    points, got = bootstrap.spearman_samples((a, b), 30, np.random.default_rng(3))
    picked = np.random.default_rng(3).integers(40, size=(30, 40))

    def spearman(it, rows):
        return 100 * stats.spearmanr(it["gold"][rows], it["cosine"][rows]).statistic

    assert points == pytest.approx([spearman(a, slice(None)), spearman(b, slice(None))])
    expected = [[spearman(side, rows) for rows in picked] for side in (a, b)]
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_accuracy_intervals_are_those_of_resampled_examples():
    state = np.random.default_rng(0)
    gold = state.integers(0, 2, 300)
    a, b = (
        {"gold": gold, "predicted": np.where(state.random(300) < p, gold, 1 - gold)}
        for p in (0.7, 0.8)
    )
    points, (of_a, of_b) = bootstrap.accuracy_samples((a, b), 20_000, state)
    got = of_b - of_a
    rows = state.integers(300, size=(20_000, 300))
    difference = (b["predicted"] == gold) * 1.0 - (a["predicted"] == gold)
    expected = 100 * difference[rows].mean(axis=1)
    assert points[1] - points[0] == pytest.approx(100 * difference.mean())
    quantiles = [2.5, 25, 50, 75, 97.5]
    np.testing.assert_allclose(
        np.percentile(got, quantiles), np.percentile(expected, quantiles), atol=0.35
    )
    assert got.std() == pytest.approx(expected.std(), rel=0.03)


def test_intervals_of_equal_models_hold_zero_as_often_as_they_say():
    held = 0
    for seed in range(100):
        a = graded(60, 2, seed)
        b = graded(60, 2, seed + 1000, a["gold"])
        found = bootstrap.compare({"x": a}, {"x": b}, resamples=300, confidence=0.8, seed=seed)
        held += found["x"].noise
    assert 65 <= held <= 93


def test_a_file_against_itself_is_noise_and_sides_change_the_sign():
    a = {"one": graded(50, 2, 0), "two": graded(70, 1, 1)}
    b = {name: graded(len(it["gold"]), 4, 5, it["gold"]) for name, it in a.items()}
    same = bootstrap.compare(a, a, resamples=200)
    assert all(part.noise and part.low == part.high == 0 for part in same.values())
    there, back = bootstrap.compare(a, b, resamples=200), bootstrap.compare(b, a, resamples=200)
    for name in ("one", "two", "average"):
        assert there[name].low == pytest.approx(-back[name].high)
        assert there[name].difference == pytest.approx(-back[name].difference)
    assert there["average"].difference == pytest.approx(
        (there["one"].difference + there["two"].difference) / 2
    )
    assert there["average"].high < 0


def test_resamples_without_a_correlation_are_left_out_and_counted():
    gold = np.array([0.0, 0, 0, 5, 5])
    a = {"x": {"gold": gold, "cosine": np.array([0.1, 0.5, 0.3, 0.2, 0.9])}}
    b = {"x": {"gold": gold, "cosine": np.array([0.1, 0.2, 0.3, 0.8, 0.9])}}
    found = bootstrap.compare(a, b, resamples=2000)["x"]
    assert 0.04 * 2000 < found.left_out < 0.2 * 2000  # 0.6**5 + 0.4**5 = 0.088, and ties of cosines
    assert np.isfinite([found.low, found.high]).all() and found.low <= found.high
    assert bootstrap.intervals(a, resamples=200).keys() == {"x", "average"}


def test_too_few_different_values_have_no_interval_and_no_verdict():
    first, last = np.eye(10)[0], np.eye(10)[9]
    few = {"x": {"gold": first, "cosine": last}}  # 0.42 of the resamples hold both ones
    with pytest.raises(UserError, match=r"x: no interval, since only \d+ of 100 resamples have"):
        bootstrap.compare(few, few, resamples=100)
    assert bootstrap.intervals(few, resamples=100) == {}
    tied = {"x": {"gold": first, "cosine": np.ones(10)}}
    with pytest.raises(UserError, match="x: no rank correlation, since its gold or its cosines"):
        bootstrap.compare(few, tied, resamples=100)


def test_intervals_of_scores_hold_the_score_and_shrink_with_the_pairs():
    widths = []
    for n in (50, 5000):
        it = {"x": graded(n, 1, n)}
        low, high = bootstrap.intervals(it)["x"]
        assert low < 100 * stats.spearmanr(it["x"]["gold"], it["x"]["cosine"]).statistic < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


@pytest.fixture
def write(tmp_path):
    """Writes a result file of some examples."""

    def write_file(name, examples, /, **more):
        result = {"model": name, "template": "eol", "dtype": "float32", "examples": examples}
        results.write(tmp_path / f"{name}.json", result | more)
        return str(tmp_path / f"{name}.json")

    return write_file


def test_the_command_prints_verdicts_and_writes_them(write, tmp_path, capsys):
    a = {"STS12": graded(300, 2, 0), "STS13": graded(50, 2, 1)}
    b = {"STS12": graded(300, 0.2, 2, a["STS12"]["gold"]), "STS13": a["STS13"]}
    out = tmp_path / "new" / "out.json"
    files = [write("a", a), write("b", b)]
    cli.main(["compare", *files, "--json", str(out), "--resamples", "500"])
    shown = capsys.readouterr().out
    rows = {
        name: line for line in shown.splitlines() for name in ("STS12", "STS13") if name in line
    }
    assert "B is better" in rows["STS12"] and "noise" in rows["STS13"]
    result = results.read(out)
    assert result["measure"] == "100 x Spearman"
    assert result["tasks"]["STS12"]["noise"] is False
    assert result["average"]["low"] > 0
    assert result["tasks"]["STS12"]["a"] == pytest.approx(
        100 * stats.spearmanr(*(a["STS12"][key] for key in ("gold", "cosine"))).statistic
    )


def test_files_and_every_setting_that_differs_are_named(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    it = {"one": graded(50, 2, 0)}
    made = {"date": "2026-11-30 10:00 UTC", "version": "0.1.0", "pooling": "last"}
    files = [
        write("a", it, model="m", **made),
        write("b", it, model="m", layer=1, adapter="runs/x", **made | {"pooling": "mean"}),
    ]
    cli.main(["compare", *files, "--resamples", "100", "--json", str(tmp_path / "out.json")])
    shown = capsys.readouterr().out
    assert f"A: {files[0]}: m, template eol, float32 (2026-11-30 10:00 UTC, version 0.1.0)" in shown
    assert f"B: {files[1]}: m, adapter runs/x, template eol, float32, layer 1, mean poo" in shown
    for line in ("adapter: none | runs/x", "layer: last | 1", "pooling: last | mean"):
        assert line in shown
    assert results.read(tmp_path / "out.json")["differ_in"]["layer"] == ["last", "1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": "eval.layers", "examples": None}, "is a result of eval.layers; give files of"),
        ({"examples": {}}, "holds no examples; give a file that eval.sts or .* wrote"),
        ({"examples": {"one": {"gold": [1], "cosine": [2]}}}, "its examples are damaged"),
        ({"data": {"sha256": "b"}}, "their gold is the same, but their sentences differ"),
    ],
)
def test_what_holds_nothing_to_compare_is_refused_by_name(changes, message, write):
    it = {"one": graded(9, 1, 0)}
    files = write("a", it, data={"sha256": "a"}), write("b", it, **changes)
    with pytest.raises(ValueError, match=message):
        compare.run(compare.CompareOptions(files=tuple(map(Path, files))))


def test_a_result_without_its_settings_is_refused(write, tmp_path):
    results.write(tmp_path / "bare.json", {"model": "m", "examples": {}})
    files = (tmp_path / "bare.json", Path(write("a", {"one": graded(9, 1, 0)})))
    with pytest.raises(ValueError, match="bare.json lacks template, dtype; give files of"):
        compare.run(compare.CompareOptions(files=files))


def test_refuses_what_cannot_be_compared_naming_every_difference(write):
    gold = np.array([1.0, 2.0, 3.0, 4.0])
    it = {"gold": gold, "cosine": gold}
    a = {"one": it, "two": it, "three": it, "four": it}
    b = {
        "two": {"gold": gold[:3], "cosine": gold[:3]},
        "three": {"gold": gold[::-1].copy(), "cosine": gold},
        "four": {"gold": gold, "predicted": gold},
    }
    options = compare.CompareOptions(files=(Path(write("a", a)), Path(write("b", b))))
    with pytest.raises(ValueError) as caught:
        compare.run(options)
    lines = str(caught.value).splitlines()
    assert lines[0] == "these files cannot be compared:"
    assert lines[1].endswith("b.json lacks one")
    assert lines[2:] == [
        "  two: 4 examples, and 3",
        "  three: 4 of 4 gold values differ",
        "  four: the files hold examples of two kinds of scores",
    ]


def test_refuses_files_without_examples_and_wrong_settings(write, tmp_path, capsys):
    good = write("good", {"one": graded(9, 1, 0)})
    bare = write("bare", {})
    (tmp_path / "text.json").write_text("hello")
    for arguments, message in (
        ([good, bare], "bare.json holds no examples; give a file that eval.sts or"),
        ([good, str(tmp_path / "text.json")], "text.json is no result file"),
        ([good, "nowhere.json", "--resamples", "1"], "--resamples 1 must be at least 100"),
        ([good, "nowhere.json"], "no file nowhere.json; give two files of eval.sts or"),
        ([good, good, "--confidence", "95"], "--confidence 95.0 must be above 0 and below 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["compare", *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
