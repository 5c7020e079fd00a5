"""Model families by name."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from prompteol_jax.models import llama, opt, qwen3

Config = opt.OptConfig | llama.LlamaConfig | qwen3.Qwen3Config
# A family outside this package adds itself here: see examples/own_family.py.
FAMILIES: Final[dict[str, tuple[type, ModuleType]]] = {
    "opt": (opt.OptConfig, opt),
    "llama": (llama.LlamaConfig, llama),
    "qwen3": (qwen3.Qwen3Config, qwen3),
}
