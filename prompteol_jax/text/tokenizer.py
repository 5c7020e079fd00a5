"""A tokenizer reduced to what PromptEOL needs, read from a checkpoint folder and checked there.

transformers reads the files but leaves traps. A LLaMA folder without tokenizer_config.json loses
the space before its first word; early LLaMA conversions have empty special tokens or a wrong BOS;
some OPT conversions put no BOS at all. So the reader is chosen by the files that are there, BOS is
put first here and not by the backend, and a vocabulary that is recognized must give known ids for
a known text.

A special token's string inside a text, such as `</s>`, becomes that token's id, as transformers
does by default.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, SupportsInt

import numpy as np
import tokenizers

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.storage import json_files
from prompteol_jax.text.vocabularies import recognized

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_CONFIGS: Final = ("tokenizer_config.json", "special_tokens_map.json")
# What tokenizers knows of an added token, and the mark by which transformers finds one in a file.
_TOKEN_FIELDS: Final = {
    *("content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"),
}
_SPACES: Final = ("\u0120", "\u2581")  # how vocabularies write the space before a word


class Tokenizer:
    """A tokenizer as PromptEOL uses it: BOS first if it has one, no EOS, padding or truncation.

    Unpaired surrogates, which Python makes of invalid UTF-8, count as U+FFFD. Several threads may
    use one tokenizer together; the work is done outside Python's global lock.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None = None,
        decode: Callable[[list[int]], str] | None = None,
        rows: int | None = None,
        placeholder: int | None = None,
    ):
        """Wrap a backend, whose own special tokens are not used.

        Args:
            bos_id: id that is put first; None for a vocabulary without BOS, such as Qwen's.
            eos_id: id of the end token, which only a prompt in pieces may ask for.
            decode: function that replaces the backend's decoding.
            rows: rows of the model's embedding, where the vocabulary has ids beyond them; a text
                with such an id is refused.
            placeholder: id beyond the rows that the caller replaces.
        """
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.bos_id = bos_id
        self.eos_id = eos_id
        self._rows, self._placeholder = rows, placeholder
        self._decode = decode or _plain_decode(backend)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the tokenizer's whole definition."""
        return hashlib.sha256(f"{self.bos_id} {self.backend.to_str()}".encode()).hexdigest()

    def with_token(self, text: str) -> tuple[Tokenizer, int]:
        """Return the same tokenizer with one more token, and the token's id.

        Texts are split at it as transformers' `add_tokens` splits them, which can leave a piece of
        its own for the space before it. No embedding has the id: `Prompt` replaces it.
        """
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.add_tokens([text])
        number = backend.token_to_id(text)
        assert number is not None  # it was just added
        kept: dict[str, Any] = {"bos_id": self.bos_id, "eos_id": self.eos_id, "rows": self._rows}
        return Tokenizer(backend, **kept, placeholder=number), number

    @cached_property
    def end_text(self) -> str:
        """What its files put after a text; empty for nothing. `ids` puts nothing."""
        _, after = _frame(self.backend)
        added = self.backend.get_added_tokens_decoder()
        return "".join(added[number].content for number in after)

    def entry(self, number: SupportsInt) -> str | None:
        """Return the vocabulary's entry of an id; None where it has none."""
        return self.backend.id_to_token(int(number))

    def ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the int32 ids of each text, BOS first if there is one."""
        return [np.array([*self.first_ids, *ids], np.int32) for ids in self._bare(texts)]

    @property
    def first_ids(self) -> list[int]:
        """What every text begins with: BOS, or nothing."""
        return [] if self.bos_id is None else [self.bos_id]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the characters that each id but BOS comes from, as (start, end) in the text."""
        return self.backend.encode(paired(text), add_special_tokens=False).offsets

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Return the text of the ids, without the BOS that `ids` puts first."""
        numbers = [int(number) for number in ids]
        has_bos = bool(numbers) and numbers[:1] == self.first_ids
        return self._decode(numbers[1:] if has_bos else numbers)

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Return each text cut to its first `max_tokens` ids, BOS not counted, and decoded again.

        Short texts make the same round trip, as in the original's training; it may change them.
        """
        return [self._decode(ids[:max_tokens]) for ids in self._bare(texts)]

    def _bare(self, texts: Sequence[str]) -> Iterator[list[int]]:
        valid = [paired(text) for text in texts]
        encoded = self.backend.encode_batch_fast(valid, add_special_tokens=False)
        if self._rows is not None:
            for text, encoding in zip(valid, encoded, strict=True):
                self._check_rows(text, encoding.ids, self._rows)
        return (encoding.ids for encoding in encoded)

    def _check_rows(self, text: str, ids: Sequence[int], rows: int) -> None:
        past = (number for number in ids if number >= rows and number != self._placeholder)
        beyond = next(past, None)
        if beyond is not None:
            raise UserError(
                f"the text {text!r:.80} holds {self.entry(beyond)!r}, id {beyond}, but the model's "
                f"embedding has {rows} rows; write the text without it"
            )


def _plain_decode(backend: tokenizers.Tokenizer) -> Callable[[list[int]], str]:
    return lambda ids: backend.decode(ids, skip_special_tokens=False)


def paired(text: str) -> str:
    """Return the text with U+FFFD in place of each unpaired surrogate."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class Golden(NamedTuple):
    """What a recognized vocabulary must give for a text, and what was found."""

    vocabulary: str
    text: str
    expected: list[int]
    found: list[int]


# The files that define a tokenizer, the most complete definition first, and the class that reads
# them: AutoTokenizer would choose by tokenizer_config.json, which may be missing or say otherwise.
_READERS: Final = {
    ("tokenizer.json",): "PreTrainedTokenizerFast",
    ("tokenizer.model",): "LlamaTokenizer",
    ("vocab.json", "merges.txt"): "GPT2Tokenizer",
}


def load_tokenizer(folder: Path, *, vocab_size: int | None = None) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder and check it.

    Args:
        vocab_size: rows of the model's embedding. Only special tokens may have ids beyond them,
            such as a `[PAD]` that was added after training: padding is never read.
    Raises: NotFound if the folder holds no tokenizer; UserError naming everything that is
        wrong with it: an unreadable file, BOS missing or broken, ids that are not those of a known
        vocabulary or that the model does not have.
    """
    read = _read(folder)
    backend = read.backend_tokenizer
    bos_id = read.bos_token_id
    before, _ = _frame(backend)
    if bos_id is None and len(before) == 1:
        (bos_id,) = before
    if bos_id is None and not _lacks_bos(backend):
        raise UserError(
            f"{folder}: the tokenizer has no BOS token, with which every prompt must begin; "
            "name it as bos_token in tokenizer_config.json"
        )
    beyond = _ids_beyond(backend, vocab_size)
    rows = vocab_size if beyond else None
    eos_id = None if read.eos_token_id in beyond else read.eos_token_id
    tokenizer = Tokenizer(backend, bos_id=bos_id, eos_id=eos_id, decode=read.decode, rows=rows)
    problems = [
        *_other_space(tokenizer, folder),
        *_foreign_frame(tokenizer, read.eos_token_id),
        *_wrong_ids(tokenizer),
        *_too_large(tokenizer, beyond, vocab_size, used=(bos_id, read.unk_token_id)),
    ]
    if bos_id is not None and bos_id == read.unk_token_id and bos_id != read.eos_token_id:
        problems.append(f"its BOS, id {bos_id}, is its unknown token")
    if problems:
        raise UserError(
            f"{folder}: the tokenizer does not fit: {'; '.join(problems)}. Correct "
            "tokenizer_config.json (bos_token, eos_token, unk_token) or take the tokenizer files "
            "of the original checkpoint"
        )
    return tokenizer


def _read(folder: Path) -> Any:
    present = [files for files in _READERS if all((folder / file).is_file() for file in files)]
    if not present:
        raise NotFound(
            f"{folder} holds no tokenizer: needed is "
            f"{' or '.join(' with '.join(files) for files in _READERS)}"
        )
    empty = _empty_special_tokens(folder)
    if empty:
        raise UserError(
            f"{folder}: {', '.join(empty)} empty, as in early LLaMA conversions; for LLaMA 1 and 2 "
            'write bos_token "<s>", eos_token "</s>", unk_token "<unk>"'
        )
    import transformers

    reader = getattr(transformers, _READERS[present[0]])
    try:
        with _without_unknown_fields(folder) as readable:
            return reader.from_pretrained(readable, local_files_only=True)
    except Exception as error:  # the readers raise anything, plain Exception included
        raise UserError(
            f"{folder}: {' and '.join(present[0])} cannot be read as a tokenizer: "
            f"{type(error).__name__}: {error}"
        ) from error


def _empty_special_tokens(folder: Path) -> list[str]:
    empty = []
    for name, fields in _read_configs(folder).items():
        for token in ("bos_token", "eos_token", "unk_token"):
            value = fields.get(token)
            if (value.get("content") if isinstance(value, dict) else value) == "":
                empty.append(f"{token} in {name}")
    return empty


def _read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the fields of the folder's small JSON files, by name of the file."""
    found = {}
    for name in _CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        found[name] = json_files.read_object(path)
    return found


@contextlib.contextmanager
def _without_unknown_fields(folder: Path) -> Iterator[Path]:
    """Give a folder whose tokens have only fields that tokenizers knows.

    It prints the others on standard output, which may be somebody's data. Where there are some, the
    folder is a temporary one of links and corrected files.
    """
    configs = _read_configs(folder)
    known = {
        name: {key: _known_fields(value, name) for key, value in fields.items()}
        for name, fields in configs.items()
    }
    if known == configs:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        for path in folder.iterdir():
            if path.name not in known:
                (Path(scratch) / path.name).symlink_to(path.resolve())
        for name, fields in known.items():
            (Path(scratch) / name).write_text(json.dumps(fields), encoding="utf-8")
        yield Path(scratch)


def _known_fields(value: Any, name: str) -> Any:
    """Return a field of a file without what tokenizers does not know of a token."""
    if isinstance(value, list):
        return [_known_fields(item, name) for item in value]
    if not isinstance(value, dict):
        return value
    if "content" not in value:
        return {key: _known_fields(item, name) for key, item in value.items()}
    allowed = _TOKEN_FIELDS - ({"__type"} if name == "special_tokens_map.json" else set())
    return {key: item for key, item in value.items() if key in allowed}


def _other_space(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Refuse a config that says otherwise of the space before a text than the tokenizer does."""
    asked = _read_configs(folder).get("tokenizer_config.json", {}).get("add_prefix_space")
    first = tokenizer.backend.encode("the", add_special_tokens=False).ids[:1]
    adds = any((tokenizer.entry(number) or "").startswith(_SPACES) for number in first)
    if not isinstance(asked, bool) or asked == adds:
        return []
    does = "puts a space before a text" if adds else "puts no space before a text"
    return [f"it {does}, but tokenizer_config.json says add_prefix_space {str(asked).lower()}"]


def _foreign_frame(tokenizer: Tokenizer, eos_id: int | None) -> list[str]:
    """Refuse a backend that puts more than BOS before a text, or more than one token after it."""
    before, after = _frame(tokenizer.backend)
    ends = {eos_id, *tokenizer.backend.get_added_tokens_decoder()}
    if before in ([], tokenizer.first_ids) and len(after) <= 1 and ends.issuperset(after):
        return []
    framed = tokenizer.backend.encode("a").ids
    bare = framed[len(before) : len(framed) - len(after)]
    bos = "nothing" if tokenizer.bos_id is None else f"only BOS {tokenizer.bos_id}"
    return [f"it frames the ids {bare} as {framed}, where {bos} is expected"]


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that a backend puts before a text and after it."""
    framed = backend.encode("a").ids
    bare = backend.encode("a", add_special_tokens=False).ids
    starts = (n for n in range(len(framed)) if framed[n : n + len(bare)] == bare)
    start = next(starts, len(framed))
    return framed[:start], framed[start + len(bare) :]


def golden_ids(tokenizer: Tokenizer) -> list[Golden]:
    """Tokenize the texts whose ids are known; none where the vocabulary is not recognized."""
    return [
        Golden(known.name, text, ids, tokenizer.ids([text])[0].tolist())
        for known in recognized(tokenizer.backend)
        for text, ids in known.golden.items()
    ]


def _lacks_bos(backend: tokenizers.Tokenizer) -> bool:
    """Return whether the vocabulary is known to have no BOS."""
    return any(not known.has_bos for known in recognized(backend))


def _wrong_ids(tokenizer: Tokenizer) -> list[str]:
    return [
        f"its vocabulary is {golden.vocabulary}'s, where {golden.text!r} is {golden.expected}, "
        f"but here {golden.found}"
        for golden in golden_ids(tokenizer)
        if golden.found != golden.expected
    ]


def _ids_beyond(backend: tokenizers.Tokenizer, rows: int | None) -> list[int]:
    """List the ids of a vocabulary that an embedding of so many rows does not have."""
    ids = backend.get_vocab(with_added_tokens=True).values()
    return [] if rows is None else sorted(number for number in ids if number >= rows)


def _too_large(
    tokenizer: Tokenizer, beyond: Sequence[int], rows: int | None, *, used: Collection[int | None]
) -> list[str]:
    """Refuse ids beyond the embedding, but those of special tokens that no prompt needs."""
    added = tokenizer.backend.get_added_tokens_decoder()
    needed = [n for n in beyond if n in used or n not in added or not added[n].special]
    if not needed:
        return []
    largest = f"{needed[-1]} ({tokenizer.entry(needed[-1])!r})"
    return [f"its largest id is {largest}, but the model's embedding has {rows} rows"]
