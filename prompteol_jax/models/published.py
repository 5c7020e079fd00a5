"""The shapes of published models by name, for what needs no weights: plans and random models.

Source: the `config.json` of facebook/opt-*, huggyllama/llama-*, meta-llama/Llama-2-*,
meta-llama/(Meta-)Llama-3*, mistralai/Mistral-7B-*, google/gemma-2-*,
google/gemma-3-*, microsoft/Phi-3-mini-4k-instruct, microsoft/phi-4, allenai/OLMo-2-1124-*,
allenai/Olmo-3-1025-7B, Qwen/Qwen2*, Qwen/Qwen3-*.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from prompteol_jax.models import Config
from prompteol_jax.models.gemma2 import Gemma2Config
from prompteol_jax.models.gemma3 import Gemma3Config
from prompteol_jax.models.llama import LlamaConfig
from prompteol_jax.models.mistral import MistralConfig
from prompteol_jax.models.olmo2 import Olmo2Config
from prompteol_jax.models.olmo3 import Olmo3Config
from prompteol_jax.models.opt import OptConfig
from prompteol_jax.models.phi3 import Phi3Config
from prompteol_jax.models.qwen2 import Qwen2Config
from prompteol_jax.models.qwen3 import Qwen3Config
from prompteol_jax.models.rope import Llama3Rope, Rope, YarnRope
from prompteol_jax.models.windows import SLIDING, Windows, every_layer, periodic


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
    rope = Llama3Rope(theta=5e5, factor=factor)
    return _LLAMA_3 | {"P": 131072, "rope": rope}


def _periodic(window: int, period: int, L: int) -> Windows:
    """A window in all layers but the last one of each period."""
    return tuple(window if kind == SLIDING else None for kind in periodic(period, L))


def _gemma2(L: int, D: int, N: int, F: int, **fields: Any) -> Gemma2Config:
    sizes: dict[str, Any] = {"V": 256000, "P": 8192, "window_L": _periodic(4096, 2, L)}
    return Gemma2Config(L=L, D=D, N=N, F=F, K=N // 2, **sizes, **fields)


def _gemma3(L: int, D: int, F: int) -> Gemma3Config:
    sizes: dict[str, Any] = {"N": 4, "K": 1, "H": 256, "V": 262144, "P": 32768}
    return Gemma3Config(L=L, D=D, F=F, **sizes, window_L=_periodic(512, 6, L))


_OLMO: Final[dict[str, Any]] = {"N": 32, "K": 32, "H": 128, "norm_eps": 1e-6}
_OLMO_7B: Final[dict[str, Any]] = {"L": 32, "D": 4096, "F": 11008, **_OLMO}
_OLMO_13B: Final[dict[str, Any]] = {**_OLMO, "L": 40, "D": 5120, "F": 13824, "N": 40, "K": 40}
_OLMO_2: Final[dict[str, Any]] = {"V": 100352, "P": 4096, "rope": Rope(theta=5e5)}
_OLMO_3: Final[dict[str, Any]] = {
    **{"V": 100278, "P": 65536, "window_L": _periodic(4096, 4, 32)},
    "rope": YarnRope(
        theta=5e5,
        factor=8.0,
        original_max_position_embeddings=8192,
        attention_factor=1.2079441541679836,
    ),
}


def _phi(L: int, D: int, K: int, F: int, **fields: Any) -> Phi3Config:
    N = D // fields["H"]
    return Phi3Config(L=L, D=D, N=N, K=K, F=F, norm_eps=1e-5, **fields)


def _mistral(window: int | None, **fields: Any) -> MistralConfig:
    sizes: dict[str, Any] = {"K": 8, "H": 128, "V": 32000, "P": 32768, "norm_eps": 1e-5}
    window_L = every_layer(window, 32)
    return MistralConfig(L=32, D=4096, N=32, F=14336, window_L=window_L, **sizes | fields)


def _qwen2(L: int, D: int, N: int, F: int, **fields: Any) -> Qwen2Config:
    sizes: dict[str, Any] = {"H": 128, "V": 152064, "P": 131072, "rope": Rope(theta=1e6)}
    return Qwen2Config(L=L, D=D, N=N, F=F, **sizes | fields)


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
        "gemma-2-9b": _gemma2(42, 3584, 16, 14336, H=256),
        "gemma-2-27b": _gemma2(46, 4608, 32, 36864, H=128, query_scalar=144),
        "gemma-3-270m": _gemma3(18, 640, 2048),
        "gemma-3-1b": _gemma3(26, 1152, 6912),
        "phi-3-mini": _phi(
            32, 3072, 32, 8192, H=96, V=32064, P=4096, window_L=every_layer(2047, 32)
        ),
        "phi-4": _phi(40, 5120, 10, 17920, H=128, V=100352, P=16384, rope=Rope(theta=2.5e5)),
        "olmo-2-7b": Olmo2Config(**_OLMO_7B, **_OLMO_2),
        "olmo-2-13b": Olmo2Config(**_OLMO_13B, **_OLMO_2),
        "olmo-3-7b": Olmo3Config(**_OLMO_7B, **_OLMO_3),
        "mistral-7b": _mistral(4096),
        "mistral-7b-v0.1": _mistral(4096),
        "mistral-7b-v0.3": _mistral(None, rope=Rope(theta=1e6), V=32768),
        "qwen2-0.5b": _qwen2(24, 896, 14, 4864, K=2, H=64, V=151936, tied=True),
        "qwen2-1.5b": _qwen2(28, 1536, 12, 8960, K=2, V=151936, tied=True),
        "qwen2-7b": _qwen2(28, 3584, 28, 18944, K=4),
        "qwen2.5-0.5b": _qwen2(24, 896, 14, 4864, K=2, H=64, V=151936, P=32768, tied=True),
        "qwen2.5-1.5b": _qwen2(28, 1536, 12, 8960, K=2, V=151936, tied=True),
        "qwen2.5-3b": _qwen2(36, 2048, 16, 11008, K=2, V=151936, P=32768, tied=True),
        "qwen2.5-7b": _qwen2(28, 3584, 28, 18944, K=4),
        "qwen2.5-14b": _qwen2(48, 5120, 40, 13824, K=8),
        "qwen2.5-32b": _qwen2(64, 5120, 40, 27648, K=8),
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
    for release in ("-1124", "-1025", "-4k-instruct"):  # of OLMo 2 and 3, and Phi-3
        short = short.replace(release, "")
    return PUBLISHED.get(short)
