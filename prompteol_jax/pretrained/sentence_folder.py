"""Folders of sentence-transformers: what they say of prompts, pooling and dense modules.

`modules.json` lists modules, of which this project reads a Transformer, a Pooling of last tokens or
of the mean, then Dense and Normalize in any number. What is anything else is refused by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from prompteol_jax.errors import NotFound, UserError, nearest
from prompteol_jax.methods.library import FILE as METHOD
from prompteol_jax.models import build
from prompteol_jax.models.config import Fields, shown
from prompteol_jax.storage.json_files import parse_object, read_object
from prompteol_jax.text.template import Template
from prompteol_jax.text.tokenizer import Tokenizer
from prompteol_jax.weights.safetensors import open_safetensors

MODULES: Final = "modules.json"
CONFIG: Final = "config_sentence_transformers.json"
TRANSFORMER: Final = "sentence_bert_config.json"
_BYTES: Final = 2**20  # of modules.json at most
_ACTIVATIONS: Final[Mapping[str, Callable[[np.ndarray], np.ndarray]]] = {
    "torch.nn.modules.linear.Identity": lambda z: z,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda z: np.maximum(z, 0),
}
_OLDER_MODES: Final = {
    **{"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"},
    **{"mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens"},
    "lasttoken": "lasttoken",
}
STATES: Final = {"method": "forward", "method_output_name": "last_hidden_state"}
_NO_BOUND: Final = 10**9  # transformers writes a larger number where there is no bound
POOLINGS: Final = {"lasttoken": "last", "mean": "mean"}  # those of both sides: ours by theirs
Stage = Callable[[Float[np.ndarray, "n D"]], Float[np.ndarray, "n E"]]


@dataclasses.dataclass(frozen=True)
class Dense:
    """A dense module: activation(W z + b), float32."""

    w_ED: np.ndarray
    b_E: np.ndarray | None
    activation: str

    def __call__(self, z_nD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n E"]:
        """Apply the module to vectors."""
        z_nE = z_nD @ self.w_ED.T
        return _ACTIVATIONS[self.activation](z_nE if self.b_E is None else z_nE + self.b_E)


def normalize(z_nD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Scale vectors to length one, zero vectors excepted."""
    return z_nD / np.maximum(np.linalg.norm(z_nD, axis=1, keepdims=True), 1e-12)


@dataclasses.dataclass(frozen=True)
class SentenceFolder:
    """What a folder says besides its model.

    Attributes:
        prompts: texts that go before a text, by name.
        default: name of the prompt that is used where none is asked for; None for no prompt.
        pooling: `last` or `mean`.
        stages: what follows the pooling, in order.
        max_tokens: most tokens of a text, its prompt included.
    """

    folder: Path
    prompts: Mapping[str, str]
    default: str | None
    pooling: str
    stages: tuple[Stage, ...]
    max_tokens: int

    def template(self, tokenizer: Tokenizer, prompt: str | None = None) -> Template:
        """Return the template of a prompt: the text between it and the tokenizer's end token.

        Args:
            prompt: name of the prompt; None for the folder's default.
        Raises: UserError for an unknown name.
        """
        name = self.default if prompt is None else prompt
        if name is not None and name not in self.prompts:
            raise UserError(
                f"{self.folder} has no prompt {name!r}{nearest(name, self.prompts)}; it has "
                f"{', '.join(map(repr, self.prompts)) or 'none'}"
            )
        before = "" if name is None else self.prompts[name]
        return Template(f"prompt {name}", before, tokenizer.end_text, keep_spaces=True)

    def finish(self, z_nD: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n E"]:
        """Return the vectors after all stages."""
        for stage in self.stages:
            z_nD = stage(z_nD)
        return z_nD


def refuse_unasked(folder: Path | None) -> None:
    """Refuse a folder of sentence-transformers as a plain decoder with a prompt nobody asked for.

    A folder that `prompteol export` wrote holds its method, and is no other project's.

    Raises: UserError that says what to ask for.
    """
    if folder is None or not (folder / MODULES).is_file() or (folder / METHOD).is_file():
        return
    raise UserError(
        f"{folder} is a folder of sentence-transformers ({MODULES}), and no prompt is given. "
        "Commands read it as a plain decoder, without its own prompts, pooling and modules: say so "
        "with --method eol, or another --method or --template. For the vectors of "
        "sentence-transformers use prompteol_jax.sentence_embedder.SentenceEmbedder in Python"
    )


def read_sentence_folder(folder: Path) -> SentenceFolder:
    """Read a folder of sentence-transformers.

    Raises: NotFound without `modules.json`; UserError for a module or a setting that is not
        supported, by name.
    """
    modules = _modules(folder)
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"] or modules[0][1] != folder:
        raise UserError(
            f"{folder / MODULES}: supported are a Transformer in the folder itself, Pooling, and "
            f"then any of Dense and Normalize, not {[kind for kind, _ in modules]}"
        )
    stages: list[Stage] = []
    config = build.read_config(folder)
    width: int = config.width
    for kind, place in modules[2:]:
        if kind == "Normalize":
            stages.append(normalize)
            continue
        dense = _read_dense(place, width)
        stages.append(dense)
        width = len(dense.w_ED)
    prompts, default = _read_prompts(folder)
    pooling = _read_pooling(modules[1][1])
    most = min(_max_tokens(folder), config.P)
    return SentenceFolder(folder, prompts, default, pooling, tuple(stages), most)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Return the kind and the folder of each module, in order."""
    path = folder / MODULES
    if not path.is_file():
        raise NotFound(f"{folder} holds no {MODULES}: it is no folder of sentence-transformers")
    with path.open("rb") as file:
        content = file.read(_BYTES)
    entries = parse_object(b'{"modules": %s}' % content, path)["modules"]
    found = []
    for entry in entries if type(entries) is list else [entries]:
        own = entry if type(entry) is dict else {}
        kind, place = own.get("type"), own.get("path")
        kind = kind.rsplit(".", 1)[-1] if type(kind) is str else None
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
            raise UserError(f"{path}: the module {shown(entry)} is not supported")
        if type(place) is not str or place not in ("", Path(place).name):
            raise UserError(f"{path}: refused, {shown(place)} is no folder in {folder}")
        found.append((kind, folder / place))
    return found


def _read_pooling(folder: Path) -> str:
    fields = read_object(folder / "config.json")
    f = Fields(fields, str(folder / "config.json"))
    f.ignore("embedding_dimension", "word_embedding_dimension")
    f.expect("include_prompt", True)
    modes = f.take("pooling_mode", None)
    older = {name: fields.get(f"pooling_mode_{key}") for name, key in _OLDER_MODES.items()}
    f.ignore(*(f"pooling_mode_{key}" for key in _OLDER_MODES.values()))
    if modes is None:
        modes = [name for name, is_on in older.items() if is_on] or ["mean"]
    modes = [modes] if type(modes) is str else modes
    if type(modes) is not list or len(modes) != 1 or modes[0] not in POOLINGS:
        f.wrong(f"pooling_mode = {shown(modes)} is not supported; supported: {[*POOLINGS]}")
    f.finish()
    return POOLINGS[modes[0]]


def _read_dense(folder: Path, width: int) -> Dense:
    f = Fields(read_object(folder / "config.json"), str(folder / "config.json"))
    f.expect("module_input_name", "sentence_embedding")
    f.expect("module_output_name", "sentence_embedding")
    f.expect("use_residual", False)
    shape = f.integer("out_features"), f.integer("in_features")
    has_bias = f.flag("bias", True)
    activation = f.take("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in _ACTIVATIONS:
        f.wrong(f"activation_function = {shown(activation)} is not one of {[*_ACTIVATIONS]}")
    if shape[1] != width:
        f.wrong(f"in_features = {shape[1]}, where {width} features come in")
    f.finish()
    tensors = open_safetensors(folder / "model.safetensors")
    wanted = {"linear.weight": shape} | ({"linear.bias": shape[:1]} if has_bias else {})
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != wanted:
        raise UserError(f"{folder} holds tensors of shapes {shown(found)}, should be {wanted}")
    arrays = {name: np.array(tensor, np.float32) for name, tensor in tensors.items()}
    strange = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if strange:
        raise UserError(f"{folder}: {strange[0]} holds NaN or infinity")
    return Dense(arrays["linear.weight"], arrays.get("linear.bias"), activation)


def _read_prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    path = folder / CONFIG
    fields = read_object(path) if path.is_file() else {}
    f = Fields(fields, str(path))
    prompts, default = f.fields("prompts"), f.take("default_prompt_name", None)
    prompts = {name: "" if text is None else text for name, text in prompts.items()}
    if not all(type(text) is str for text in prompts.values()):
        f.wrong(f"prompts = {shown(prompts)} are not texts by name")
    if default is not None and default not in prompts:
        f.wrong(f"default_prompt_name = {shown(default)} is none of {[*prompts]}")
    f.ignore("__version__", "model_type", "similarity_fn_name", "truncate_dim")
    if fields.get("truncate_dim") is not None:
        f.wrong(f"truncate_dim = {shown(fields['truncate_dim'])} is not supported")
    f.finish()
    return prompts, default


def _max_tokens(folder: Path) -> int:
    """Return the smallest bound of a text that a folder gives."""
    path = folder / TRANSFORMER
    fields = read_object(path) if path.is_file() else {}
    f = Fields(fields, str(path))
    f.expect("do_lower_case", False)
    f.expect("transformer_task", "feature-extraction")
    f.expect("module_output_name", "token_embeddings")
    f.expect("modality_config", {"text": dict(STATES)})
    bounds = [_NO_BOUND, f.integer("max_seq_length", _NO_BOUND)]
    f.ignore("unpad_inputs")
    f.finish()
    path = folder / "tokenizer_config.json"
    stated = read_object(path).get("model_max_length") if path.is_file() else None
    if isinstance(stated, int | float) and 0 < stated < _NO_BOUND:
        bounds.append(int(stated))
    return min(bounds)
