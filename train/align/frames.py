"""What is around the words of a conversation, as data, and the request that is made in it.

A frame's text becomes tokens as it is, special tokens included; BOS is put first by the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from prompteol_jax.errors import NotFound, UserError, listed, nearest
from prompteol_jax.storage.json_files import read_object
from prompteol_jax.text.template import Template, read_template

SYSTEM: Final = "You are a helpful assistant"


class Frame(NamedTuple):
    """The text around one request and its answer.

    Attributes:
        before: text before the request; after: text between request and answer.
        end: text after the answer, which is part of what the model is to say.
    """

    before: str
    after: str
    end: str

    def around(self, request: str) -> str:
        """Return the conversation up to the answer."""
        return f"{self.before}{request}{self.after}"


_LLAMA_3: Final = "<|start_header_id|>{}<|end_header_id|>\n\n"
FRAMES: Final[Mapping[str, Frame]] = MappingProxyType(
    {
        "plain": Frame("", "\n", "\n"),
        "llama-2": Frame(f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n", " [/INST]", "</s>"),
        "llama-3": Frame(
            _LLAMA_3.format("system") + f"{SYSTEM}<|eot_id|>" + _LLAMA_3.format("user"),
            "<|eot_id|>" + _LLAMA_3.format("assistant"),
            "<|eot_id|>",
        ),
        "chatml": Frame(
            f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
        ),
    }
)
# szu-tera/SemPA: the request that it makes of every premise.
REPHRASE: Final = Template(
    "rephrase", 'Keep the same meaning of this sentence: "', '", while making some changes.'
)


def read_frame(name: str) -> Frame:
    """Return a frame by its name, or from a JSON file with the fields before, after and end.

    Raises: UserError, NotFound.
    """
    if name in FRAMES:
        return FRAMES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise UserError(
            f"--frame {name} is unknown{nearest(name, FRAMES)}: choose one of {listed(FRAMES)}, or "
            "a .json file"
        )
    if not path.is_file():
        raise NotFound(f"--frame {name}: there is no such file")
    fields = read_object(path)
    good = fields.keys() == set(Frame._fields)
    if not good or not all(isinstance(text, str) for text in fields.values()):
        raise UserError(
            f"--frame {name} needs the fields {listed(Frame._fields)}, all of them text"
        )
    return Frame(**fields)


def read_instruction(name: str) -> Template:
    """Return the request: `rephrase`, or the template of a name or file.

    Raises: UserError, NotFound.
    """
    return REPHRASE if name == REPHRASE.name else read_template(name)
