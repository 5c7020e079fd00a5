"""Model families by name."""

from __future__ import annotations

from types import ModuleType
from typing import Final

from prompteol_jax.models import (
    gemma,
    gemma2,
    gemma3,
    llama,
    mistral,
    olmo2,
    olmo3,
    opt,
    phi3,
    qwen2,
    qwen3,
)

Config = opt.OptConfig | llama.LlamaConfig  # other families' configs derive from LLaMA's
# A family outside this package adds itself here: see examples/own_family.py.
FAMILIES: Final[dict[str, tuple[type, ModuleType]]] = {
    "opt": (opt.OptConfig, opt),
    "llama": (llama.LlamaConfig, llama),
    "mistral": (mistral.MistralConfig, mistral),
    "gemma": (gemma.GemmaConfig, gemma),
    "gemma2": (gemma2.Gemma2Config, gemma2),
    "gemma3_text": (gemma3.Gemma3Config, gemma3),
    "olmo2": (olmo2.Olmo2Config, olmo2),
    "olmo3": (olmo3.Olmo3Config, olmo3),
    "phi3": (phi3.Phi3Config, phi3),
    "qwen2": (qwen2.Qwen2Config, qwen2),
    "qwen3": (qwen3.Qwen3Config, qwen3),
}
