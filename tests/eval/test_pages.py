"""Every page of the project works in a real browser, on a phone and on a desk."""

import json

import browser
import numpy as np
import pytest

from eval.demos import report as demos_report
from eval.layers import report as layers_report
from eval.mteb import report as mteb_report
from eval.reproduce import command as reproduce
from eval.shared import html as report
from eval.sts import command as sts
from eval.transfer import report as transfer_report
from eval.transfer.tasks import SOURCES
from prompteol_jax.text.template import TEMPLATES
from train.run import report as train_report

LONG = ("a word", "https://example.org/" + "a" * 300, "x" * 300)


@pytest.fixture(scope="module")
def chromium():
    found = browser.find()
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(browser.NAMES)}")
    return found


def sts_pages(folder, data, encoder, monkeypatch):
    """The pages of eval.sts and eval.reproduce."""
    long_name = "an/" + "x" * 70 + "-" + "y" * 70
    monkeypatch.setattr(sts.StsOptions, "load", lambda self, default_dtype: encoder)
    encoder.model_name = long_name
    sts.run(sts.StsOptions(model=long_name, data=data, report=folder / "sts.html"))
    models = ("opt-125m", "opt-6.7b", long_name)
    output = folder / "rows"
    asked = reproduce.ReproduceOptions(
        **{"table": "sts-zero-shot", "data": data, "models": models, "output": output}
    )
    reproduce.run(asked)
    return {"sts": folder / "sts.html", "reproduce": output / "sts-zero-shot.html"}


def transfer_page(folder):
    """The page of eval.transfer, from classes as they may come out."""
    rng = np.random.default_rng(0)
    classes = {"MR": 2, "TREC": 6}
    examples = {}
    for name, count in classes.items():
        gold = rng.integers(0, count, 500)
        taken = np.where(rng.random(500) < 0.7, gold, rng.integers(0, count, 500))
        examples[name] = {"gold": gold, "predicted": taken}
    part = {"examples": 500, "test": 70.0, "development": 71.0, "decays": [1e-5, 1e-3]}
    names = {name: SOURCES[name].class_names for name in classes}
    result = {
        **{"model": "m", "template": "eol", "dtype": "float32", "clean": True, "seconds": 1.0},
        **{"scores": dict.fromkeys(classes, 70.0), "average": 70.0, "options": {}},
        "detail": {name: part | {"class_names": names[name]} for name in classes},
        "examples": examples,
        "protocol": {"folds": 10, "optimizer": "adam", "seed": 1111},
        "provenance": {"model": {"parameters": 1000}},
    }
    transfer_report.write_report(folder / "transfer.html", result)
    return {"transfer": folder / "transfer.html"}


def mteb_page(folder):
    """The page of eval.mteb, from scores as they may come out."""
    kinds = {"STS12": "STS", "Banking77Classification": "Classification"}
    result = {
        **{"model": "m", "template": "eol", "dtype": "float32", "clean": True, "seconds": 1.0},
        **{"scores": dict(zip(kinds, (-3.2, 71.5), strict=True)), "average": 34.15},
        "detail": {name: {"type": kind, "score": 50.0} for name, kind in kinds.items()},
    }
    mteb_report.write_report(folder / "mteb.html", result)
    return {"mteb": folder / "mteb.html"}


def training_page(folder):
    """The page of a training run, from its files."""
    run = folder / "run"
    run.mkdir()
    config = {"model": "facebook/opt-1.3b", "data": "d" * 120, "lr": 5e-4, "adapter": None}
    (run / "config.json").write_text(json.dumps(config))
    metrics = [
        {"step": n, "loss": 4 * 0.99**n, "accuracy": n / 200, "lr": 5e-4, "grad_norm": 1.0}
        | {"step_s": 0.5, "sentences_per_s": 400.0}
        for n in range(1, 200)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    scores = [{"step": n, "dev": 40 + n / 10} for n in range(0, 200, 50)]
    (run / "dev.jsonl").write_text("".join(json.dumps(s) + "\n" for s in scores))
    return {"training": train_report.write_run_report(run)}


def search_pages(folder):
    """The pages of eval.demos and eval.layers, with long names and sentences."""
    head = {"model": "m" * 90, "template": "eol", "dtype": "float32", "clean": True}
    head |= {"pairs": 1500, "seconds": 1.0}
    rows = [
        {"layer": n, "from_end": n - 25, "scores": {"STSBenchmark-dev": 40.0 + n}, "average": 40.0}
        for n in range(1, 25)
    ]
    result = head | {"layers": rows, "best": {"layer": 3, "average": 43.0}}
    layers_report.write_report(folder / "layers.html", result)
    shown = [{"text": "a sentence that goes on and on " * 4, "word": "Horseback-riding"}]
    ranking = [
        {"rank": n, "name": f"set:{n}", "score": 70 - n**0.5, "pairs": 1500, "shots": 1}
        | {"demonstrations": shown}
        for n in range(1, 101)
    ]
    result = head | {"ranking": ranking, "best": ranking[0], "zero_shot": 66.0, "candidates": 100}
    result |= {"better_than_zero_shot": 9, "stages": [188, 375, 750, 1500], "resumed": 40}
    result |= {"gain_interval": [1.0, 5.0]}
    result |= {"operations": {"share": 0.37}}
    demos_report.write_report(folder / "demos.html", result, TEMPLATES["eol-icl-6.7b"])
    return {"layers": folder / "layers.html", "demos": folder / "demos.html"}


@pytest.mark.slow
def test_pages_have_no_errors_and_fit_a_phone(
    chromium, tmp_path, small_downstream, bag_of_words, monkeypatch
):
    pages = sts_pages(tmp_path, small_downstream, bag_of_words, monkeypatch)
    pages |= training_page(tmp_path) | transfer_page(tmp_path) | mteb_page(tmp_path)
    pages |= search_pages(tmp_path)
    texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
    problems, found = browser.faults(chromium, texts, tmp_path)
    assert problems == []
    assert {(one["page"], one["width"]) for one in found} == {
        (name, width) for name in pages for width in browser.WIDTHS
    }
    assert sum(one["images"] for one in found if one["page"] == "sts") > 0


def test_one_long_word_leaves_every_column_in_view(chromium, tmp_path):
    page = tmp_path / "long.html"
    rows = [(f"{word} and more text that wraps, as sentences do", "5.00", "x") for word in LONG]
    report.write_page(page, "long", {}, [("x", report.table(("pair", "gold", "task"), rows))])
    problems, found = browser.faults(chromium, {"long": page.read_text()}, tmp_path)
    assert problems == []
    assert [one["scrolled"] for one in found if one["width"] == max(browser.WIDTHS)] == [0]


def test_a_printed_page_cuts_no_column(chromium, tmp_path, monkeypatch):
    """A frame as wide as a sheet of A4 within its margins, where the rules of print hold."""
    monkeypatch.setattr(browser, "WIDTHS", (688,))
    pages = search_pages(tmp_path) | transfer_page(tmp_path)
    rows = [(f"{word} and more text", *["36.19 ± 1.25"] * 7) for word in LONG]
    header = ("pair", *"abcdefg")
    report.write_page(tmp_path / "x.html", "x", {}, [("x", report.table(header, rows))])
    pages["long"] = tmp_path / "x.html"
    texts = {name: path.read_text(encoding="utf-8") for name, path in pages.items()}
    assert all("@media print" in text for text in texts.values())
    printed = {name: text.replace("@media print", "@media all") for name, text in texts.items()}
    problems, found = browser.faults(chromium, printed, tmp_path)
    assert problems == []
    assert {one["page"]: one["scrolled"] for one in found} == dict.fromkeys(pages, 0)


def test_what_is_wrong_with_a_page_is_found(chromium, tmp_path):
    good = tmp_path / "good.html"
    cloud = report.table(("a",), [("x " * 400,)])
    report.write_page(good, "good", {"numbers": np.arange(300).tolist()}, [("x", cloud)])
    text = good.read_text(encoding="utf-8")
    bad = {
        "wide": '<div style="width: 500px">x</div>',
        "lost": '<img src="data:image/png;base64,AAAA" alt="x">',
        "script": "<script>nothing.at.all()</script>",
    }
    pages = {name: text.replace("</body>", f"{part}</body>") for name, part in bad.items()}
    problems, _ = browser.faults(chromium, {"good": text} | pages, tmp_path)
    for start in ("wide at 380 px is 5", "lost at 380 px lacks an image: data:image/png"):
        assert any(problem.startswith(start) for problem in problems), problems
    assert any("nothing is not defined" in problem for problem in problems), problems
    assert not [problem for problem in problems if problem.startswith("good")]
