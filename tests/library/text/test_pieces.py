"""Laws of prompts in pieces: ids are those of the parts, joined, and copies are alike."""

from __future__ import annotations

import numpy as np
import pytest

from prompteol_jax.errors import UserError
from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.pieces import PieceIds
from prompteol_jax.text.prompt import Prompt
from prompteol_jax.text.template import EOS, SLOT, Template, from_pieces
from prompteol_jax.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.unit

ECHO = from_pieces(["Rewrite: ", SLOT, ". Rewritten: ", SLOT, "!"], "echo")
TEXTS = ["A dog runs.", "x", '"(a)"', "two women", ""]


def bare(tokenizer, text):
    return tokenizer.ids([text])[0].tolist()[len(tokenizer.first_ids) :]


@pytest.mark.parametrize("name", ["tiny", "opt-tokenizer", "llama-tokenizer", "qwen2-tokenizer"])
def test_the_ids_are_those_of_the_pieces_one_after_another(name, request):
    if name == "tiny":
        tokenizer = tiny_tokenizer()
    else:
        tokenizer = load_tokenizer(request.getfixturevalue("data") / "weights" / name)
    ids = PieceIds(ECHO, tokenizer)
    for text, (found, cut) in zip(TEXTS, ids(TEXTS), strict=True):
        parts = [bare(tokenizer, part) for part in ("Rewrite: ", text, ". Rewritten: ", text, "!")]
        assert found.tolist() == sum(parts, tokenizer.first_ids) and not cut
        start = ids.copy_start(len(found))
        assert found[start : len(found) - ids.after].tolist() == parts[1]
    assert (ids.copies, ids.after) == (2, len(bare(tokenizer, "!")))


def test_bos_that_the_first_piece_spells_out_is_not_put_twice(data):
    tokenizer = load_tokenizer(data / "weights" / "mistral-tokenizer")
    template = from_pieces(["<s>Document:", SLOT, "\nDocument again:", SLOT, "</s>"], "document")
    ((ids, _),) = PieceIds(template, tokenizer)(["a dog"])
    assert ids[0] == tokenizer.bos_id and ids[1] != tokenizer.bos_id
    assert ids[-1] == tokenizer.eos_id == 2


def test_a_long_text_is_cut_in_both_copies_alike():
    tokenizer = tiny_tokenizer()
    prompt = Prompt(ECHO, tokenizer, max_tokens=40)
    ids, _, cut = prompt(["a dog runs over the hill and far away " * 9, "a dog"])
    assert cut.tolist() == [True, False]
    whole = np.concatenate([prompt.prefix_C, ids[0]])
    pieces = PieceIds(ECHO, tokenizer)
    own = (40 - pieces.fixed) // 2
    assert len(whole) == pieces.fixed + 2 * own
    start = prompt.second_copy(len(whole))
    first = whole[start - own - len(bare(tokenizer, ". Rewritten: ")) :][:own]
    assert first.tolist() == whole[start : start + own].tolist()


def test_the_prefix_of_a_prompt_in_pieces_is_its_first_piece():
    tokenizer = tiny_tokenizer()
    prompt = Prompt(ECHO, tokenizer, max_tokens=200)
    assert prompt.prefix_C.tolist() == tokenizer.first_ids + bare(tokenizer, "Rewrite: ")
    assert prompt(TEXTS).shared.all()


def test_what_cannot_be_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_id = None
    with pytest.raises(UserError, match="ends in the tokenizer's end token, and the tokenizer"):
        PieceIds(from_pieces([SLOT, EOS], "e"), tokenizer)
    with pytest.raises(UserError, match="template plain is not in pieces"):
        Prompt(Template("plain", "a ", " b"), tokenizer, max_tokens=99).second_copy(9)


def test_a_template_in_pieces_goes_to_json_and_back():
    assert Template.from_json(ECHO.to_json(), "echo") == ECHO
    assert (ECHO.prefix, ECHO.suffix) == ("Rewrite: ", "!")
    assert ECHO.fill("a") == "Rewrite: a. Rewritten: a!"
