"""The project's style as laws over its own source."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prompteol_jax", "train", "eval", "tpu")
MODULE_LINES, FUNCTION_LINES = 400, 60

# What comes earlier never imports, even through others, what comes later.
CHAINS = (
    ("axes", "ops", "nn", "models", "lora", "pretrained", "encoding", "embedder", "cli"),
    ("axes", "quant", ("nn", "weights"), "models"),
    ("runtime", "storage", "text", "models"),
    ("embedder", ("verify", "export"), "cli"),
)
# The command line is the door to all packages: it reaches up, and nothing imports it.
DOORS = {"prompteol_jax/cli/main.py": {"eval"}}
FORBIDDEN_PACKAGES = {"prompteol_jax": {"train", "eval", "tpu"}, "eval": {"train"}}
ONLY_IN = {
    "orbax": {"train/run/checkpoints.py", "prompteol_jax/pretrained/orbax_folder.py"},
    # torch_reference is what `verify` compares with, tpu.bench.peer what `tpu.bench` races; nothing
    # else of the product needs torch.
    "transformers": {
        *(
            "prompteol_jax/text/tokenizer.py",
            "prompteol_jax/verify/torch_reference.py",
            "tpu/bench/peer.py",
        )
    },
    "huggingface_hub": {"prompteol_jax/pretrained/hub.py"},
    "tensorflow_datasets": {"prompteol_jax/storage/array_record.py"},
    "torch": {"prompteol_jax/verify/torch_reference.py", "tpu/bench/peer.py"},
    "peft": {"prompteol_jax/verify/torch_reference.py", "tpu/bench/peer.py"},
    "mteb": {"eval/mteb/encoder.py"},
}
# The functional surface of nnx, and its types; the rest of it changes from release to release.
NNX_NAMES = {
    *("Module", "Param", "Rngs", "State", "GraphDef", "data", "split", "merge", "state"),
    *("split_rngs", "vmap", "get_abstract_model", "to_flat_state", "from_flat_state"),
    "iter_modules",
}

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path) for path in SOURCES}


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from runtime_nodes(node)


def imported(source: str) -> set[str]:
    """The dotted names that a module imports at any time, inside its functions as well."""
    names = set()
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Which modules of the project each of them imports."""
    modules = {module_name(path) for path in sources}
    edges = {}
    for path, source in sources.items():
        names = imported(source) & modules
        # `from package import module` names the package too, which then only stands for it.
        through = {name.rpartition(".")[0] for name in names}
        direct = {n for n in names if n not in through or imports_itself(source, n, modules)}
        edges[module_name(path)] = direct - {module_name(path)}
    return edges


def imports_itself(source: str, package: str, modules: set[str]) -> bool:
    """Whether a module takes something out of a package that is not a module of it."""
    for node in runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            if any(f"{package}.{alias.name}" not in modules for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and package in {alias.name for alias in node.names}:
            return True
    return False


def reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found, open_ = set(), [start]
    while open_:
        for name in graph[open_.pop()] - found:
            found.add(name)
            open_.append(name)
    return found


def against_the_arrows(sources: Mapping[str, str]) -> list[str]:
    graph = graph_of(sources)
    problems = [f"{m} imports itself through others" for m in graph if m in reachable(graph, m)]
    for chain in CHAINS:
        stages = [(stage,) if isinstance(stage, str) else stage for stage in chain]
        for i, stage in enumerate(stages):
            later = {name for names in stages[i + 1 :] for name in names}
            for module in (m for m in graph if stage_of(m) in stage):
                wrong = sorted(m for m in reachable(graph, module) if stage_of(m) in later)
                problems += [f"{module} imports {m}" for m in wrong]
    for path, source in sources.items():
        forbidden = FORBIDDEN_PACKAGES.get(path.split("/")[0], set()) - DOORS.get(path, set())
        wrong = sorted(n for n in imported(source) if n.split(".")[0] in forbidden)
        problems += [f"{module_name(path)} imports {name}" for name in wrong]
    return problems


def stage_of(module: str) -> str | None:
    """The name by which a chain knows a module of the library: its first part."""
    parts = module.split(".")
    return parts[1] if parts[0] == "prompteol_jax" and len(parts) > 1 else None


def misplaced_imports(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path} imports {name}"
        for path, source in sources.items()
        for name in sorted({name.split(".")[0] for name in imported(source)})
        if name in ONLY_IN and path not in ONLY_IN[name]
    ]


def unknown_nnx_names(sources: Mapping[str, str]) -> list[str]:
    problems = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_attribute and node.value.id == "nnx" and node.attr not in NNX_NAMES:
                problems.append(f"{path}:{node.lineno} nnx.{node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flax.nnx"):
                problems.append(f"{path}:{node.lineno} imports names out of nnx")
    return problems


def too_long(sources: Mapping[str, str]) -> list[str]:
    problems = []
    for path, source in sources.items():
        lines = len(source.splitlines())
        if lines > MODULE_LINES:
            problems.append(f"{path} has {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    problems.append(f"{path}:{node.lineno} {node.name} has {lines} lines")
    return problems


def wrong_suffixes(sources: Mapping[str, str]) -> list[str]:
    """Assignments of a contraction to a name that does not end in its axes."""
    problems = []
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
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
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


# Written so that this file does not hold what it looks for.
FORBIDDEN_TEXTS = {
    "a folder of one machine": r"(?<![\w.:/~])/(?:work|root|home|Users|mnt)/\w",
    "the host of a package registry": r"py" + r"pi\.org|python" + r"hosted|index[-_]" + r"url",
    "a task left open": r"\bTO" + r"DO\b|\bFIX" + r"ME\b|\bX" + r"XX\b",
}


def forbidden_texts(texts: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{number} holds {what}: {line.strip()[:80]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in FORBIDDEN_TEXTS.items()
        if re.search(pattern, line)
    ]


def tracked_texts() -> dict[str, str]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout: there is no list of the project's files")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary, or deleted and not yet committed
    return texts


LAWS = {
    "imports follow the arrows of the design": against_the_arrows,
    "heavy libraries are imported in one place": misplaced_imports,
    "only the stable names of nnx are used": unknown_nnx_names,
    "modules and functions are short": too_long,
    "a contraction is named by its axes": wrong_suffixes,
    "only commands print": prints,
}

BREACHES = [
    (against_the_arrows, {"prompteol_jax/axes.py": "import eval.sts"}, "axes imports eval.sts"),
    (
        against_the_arrows,
        {"eval/sts/command.py": "def f():\n from train import x"},
        "sts.command imports train.x",
    ),
    (
        against_the_arrows,
        {
            "prompteol_jax/ops/norm.py": "from prompteol_jax import between",
            "prompteol_jax/between.py": "from prompteol_jax.nn import dot",
            "prompteol_jax/nn/__init__.py": "",
        },
        "norm imports prompteol_jax.nn",
    ),
    (
        against_the_arrows,
        {
            "prompteol_jax/models/__init__.py": "from prompteol_jax.models import opt",
            "prompteol_jax/models/opt.py": "from prompteol_jax.models import FAMILIES",
        },
        "models imports itself",
    ),
    (misplaced_imports, {"train/loop.py": "import orbax.checkpoint as ocp"}, "imports orbax"),
    (misplaced_imports, {"eval/a.py": "def f():\n  import torch.nn"}, "imports torch"),
    (unknown_nnx_names, {"train/a.py": "nnx.jit(f)"}, "a.py:1 nnx.jit"),
    (unknown_nnx_names, {"train/a.py": "from flax.nnx import jit"}, "a.py:1 imports names"),
    (too_long, {"train/a.py": "x = 1\n" * 401}, "401 lines"),
    (too_long, {"train/a.py": "def f():\n" + "  x = 1\n" * 60}, "f has 61 lines"),
    (wrong_suffixes, {"train/a.py": 'y_BT = jnp.einsum("BTD,D->BTD", x, w)'}, "y_BT holds BTD"),
    (wrong_suffixes, {"train/a.py": 'y = dot("BTD,D->BT", x, w).astype(t)'}, "y holds BT"),
    (prints, {"train/a.py": "def f():\n  print(1)"}, "a.py:2 prints"),
    (forbidden_texts, {"README.md": "see /ho" + "me/me/data"}, "a folder of one machine"),
    (forbidden_texts, {"Makefile": "pip --index-" + "url x"}, "the host of a package registry"),
    (forbidden_texts, {"a.py": "# TO" + "DO: later"}, "a task left open"),
]


@pytest.mark.parametrize("law", LAWS)
def test_the_source_keeps_the_law(law):
    assert set(PACKAGES) <= MODULES
    assert LAWS[law](SOURCES) == []


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


def test_tracked_files_name_no_machine_and_leave_no_task():
    assert forbidden_texts(tracked_texts()) == []


@pytest.mark.parametrize(("law", "sources", "problem"), BREACHES)
def test_a_breach_is_found(law, sources, problem):
    assert problem in "; ".join(law(sources))


def test_what_is_allowed_passes():
    sources = {
        "prompteol_jax/models/__init__.py": "from prompteol_jax.models import opt\nFAMILIES = 1",
        "prompteol_jax/models/opt.py": "if TYPE_CHECKING:\n  from prompteol_jax.models import X",
        "prompteol_jax/nn/a.py": 'y_BT = jnp.einsum("BTD,D->BT", x, w)\nlayer = Linear("D,F->F")',
        "train/run/checkpoints.py": "from orbax.checkpoint import v1 as o\nnnx.split(m, nnx.Param)",
        "eval/sts/command.py": "print(1)",
    }
    assert [problem for check in LAWS.values() for problem in check(sources)] == []
    assert forbidden_texts({"a.md": "https://example.org/home/x, ~/work/x, ./root/x"}) == []
