"""What makes a Hugging Face folder one of sentence-transformers: modules, pooling, and the prompt.

A prompt of sentence-transformers stands before a text and cannot stand behind it. From version 6 on
it can render a text through the tokenizer's chat template, though, so the whole prompt goes there:
the tokenizer itself, and all who use it otherwise, stay as they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer, load_tokenizer

CHAT_TEMPLATE: Final = "chat_template.jinja"
_MODULES: Final = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
)
_STATES: Final = {"method": "forward", "method_output_name": "last_hidden_state"}
# Beginnings that tokenizers merge with what stands before them, and ends likewise.
_PROBES: Final = ("A cat sleeps.", "", "(x)", '"quoted"', "  two  spaces  ", "é 😀", "1 2\n3\n")


def write_sentence_files(folder: Path, template: Template, *, width: int) -> None:
    """Add to a folder with weights and tokenizer what sentence-transformers needs.

    Args:
        width: numbers in a vector.
    Raises: UserError where the tokenizer reads BOS and prompt, given as one text, differently from
        what a vector here is computed of.
    """
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": kind}
        for index, (path, kind) in enumerate(_MODULES)
    ]
    _write(folder / "modules.json", modules)
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": _STATES, "message": {**_STATES, "format": "flat"}},
        "module_output_name": "token_embeddings",
    }
    _write(folder / "sentence_bert_config.json", transformer)
    pooling = {"embedding_dimension": width, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / _MODULES[1][0]).mkdir(exist_ok=True)
    _write(folder / _MODULES[1][0] / "config.json", pooling)
    overall = {
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(folder / "config_sentence_transformers.json", overall)
    tokenizer = load_tokenizer(folder)
    _amend_tokenizer(folder, _bos(tokenizer))
    text = chat_template(template, tokenizer)
    (folder / CHAT_TEMPLATE).write_text(text, encoding="utf-8")


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


def _bos(tokenizer: Tokenizer) -> str:
    """The text that stands for BOS; its entry in the vocabulary may be another."""
    added = tokenizer.backend.get_added_tokens_decoder().get(tokenizer.bos_id)
    return added.content if added else tokenizer.entry(tokenizer.bos_id)


def _amend_tokenizer(folder: Path, bos: str) -> None:
    """Drop a chat template of the base model, and name a token to pad with where there is none.

    Which one does not matter: what is padded is never looked at.
    """
    path, special = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    named = json.loads(special.read_text(encoding="utf-8")) if special.is_file() else {}
    fields.pop("chat_template", None)
    if fields.get("pad_token") is None and named.get("pad_token") is None:
        fields["pad_token"] = bos
    _write(path, fields)


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
