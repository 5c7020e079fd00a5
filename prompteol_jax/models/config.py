"""Strict reading of a `config.json`: a field that is not understood is refused, never skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prompteol_jax.errors import UserError, listed_problems

_ABSENT: Final = object()

# Fields that cannot change a hidden state.
HARMLESS: Final = frozenset(
    "_attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled "
    "_name_or_path add_cross_attention architectures attn_implementation auto_map bad_words_ids "
    "begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample dtype early_stopping "
    "encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range "
    "is_decoder is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id "
    "length_penalty max_length max_sequence_length min_length model_type no_repeat_ngram_size "
    "num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states "
    "output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values "
    "repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens "
    "task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype "
    "torchscript transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed "
    "unsloth_version use_bfloat16 use_cache".split()
)

# Fields of which more can be said than that they are unknown.
_EXPLAINED: Final = {
    "quantization_config": "the weights are stored quantized, which is not supported; take the "
    "checkpoint in float16 or bfloat16, and quantize it here with --quantize nf4 or int8",
}
_LISTED: Final = 20  # problems that one error names
_SHOWN: Final = 80  # characters of a value in an error
MOST_LAYERS: Final = 10_000
_MOST: Final = 2**31 - 1


class Fields:
    """The fields of one config, ticked off as they are read; `finish` reports all that is wrong."""

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json"):
        self._where = where
        self._left = {k: v for k, v in fields.items() if k not in HARMLESS}
        self._all = dict(fields)
        self._wrong: list[str] = []

    def take(self, name: str, default: Any = _ABSENT) -> Any:
        """Read a field; null counts as absent, and without a default that is an error."""
        value = self._left.pop(name, None)
        if value is not None:
            return value
        if default is _ABSENT:
            self._wrong.append(f"{name} is missing")
            return None
        return default

    def has(self, name: str) -> bool:
        """Return whether a field is there and not null."""
        return self._all.get(name) is not None

    def integer(self, name: str, default: Any = _ABSENT, *, most: int = _MOST) -> int:
        """Read a whole number from 1 to `most`; a wrong one is noted, and 1 returned."""
        value = self.take(name, default)
        if type(value) is int and 1 <= value <= most:
            return value
        if type(value) is int and value > most:
            self.wrong(f"{name} = {shown(value)} is above {most}")
        elif value is not None:
            self.wrong(f"{name} = {shown(value)} is not a whole number from 1 up")
        return 1

    def integer_or_null(self, name: str, default: int | None) -> int | None:
        """Read a whole number from 1 up, or null, which is not the same as absent."""
        return None if self._is_null(name, default) else self.integer(name, default)

    def number_or_null(self, name: str, default: float | None) -> float | None:
        """Read a finite number above 0, or null, which is not the same as absent."""
        return None if self._is_null(name, default) else self.number(name, default, positive=True)

    def _is_null(self, name: str, default: Any) -> bool:
        return self._all.get(name, default) is None

    def number(self, name: str, default: Any = _ABSENT, *, positive: bool = False) -> float:
        """Read a finite number from 0 up, or above 0; a wrong one is noted, and 1 returned."""
        return self.check_number(name, self.take(name, default), positive=positive)

    def check_number(self, name: str, value: Any, *, positive: bool = False) -> float:
        """Check a number that was read already, as `number` does."""
        if type(value) in (int, float) and 0 <= value < 1e38 and not (positive and value == 0):
            return float(value)
        if value is not None:
            allowed = "a number above 0" if positive else "a number from 0 up"
            self.wrong(f"{name} = {shown(value)} is not {allowed}")
        return 1.0

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        value = self.take(name, default)
        if type(value) is not bool:
            self.wrong(f"{name} = {shown(value)} is neither true nor false")
        return value is True

    def fields(self, name: str) -> dict[str, Any]:
        """Read an object; an empty one where it is absent."""
        value = self.take(name, {})
        if type(value) is not dict:
            self.wrong(f"{name} = {shown(value)} is not an object")
            return {}
        return dict(value)

    def expect(self, name: str, *allowed: Any) -> None:
        """Accept a field only with one of these values; absent, it is the first."""
        value = self._left.pop(name, None)
        if value is not None and value not in allowed:
            self.wrong(f"{name} = {shown(value)} is not supported; supported: {list(allowed)}")

    def require(self, *names: str) -> None:
        """Note which of these fields are missing, though `take` would have a default."""
        self._wrong += [f"{name} is missing" for name in names if self._all.get(name) is None]

    def ignore(self, *names: str) -> None:
        """Tick off fields of this family that cannot change a hidden state."""
        for name in names:
            self._left.pop(name, None)

    def require_multiple(self, whole: str, part: str) -> None:
        """Check that one field is a multiple of another."""
        a, b = self._all.get(whole), self._all.get(part)
        if isinstance(a, int) and isinstance(b, int) and b > 0 and a % b:
            self.wrong(f"{whole} = {a} is not a multiple of {part} = {b}")

    def wrong(self, problem: str) -> None:
        """Note a problem, to be raised with all others."""
        self._wrong.append(problem)

    def finish(self) -> None:
        """Raise one ValueError with every problem, fields never asked for among them."""
        unknown = [
            f"{name}: {_EXPLAINED[name]}"
            if name in _EXPLAINED
            else f"{label(name)} = {shown(value)} is unknown and could change the numbers"
            for name, value in self._left.items()
            if value is not None
        ]
        problems = [*self._wrong, *unknown]
        if problems:
            raise UserError(f"{self._where}: {listed_problems(problems, _LISTED)}")


def label(name: str) -> str:
    """Return a field's name as an error shows it, quoted where it is long or not printable."""
    return name if name.isprintable() and len(name) <= _SHOWN else shown(name)


def shown(value: Any) -> str:
    """Return a value as an error shows it: at most 80 characters, text in quotes."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
