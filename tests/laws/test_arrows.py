"""Imports go one way through the rooms, and every outside library has one door."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from source import PACKAGES, SOURCES, graph_of, imported, module_name, reachable

pytestmark = pytest.mark.unit

# What comes earlier never imports, even through others, what comes later.
CHAINS = (
    ("axes", "ops", "nn", "models", "lora", "pretrained", "encoding", "embedder", "cli"),
    ("axes", "quant", ("nn", "weights"), "models"),
    ("runtime", "storage", "text", "models"),
    ("embedder", ("verify", "export"), "cli"),
    ("methods", "encoding", "embedder"),
)
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
        forbidden = FORBIDDEN_PACKAGES.get(path.split("/")[0], set())
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


LAWS = {
    "imports follow the arrows of the design": against_the_arrows,
    "an outside library is imported in one place": misplaced_imports,
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
]


@pytest.mark.parametrize("law", LAWS)
def test_the_source_keeps_the_law(law):
    assert {path.split("/")[0] for path in SOURCES} == set(PACKAGES)
    assert LAWS[law](SOURCES) == []


@pytest.mark.parametrize(("law", "sources", "problem"), BREACHES)
def test_a_breach_is_found(law, sources, problem):
    assert problem in "; ".join(law(sources))


def test_what_is_allowed_passes():
    sources = {
        "prompteol_jax/models/__init__.py": "from prompteol_jax.models import opt\nFAMILIES = 1",
        "prompteol_jax/models/opt.py": "if TYPE_CHECKING:\n  from prompteol_jax.models import X",
        "train/run/checkpoints.py": "from orbax.checkpoint import v1 as ocp",
    }
    assert [problem for check in LAWS.values() for problem in check(sources)] == []
