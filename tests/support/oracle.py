"""References in torch: random checkpoints, and what transformers and peft make of them."""

from __future__ import annotations

import contextlib
import csv
import functools
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

EOL = 'This sentence : "{}" means in one word:"'
ICL = 'This sentence : "A jockey riding a horse." means in one word:"Equestrian".' + EOL

_OPT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128)
_LLAMA = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=176)
# Weights so large that attention is far from uniform.
_SHARP = _LLAMA | dict(initializer_range=0.15)
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "opt-tiny": _OPT | dict(word_embed_proj_dim=64),
    "opt-350m-tiny": _OPT | dict(word_embed_proj_dim=32, do_layer_norm_before=False),
    "opt-125m": dict(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        ffn_dim=3072,
        word_embed_proj_dim=768,
    ),
    "llama-tiny": _LLAMA | dict(num_key_value_heads=4),
    "llama-gqa-tiny": _LLAMA | dict(num_key_value_heads=2),
    # Everything that LLaMA 1 and 2 leave at its default, in four layers.
    "llama-odd-tiny": _LLAMA
    | dict(
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=24,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    ),
    "llama3-tiny": _LLAMA
    | dict(
        num_hidden_layers=3,
        num_key_value_heads=1,
        rope_parameters=_LLAMA3_ROPE,
        tie_word_embeddings=True,
    ),
    # Heads narrower than D / N, one key/value head, a tied head; the prompt is longer than windows.
    "qwen3-tiny": _LLAMA | dict(num_key_value_heads=1, head_dim=24, tie_word_embeddings=True),
    "qwen3-odd-tiny": _LLAMA
    | dict(
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=32,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=12,
        max_window_layers=2,
        tie_word_embeddings=False,
    ),
    # Texts are longer than the window, and heads narrower than D / N.
    "mistral-tiny": _SHARP
    | dict(num_key_value_heads=1, head_dim=12, sliding_window=9, rms_norm_eps=1e-5),
    # Twelve heads, three layers of which two have a window; prompts exceed yarn's positions.
    "qwen2-tiny": _SHARP
    | dict(
        hidden_size=72,
        num_hidden_layers=3,
        num_attention_heads=12,
        num_key_value_heads=4,
        use_sliding_window=True,
        sliding_window=11,
        max_window_layers=1,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "gemma-tiny": _SHARP | dict(num_key_value_heads=1, head_dim=24),
    # Scores near their cap, layers with and without a window, in both orders.
    "gemma2-tiny": _SHARP
    | dict(
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=24,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        sliding_window=10,
    ),
    # Two ropes, the last layer with and without a window.
    "gemma3-tiny": _SHARP
    | dict(
        num_hidden_layers=4,
        num_key_value_heads=1,
        head_dim=20,
        query_pre_attn_scalar=30,
        final_logit_softcapping=3.0,
        sliding_window=10,
        layer_types=[*("sliding_attention", "full_attention") * 2],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    "gemma3-untied-tiny": _SHARP
    | dict(
        num_hidden_layers=3,
        num_key_value_heads=2,
        head_dim=16,
        attention_bias=True,
        sliding_window=10,
        sliding_window_pattern=2,
        tie_word_embeddings=False,
    ),
    # Twelve heads, norms over all of them joined.
    "olmo2-tiny": _SHARP
    | dict(hidden_size=72, num_attention_heads=12, num_key_value_heads=4, attention_bias=True),
    "olmo3-tiny": _SHARP
    | dict(
        num_hidden_layers=3,
        num_key_value_heads=1,
        sliding_window=10,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 4.0,
        },
        tie_word_embeddings=True,
    ),
    "phi3-tiny": _SHARP | dict(num_key_value_heads=1, sliding_window=10, pad_token_id=0),
    # A part of each head is rotated; half of the texts are longer than the original positions.
    "phi3-long-tiny": _SHARP
    | dict(
        hidden_size=72,
        num_attention_heads=6,
        num_key_value_heads=3,
        partial_rotary_factor=0.7,
        original_max_position_embeddings=27,
        max_position_embeddings=128,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.2, 1.4, 1.8],
            "long_factor": [1.5, 2.5, 4.0, 8.0],
        },
        tie_word_embeddings=True,
        pad_token_id=0,
    ),
    "tinyllama-1.1b": dict(
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
    ),
}

# transformers' name of each family, rows of the embedding, and the folder of a tokenizer.
FAMILIES = {
    "opt": ("opt", 50272, "opt"),
    "llama": ("llama", 32000, "llama"),
    "mistral": ("mistral", 32000, "mistral"),
    "gemma": ("gemma", 32000, "llama"),
    "gemma2": ("gemma2", 32000, "llama"),
    "gemma3": ("gemma3_text", 32000, "llama"),
    "olmo2": ("olmo2", 32000, "llama"),
    "olmo3": ("olmo3", 32000, "llama"),
    "phi3": ("phi3", 32000, "llama"),
    "qwen2": ("qwen2", 151936, "qwen2"),
    "qwen3": ("qwen3", 151936, "qwen2"),
}


class Reference(NamedTuple):
    """What transformers says about n prompts, float32.

    Attributes:
        states: hidden state of the last token behind the embedding and behind every layer.
        mean: of the last layer's states over all tokens.
        logits: of the token that comes next.
    """

    states: list[np.ndarray]
    mean: np.ndarray
    logits: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """The sentence embeddings."""
        return self.states[-1]


def family_of(name: str) -> str:
    """Return the family of a shape's name, as `opt` of `opt-350m-tiny`."""
    first = name.removeprefix("tiny").split("-")[0]
    return first if first in FAMILIES else first.rstrip("3")


def tokenizer_of(name: str) -> str:
    """Return the folder's name of the tokenizer that goes with a model."""
    return f"{FAMILIES[family_of(name)][2]}-tokenizer"


def build(name: str, **changes: Any) -> Any:
    """Draw a random causal model of transformers, biases and norms moved off 0 and 1."""
    import torch
    import transformers

    torch.manual_seed(0)
    family, V, _ = FAMILIES[family_of(name)]
    fields = {"vocab_size": V, **SHAPES[name], **changes}
    config = transformers.AutoConfig.for_model(family, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


def write(model: Any, folder: Path, tokenizer: Path | None, **how: Any) -> Path:
    """Save a model as transformers does, and the files of a tokenizer beside it."""
    model.save_pretrained(folder, **how)
    for file in () if tokenizer is None else tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return folder


def tensors(model: Any, *, drop: Sequence[str] = ()) -> dict[str, Any]:
    """The state of a model by name, each tensor with memory of its own."""
    return {k: v.clone().contiguous() for k, v in model.state_dict().items() if k not in drop}


@functools.cache
def load(folder: Path) -> Any:
    """Load a folder's causal model into transformers as float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@contextlib.contextmanager
def _lent(folder: Path) -> Iterator[Any]:
    """A model that nobody else has, since peft changes what it is given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft is behind transformers
        yield load.__wrapped__(folder)


def load_adapted(folder: Path, adapter: Path) -> Any:
    """Load a folder's causal model and put an adapter on it with peft."""
    from peft import PeftModel

    with _lent(folder) as base:
        return PeftModel.from_pretrained(base, adapter).eval()


def write_adapter(base: Path, folder: Path, *, deviation: float = 0.02, **fields: Any) -> Path:
    """Let peft write an adapter with random factors."""
    import torch
    from peft import LoraConfig, get_peft_model

    with _lent(base) as model:
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * deviation)
    adapted.save_pretrained(folder)
    return folder


def ids(folder: Path, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts by transformers' own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)(list(prompts))["input_ids"]


def run(model: Any, ids: Sequence[Sequence[int]], *, at_once: int = 100) -> Reference:
    """Run transformers over prompts, padded on the right, unless rope asks for the longest one."""
    if "longrope" in str(getattr(model.config, "rope_parameters", None)):
        at_once = 1
    parts = [_run(model, ids[i : i + at_once]) for i in range(0, len(ids), at_once)]
    states = [np.concatenate(layer) for layer in zip(*(p.states for p in parts), strict=True)]
    return Reference(states, *(np.concatenate([p[i] for p in parts]) for i in (1, 2)))


def _run(model: Any, ids: Sequence[Sequence[int]]) -> Reference:
    import torch

    lengths = torch.tensor([len(i) for i in ids])
    T = int(lengths.max())
    padded = torch.tensor([list(i) + [0] * (T - len(i)) for i in ids])
    mask = (torch.arange(T)[None] < lengths[:, None]).long()
    every = torch.arange(len(ids))
    with torch.no_grad():
        out = model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    total = (out.hidden_states[-1] * mask[..., None]).sum(1)
    return Reference(
        [state[every, lengths - 1].numpy() for state in out.hidden_states],
        (total / lengths[:, None]).numpy(),
        out.logits[every, lengths - 1].numpy(),
    )


def sentences(data: Path, n: int) -> list[str]:
    """Sentences from all over STS-B development, cleaned as the original evaluation does it."""
    path = data / "senteval/downstream/STS/STSBenchmark/sts-dev.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        texts = [text for row in rows for text in row[5:7]]
    distinct = list(dict.fromkeys(texts))
    return [clean(text) for text in distinct[:: len(distinct) // n][:n]]


def clean(text: str) -> str:
    """The original's rule of punctuation, written down once more."""
    text = text if text[-1:] in (".", "?", '"', "'", "") else f"{text}."
    text = text.replace('"', "'")
    return f"{text[:-1]}." if text.endswith("?") else text


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, atol: float = 1e-4) -> None:
    """Check the largest difference, and the cosine of every pair of vectors."""
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() <= atol
    wide = [z.astype(np.float64) for z in (ours, theirs)]
    norms = [np.linalg.norm(z, axis=1) for z in wide]
    assert ((wide[0] * wide[1]).sum(1) / (norms[0] * norms[1])).min() >= 0.999999
