"""The same vectors by transformers and torch: what `verify` compares with.

With `tpu.bench.peer` the one module that imports torch and peft, which nobody must install.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

POOLINGS: Final = ("last", "mean")  # those that `vectors` computes
_AT_ONCE: Final = 8  # prompts in one forward, so that logits of a large vocabulary stay small


def missing(adapter: Path | None) -> list[str]:
    """Return the packages that a reference needs and that are not installed."""
    return [name for name in ("torch", "peft")[: 2 if adapter else 1] if find_spec(name) is None]


def vectors(
    folder: Path,
    ids: Sequence[Sequence[int]],
    *,
    adapter: Path | None = None,
    layer: int | None = None,
    pooling: str = "last",
) -> Float[np.ndarray, "n D"]:
    """Run transformers over prompts, in float32 on the CPU, padded on the right.

    Args:
        ids: of whole prompts, BOS included.
        layer: index into `hidden_states`; None for the last, after its norm.
        pooling: the last token's state, or the mean over all tokens.
    """
    import torch

    index = -1 if layer is None else layer
    parts = []
    for states, mask_BT in _forwards(folder, ids, adapter):
        x_BTD, lengths = states[index].float(), mask_BT.sum(1)
        if pooling == "mean":
            z_BD = (x_BTD * mask_BT[..., None]).sum(1) / lengths[:, None]
        else:
            z_BD = x_BTD[torch.arange(len(lengths)), lengths - 1]
        parts.append(z_BD.numpy())
    return np.concatenate(parts)


def layers(
    folder: Path, ids: Sequence[Sequence[int]], *, adapter: Path | None = None
) -> list[Float[np.ndarray, "n _"]]:
    """Run transformers as `vectors` does, for the last token's state behind every layer."""
    import torch

    parts = []
    for states, mask_BT in _forwards(folder, ids, adapter):
        last = mask_BT.sum(1) - 1
        every = torch.arange(len(last))
        parts.append([x_BTD[every, last].float().numpy() for x_BTD in states[1:]])
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter by peft: its config, and its tensors by the names that peft gives them."""
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    config = PeftConfig.from_pretrained(str(folder)).to_dict()
    tensors = load_peft_weights(str(folder), device="cpu")
    return config, {name: tensor.float().numpy() for name, tensor in tensors.items()}


def tokenized(folder: Path, prompts: Sequence[str]) -> list[list[int]]:
    """Return the ids that transformers' own tokenizer of a folder gives whole prompts."""
    return _tokenizer(folder)(list(prompts), return_token_type_ids=False)["input_ids"]


def rendered(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of texts after the chat template of a folder, one message each."""
    tokenizer = _tokenizer(folder)
    chats = [[{"role": "user", "content": text}] for text in texts]
    return tokenizer.apply_chat_template(chats, tokenize=True, return_dict=True)["input_ids"]


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with _quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _forwards(
    folder: Path, ids: Sequence[Sequence[int]], adapter: Path | None
) -> Iterator[tuple[Any, Any]]:
    """Yield the hidden states of a few prompts at a time, and which tokens are theirs."""
    import torch

    with _quiet():
        model = _model(folder, adapter)
    for start in range(0, len(ids), _AT_ONCE):
        rows = ids[start : start + _AT_ONCE]
        lengths = torch.tensor([len(row) for row in rows])
        T = int(lengths.max())
        padded_BT = torch.tensor([[*row, *[0] * (T - len(row))] for row in rows])
        mask_BT = (torch.arange(T)[None] < lengths[:, None]).long()
        with torch.no_grad():
            out = model(input_ids=padded_BT, attention_mask=mask_BT, output_hidden_states=True)
        yield out.hidden_states, mask_BT


def _model(folder: Path, adapter: Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loaders' own notes and bars from a user who asked for a verdict."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
