"""The README of exported weights: what they are, how they were made, how they score, how to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from prompteol_jax.text.template import Template
from train.flags import RunConfig

NAME: Final = "README.md"
_USE: Final = """```python
from prompteol_jax import Embedder

embedder = Embedder.from_pretrained({base}, adapter="THIS FOLDER", template={template})
vectors = embedder.encode(["A man is playing a guitar."])
```"""


def write_card(folder: Path, flags: RunConfig, template: Template, facts: dict[str, Any]) -> None:
    """Write the card of weights into their folder, as the Hub shows it.

    Args:
        facts: method, step and scores; those that are None are left out.
    """
    base = Path(flags.model).name if Path(flags.model).is_dir() else flags.model
    header = {
        "base_model": base,
        "library_name": "transformers" if flags.full else "peft",
        "license": flags.license,
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-embeddings", "prompteol", *([] if flags.full else ["lora"])],
    }
    data = [Path(name).name for name in flags.sources]
    rows = {
        "base": base,
        "data": ", ".join(data),
        "prompt": f"{template.head}*text*{template.suffix}",
        **facts,
    }
    kind = "All weights" if flags.full else "A LoRA adapter"
    lines = [
        "---",
        *(f"{name}: {json.dumps(value)}" for name, value in header.items()),
        "---",
        f"# Sentence embeddings from {base}",
        "",
        f"{kind}, trained with prompteol-jax. A text's vector is the state of its prompt's last "
        "token.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None),
        "",
        _USE.format(base=json.dumps(base), template=json.dumps(template.name)),
        "",
    ]
    (folder / NAME).write_text("\n".join(lines), encoding="utf-8")


def _cell(value: Any) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
