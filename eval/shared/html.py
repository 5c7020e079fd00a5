"""Reports as one self-contained HTML file: no script, no network, light and dark, narrow and wide.

The pieces are strings of HTML: `table`, `figure` and `paragraph` make them, `grid` lays several out
in rows, and `write_page` writes them to a file under their headings. The page also prints: no
column is cut off, and no row or drawing is broken over two sheets.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.storage import paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNBROKEN: Final = 20  # characters of a cell that stay on one line

# currentColor and the page's own variables let one drawing fit a light and a dark page.
STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --quiet: #60686f; --line: #d9dde1;
  --band: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e4e7ea; --quiet: #9aa3ab;
  --line: #33393f; --band: #1e2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt, figcaption { color: var(--quiet); }
dd { margin: 0; }
p { margin: .6rem 0; color: var(--quiet); max-width: 44rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
tr, figure { break-inside: avoid; }
h2 { break-after: avoid; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
th { font-weight: 600; background: var(--band); }
.number { text-align: right; }
td.wrapped, td.long { white-space: pre-line; overflow-wrap: anywhere; }
td.wrapped { min-width: 8rem; }
td.long { min-width: 16rem; }
@media (max-width: 30rem) { table { font-size: .9rem; } th, td { padding: .3rem .4rem; }
  td.long { min-width: 12rem; } }
figure { margin: 0; }
section > * + figure, figure + * { margin-top: .8rem; }
tr.total td { font-weight: 600; border-bottom: 0; }
figcaption { font-size: .9rem; }
.grid { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--column)), 1fr)); }
svg { display: block; width: 100%; height: auto; fill: currentColor; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit !important; }
@page { margin: 1.4cm; }
@media print {
  :root { color-scheme: light; --paper: #fff; --ink: #000; --quiet: #444; --line: #bbb;
    --band: #eee; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .table { overflow: visible; }
  table { width: 100%; font-size: 8pt; }
  thead { display: table-header-group; }
  th, td { white-space: normal; padding: .15rem .3rem; }
  th:not(.long), td.number { overflow-wrap: normal; }
  td.wrapped, td.long { min-width: 0; }
  .grid { display: block; }
  .grid > figure { display: inline-block; width: 31%; vertical-align: top; margin: 0 1% .6rem 0; }
  .grid.wide > figure { width: 48%; }
  section > figure { max-width: 12cm; }
}
"""


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    total: Sequence[object] | None = None,
) -> str:
    """Render a table that scrolls in a box; columns of numbers are right-aligned.

    Args:
        total: Last row, in bold.
    """
    rows = [*rows, *([] if total is None else [total])]
    for row in rows:
        if len(row) != len(header):
            raise UserError(f"a row of {len(row)} cells under a header of {len(header)}: {row!r}")
    marks = [_mark(column) for column in zip(*rows, strict=True)] or [""] * len(header)

    def line(tag: str, cells: Sequence[object]) -> str:
        pieces = zip(marks, cells, strict=True)
        return "".join(f"<{tag}{mark}>{html.escape(str(cell))}</{tag}>" for mark, cell in pieces)

    bold = len(rows) - 1 if total is not None else None
    kinds = [' class="total"' if number == bold else "" for number in range(len(rows))]
    body = "".join(
        f"<tr{kind}>{line('td', row)}</tr>\n" for kind, row in zip(kinds, rows, strict=True)
    )
    head = f"<thead><tr>{line('th', header)}</tr></thead>"
    return f'<div class="table"><table>{head}\n<tbody>\n{body}</tbody></table></div>'


def figure(figure: "Figure", caption: str) -> str:
    """Render a matplotlib figure as inline SVG at its own width, narrower where the page is.

    Black becomes the page's ink and white its paper. Draw clouds of points with
    `rasterized=True`, or thousands of paths make the page slow. The figure is left open.
    """
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt gives equal figures equal bytes; text stays text, to be searched and scaled.
    with matplotlib.rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=150)
    width_px = round(96 * figure.get_size_inches()[0])
    drawing = _inline(buffer.getvalue(), caption, width_px)
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"


def paragraph(sentence: str) -> str:
    """Render a sentence as a paragraph."""
    return f"<p>{html.escape(sentence)}</p>"


def grid(pieces: Sequence[str], *, column_rem: int = 15) -> str:
    """Lay pieces out in rows, as many in a row as fit.

    Args:
        column_rem: Least width of a piece on a wide page, in the width of a letter m.
    """
    kind = "grid wide" if column_rem > 20 else "grid"
    return f'<div class="{kind}" style="--column: {column_rem}rem">{"".join(pieces)}</div>'


def write_page(
    path: str | Path, title: str, summary: Mapping[str, Any], sections: Sequence[tuple[str, str]]
) -> None:
    """Write a page: its title, a summary of names and values, and sections of heading and HTML.

    Title, summary and headings are escaped; the HTML of a section is taken as it is.
    """
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>\n"
        for name, value in summary.items()
    )
    body = "".join(
        f"<section><h2>{html.escape(heading)}</h2>\n{content}</section>\n"
        for heading, content in sections
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<dl>\n{facts}</dl>\n{body}</body>\n</html>\n"
    )
    target = paths.as_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")


def _mark(column: Sequence[object]) -> str:
    """Return the attribute that lays out a column: numbers right, long texts wrapped."""
    if all(_is_number(cell) for cell in column):
        return ' class="number"'
    longest = max(len(str(cell)) for cell in column)
    if longest <= _UNBROKEN:
        return ""
    return ' class="long"' if longest > 40 else ' class="wrapped"'


def _is_number(cell: object) -> bool:
    """Return whether a cell reads as a number; an empty cell or a dash does not spoil a column."""
    try:
        float(str(cell).replace(",", "").removesuffix("%"))
    except ValueError:
        return str(cell).strip() in ("", "-", "–")
    return True


def _inline(svg: str, caption: str, width_px: int) -> str:
    """Turn a stand-alone SVG file into an element that shares a page with others."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    found = re.search(r'viewBox="[^"]*"', svg)
    assert found is not None  # matplotlib writes one
    viewbox = found[0]
    label = html.escape(caption)
    svg = re.sub(
        r"<svg[^>]*>",
        lambda _: (
            f'<svg role="img" aria-label="{label}" style="max-width: {width_px}px" {viewbox}>'
        ),
        svg,
        count=1,
    )
    # Identifiers are global to a page, and matplotlib starts with the same ones in each figure.
    scope = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'\bid="', f'id="{scope}-', svg)
    svg = re.sub(r"url\(#", f"url(#{scope}-", svg)
    svg = re.sub(r'xlink:href="(#?)', lambda m: f'href="{"#" + scope + "-" if m[1] else ""}', svg)
    return svg.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)").strip()
