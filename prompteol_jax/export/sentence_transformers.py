"""Files that make a Hugging Face folder one of sentence-transformers: modules, pooling, prompt.

A prompt of sentence-transformers comes before a text and cannot follow it. From version 6 on it can
render a text through the tokenizer's chat template, so the whole prompt goes there. The tokenizer
itself stays as it was for everyone else.

The folder is checked by transformers' tokenizer, which reads it for sentence-transformers, and by
sentence-transformers itself where that is installed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from prompteol_jax.errors import UserError
from prompteol_jax.export.static import POOLINGS, LinearStage
from prompteol_jax.methods.record import Method
from prompteol_jax.pretrained.sentence_folder import CONFIG, MODULES, STATES, TRANSFORMER
from prompteol_jax.storage import json_files
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer, load_tokenizer
from prompteol_jax.verify import torch_reference

CHAT_TEMPLATE: Final = "chat_template.jinja"
_WEIGHTS: Final = "model.safetensors"
_BASE: Final = "sentence_transformers.base.modules"
_MODULES: Final = (
    ("", f"{_BASE}.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
)
# Texts whose beginnings and ends tokenizers merge with the prompt, and other hard ones.
_PROBES: Final = (
    *("A cat sleeps.", "", "(x)", '"quoted"', "  two  spaces  ", "é 😀", "1 2\n3\n"),
    *("The man (old) is riding, 3% today", "café – naïve", "tabs\tand\nlines", "你好 🇨🇭"),
)


def write_sentence_files(
    folder: Path, method: Method, stages: Sequence[LinearStage | None], *, width: int
) -> None:
    """Add to a folder with weights and tokenizer what sentence-transformers needs.

    Args:
        method: one that `static.why_not` has nothing against.
        stages: its stages after the vector, see `static.modules`.
        width: numbers in a vector before them.
    Raises: UserError where the tokenizer reads BOS and prompt, given as one text, differently from
        what a vector here is computed of.
    """
    template = method.prompts[0].template
    _write_modules(folder, stages)
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": STATES, "message": {**STATES, "format": "flat"}},
        "module_output_name": "token_embeddings",
    }
    _write(folder / TRANSFORMER, transformer)
    mode = POOLINGS[method.pooling]
    pooling = {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True}
    (folder / _MODULES[1][0]).mkdir(exist_ok=True)
    _write(folder / _MODULES[1][0] / "config.json", pooling)
    overall = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(folder / CONFIG, overall)
    tokenizer = load_tokenizer(folder)
    _amend_tokenizer(folder, _bos(tokenizer))
    text = chat_template(template, tokenizer)
    (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")
    _settle_tokenizer(folder, template, tokenizer)


def _write_modules(folder: Path, stages: Sequence[LinearStage | None]) -> None:
    """Write the list of modules, and a folder for each stage after the vector."""
    after = [
        (f"{number}_{'Normalize' if stage is None else 'Dense'}", stage)
        for number, stage in enumerate(stages, start=len(_MODULES))
    ]
    kinds = [*_MODULES, *((path, _kind(stage)) for path, stage in after)]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(kinds)
    ]
    _write(folder / MODULES, modules)
    for path, stage in after:
        _write_stage(folder / path, stage)


def _kind(stage: LinearStage | None) -> str:
    return f"{_BASE}.normalize.Normalize" if stage is None else f"{_BASE}.dense.Dense"


def _write_stage(folder: Path, stage: LinearStage | None) -> None:
    folder.mkdir(exist_ok=True)
    if stage is None:
        return
    from safetensors.numpy import save_file

    tensors = {"linear.weight": stage.weight, "linear.bias": stage.bias}
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / _WEIGHTS)
    out, width = stage.weight.shape
    fields = {
        "in_features": width,
        "out_features": out,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(folder / "config.json", fields)


def encode_there(folder: Path, texts: Sequence[str]) -> Float[np.ndarray, "n D"] | None:
    """Encode texts by sentence-transformers, from the folder alone; None if it is not installed.

    Raises: UserError where it cannot read the folder.
    """
    if find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return np.asarray(model.encode(list(texts), show_progress_bar=False), np.float32)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"sentence-transformers {metadata.version('sentence-transformers')} cannot read what "
            f"was written: {reason}"
        ) from error


def chat_template(template: Template, tokenizer: Tokenizer) -> str:
    """Return the Jinja template that makes of one message BOS and the filled prompt.

    Some tokenizers put a space before a text only where no special token precedes it; the template
    then brings its own.

    Raises: UserError where neither gives the ids of the prompt.
    """
    bos = _bos(tokenizer)
    prompts = [template.fill(probe) for probe in _PROBES]
    wanted = [ids.tolist() for ids in tokenizer.ids(prompts)]
    for start in (bos, f"{bos} "):
        rendered = [start + prompt for prompt in prompts]
        found = tokenizer.backend.encode_batch(rendered, add_special_tokens=False)
        if [encoding.ids for encoding in found] == wanted:
            head, tail = json.dumps(template.head), json.dumps(template.suffix)
            prompt = f"({head} ~ messages[0]['content'] ~ {tail}) | trim"
            return f"{{{{ {json.dumps(start)} ~ ({prompt}) }}}}"
    raise UserError(
        f"the tokenizer does not read {bos!r} before a prompt as BOS (id {tokenizer.bos_id}), so "
        "sentence-transformers cannot get the same ids; export --to peft or orbax instead"
    )


def _settle_tokenizer(folder: Path, template: Template, tokenizer: Tokenizer) -> None:
    """Let transformers read the tokenizer's files as this project does.

    transformers rebuilds a tokenizer from the class that tokenizer_config.json names, which can be
    another one than that of tokenizer.json. Where the ids then differ, the class that reads
    tokenizer.json as it is takes its place.

    Raises: UserError where no class gives the ids of the run.
    """
    prompts = [template.fill(probe) for probe in _PROBES]
    wanted = [ids.tolist() for ids in tokenizer.ids(prompts)]
    path = folder / "tokenizer_config.json"
    fields = json_files.read_object(path)
    changes = [{}, {"tokenizer_class": "PreTrainedTokenizerFast"}]
    for change in changes if (folder / "tokenizer.json").is_file() else changes[:1]:
        json_files.write_object(path, fields | change)
        plain = torch_reference.tokenized(folder, prompts)
        found = torch_reference.rendered(folder, _PROBES)
        # A tokenizer without a BOS leaves it to the chat template.
        alike = all(ids in (right, right[1:]) for ids, right in zip(plain, wanted, strict=True))
        if found == wanted and alike:
            return
    both = zip(_PROBES, found, plain, wanted, strict=True)
    text, *_ = next(row for row in both if row[1] != row[3] or row[2] not in (row[3], row[3][1:]))
    raise UserError(
        f"transformers' tokenizer of class {fields.get('tokenizer_class')} reads {text!r} in the "
        "prompt differently from the run, so neither transformers nor sentence-transformers can "
        "get its vectors; export --to peft or orbax instead"
    )


def _bos(tokenizer: Tokenizer) -> str:
    """Return the text of BOS; its entry in the vocabulary may be another."""
    if tokenizer.bos_id is None:
        return ""
    added = tokenizer.backend.get_added_tokens_decoder().get(tokenizer.bos_id)
    if added:
        return added.content
    entry = tokenizer.entry(tokenizer.bos_id)
    assert entry is not None  # the tokenizer was read with this id from its vocabulary
    return entry


def _amend_tokenizer(folder: Path, bos: str) -> None:
    """Drop a chat template of the base model, and name a token to pad with where there is none.

    Any token will do: padding is never read.
    """
    path, special = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    fields = json_files.read_object(path) if path.is_file() else {}
    named = json_files.read_object(special) if special.is_file() else {}
    fields.pop("chat_template", None)
    if fields.get("pad_token") is None and named.get("pad_token") is None:
        fields["pad_token"] = bos or fields.get("eos_token") or named.get("eos_token")
    _write(path, fields)


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
