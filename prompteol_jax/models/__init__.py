"""Model families by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Final

from prompteol_jax.models import llama, opt, qwen3

Config = opt.OptConfig | llama.LlamaConfig | qwen3.Qwen3Config
FAMILIES: Final[Mapping[str, tuple[type, ModuleType]]] = MappingProxyType(
    {
        "opt": (opt.OptConfig, opt),
        "llama": (llama.LlamaConfig, llama),
        "qwen3": (qwen3.Qwen3Config, qwen3),
    }
)
