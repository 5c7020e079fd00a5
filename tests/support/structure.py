"""Numbers of the source: how many rooms, arrows, platform questions, writers, lines.

python tests/support/structure.py [FOLDER]      # a checkout; by default this one
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("prompteol_jax", "train", "eval", "tpu")
PLATFORM = re.compile(
    r"""axes\.platform\(|select\.platform\(|\bplatform\(\)|default_backend\(|\.platform\b(?!\s*=)"""
)
ENVIRONMENT = re.compile(
    r"""os\.environ\[[^\]]+\]\s*=|os\.environ\.(setdefault|update|pop)\(|jax\.config\.update\(
    |os\.putenv\(""",
    re.VERBOSE,
)


def sources(root: Path) -> dict[str, str]:
    """Read every module of the packages, by dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text(encoding="utf-8")
        )
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


def imports(source: str) -> Iterator[str]:
    """Yield the dotted names that a module imports at run time."""

    def visit(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from visit(child)

    return visit(ast.parse(source))


def home(name: str, modules: dict[str, str]) -> str | None:
    """Find the module that an imported name belongs to."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def room(module: str) -> str:
    """Return the room of a module: its package and the folder or file within."""
    return ".".join(module.split(".")[:2])


def edges(modules: dict[str, str]) -> set[tuple[str, str]]:
    """Return which module imports which."""
    found = set()
    for module, source in modules.items():
        for name in imports(source):
            target = home(name, modules)
            if target and target not in PACKAGES and target != module:
                found.add((module, target))
    return found


def cycles(pairs: set[tuple[str, str]]) -> list[str]:
    """List the nodes that reach themselves."""
    after: dict[str, set[str]] = {}
    for a, b in pairs:
        after.setdefault(a, set()).add(b)

    def reached(start: str) -> set[str]:
        seen, open_ = set(), [start]
        while open_:
            for name in after.get(open_.pop(), set()) - seen:
                seen.add(name)
                open_.append(name)
        return seen

    return sorted(node for node in after if node in reached(node))


def functions(source: str) -> Iterator[int]:
    """Yield the lengths of a module's functions, in lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.end_lineno - node.lineno + 1


def code_of(source: str) -> str:
    """Drop comments and docstrings, so that words about a thing do not count as the thing."""
    return ast.unparse(ast.parse(source))


def report(root: Path) -> str:
    """Return the numbers of a checkout as lines of text."""
    modules = sources(root)
    arrows = edges(modules)
    rooms = {(room(a), room(b)) for a, b in arrows if room(a) != room(b)}
    lines = [f"{'':24}{'library':>10}{'train':>8}{'eval':>8}{'tpu':>8}"]

    def row(label: str, count: dict[str, int]) -> None:
        cells = [count.get(package, 0) for package in PACKAGES]
        lines.append(f"{label:24}{cells[0]:>10}{cells[1]:>8}{cells[2]:>8}{cells[3]:>8}")

    def total(package: str) -> int:
        return sum(modules[m].count("\n") for m in modules if m.split(".")[0] == package)

    row("modules at the top", {p: len([*(root / p).glob("[!_]*.py")]) for p in PACKAGES})
    row("folders at the top", {p: len([*(root / p).glob("*/__init__.py")]) for p in PACKAGES})
    row("lines", {p: total(p) for p in PACKAGES})
    code = {module: code_of(source) for module, source in modules.items()}
    asked = sorted(m for m, s in code.items() for _ in PLATFORM.finditer(s))
    written = sorted(m for m, s in code.items() if ENVIRONMENT.search(s))
    lengths = sorted(n for source in modules.values() for n in functions(source))
    lines += [
        f"arrows between rooms: {len(rooms)}; modules in a cycle: {len(cycles(arrows))}",
        f"platform asked {len(asked)} times in {len(set(asked))} modules: "
        f"{', '.join(dict.fromkeys(asked))}",
        f"environment written in {len(written)} modules: {', '.join(written)}",
        f"functions: {len(lengths)}, median {statistics.median(lengths)} lines, "
        f"p90 {lengths[int(0.9 * len(lengths))]}, longest {lengths[-1]}",
        f"lines of the four packages: {sum(map(total, PACKAGES))}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    print(report(folder))
