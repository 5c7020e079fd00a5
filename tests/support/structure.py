"""Numbers of a checkout's source: rooms, arrows, platform questions, writers, lines.

python tests/support/structure.py [FOLDER]      # by default, of this checkout
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from pathlib import Path

import source

PLATFORM = re.compile(
    r"(?<!platform\.)\bplatform\(\)|default_backend\(|devices\S*\.platform\b|abstract_device"
)
ENVIRONMENT = re.compile(
    r"os\.environ\[[^\]]+\] = |os\.environ\.(setdefault|update|pop)\(|jax\.config\.update\("
)


def matches(sources: dict[str, str], pattern: re.Pattern[str]) -> dict[str, int]:
    """Count matches in code by module; comments and docstrings do not count."""
    code = {path: ast.unparse(source.parse(text)) for path, text in sources.items()}
    found = {path: len(pattern.findall(text)) for path, text in code.items()}
    return {path: count for path, count in found.items() if count}


def listed(counts: dict[str, int]) -> str:
    """Name modules with their counts."""
    return f"{sum(counts.values())} in {len(counts)} modules: " + ", ".join(
        f"{source.module_name(path)} {count}" for path, count in counts.items()
    )


def report(root: Path) -> str:
    """Return the numbers of a checkout as lines of text."""
    sources = source.read(root)
    lines = [f"{'':20}" + "".join(f"{package:>15}" for package in source.PACKAGES)]

    def row(label: str, counts: list[int]) -> None:
        lines.append(f"{label:20}" + "".join(f"{count:>15}" for count in counts))

    def size(package: str) -> int:
        return sum(text.count("\n") for path, text in sources.items() if path.startswith(package))

    folders = [root / package for package in source.PACKAGES]
    row("modules at the top", [len([*folder.glob("[!_]*.py")]) for folder in folders])
    row("folders at the top", [len([*folder.glob("*/__init__.py")]) for folder in folders])
    row("modules", [len([*folder.rglob("[!_]*.py")]) for folder in folders])
    row("lines", [size(f"{package}/") for package in source.PACKAGES])

    graph = source.graph_of(sources)
    pairs = {(source.room(a), source.room(b)) for a, found in graph.items() for b in found}
    circles = [module for module in graph if module in source.reachable(graph, module)]
    lengths = sorted(
        source.lines_of(f) for text in sources.values() for f in source.functions(text)
    )
    return "\n".join(
        [
            *lines,
            f"lines of all: {sum(size(f'{package}/') for package in source.PACKAGES)}",
            f"arrows between rooms: {sum(a != b for a, b in pairs)}; modules in a circle: "
            f"{len(circles)}",
            f"functions: {len(lengths)}, median {statistics.median(lengths):.0f} lines, "
            f"p90 {lengths[int(0.9 * len(lengths))]}, longest {lengths[-1]}",
            f"platform asked: {listed(matches(sources, PLATFORM))}",
            f"environment written: {listed(matches(sources, ENVIRONMENT))}",
        ]
    )


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else source.ROOT))
