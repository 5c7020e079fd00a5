"""The help of every command becomes part of reference/commands.md when the site is built."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

MARKER: Final = "<!-- help -->"
COMMANDS: Final = (
    "prompteol encode",
    "prompteol words",
    "prompteol show",
    "prompteol serve",
    "prompteol verify",
    "prompteol methods",
    "prompteol fit",
    "prompteol compare",
    "prompteol export",
    "python -m eval.sts",
    "python -m eval.transfer",
    "python -m eval.layers",
    "python -m eval.search",
    "python -m eval.demos build",
    "python -m eval.demos search",
    "python -m eval.retrieval",
    "python -m eval.loco",
    "python -m eval.mteb",
    "python -m eval.reproduce",
    "python -m train.contrastive",
    "python -m train.align",
    "python -m train.mine",
    "python -m train.prepare triplets",
    "python -m train.prepare nli",
    "python -m train.prepare sts",
    "python -m train.prepare graded",
    "python -m tpu.plan",
    "python -m tpu.fits",
    "python -m tpu.lengths",
    "python -m tpu.launch",
    "python -m tpu.bench encode",
    "python -m tpu.bench train",
    "python -m tpu.random_checkpoint",
)


def help_of(command: str) -> str:
    """Return what a command prints with `--help`, 88 columns wide and without colors."""
    words = command.split()
    start = words[1:] if words[0] == "python" else ["-m", "prompteol_jax.cli", *words[1:]]
    plain = {"COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *start, "--help"],
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command} --help ended with {done.returncode}: {done.stderr[-2000:]}")
    return without_boxes(done.stdout)


def without_boxes(text: str) -> str:
    """Return the help with indented sections instead of drawn boxes."""
    lines = []
    for line in text.splitlines():
        if line.startswith("╭"):
            lines.append(line.strip("╭─╮ ") + ":")
        elif line.startswith("│"):
            lines.append("  " + line.strip("│")[1:].rstrip())
        else:
            lines.append("" if line.startswith("╰") else line)
    return "\n".join(lines).strip()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of all commands where a page has the marker."""
    if MARKER not in markdown:
        return markdown
    with ThreadPoolExecutor(2) as pool:
        helps = pool.map(help_of, COMMANDS)
    parts = [
        f"## {command}\n\n```text\n{text}\n```"
        for command, text in zip(COMMANDS, helps, strict=True)
    ]
    return markdown.replace(MARKER, "\n\n".join(parts))
