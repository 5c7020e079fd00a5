"""Figures that others published, with their sources, and which scores may be compared with them.

Nothing here was measured by this project. A cell that was not found is absent, and an average that
its source does not print, but that follows from two that it does, is marked as derived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from eval.sts.tasks import SPLITS
from prompteol_jax.text.template import TEMPLATES

STS: Final = SPLITS["test"]
TRANSFER: Final = ("MR", "CR", "SUBJ", "MPQA", "SST2", "TREC", "MRPC")
SEED: Final = 1111  # SentEval's, with which transfer scores were published

_README: Final = "README of kongds/scaling_sentemb"
_PAPER: Final = "arXiv 2307.16645"
_LOST: Final = "the original's decapoda-research copy is gone from the hub"
_SEMPA: Final = "arXiv 2601.05075, table 3"


@dataclass(frozen=True)
class Row:
    """One row of a table: what was run, and what was published for it.

    Attributes:
        model: Hub name; `adapter`, `template` and `quantize` are those of the flags.
        scores: Published cells by task.
        average: Published mean, rounded as the source is.
        derived: Whether the average is one published figure less another.
        half: Whether the released script ran this row in float16 (`--tensor_parallel`).
        note: Remark on how this was run.
        method: Name of a method; None for the template alone.
        missing: Why this project cannot run it; empty where it can.
    """

    model: str
    scores: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None
    source: str = ""
    adapter: str | None = None
    template: str = "eol"
    quantize: str | None = None
    derived: bool = False
    half: bool = False
    note: str = ""
    method: str | None = None
    missing: str = ""

    @property
    def name(self) -> str:
        """The model's name without its owner, the format of its weights, and the method."""
        return " ".join(filter(None, [self.model.split("/")[-1], self.quantize, self.method]))


def _cells(tasks: Sequence[str], figures: str) -> dict[str, float]:
    return dict(zip(tasks, map(float, figures.split()), strict=True))


def _opt(size: str, **fields) -> Row:
    return Row(f"facebook/opt-{size}", half=size == "66b", **fields)


def _icl(size: str, figures: str, average: float) -> Row:
    cells = _cells(STS, figures)
    return _opt(size, scores=cells, average=average, source=_README, template=f"eol-icl-{size}")


def _tuned(model: str, adapter: str, figures: str, average: float) -> Row:
    cells, lora = _cells(STS, figures), f"royokong/prompteol-{adapter}"
    note = _LOST if adapter.startswith("llama") else ""
    return Row(model, cells, average, _README, adapter=lora, note=note)


# The paper prints the averages with a demonstration and by how much it improves on none.
_ZERO_SHOT: Final = {
    "125m": 67.00,
    "350m": 65.03,
    "1.3b": 73.18,
    "2.7b": 69.30,
    "6.7b": 72.10,
    "13b": 71.86,
    "30b": 72.43,
}
_LLAMA_1: Final = ("7b", "13b", "30b", "65b")

_STS_ZERO_SHOT: Final = (
    *(
        _opt(size, average=average, derived=True, source=f"{_PAPER}, ICL table: average - improve")
        for size, average in _ZERO_SHOT.items()
    ),
    _opt("66b", average=68.84, source=f"{_PAPER}, text"),
    *(Row(f"huggyllama/llama-{size}", note=_LOST) for size in _LLAMA_1),
    Row(
        "meta-llama/Llama-2-7b-hf",
        _cells(STS, "58.81 77.01 66.34 73.22 73.56 71.66 69.64"),
        70.03,
        "follow-ups print it alike: MetaEOL, arXiv 2412.11556, 2505.12831, 2601.05075",
    ),
    Row(
        "meta-llama/Meta-Llama-3-8B",
        _cells(STS, "60.89 78.57 68.18 76.75 77.16 72.83 68.94"),
        71.90,
        _SEMPA,
    ),
)

_STS_ICL: Final = (
    _icl("125m", "62.22 73.10 61.84 71.09 72.08 67.80 64.10", 67.46),
    _icl("350m", "63.87 73.85 63.41 72.45 73.13 70.84 65.61", 69.02),
    _icl("1.3b", "72.78 83.77 73.61 83.42 80.60 78.80 69.69", 77.52),
    _icl("2.7b", "68.49 84.72 75.15 83.62 81.34 80.94 72.97", 78.18),
    _icl("6.7b", "70.65 84.51 75.01 83.51 82.00 81.12 76.77", 79.08),
    _icl("13b", "71.99 85.22 76.04 82.23 81.38 81.42 75.00", 79.04),
    _icl("30b", "69.99 83.35 74.75 83.14 82.42 81.45 77.46", 78.94),
    _icl("66b", "69.93 83.29 74.88 80.10 81.11 81.76 76.26", 78.19),
)

_STS_FINETUNED: Final = (
    _tuned("facebook/opt-1.3b", "opt-1.3b", "79.01 89.26 84.10 88.30 84.62 87.71 80.52", 84.79),
    _tuned("facebook/opt-2.7b", "opt-2.7b", "79.49 89.64 84.80 89.51 85.91 88.33 81.64", 85.62),
    _tuned("facebook/opt-6.7b", "opt-6.7b", "80.14 90.02 84.94 89.78 85.84 88.75 81.29", 85.82),
    _tuned("facebook/opt-13b", "opt-13b", "80.20 90.24 85.34 89.52 85.90 88.56 82.06", 85.97),
    _tuned("huggyllama/llama-7b", "llama-7b", "79.16 90.22 85.40 88.99 86.25 88.37 81.51", 85.70),
    _tuned("huggyllama/llama-13b", "llama-13b", "78.63 90.03 85.46 89.48 86.18 88.45 82.69", 85.85),
    _tuned("huggyllama/llama-30b", "llama-30b", "79.72 90.25 85.85 90.04 86.27 89.14 82.38", 86.24),
)

_TRANSFER: Final = (
    *(_opt(size) for size in ("125m", "350m", "1.3b", "2.7b")),
    _opt("6.7b", average=91.34, source=f"{_PAPER}, text"),
    *(_opt(size) for size in ("13b", "30b", "66b")),
    *(Row(f"huggyllama/llama-{size}", note=_LOST) for size in _LLAMA_1),
    Row(
        "meta-llama/Llama-2-7b-hf",
        _cells(TRANSFER, "90.63 92.87 96.32 91.19 95.00 95.40 75.19"),
        90.94,
        "follow-ups print it alike: MetaEOL, arXiv 2412.11556, 2505.12831",
    ),
)

_QUANTISATION: Final = tuple(
    Row(
        f"facebook/opt-{size}",
        average={("6.7b", None): 79.08, ("6.7b", "nf4"): 79.38}.get((size, quantize)),
        source=f"{_PAPER}, quantization table, quoted in its text" if size == "6.7b" else "",
        template=f"eol-icl-{size}",
        quantize=quantize,
    )
    for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")
    for quantize in (None, "nf4")
)

TABLES: Final[Mapping[str, tuple[Row, ...]]] = MappingProxyType(
    {
        "sts-zero-shot": _STS_ZERO_SHOT,
        "sts-icl": _STS_ICL,
        "sts-finetuned": _STS_FINETUNED,
        "transfer": _TRANSFER,
        "quantization": _QUANTISATION,
    }
)

PARAMETERS: Final[Mapping[str, float]] = MappingProxyType(
    {
        **{f"opt-{size}": float(size[:-1]) * (1e9 if size[-1] == "b" else 1e6) for size in (
            *("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b"),
        )},
        **{f"llama-{size}": float(size[:-1]) * 1e9 for size in _LLAMA_1},
        "llama-2-7b-hf": 7e9,
        "meta-llama-3-8b": 8e9,
    }
)  # fmt: skip


def tasks_of(table: str) -> tuple[str, ...]:
    """Return the tasks of a table's columns."""
    return TRANSFER if table == "transfer" else STS


def find(table: str, model: str) -> list[Row]:
    """Return a table's rows for a model given by hub name, or by a folder or name ending so."""
    return of_model(TABLES[table], model)


def of_model(rows: Sequence[Row], model: str) -> list[Row]:
    """Return the rows for a model, as `find`."""
    last = model.rstrip("/").split("/")[-1].split("@")[0].lower()
    return [row for row in rows if row.model.split("/")[-1].lower() == last]


def match(
    table: str, model: str, template: str, adapter: str | None, quantize: str | None = None
) -> Row | None:
    """Return the row of a table that was run so, or None; an adapter counts by its last name."""
    last = (adapter or "").rstrip("/").split("/")[-1]
    for row in find(table, model):
        same = (row.adapter or "").split("/")[-1] == last and row.quantize == quantize
        if same and row.template == template:
            return row
    return None


class Cell(NamedTuple):
    """A score with the published one, where the two may be compared; `why_not` where not."""

    task: str
    ours: float
    published: float | None
    why_not: str = ""

    @property
    def difference(self) -> float | None:
        """Ours less the published one; both have two decimals, so their difference has too."""
        return None if self.published is None else round(self.ours - self.published, 2)


def table_of(result: Mapping[str, Any]) -> str:
    """Return the table whose rows were run most like a result of eval.sts or eval.transfer."""
    if result.get("protocol"):
        return "transfer"
    if result.get("adapter"):
        return "sts-finetuned"
    template = (result.get("provenance") or {}).get("template") or {}
    if not template.get("demonstrations"):
        return "sts-zero-shot"
    return "quantization" if result.get("quantize") else "sts-icl"


def unlike(result: Mapping[str, Any], method: str | None = None) -> list[str]:
    """Return what a result was run with that no published row was.

    Args:
        method: Method of the row, which brings its own layer, pooling and prompts; None where the
            row has a template alone.
    """
    options, protocol = result.get("options") or {}, result.get("protocol") or {}
    split = (result.get("data") or {}).get("split", "test")
    template = (result.get("provenance") or {}).get("template")
    known = None if method else TEMPLATES.get(result["template"])
    layer, pooling = result.get("layer"), result.get("pooling", "last")
    return [
        why
        for differs, why in (
            (split != "test", f"the {split} split"),
            (layer is not None and not method, f"layer {layer}"),
            (pooling != "last" and not method, f"{pooling} pooling"),
            (result.get("method") != method, f"method {result.get('method')}"),
            (not result.get("clean", True), "sentences as they are"),
            (bool(options.get("fast")), "the fast protocol"),
            (protocol.get("seed", SEED) != SEED, f"seed {protocol.get('seed')}"),
            (
                template is not None
                and known is not None
                and any(template[key] != part for key, part in known.to_json().items()),
                f"another text under the name of template {result['template']}",
            ),
        )
        if differs
    ]


def is_whole(result: Mapping[str, Any], table: str) -> bool:
    """Return whether a result is of all tasks of a table, on the whole published data."""
    lacking = (result.get("data") or {}).get("incomplete")
    return set(result["scores"]) == set(tasks_of(table)) and not lacking


def cells(result: Mapping[str, Any], row: Row | None, table: str) -> list[Cell]:
    """Return every score of a result, and its average, with what was published for it in a row.

    A published score is compared with one of the same protocol, on the whole published set; a
    published average with one over the same tasks.
    """
    reasons = unlike(result, row.method if row else result.get("method"))
    lacking = (result.get("data") or {}).get("incomplete") or {}
    if set(result["scores"]) != set(tasks_of(table)):
        lacking = {**lacking, "average": "not of all tasks"}
    elif lacking:
        lacking = {**lacking, "average": "not of the published data"}
    found = []
    for task, ours in (*result["scores"].items(), ("average", result["average"])):
        theirs = None
        if row is not None:
            theirs = row.average if task == "average" else row.scores.get(task)
        why_not = "; ".join([*reasons, *([lacking[task]] if task in lacking else [])])
        if theirs is None:
            why_not = ""
        found.append(Cell(task, ours, None if why_not else theirs, why_not))
    return found


def averages_by_size(table: str) -> dict[float, float]:
    """Return the published averages of OPT in a table, by number of parameters."""
    return {
        PARAMETERS[row.name.lower()]: row.average
        for row in TABLES[table]
        if row.average is not None and row.name.startswith("opt-") and not row.quantize
    }
