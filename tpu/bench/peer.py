"""The peers of `tpu.bench`, in torch: `python -m tpu.bench.peer KIND FOLDER`, one process each.

Requests and replies are lines of JSON on standard input and output. A peer gets whole prompts, and
a request's seconds include tokenizing, as ours do.

    transformers             the causal model with all hidden states, batches of 16 in the order
                             given: what the released code of PromptEOL does
    sentence-transformers    that package: the model's body, sorted by length, batches of 32,
                             last token pooled
    peft                     a training step on a LoRA adapter of all linear layers

Nothing else of the package imports torch, and nothing imports this module.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers

TEMPERATURE: Final = 0.05
Work = Callable[[dict[str, Any]], dict[str, Any]]


def released(options: argparse.Namespace) -> Work:
    """Encode as the released code does."""
    tokenizer = _tokenizer(options.folder)
    model = _causal(options).eval().to(options.device)

    def vectors(prompts: Sequence[str]) -> np.ndarray:
        parts, size = [], options.batch or 16
        for start in range(0, len(prompts), size):
            rows = tokenizer(prompts[start : start + size], return_tensors="pt", padding=True)
            with torch.no_grad():
                out = model(**rows.to(options.device), output_hidden_states=True)
            parts.append(out.hidden_states[-1][:, -1].float().cpu().numpy())
        return np.concatenate(parts)

    return _encoder(vectors)


def sentence_transformer(options: argparse.Namespace) -> Work:
    """Encode with the package sentence-transformers."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(
        str(options.folder),
        model_kwargs={"dtype": getattr(torch, options.dtype)},
        processor_kwargs={"padding_side": "left"},
    )
    assert body.tokenizer is not None  # a model of texts has one
    body.tokenizer.pad_token_id = 0
    config = body.auto_model.config
    pooling = Pooling(getattr(config, "word_embed_proj_dim", config.hidden_size), "lasttoken")
    model = SentenceTransformer(modules=[body, pooling], device=options.device)

    def vectors(prompts: Sequence[str]) -> np.ndarray:
        size = options.batch or 32
        return model.encode(list(prompts), batch_size=size, show_progress_bar=False)

    return _encoder(vectors)


def peft_step(options: argparse.Namespace) -> Work:
    """Take a training step a request: the released recipe's loss over anchors and alternatives."""
    from peft import LoraConfig, get_peft_model

    tokenizer = _tokenizer(options.folder)
    model = _causal(options).model
    if options.rank:
        lora = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            bias="none",
            target_modules="all-linear",
        )
        model = get_peft_model(model, lora)
    model.to(options.device).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-4, weight_decay=0.0)

    def step(request: dict[str, Any]) -> dict[str, Any]:
        roles = len(request["prompts"])
        prompts = [prompt for role in request["prompts"] for prompt in role]
        rows = tokenizer(prompts, return_tensors="pt", padding=True, pad_to_multiple_of=8)
        z_nD = model(**rows.to(options.device)).last_hidden_state[:, -1].float()
        unit = torch.nn.functional.normalize(z_nD, dim=-1).chunk(roles)
        scores = torch.cat([unit[0] @ other.T for other in unit[1:]], 1) / TEMPERATURE
        own = torch.arange(len(scores), device=options.device)
        loss = torch.nn.functional.cross_entropy(scores, own)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.item()}  # which waits for the device

    return step


KINDS: Final[dict[str, Callable[[argparse.Namespace], Work]]] = {
    "transformers": released,
    "sentence-transformers": sentence_transformer,
    "peft": peft_step,
}


def _encoder(vectors: Callable[[Sequence[str]], np.ndarray]) -> Work:
    def encode(request: dict[str, Any]) -> dict[str, Any]:
        z_nD = vectors(request["prompts"])
        if "save" in request:
            np.save(request["save"], z_nD)
        return {"shape": list(z_nD.shape)}

    return encode


def _tokenizer(folder: Path) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.pad_token_id, tokenizer.padding_side = 0, "left"
    return tokenizer


def _causal(options: argparse.Namespace) -> Any:
    more = {} if options.base_dropout is None else {"dropout": options.base_dropout}
    return transformers.AutoModelForCausalLM.from_pretrained(
        options.folder, dtype=getattr(torch, options.dtype), local_files_only=True, **more
    )


def main() -> None:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tpu.bench.peer")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--base-dropout", type=float)
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    # Whatever the libraries print goes to standard error; replies alone to standard output.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = KINDS[options.kind](options)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    replies.write(json.dumps({"device": options.device, "versions": versions}) + "\n")
    replies.flush()
    for line in sys.stdin:
        start = time.perf_counter()
        reply = work(json.loads(line))
        reply["seconds"] = time.perf_counter() - start
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
