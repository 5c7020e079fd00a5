"""Drawings of scores and similarities, for the pages of several commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#3b82c4"
ORANGE: Final = "#e07b39"
GREY: Final = "#8a949e"
_BINS: Final = 40


def scatter(gold: Float64[np.ndarray, " n"], cosines: Float64[np.ndarray, " n"]) -> Figure:
    """Draws gold against cosine, with the median cosine in each unit of gold."""
    drawing, axes = empty(3.2, 2.6)
    axes.scatter(gold, cosines, s=5, alpha=0.25, linewidths=0, color=BLUE, rasterized=True)
    unit = np.rint(gold)
    units = np.unique(unit)
    medians = [np.median(cosines[unit == value]) for value in units]
    axes.plot(units, medians, color=ORANGE, marker="o", markersize=4, linewidth=1.5)
    axes.set(xlabel="gold", ylabel="cosine", xlim=(-0.2, 5.2))
    return drawing


def histograms(groups: Mapping[str, Float64[np.ndarray, " _"]]) -> Figure:
    """Draws the densities of cosines of several groups over one another."""
    drawing, axes = empty(4.6, 2.8)
    # A few far away would leave the rest a single bar.
    low = min(np.quantile(values, 0.002) for values in groups.values())
    high = max(values.max() for values in groups.values())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    for (name, values), color in zip(groups.items(), (GREY, BLUE, ORANGE), strict=False):
        axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.35, color=color)
        axes.hist(values, edges, density=True, histtype="step", color=color, label=name)
    axes.set(xlabel="cosine", ylabel="density")
    axes.legend(frameon=False, fontsize="small")
    return drawing


def against_published(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Draws our scores against published ones; on the line they are equal."""
    drawing, axes = empty(3.6, 3.4)
    published, ours = np.array(pairs, np.float64).T
    low, high = min(published.min(), ours.min()) - 1, max(published.max(), ours.max()) + 1
    axes.plot((low, high), (low, high), color=GREY, linewidth=1)
    axes.scatter(published, ours, s=18, color=BLUE)
    axes.set(xlabel="published", ylabel="ours", xlim=(low, high), ylim=(low, high))
    return drawing


def by_size(
    published: Mapping[float, float], ours: Mapping[float, float], ylabel: str = "average"
) -> Figure:
    """Draws averages against numbers of parameters: published ones, and ours beside them."""
    drawing, axes = empty(4.6, 2.8)
    if published:
        sizes = sorted(published)
        heights = [published[size] for size in sizes]
        axes.plot(sizes, heights, color=GREY, marker="o", markersize=4, label="published")
    if ours:
        sizes = sorted(ours)
        heights = [ours[size] for size in sizes]
        axes.plot(sizes, heights, color=ORANGE, marker="D", markersize=5, linewidth=1, label="ours")
    axes.set(xlabel="parameters", ylabel=ylabel, xscale="log")
    axes.legend(frameon=False, fontsize="small")
    return drawing


def bars(scores: Mapping[str, float]) -> Figure:
    """Draws one bar a name, the first on top."""
    drawing, axes = empty(4.6, 0.6 + 0.3 * len(scores))
    names = list(scores)[::-1]
    axes.barh(names, [scores[name] for name in names], color=BLUE, height=0.6)
    axes.set_xlim(min(0, *scores.values()), 100)
    return drawing


def empty(width: float, height: float) -> tuple[Figure, Axes]:
    """Makes a drawing of a size in inches, with one pair of axes and no frame around it."""
    from matplotlib import figure

    drawing = figure.Figure(figsize=(width, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawing, axes
