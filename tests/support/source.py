"""The project's own source, read once: modules, imports, functions."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prompteol_jax", "train", "eval", "tpu")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def read(root: Path) -> dict[str, str]:
    """Read every module of the four packages, by its path in the checkout."""
    return {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }


SOURCES: Mapping[str, str] = MappingProxyType(read(ROOT))


@functools.cache
def parse(source: str) -> ast.Module:
    """Parse a source, each text once."""
    return ast.parse(source)


def module_name(path: str) -> str:
    """Return the dotted name of a module by its path."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(module: str) -> str:
    """Return the room of a module: its package, and the folder or file within it."""
    return ".".join(module.split(".")[:2])


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


@functools.cache
def imported(source: str) -> frozenset[str]:
    """Return the dotted names that a module imports at any time, inside its functions as well."""
    names = set()
    for node in runtime_nodes(parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which modules of the project each of them imports."""
    modules = {module_name(path) for path in sources}
    edges = {}
    for path, source in sources.items():
        names = imported(source) & modules
        # `from package import module` names the package too, which then only stands for it.
        through = {name.rpartition(".")[0] for name in names}
        direct = {n for n in names if n not in through or _uses(source, n, modules)}
        edges[module_name(path)] = direct - {module_name(path)}
    return edges


def _uses(source: str, package: str, modules: set[str]) -> bool:
    """Say whether a module takes something out of a package that is not a module of it."""
    for node in runtime_nodes(parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            if any(f"{package}.{alias.name}" not in modules for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and package in {alias.name for alias in node.names}:
            return True
    return False


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return all modules that one imports, also through others."""
    found, open_ = set(), [start]
    while open_:
        for name in graph[open_.pop()] - found:
            found.add(name)
            open_.append(name)
    return found


def functions(source: str) -> Iterator[Function]:
    """Yield the functions and methods of a module."""
    yield from (n for n in ast.walk(parse(source)) if isinstance(n, Function))


def lines_of(node: Function) -> int:
    """Count the lines of a function."""
    return node.end_lineno - node.lineno + 1


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield every docstring with the line that it begins at."""
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and (
            text := ast.get_docstring(node)
        ):
            yield node.body[0].lineno, text
