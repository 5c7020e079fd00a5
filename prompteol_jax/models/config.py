"""Strict reading of a `config.json`: a field that is not understood is refused, never skipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from prompteol_jax.errors import UserError

_ABSENT: Final = object()

# Fields that cannot change a hidden state.
HARMLESS: Final = frozenset(
    "_attn_implementation _commit_hash _flash_attn_2_enabled _name_or_path add_cross_attention "
    "architectures bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype "
    "early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty "
    "finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range "
    "is_decoder is_encoder_decoder label2id length_penalty max_length max_sequence_length "
    "min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_attentions output_hidden_states output_scores pad_token_id prefix problem_type "
    "pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss "
    "tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p "
    "unk_token_id use_bfloat16 use_cache".split()
)


class Fields:
    """The fields of one config, ticked off as they are read; `finish` reports all that is wrong."""

    def __init__(self, fields: Mapping[str, Any]):
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

    def integer(self, name: str, default: Any = _ABSENT) -> int:
        """Read a whole number from 1 up."""
        value = self.take(name, default)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            self.wrong(f"{name} = {value!r} is not a whole number from 1 up")
        return value if isinstance(value, int) and value > 0 else 1

    def expect(self, name: str, *allowed: Any) -> None:
        """Accept a field only with one of these values; absent, it is the first."""
        value = self._left.pop(name, None)
        if value is not None and value not in allowed:
            self.wrong(f"{name} = {value!r} is not supported; supported: {list(allowed)}")

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
            f"{k} = {v!r} is unknown and could change the numbers"
            for k, v in self._left.items()
            if v is not None
        ]
        if self._wrong or unknown:
            raise UserError("config.json: " + "; ".join([*self._wrong, *unknown]))
