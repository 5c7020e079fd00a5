"""Plans as tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tpu.chips import GIB
from tpu.plan.planning import Plan

ROWS: Final[Sequence[tuple[str, Callable[[Plan], str]]]] = (
    ("shapes", lambda p: p.shapes),
    ("HBM", lambda p: f"{p.hbm_bytes / GIB:.2f} GiB"),
    ("needed", lambda p: f"{p.needed_bytes / GIB:.2f} GiB, {_room(p)}"),
    ("  arguments, temporaries", lambda p: f"{_gib(p.argument_bytes)}, {_gib(p.temp_bytes)}"),
    ("products", lambda p: f"{p.flops / 1e12:.2f} TFLOP a device and step"),
    ("estimated", lambda p: _ms(p.estimated_s)),
    ("  compute", lambda p: _ms(p.compute_s)),
    ("  waits for links", lambda p: f"{_ms(p.collective_s)} (links busy {_ms(p.link_s)})"),
    ("  waits for copies", lambda p: _ms(p.copy_s)),
    ("  kernels", lambda p: _ms(p.kernel_s)),
    ("roofline", lambda p: f"{_ms(p.roofline_s)}, {p.bound} binds"),
    ("sentences/s", lambda p: f"{p.sentences_per_s:,.0f}"),
    ("useful MFU", lambda p: f"{p.useful_mfu:.3f}{_utilization(p)}"),
)


def print_plans(plans: Sequence[Plan]) -> None:
    """Print the best plan in full, and the ranking where there are several."""
    best, console = plans[0], Console()
    title = f"{best.model} {best.job} on {best.topology}, mesh {best.mesh}: compiler-estimated"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for label, show in ROWS if best.fits else ROWS[:5]:
        table.add_row(label, show(best))
    table.add_row("compiling took", f"{best.compile_s:.0f} s")
    console.print(table)
    for note in best.notes:
        console.print(note, soft_wrap=True)
    if best.fits:
        console.print(_collectives(best) if best.collectives else "no collectives")
        if best.unpriced:
            listed = ", ".join(f"{name} x{count:g}" for name, count in best.unpriced.items())
            console.print(f"without an estimate, taken as free: {listed}", soft_wrap=True)
    if len(plans) > 1:
        console.print(_ranking(plans))


def _collectives(plan: Plan) -> Table:
    table = Table(title="collectives a step", title_justify="left")
    for name in ("kind", "runs", "bytes each", "links busy", "where"):
        table.add_column(name, justify="left" if name in ("kind", "where") else "right")
    for found in plan.collectives:
        table.add_row(
            found["kind"],
            f"{found['count']:g}",
            f"{found['bytes'] / found['count']:,.0f}",
            _ms(found["link_s"]),
            found["source"].rsplit("closed_call/", 1)[-1],
        )
    return table


def _ranking(plans: Sequence[Plan]) -> Table:
    table = Table(title="all meshes", title_justify="left")
    for name in ("mesh", "needed", "estimated", "sentences/s", "useful MFU", "binds"):
        table.add_column(name, justify="right")
    for p in plans:
        row = ["does not fit", "", "", ""]
        if p.fits:
            rate, mfu = f"{p.sentences_per_s:,.0f}", f"{p.useful_mfu:.3f}"
            row = [_ms(p.estimated_s), rate, mfu, p.bound]
        table.add_row(p.mesh, _gib(p.needed_bytes), *row)
    return table


def print_sweep(plans: Sequence[tuple[str, Plan]]) -> None:
    """Print slice after slice, with the time of a step against the first slice's."""
    _, start = plans[0]
    title = f"{start.model} {start.job}, scaling: compiler-estimated"
    table = Table(title=title, title_justify="left")
    for name in ("scaling", "slice", "mesh", "a step", "vs first", "sentences/s", "MFU"):
        table.add_column(name, justify="right")
    first: dict[str, Plan] = {}
    for kind, p in plans:
        start = first.setdefault(kind, p)
        if not (p.fits and start.fits):
            table.add_row(kind, p.topology, p.mesh, "does not fit", "", "", "")
            continue
        assert p.estimated_s is not None and start.estimated_s is not None  # both fit
        times = p.estimated_s / start.estimated_s
        row = (_ms(p.estimated_s), f"{times:.3f}", f"{p.sentences_per_s:,.0f}")
        table.add_row(kind, p.topology, p.mesh, *row, f"{p.useful_mfu:.3f}")
    Console().print(table)
    for note in start.notes:
        Console().print(note, soft_wrap=True)


def plot_sweep(plans: Sequence[tuple[str, Plan]], path: Path) -> None:
    """Draw sentences a second over chips, with the line of a perfect scaling."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    fitting = [p for _, p in plans if p.fits]
    if fitting:
        first = min(fitting, key=_chips)
        chips = sorted({_chips(p) for p in fitting})
        assert first.sentences_per_s is not None  # it fits
        perfect = [first.sentences_per_s * n / _chips(first) for n in chips]
        # Wide and below the others: weak scaling often is on it.
        axis.plot(chips, perfect, color="#c8ccd0", linewidth=6, label="perfect")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(chips, [f"{n}" for n in chips])
    for kind, color, mark in (("weak", "#3b82c4", "o"), ("strong", "#e07b39", "s")):
        found = [(_chips(p), p.sentences_per_s) for k, p in plans if k == kind and p.fits]
        if found:
            axis.plot(*zip(*found, strict=True), color=color, marker=mark, label=kind)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#e8eaed")
    _, start = plans[0]
    axis.set_title(f"{start.model}, {start.job}, compiler-estimated", loc="left")
    axis.set(xlabel=f"{start.topology.split(':')[0]} chips", ylabel="sentences/s")
    axis.legend(frameon=False, loc="upper left")
    figure.savefig(path)


def _chips(plan: Plan) -> int:
    data, model = plan.mesh.split("x")
    return int(data) * int(model)


def _room(plan: Plan) -> str:
    left = plan.hbm_bytes - plan.needed_bytes
    return f"fits with {_gib(left)} left" if plan.fits else f"too much by {_gib(-left)}"


def _utilization(plan: Plan) -> str:
    if plan.utilization is None:
        return ""
    return f"; {plan.utilization:.3f} with attention (utilization)"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _ms(seconds: float | None) -> str:
    assert seconds is not None  # times are shown of plans that fit, which have them
    return f"{1000 * seconds:,.2f} ms"
