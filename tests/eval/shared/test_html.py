"""Pages that stand alone: nothing fetched, everything escaped, identifiers unique."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from eval.shared import html as report

pytestmark = pytest.mark.unit

VOID = {"meta", "path", "use", "image", "br"}


class Page(HTMLParser):
    """Collects what a browser would look at: tags, attributes, text and unclosed elements."""

    def __init__(self, text):
        super().__init__()
        self.attributes, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def drawing(points=50, rasterized=False):
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    x, y = np.random.default_rng(0).random((2, points))
    axes.scatter(x, y, rasterized=rasterized)
    axes.plot([0, 1], [0, 1], label="A & <B>")
    axes.set_xlabel("gold")
    axes.legend()
    return figure


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "deep" / "report.html"
    sections = [
        ("Scores & more", report.table(("task", "score"), [("STS<12>", 36.85), ("x", "-")])),
        ("Figures", report.grid([report.figure(drawing(), f"number {n}") for n in range(3)])),
        ("Cloud", report.figure(drawing(20_000, rasterized=True), "cloud")),
    ]
    report.write_page(path, "A <title> & more", {"model": "<script>x</script>"}, sections)
    return path


def test_page_fetches_nothing_and_runs_nothing(page):
    text = page.read_text()
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|\bsrc=|\son\w+=", text)
    for target in Page(text).values("href"):
        assert target.startswith(("#", "data:image/png;base64,"))


def test_page_is_well_formed_and_escaped(page):
    parsed = Page(page.read_text())
    assert parsed.open == []
    for shown in ("A <title> & more", "<script>x</script>", "STS<12>", "A & <B>", "Scores & more"):
        assert shown in parsed.text


def test_identifiers_are_unique_and_every_reference_has_its_target(page):
    text = page.read_text()
    parsed = Page(text)
    ids = parsed.values("id")
    assert len(ids) == len(set(ids)) > 20
    targets = re.findall(r"url\(#([^)]*)\)", text)
    targets += [value[1:] for value in parsed.values("href") if value.startswith("#")]
    assert targets and set(targets) <= set(ids)


def test_cloud_of_points_stays_small(page):
    assert page.stat().st_size < 300_000


def test_equal_figures_give_equal_bytes():
    assert report.figure(drawing(), "same") == report.figure(drawing(), "same")


def test_figure_scales_down_and_takes_the_colors_of_the_page():
    text = report.figure(drawing(), "a caption")
    assert 'style="max-width: 288px" viewBox=' in text
    assert "currentColor" in text and "var(--paper)" in text
    assert "#000000" not in text and "#ffffff" not in text
    assert ">gold</text>" in text
    assert "<figcaption>a caption</figcaption>" in text


def test_table_aligns_numbers_right_and_wraps_long_text():
    rows = [("a", "1,234", "-0.5", "x" * 60), ("b", "", "–", "y")]
    text = report.table(("name", "count", "score", "text"), rows)
    assert text.startswith('<div class="table"><table>')
    assert '<td>a</td><td class="number">1,234</td><td class="number">-0.5</td>' in text
    assert '<th class="long">text</th>' in text


def test_table_without_rows_keeps_its_header():
    assert "<th>task</th><th>score</th>" in report.table(("task", "score"), [])


def test_refuses_a_row_of_another_width():
    with pytest.raises(ValueError, match=r"a row of 1 cells under a header of 2: \('STS12',\)"):
        report.table(("task", "score"), [("STS12",)])
