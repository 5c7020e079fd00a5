"""Drawings of scores and similarities, for the pages of several commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float64, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#3b82c4"
ORANGE: Final = "#e07b39"
GREEN: Final = "#4c9f70"
GREY: Final = "#8a949e"
_BINS: Final = 40
_DARK: Final = 45  # percent from which a cell of blue needs a light number


def scatter(gold: Float64[np.ndarray, " n"], cosines: Float64[np.ndarray, " n"]) -> Figure:
    """Draw gold against cosine, with the median cosine at each whole gold score."""
    drawing, axes = empty(3.2, 2.6)
    axes.scatter(gold, cosines, s=5, alpha=0.25, linewidths=0, color=BLUE, rasterized=True)
    unit = np.rint(gold)
    units = np.unique(unit)
    medians = [np.median(cosines[unit == value]) for value in units]
    axes.plot(units, medians, color=ORANGE, marker="o", markersize=4, linewidth=1.5)
    # A few far away would leave the line flat.
    low, high = np.quantile(cosines, (0.005, 1))
    if high > low:
        axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set(xlabel="gold", ylabel="cosine", xlim=(-0.2, 5.2))
    return drawing


def densities(groups: Mapping[str, Float64[np.ndarray, " _"]]) -> Figure:
    """Draw the densities of cosines of several groups over one another."""
    drawing, axes = empty(4.2, 2.8)
    # A few far away would leave the rest a single bar.
    low = min(np.quantile(values, 0.002) for values in groups.values())
    high = max(values.max() for values in groups.values())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for (name, values), color in zip(groups.items(), (GREY, BLUE, ORANGE), strict=False):
        axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.35, color=color)
        axes.hist(values, edges, density=True, histtype="step", color=color, label=name)
    axes.set(xlabel="cosine", ylabel="density")
    name_series(axes)
    return drawing


def against_published(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Draw our scores against published ones; on the line they are equal."""
    drawing, axes = empty(3.6, 3.4)
    published, ours = np.array(pairs, np.float64).T
    low, high = min(published.min(), ours.min()) - 1, max(published.max(), ours.max()) + 1
    axes.plot((low, high), (low, high), color=GREY, linewidth=1)
    axes.scatter(published, ours, s=18, color=BLUE)
    axes.set(xlabel="published", ylabel="ours", xlim=(low, high), ylim=(low, high))
    return drawing


def by_size(series: Mapping[str, Mapping[float, float]], ylabel: str = "average") -> Figure:
    """Draw averages against numbers of parameters.

    Args:
        series: Averages by number of parameters, by the name of the series.
    """
    drawing, axes = empty(4.2, 3.0)
    styles = ((GREY, "o", 4), (ORANGE, "D", 5), (GREEN, "s", 5), (BLUE, "^", 5))
    for (name, averages), (color, marker, size) in zip(series.items(), styles, strict=False):
        if averages:
            sizes = sorted(averages)
            heights = [averages[parameters] for parameters in sizes]
            axes.plot(
                sizes, heights, color=color, marker=marker, markersize=size, linewidth=1, label=name
            )
    axes.set(xlabel="parameters", ylabel=ylabel, xscale="log")
    name_series(axes)
    return drawing


def bars(scores: Mapping[str, float]) -> Figure:
    """Draw one bar per name, the first on top."""
    drawing, axes = empty(4.4, 0.6 + 0.3 * len(scores))
    names = list(scores)[::-1]
    axes.barh(names, [scores[name] for name in names], color=BLUE, height=0.6)
    axes.set_xlim(min(0, *scores.values()), 100)
    return drawing


def lines(
    x: Sequence[int],
    series: Mapping[str, Sequence[float]],
    *,
    marked: int,
    xlabel: str,
    ylabel: str,
) -> Figure:
    """Draw series over whole numbers, with a dotted line where x is `marked`.

    A series with the name `average` is drawn in the color of the text.
    """
    from matplotlib import ticker

    drawing, axes = empty(4.4, 3.0)
    for name, values in series.items():
        if name == "average":
            axes.plot(x, values, color="#000000", linewidth=2, label=name)
        else:
            axes.plot(x, values, marker="o", markersize=4, label=name, alpha=0.8)
    axes.axvline(marked, color=GREY, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    name_series(axes)
    return drawing


def by_fifths(
    x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], xlabel: str, ylabel: str
) -> Figure:
    """Draw the mean of y in each fifth of the values of x, with its 95 % interval."""
    drawing, axes = empty(3.6, 2.6)
    parts = [part for part in np.array_split(np.argsort(x, kind="stable"), 5) if len(part)]
    middles = [float(np.median(x[part])) for part in parts]
    means = np.array([y[part].mean() for part in parts])
    reach = [1.96 * y[part].std() / np.sqrt(len(part)) for part in parts]
    axes.errorbar(middles, means, reach, color=BLUE, marker="o", markersize=4, linewidth=1)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(min(0, *(means - reach)), None))
    return drawing


def counts(
    values: Sequence[float], marks: Mapping[str, float], *, xlabel: str, ylabel: str
) -> Figure:
    """Draw how many values are where, and named vertical lines."""
    from matplotlib import ticker

    drawing, axes = empty(4.4, 2.8)
    axes.hist(values, bins=min(_BINS, max(5, len(values) // 4)), color=BLUE)
    for (name, value), color, style in zip(
        marks.items(), (ORANGE, GREEN), ("-", "--"), strict=False
    ):
        axes.axvline(value, color=color, linewidth=1.5, linestyle=style, label=name)
    name_series(axes)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return drawing


def confusion(
    gold: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], names: Sequence[str]
) -> Figure:
    """Draw, for each true class, the percentage of each predicted one."""
    classes = len(names)
    counted = np.zeros((classes, classes))
    np.add.at(counted, (gold, predicted), 1)
    percent = 100 * counted / np.maximum(counted.sum(axis=1, keepdims=True), 1)
    drawing, axes = empty(3.2, 2.8)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    _write_numbers(axes, percent, (0.0, 100.0), ".0f")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(classes), names, size=8, rotation=0 if classes < 3 else 45)
    axes.set_yticks(range(classes), names, size=8)
    return drawing


def heat(
    values: Float64[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str,
    ylabel: str,
    limits: tuple[float, float],
) -> Figure:
    """Draw a table of scores as colors and numbers; a score that is missing leaves its cell empty.

    Args:
        values: Scores, NaN where there is none.
        limits: Scores of the lightest and of the darkest color.
    """
    drawing, axes = empty(1.2 + 0.55 * len(columns), 1.0 + 0.3 * len(rows))
    low, high = limits
    axes.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    _write_numbers(axes, values, limits, ".1f")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(range(len(columns)), columns, size=8)
    axes.set_yticks(range(len(rows)), rows, size=8)
    return drawing


def _write_numbers(axes: Axes, values: np.ndarray, limits: tuple[float, float], form: str) -> None:
    """Write each finite value into its cell of `imshow`, light on dark cells.

    The cells have their colors on light and dark pages, so their numbers have too.
    """
    low, high = limits
    for row, column in np.argwhere(np.isfinite(values)):
        is_dark = 100 * (values[row, column] - low) > _DARK * (high - low)
        shade = "#f8fafc" if is_dark else "#101418"
        text = format(values[row, column], form)
        axes.text(column, row, text, ha="center", va="center", color=shade, size=8)


def empty(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a drawing of a size in inches, with one pair of axes and no frame around it."""
    from matplotlib import figure

    drawing = figure.Figure(figsize=(width, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes


def name_series(axes: Axes) -> None:
    """Write the names above the axes; to search for room inside takes seconds with many points."""
    _, names = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, names), default=0) > 15 else 2
    axes.legend(frameon=False, fontsize=9, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))
