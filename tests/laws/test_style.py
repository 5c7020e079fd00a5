"""How code is written: short, named by axes, each thing in its home."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

import pytest
import structure
from source import PACKAGES, ROOT, SOURCES, functions, lines_of, parse

pytestmark = pytest.mark.unit

MODULE_LINES, FUNCTION_LINES, POSITIONAL = 400, 45, 6
# Questions of the platform, and writes to the process's environment, have one home each.
PLATFORM_HOMES = ("prompteol_jax/ops/", "prompteol_jax/runtime.py")
ENVIRONMENT_HOME = "prompteol_jax/runtime.py"
PRIVATE_JAX_HOME = "prompteol_jax/distributed.py"
# The functional surface of nnx, and its types; the rest of it changes from release to release.
NNX_NAMES = {
    *("Module", "Param", "Rngs", "State", "GraphDef", "data", "split", "merge", "state"),
    *("split_rngs", "vmap", "get_abstract_model", "to_flat_state", "from_flat_state"),
    "iter_modules",
}


def misplaced(sources: Mapping[str, str]) -> list[str]:
    """Find platform questions, environment writes and private names of jax outside their homes."""
    homes = [
        ("asks for the platform", structure.PLATFORM, PLATFORM_HOMES),
        ("writes the environment", structure.ENVIRONMENT, ENVIRONMENT_HOME),
        ("uses jax._src", re.compile(r"jax\._src"), PRIVATE_JAX_HOME),
    ]
    return [
        f"{path} {what}"
        for what, pattern, home in homes
        for path in structure.matches(dict(sources), pattern)
        if not path.startswith(home)
    ]


def unknown_nnx_names(sources: Mapping[str, str]) -> list[str]:
    problems = []
    for path, source in sources.items():
        for node in ast.walk(parse(source)):
            is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_attribute and node.value.id == "nnx" and node.attr not in NNX_NAMES:
                problems.append(f"{path}:{node.lineno} nnx.{node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax.nnx"):
                problems.append(f"{path}:{node.lineno} imports names out of nnx")
    return problems


def too_long(sources: Mapping[str, str]) -> list[str]:
    """Find long modules (kernels may be), long functions, and many positional parameters."""
    problems = []
    for path, source in sources.items():
        lines = len(source.splitlines())
        if lines > MODULE_LINES and not path.endswith("_tpu.py"):
            problems.append(f"{path} has {lines} lines")
        for node in functions(source):
            where = f"{path}:{node.lineno} {node.name}"
            if lines_of(node) > FUNCTION_LINES:
                problems.append(f"{where} has {lines_of(node)} lines")
            own = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in SELF]
            if len(own) > POSITIONAL and not path.endswith("_tpu.py"):
                problems.append(f"{where} takes {len(own)} positional parameters")
    return problems


SELF = {"self", "cls"}


def prefix_families(sources: Mapping[str, str]) -> list[str]:
    """Find three modules of one folder with one prefix: they are a folder."""
    found = defaultdict(set)
    for path in map(PurePosixPath, sources):
        if "_" in path.stem.strip("_"):
            found[path.parent, path.stem.split("_")[0]].add(path.name)
        found[path.parent, path.stem].add(path.name)
    return [
        f"{folder}/{prefix}*: {', '.join(sorted(names))}"
        for (folder, prefix), names in found.items()
        if len(names) >= 3
    ]


def repeated_classes(sources: Mapping[str, str]) -> list[str]:
    """Find class names that are defined in two modules."""
    homes = defaultdict(list)
    for path, source in sources.items():
        for node in parse(source).body:
            if isinstance(node, ast.ClassDef) and not path.endswith("_tpu.py"):
                homes[node.name].append(path)
    return [
        f"{name}: {', '.join(paths)}"
        for name, paths in homes.items()
        if len(paths) > 1 and name not in OF_A_FAMILY
    ]


# A family has its own, in its file.
OF_A_FAMILY = {"Block", "Embedding"}


def logic_in_init(sources: Mapping[str, str]) -> list[str]:
    """Find functions and classes in `__init__.py`; a lazy `__getattr__` is allowed."""
    return [
        f"{path} defines {node.name}"
        for path, source in sources.items()
        if path.endswith("/__init__.py")
        for node in parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "__getattr__"
    ]


def without_future(sources: Mapping[str, str]) -> list[str]:
    """Find modules whose annotations are evaluated when they are imported."""
    return [
        path
        for path, source in sources.items()
        if any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in parse(source).body)
        and "from __future__ import annotations" not in source
    ]


def wrong_suffixes(sources: Mapping[str, str]) -> list[str]:
    """Assignments of a contraction to a name that does not end in its axes."""
    problems = []
    for path, source in sources.items():
        for node in ast.walk(parse(source)):
            if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
                continue
            axes, name = contracted_axes(node.value), node.targets[0].id
            if axes and not name.endswith(f"_{axes}"):
                problems.append(f"{path}:{node.lineno} {name} holds {axes}")
    return problems


def contracted_axes(value: ast.expr) -> str | None:
    """The axes after the arrow of a call of `einsum` or `dot`, also under `.astype`."""
    while isinstance(value, ast.Call):
        if ast.unparse(value.func).split(".")[-1] in ("einsum", "dot") and value.args:
            equation = value.args[0]
            if isinstance(equation, ast.Constant) and "->" in str(equation.value):
                return equation.value.split("->")[1].strip()
            return None
        if not isinstance(value.func, ast.Attribute) or value.func.attr != "astype":
            return None
        value = value.func.value
    return None


def prints(sources: Mapping[str, str]) -> list[str]:
    """Calls of print in modules that are not commands."""
    return [
        f"{path}:{node.lineno} prints"
        for path, source in sources.items()
        if "def main(" not in source and not path.endswith("/command.py")
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


LAWS = {
    "platform, environment and private jax each have one home": misplaced,
    "only the stable names of nnx are used": unknown_nnx_names,
    "modules, functions and parameter lists are short": too_long,
    "three modules with one prefix are a folder": prefix_families,
    "a class name is defined once": repeated_classes,
    "an __init__ holds no logic": logic_in_init,
    "annotations are not evaluated": without_future,
    "a contraction is named by its axes": wrong_suffixes,
    "only commands print": prints,
}
BREACHES = [
    (misplaced, {"train/a.py": "jax.default_backend()"}, "train/a.py asks for the platform"),
    (misplaced, {"tpu/a.py": "os.environ['X'] = '1'"}, "tpu/a.py writes the environment"),
    (misplaced, {"eval/a.py": "from jax._src import x"}, "eval/a.py uses jax._src"),
    (unknown_nnx_names, {"train/a.py": "nnx.jit(f)"}, "a.py:1 nnx.jit"),
    (unknown_nnx_names, {"train/a.py": "from flax.nnx import jit"}, "a.py:1 imports names"),
    (too_long, {"train/a.py": "x = 1\n" * 401}, "401 lines"),
    (too_long, {"train/a.py": "def f():\n" + "  x = 1\n" * 45}, "f has 46 lines"),
    (too_long, {"train/a.py": "def f(a, b, c, d, e, f, g): pass"}, "takes 7 positional"),
    (prefix_families, {f"eval/a_{n}.py": "" for n in "xyz"}, "eval/a*: a_x.py"),
    (repeated_classes, {"eval/a.py": "class A: 1", "tpu/b.py": "class A: 1"}, "A: eval/a.py"),
    (logic_in_init, {"eval/__init__.py": "def f(): 1"}, "defines f"),
    (without_future, {"eval/a.py": "def f(): 1"}, "eval/a.py"),
    (wrong_suffixes, {"train/a.py": 'y_BT = jnp.einsum("BTD,D->BTD", x, w)'}, "y_BT holds BTD"),
    (wrong_suffixes, {"train/a.py": 'y = dot("BTD,D->BT", x, w).astype(t)'}, "y holds BT"),
    (prints, {"train/a.py": "def f():\n  print(1)"}, "a.py:2 prints"),
]


@pytest.mark.parametrize("law", LAWS)
def test_the_source_keeps_the_law(law):
    assert LAWS[law](SOURCES) == []


@pytest.mark.parametrize(("law", "sources", "problem"), BREACHES)
def test_a_breach_is_found(law, sources, problem):
    assert problem in "; ".join(law(sources))


def test_what_is_allowed_passes():
    future = "from __future__ import annotations\n"
    sources = {
        "prompteol_jax/ops/select.py": "jax.default_backend()",
        "prompteol_jax/runtime.py": "os.environ['X'] = '1'",
        "prompteol_jax/nn/a.py": 'y_BT = jnp.einsum("BTD,D->BT", x, w)\nlayer = Linear("D,F->F")',
        "train/run/checkpoints.py": "nnx.split(m, nnx.Param)",
        "eval/sts/command.py": future + "def main(): print(1)",
    }
    assert [problem for check in LAWS.values() for problem in check(sources)] == []


def test_every_name_is_defined_but_axis_letters_in_annotations():
    # The linter cannot tell those letters from names, so its own rule is off.
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--exit-zero"]
    done = subprocess.run(
        [*command, "--output-format=concise", *PACKAGES, "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = re.findall(r"F821 Undefined name `(\w+)`", done.stdout)
    assert names
    assert [name for name in names if len(name) > 1] == []
