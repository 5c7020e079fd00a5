"""The page of a training run: loss and development scores over its steps, and its speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64

from eval.shared import html
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.storage import json_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RAW: Final = "#3b82c4"
_MARKED: Final = "#e07b39"
_POINTS: Final = 500  # drawn for one curve; longer ones are averaged in bins


class _Curve(NamedTuple):
    column: str
    title: str
    noisy: bool
    decades: bool  # may fall by powers of ten


_CURVES: Final = (
    _Curve("loss", "Loss", True, True),
    _Curve("accuracy", "Accuracy: own positive ranked first", True, False),
    _Curve("grad_norm", "Gradient norm before clipping", True, True),
    _Curve("lr", "Learning rate", False, False),
    _Curve("sentences_per_s", "Sentences a second", False, False),
)
_NO_CURVE: Final = {"step", "step_s", "padding"}


def write_run_report(run: Path) -> Path:
    """Write RUN/report.html from the run's config.json, metrics.jsonl and dev.jsonl.

    Raises: NotFound naming those of the three that are not there; UserError naming the
        line that is not a record.
    """
    names = ("config.json", "metrics.jsonl", "dev.jsonl")
    missing = [name for name in names if not (run / name).is_file()]
    if missing:
        raise NotFound(
            f"{run} holds no {', '.join(missing)}; a training run writes {', '.join(names)}."
        )
    config = json_files.read_object(run / "config.json")
    metrics = _read_records(run / "metrics.jsonl")
    scores = _read_records(run / "dev.jsonl")
    sections = [
        ("Curves", html.grid(_panels(metrics, scores))),
        ("Development scores", html.table(("step", "Spearman"), _score_rows(scores))),
        ("Settings", html.table(("setting", "value"), _setting_rows(config))),
    ]
    title = f"Training run: {config.get('model', run.name)}"
    page = run / "report.html"
    html.write_page(page, title, _summary(metrics, scores), sections)
    return page


def _read_records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json_files.parse_object(line, f"line {number}")
            records.append({"step": int(record["step"]), **record})
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f'{path}, line {number}: a record such as {{"step": 1, ...}} was expected, '
                f"found {line[:80]!r}."
            ) from error
    return records


def _summary(
    metrics: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    facts = {}
    if scores:
        best = max(scores, key=lambda record: record["dev"])
        facts["development before"] = f"{scores[0]['dev']:.2f}"
        facts["development best"] = f"{best['dev']:.2f} at step {best['step']}"
        facts["development last"] = f"{scores[-1]['dev']:.2f}"
    if metrics:
        seconds = sum(record["step_s"] for record in metrics)
        rates = [record["sentences_per_s"] for record in metrics]
        facts["steps"] = f"{metrics[-1]['step']:,}"
        facts["loss"] = f"{metrics[0]['loss']:.4f} to {metrics[-1]['loss']:.4f}"
        facts["time in steps"] = f"{seconds:,.1f} s"
        facts["sentences a second"] = f"{np.median(rates):,.1f} (median)"
    return facts


def _panels(metrics: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    panels = []
    if scores:
        panels.append(html.figure(_draw_scores(scores), "Development Spearman × 100"))
    for curve in _curves(metrics):
        points = [(r["step"], r[curve.column]) for r in metrics if r.get(curve.column) is not None]
        if points:
            steps, values = np.array(points, np.float64).T
            panels.append(html.figure(_draw_curve(curve, steps, values), curve.title))
    return panels


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    """Return the known curves, then those of metrics that only this run's loss has."""
    known = _NO_CURVE | {curve.column for curve in _CURVES}
    others = dict.fromkeys(name for record in metrics for name in record if name not in known)
    return [*_CURVES, *(_Curve(name, name, noisy=True, decades=False) for name in others)]


def _draw_scores(scores: Sequence[Mapping[str, Any]]) -> Figure:
    drawing, axes = _empty_drawing()
    steps = [record["step"] for record in scores]
    values = [record["dev"] for record in scores]
    best = int(np.argmax(values))
    axes.plot(steps, values, color=_RAW, marker="o", markersize=3, linewidth=1.5)
    axes.plot(steps[best], values[best], color=_MARKED, marker="o", markersize=7)
    # Below the point: the best one is at the top of the drawing.
    axes.annotate(
        f"{values[best]:.2f}",
        (steps[best], values[best]),
        textcoords="offset points",
        xytext=(0, -16),
        ha="right" if best == len(values) - 1 and best else "center",
    )
    return drawing


def _draw_curve(
    curve: _Curve, steps: Float64[np.ndarray, " n"], values: Float64[np.ndarray, " n"]
) -> Figure:
    drawing, axes = _empty_drawing()
    steps, values = _binned(steps), _binned(values)
    axes.plot(steps, values, color=_RAW, linewidth=1.2, alpha=0.4 if curve.noisy else 1)
    if curve.noisy:
        axes.plot(steps, _smoothed(values), color=_RAW, linewidth=1.8)
    if curve.decades and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    elif 0 <= values.min() <= values.max() / 2:  # a curve that is flat from 0 shows nothing
        axes.set_ylim(bottom=0)
    return drawing


def _empty_drawing() -> tuple[Figure, Axes]:
    from matplotlib import figure, ticker

    drawing = figure.Figure(figsize=(3.2, 2.6), layout="constrained")
    axes = drawing.add_subplot()
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def _binned(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " bins"]:
    if len(values) <= _POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, _POINTS)])


def _smoothed(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Average each value with its neighbors, a twentieth of the curve on either side."""
    reach = max(1, len(values) // 20)
    return np.array([values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))])


def _score_rows(scores: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(str(record["step"]), f"{record['dev']:.2f}") for record in scores]


def _setting_rows(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            rows += _setting_rows(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "–" if value is None else str(value)))
    return rows
