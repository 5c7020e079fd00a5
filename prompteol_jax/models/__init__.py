"""Model families by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Final

from prompteol_jax.models import llama, opt

Config = opt.OptConfig | llama.LlamaConfig
FAMILIES: Final[Mapping[str, tuple[type, ModuleType]]] = MappingProxyType(
    {"opt": (opt.OptConfig, opt), "llama": (llama.LlamaConfig, llama)}
)
