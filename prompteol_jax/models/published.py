"""The shapes of published models by name, for what needs no weights: plans and random models.

Source: the `config.json` of facebook/opt-*, huggyllama/llama-*, meta-llama/Llama-2-*,
meta-llama/(Meta-)Llama-3*, Qwen/Qwen3-*.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from prompteol_jax.models import Config
from prompteol_jax.models.llama import LlamaConfig, Rope
from prompteol_jax.models.opt import OptConfig
from prompteol_jax.models.qwen3 import Qwen3Config


def _opt(L: int, D: int, N: int) -> OptConfig:
    return OptConfig(L=L, D=D, N=N, F=4 * D, V=50272, P=2048, E=D)


def _llama(L: int, D: int, N: int, F: int, **fields: Any) -> LlamaConfig:
    """The shape of LLaMA 1, but for the fields that are given."""
    defaults: dict[str, Any] = {"K": N, "H": D // N, "V": 32000, "P": 2048}
    return LlamaConfig(L=L, D=D, N=N, F=F, **defaults | fields)


_LLAMA_2: Final = {"P": 4096, "norm_eps": 1e-5}
_LLAMA_3: Final = {"K": 8, "V": 128256, "P": 8192, "norm_eps": 1e-5, "rope": Rope(theta=5e5)}


def _scaled(factor: float) -> dict[str, Any]:
    """LLaMA 3.1 and 3.2: longer prompts by lower rope frequencies."""
    rope = Rope(theta=5e5, scaling="llama3", factor=factor)
    return _LLAMA_3 | {"P": 131072, "rope": rope}


def _qwen3(L: int, D: int, N: int, F: int, *, tied: bool) -> Qwen3Config:
    sizes: dict[str, Any] = {"K": 8, "H": 128, "V": 151936, "P": 40960}
    return Qwen3Config(L=L, D=D, N=N, F=F, **sizes, rope=Rope(theta=1e6), tied=tied)


PUBLISHED: Final[Mapping[str, Config]] = MappingProxyType(
    {
        "opt-125m": _opt(12, 768, 12),
        "opt-350m": OptConfig(
            L=24, D=1024, N=16, F=4096, V=50272, P=2048, E=512, pre_norm=False, final_norm=False
        ),
        "opt-1.3b": _opt(24, 2048, 32),
        "opt-2.7b": _opt(32, 2560, 32),
        "opt-6.7b": _opt(32, 4096, 32),
        "opt-13b": _opt(40, 5120, 40),
        "opt-30b": _opt(48, 7168, 56),
        "opt-66b": _opt(64, 9216, 72),
        "llama-7b": _llama(32, 4096, 32, 11008),
        "llama-13b": _llama(40, 5120, 40, 13824),
        "llama-30b": _llama(60, 6656, 52, 17920),
        "llama-65b": _llama(80, 8192, 64, 22016, norm_eps=1e-5),
        "llama-2-7b": _llama(32, 4096, 32, 11008, **_LLAMA_2),
        "llama-2-13b": _llama(40, 5120, 40, 13824, **_LLAMA_2),
        "llama-2-70b": _llama(80, 8192, 64, 28672, **_LLAMA_2, K=8),
        "llama-3-8b": _llama(32, 4096, 32, 14336, **_LLAMA_3),
        "llama-3-70b": _llama(80, 8192, 64, 28672, **_LLAMA_3),
        "llama-3.1-8b": _llama(32, 4096, 32, 14336, **_scaled(8.0)),
        "llama-3.1-70b": _llama(80, 8192, 64, 28672, **_scaled(8.0)),
        "llama-3.1-405b": _llama(126, 16384, 128, 53248, **_scaled(8.0)),
        "llama-3.2-1b": _llama(16, 2048, 32, 8192, **_scaled(32.0), tied=True),
        "llama-3.2-3b": _llama(28, 3072, 24, 8192, **_scaled(32.0), tied=True),
        "qwen3-0.6b": _qwen3(28, 1024, 16, 3072, tied=True),
        "qwen3-1.7b": _qwen3(28, 2048, 16, 6144, tied=True),
        "qwen3-4b": _qwen3(36, 2560, 32, 9728, tied=True),
        "qwen3-8b": _qwen3(36, 4096, 32, 12288, tied=False),
        "qwen3-14b": _qwen3(40, 5120, 40, 17408, tied=False),
        "qwen3-32b": _qwen3(64, 5120, 64, 25600, tied=False),
    }
)


def published(name: str) -> Config | None:
    """The shape behind a short or hub name, such as `opt-6.7b` or `meta-llama/Llama-2-7b-hf`."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-").removesuffix("-hf")
    return PUBLISHED.get(short)
