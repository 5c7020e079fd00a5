"""Prompts as data: the text before and after a sentence, and demonstrations before both.

The bytes of a template decide the embedding: with PromptBERT one missing period costs forty points.
Every template here is what the released code of its authors feeds the model, straight quotes and
the space before the colon included, and the tests pin each of them.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.storage import paths
from prompteol_jax.storage.json_files import read_object

SLOT: Final = "*sent 0*"  # where the text is, among pieces and in the original's notation
EOS: Final = "*eos*"  # the tokenizer's end token, among pieces
_AROUND: Final = ("prefix", "suffix")
_AFTER_WORD: Final = '".'  # closes a demonstration's word and joins it to what follows


class Demonstration(NamedTuple):
    """A sentence and the one word that sums it up, shown to the model before the real sentence."""

    text: str
    word: str


@dataclass(frozen=True)
class Template:
    """Text around a slot, optionally after demonstrations in the same form.

    With demonstrations the prompt is `PREFIX text SUFFIX word".PREFIX sentence SUFFIX`, without the
    spaces: the demonstrations are joined by a period alone, as in the original.

    Attributes:
        prefix, suffix: text before the (first) slot, and after the (last) one.
        pieces: for a prompt whose parts are tokenized one by one and joined as ids, as Echo's: all
            its parts, the slot `SLOT` being one or several of them, `EOS` the tokenizer's end
            token. Empty for a prompt that is tokenized whole.
        keep_spaces: white space at the two ends of the prompt stays.
    """

    name: str
    prefix: str
    suffix: str
    demonstrations: tuple[Demonstration, ...] = ()
    pieces: tuple[str, ...] = ()
    keep_spaces: bool = False

    @property
    def head(self) -> str:
        """Everything before the slot, demonstrations included."""
        shown = (
            f"{self.prefix}{d.text}{self.suffix}{d.word}{_AFTER_WORD}" for d in self.demonstrations
        )
        return "".join(shown) + self.prefix

    @property
    def content(self) -> str:
        """What decides the prompts, for a comparison: `{}` for the text, or the list of pieces."""
        return json.dumps(self.pieces) if self.pieces else f"{self.head}{{}}{self.suffix}"

    def fill(self, text: str) -> str:
        """Return the prompt for one text; white space at its two ends is stripped."""
        if self.pieces:
            return "".join(text if piece == SLOT else piece for piece in self.pieces).strip()
        filled = self.head + text + self.suffix
        return filled if self.keep_spaces else filled.strip()

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the file that `read_template` reads."""
        if self.pieces:
            return {"pieces": list(self.pieces)}
        shown = [d._asdict() for d in self.demonstrations]
        return {"prefix": self.prefix, "suffix": self.suffix, "demonstrations": shown}

    @classmethod
    def from_json(cls, fields: Any, name: str) -> Template:
        """Build a template from parsed JSON.

        Raises: UserError naming every missing, unknown or mistyped field.
        """
        problems = _problems(fields)
        if problems:
            raise UserError(
                f"template {name}: {'; '.join(problems)}. A template is "
                '{"prefix": text, "suffix": text, "demonstrations": [{"text": ..., "word": ...}]}, '
                f'demonstrations being optional, or {{"pieces": [text, "{SLOT}", ...]}}'
            )
        if "pieces" in fields:
            return from_pieces(fields["pieces"], name)
        shown = tuple(Demonstration(**d) for d in fields.get("demonstrations", ()))
        return cls(name, fields["prefix"], fields["suffix"], shown)


def from_pieces(pieces: Sequence[str], name: str) -> Template:
    """Return a template whose pieces are tokenized one by one."""
    slots = [number for number, piece in enumerate(pieces) if piece == SLOT]
    prefix, suffix = "".join(pieces[: slots[0]]), "".join(pieces[slots[-1] + 1 :])
    return Template(name, prefix, suffix, pieces=tuple(pieces))


def _problems(fields: Any) -> list[str]:
    if not isinstance(fields, dict):
        return [f"a JSON object is needed, found {type(fields).__name__}"]
    if "pieces" in fields:
        return _piece_problems(fields)
    shown = fields.get("demonstrations", [])
    problems = _mismatches("", {k: v for k, v in fields.items() if k != "demonstrations"}, _AROUND)
    if not isinstance(shown, list):
        return [
            *problems,
            f"demonstrations must be a list, found {type(shown).__name__}",
        ]
    for position, demonstration in enumerate(shown):
        problems += _mismatches(
            f"demonstrations[{position}].", demonstration, Demonstration._fields
        )
    return problems


def _piece_problems(fields: Mapping[str, Any]) -> list[str]:
    pieces = fields["pieces"]
    found = [f"{name:.80} does not go with pieces" for name in fields if name != "pieces"]
    if not isinstance(pieces, list) or not all(isinstance(p, str) and p for p in pieces):
        return [*found, "pieces must be a list of texts that are not empty"]
    if SLOT not in pieces:
        found.append(f"pieces hold no slot, {SLOT!r}")
    return found


def _mismatches(where: str, fields: Any, expected: tuple[str, ...]) -> list[str]:
    if not isinstance(fields, dict):
        return [f"{where.rstrip('.')} must be an object, found {type(fields).__name__}"]
    return [
        *(f"{where}{name} is missing" for name in expected if name not in fields),
        *(f"{where}{name:.80} is unknown" for name in fields if name not in expected),
        *(
            f"{where}{name} must be text, found {type(fields[name]).__name__}"
            for name in expected
            if name in fields and not isinstance(fields[name], str)
        ),
    ]


def _one_word(name: str, opening: str, *shown: Demonstration) -> Template:
    return Template(name, f'{opening} : "', '" means in one word:"', shown)


# kongds/scaling_sentemb, evaluation.py: This_sentence_:_"*sent_0*"_means_in_one_word:"
PROMPTEOL: Final = _one_word("eol", "This sentence")

# The demonstration that scored best on STS-B development for each OPT size: run_icl.sh of the same
# repository, and the paper's appendix.
_DEMONSTRATIONS: Final = {
    "125m": Demonstration("A man is smoking.", "Smoking"),
    "350m": Demonstration("A man is playing on a guitar and singing.", "Music"),
    "1.3b": Demonstration("relating to switzerland or its people.", "Swiss"),
    "2.7b": Demonstration("A jockey riding a horse.", "Equestrian"),
    "6.7b": Demonstration("The man is riding a horse.", "Horseback-riding"),
    "13b": Demonstration("meat from a deer.", "Venison"),
    "30b": Demonstration("The man is riding a motorcycle down the road.", "Motorcycling"),
    "66b": Demonstration("of or relating to tutors or tutoring.", "Tutorial"),
}

# ZBWpro/PretCoTandKE, evaluation.py; both are read one layer before the last there.
_PRETENDED_COT: Final = _one_word("cot", "After thinking step by step , this sentence")
_KNOWLEDGE: Final = _one_word(
    "ke",
    "The essence of a sentence is often captured by its main subjects and actions, while "
    "descriptive terms provide additional but less central details. With this in mind , "
    "this sentence",
)

TEMPLATES: Final[Mapping[str, Template]] = MappingProxyType(
    {
        template.name: template
        for template in (
            PROMPTEOL,
            *(
                _one_word(f"eol-icl-{size}", "This sentence", demonstration)
                for size, demonstration in _DEMONSTRATIONS.items()
            ),
            Template("prompt", 'This sentence : "', '" means'),
            _PRETENDED_COT,
            _KNOWLEDGE,
            Template("none", "", ""),
        )
    }
)

_FILES: Final = (".json", ".txt", ".template")


def read_template(name_or_path: str | Path) -> Template:
    """Return a template by its name in TEMPLATES, from a file, or from the original's notation.

    A `.json` file holds the fields of `Template.to_json`; a `.txt` or `.template` file holds the
    original's notation, `This_sentence_:_"*sent_0*"_means_in_one_word:"`, which may also be given
    itself. There `*cls*` and `*sep+*` are removed and `_` means a space.

    Raises: NotFound for a missing file, UserError for an unknown name or a bad template.
    """
    name_or_path = str(name_or_path)
    if name_or_path in TEMPLATES:
        return TEMPLATES[name_or_path]
    if "*sent" in name_or_path:
        return from_notation(name_or_path, "given")
    path = Path(name_or_path)
    if path.suffix not in _FILES:
        near = difflib.get_close_matches(name_or_path, TEMPLATES, n=1)
        raise UserError(
            f"unknown template {name_or_path!r}{f'; nearest: {near[0]}' if near else ''}. Names: "
            f"{', '.join(TEMPLATES)}; or a file ending in {', '.join(_FILES)}"
        )
    file = paths.local_copy(name_or_path)
    if not file.is_file():
        raise NotFound(f"template file {name_or_path} does not exist")
    if path.suffix == ".json":
        return Template.from_json(read_object(file), path.stem)
    try:
        return from_notation(file.read_text(encoding="utf-8-sig"), path.stem)
    except UnicodeDecodeError as error:
        raise UserError(f"template {name_or_path} is not UTF-8: byte {error.start}") from error


def from_notation(notation: str, name: str) -> Template:
    """Return a template from the original's notation, see `read_template`.

    Text before the slot that has the form of demonstrations is read as demonstrations.

    Raises: UserError unless there is exactly one slot.
    """
    # Underscores become spaces here, before any sentence is inserted: those of a sentence survive.
    spaced = notation.strip("\r\n").replace("*cls*", "").replace("*sep+*", "").replace("_", " ")
    parts = spaced.split(SLOT)
    if len(parts) != 2:
        raise UserError(
            f"template {name} has {len(parts) - 1} slots *sent_0*, exactly one is needed: "
            f"{notation.strip()!r:.200}"
        )
    head, suffix = parts
    for end in reversed([match.end() for match in re.finditer(re.escape(_AFTER_WORD), head)]):
        shown = _demonstrations(head[:end], head[end:], suffix)
        if shown:
            return Template(name, head[end:], suffix, shown)
    return Template(name, head, suffix)


def _demonstrations(shown: str, prefix: str, suffix: str) -> tuple[Demonstration, ...]:
    """Split `PREFIX text SUFFIX word".` and the like; empty where the text has another form."""
    if not (prefix and suffix):
        return ()
    form = re.compile(
        f"{re.escape(prefix)}(.+?){re.escape(suffix)}(.+?){re.escape(_AFTER_WORD)}", re.DOTALL
    )
    found, at = [], 0
    while at < len(shown):
        match = form.match(shown, at)
        if match is None:
            return ()
        found.append(Demonstration(*match.groups()))
        at = match.end()
    return tuple(found)


def clean_sentence(text: str) -> str:
    """Return the sentence as the original's evaluation rewrites it; its training does not.

    In this order: a period is appended unless the last character is one of . ? " ', double quotes
    become single quotes, a final question mark becomes a period. An empty text stays empty.
    """
    if text and text[-1] not in ".?\"'":
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text


def as_template(template: Template | str | Path) -> Template:
    """Return a template given by itself, by name or by file."""
    return template if isinstance(template, Template) else read_template(str(template))
