"""Tables on standard output."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    left: Sequence[str] = ("task",),
    last: Sequence[object] | None = None,
    bold: int | None = None,
) -> None:
    """Print a table under a title.

    Args:
        left: Columns that are aligned left; the others hold numbers.
        last: Row of totals, printed bold below a rule.
        bold: Index of a row to print bold.
    """
    from rich import console, table, text

    grid = table.Table()
    for name in columns:
        grid.add_column(name, justify="left" if name in left else "right")
    for number, row in enumerate(rows):
        style = "bold" if number == bold else None
        grid.add_row(*(text.Text(str(cell)) for cell in row), style=style)
    if last is not None:
        grid.add_section()
        grid.add_row(*(text.Text(str(cell)) for cell in last), style="bold")
    shown = console.Console()
    shown.print(text.Text(title))  # above the table: as its title it would wrap at its width
    shown.print(grid)


def print_line(line: str) -> None:
    """Print a sentence, wrapped where the terminal is narrow."""
    from rich import console, text

    console.Console().print(text.Text(line))
