"""Laws of prompts: their exact bytes, what a template file may say, how sentences are cleaned."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompteol_jax.text.template import (
    PROMPTEOL,
    SLOT,
    TEMPLATES,
    Demonstration,
    Template,
    clean_sentence,
    from_pieces,
    read_template,
)

pytestmark = pytest.mark.unit

SENTENCE = "A dog_runs."
EOL = 'This sentence : "A dog_runs." means in one word:"'
NOTATION = 'This_sentence_:_"*sent_0*"_means_in_one_word:"'

BYTES = {
    "eol": EOL,
    "eol-icl-125m": 'This sentence : "A man is smoking." means in one word:"Smoking".' + EOL,
    "eol-icl-350m": (
        'This sentence : "A man is playing on a guitar and singing." means in one word:"Music".'
        + EOL
    ),
    "eol-icl-1.3b": (
        'This sentence : "relating to switzerland or its people." means in one word:"Swiss".' + EOL
    ),
    "eol-icl-2.7b": (
        'This sentence : "A jockey riding a horse." means in one word:"Equestrian".' + EOL
    ),
    "eol-icl-6.7b": (
        'This sentence : "The man is riding a horse." means in one word:"Horseback-riding".' + EOL
    ),
    "eol-icl-13b": 'This sentence : "meat from a deer." means in one word:"Venison".' + EOL,
    "eol-icl-30b": (
        'This sentence : "The man is riding a motorcycle down the road." '
        'means in one word:"Motorcycling".' + EOL
    ),
    "eol-icl-66b": (
        'This sentence : "of or relating to tutors or tutoring." means in one word:"Tutorial".'
        + EOL
    ),
    "prompt": 'This sentence : "A dog_runs." means',
    "cot": ('After thinking step by step , this sentence : "A dog_runs." means in one word:"'),
    "ke": (
        "The essence of a sentence is often captured by its main subjects and actions, while "
        "descriptive terms provide additional but less central details. With this in mind , "
        'this sentence : "A dog_runs." means in one word:"'
    ),
    "none": "A dog_runs.",
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_of_every_template(name):
    assert TEMPLATES[name].fill(SENTENCE).encode() == BYTES[name].encode()


def test_every_template_is_pinned():
    assert list(TEMPLATES) == list(BYTES)
    assert TEMPLATES["eol"] is PROMPTEOL


@given(st.text())
def test_text_stands_between_head_and_suffix_unchanged(text):
    filled = TEMPLATES["eol-icl-13b"].fill(text)
    assert filled == TEMPLATES["eol-icl-13b"].head + text + '" means in one word:"'


def test_white_space_at_the_ends_of_the_prompt_is_stripped():
    assert TEMPLATES["none"].fill(" a b\n") == "a b"
    assert Template("t", "  x ", " y \n").fill(" a ") == "x  a  y"


def test_the_content_holds_every_piece_of_a_prompt():
    assert Template("x", "a ", " b").content == "a {} b"
    first, other = (from_pieces(["a ", SLOT, more, SLOT], "x") for more in (" b ", " c "))
    assert (first.head, first.suffix) == (other.head, other.suffix)
    assert first.content != other.content


def test_several_demonstrations_are_joined_by_a_period_alone():
    shown = (Demonstration("a", "A"), Demonstration("b", "B"))
    assert Template("t", "<", ">", shown).fill("c") == '<a>A".<b>B".<c>'


@pytest.mark.parametrize("name", BYTES)
def test_round_trip_through_a_json_file(name, tmp_path):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(TEMPLATES[name].to_json()))
    assert read_template(str(path)) == TEMPLATES[name]


@pytest.mark.parametrize(
    ("notation", "filled"),
    [
        (NOTATION, EOL),
        (f"*cls*{NOTATION}*sep+*", EOL),
        (f"{NOTATION}\n", EOL),
        (
            'This_sentence_:_"a_b."_means_in_one_word:"C".' + NOTATION,
            'This sentence : "a b." means in one word:"C".' + EOL,
        ),
        ("*cls*_*sent_0*_*sep+*", SENTENCE),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".template", None])
def test_original_notation_replaces_underscores_before_the_sentence_comes_in(
    notation, filled, suffix, tmp_path
):
    given = notation
    if suffix:
        given = str(tmp_path / f"mine{suffix}")
        (tmp_path / f"mine{suffix}").write_text(notation)
    assert read_template(given).fill(SENTENCE) == filled


@pytest.mark.parametrize("name", [name for name in BYTES if name.startswith("eol")])
def test_demonstrations_are_told_from_the_prefix_in_the_original_notation(name):
    template = TEMPLATES[name]
    more = (*template.demonstrations, Demonstration('He said: "no". It is so', "Well-known"))
    for shown in (template.demonstrations, more):
        whole = Template(name, template.prefix, template.suffix, shown)
        notation = f"{whole.head}*sent_0*{whole.suffix}".replace(" ", "_")
        assert read_template(notation) == Template("given", whole.prefix, whole.suffix, shown)


@given(st.text('ab". :', max_size=30), st.text('ab". :', max_size=5))
def test_whatever_is_before_the_slot_stays_before_it(before, after):
    template = read_template(f"{before}*sent_0*{after}")
    assert (template.head, template.suffix) == (before, after)


def test_named_templates_come_before_files():
    assert read_template("eol-icl-66b") is TEMPLATES["eol-icl-66b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eol-icl-66", r"unknown template 'eol-icl-66'; nearest: eol-icl-66b. Names: eol, eol-icl"),
        (
            "zzzz",
            r"unknown template 'zzzz'. Names: .*none; or a file ending in .json, .txt, .templ",
        ),
        ("*sent_0*_and_*sent_0*", r"has 2 slots \*sent_0\*, exactly one is needed"),
        ("*sent_1*", r"has 0 slots \*sent_0\*, exactly one is needed: '\*sent_1\*'"),
    ],
)
def test_refuses_unknown_names_and_wrong_slots(name, message):
    with pytest.raises(ValueError, match=message):
        read_template(name)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("gone.json does not exist")):
        read_template(str(tmp_path / "gone.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object but a list"),
        ("{}", "prefix is missing; suffix is missing"),
        ('{"prefix": "a", "suffix": 1, "slot": ""}', "slot is unknown; suffix must be text"),
        (
            '{"prefix": "", "suffix": "", "demonstrations": [{"text": "a"}, "b"]}',
            r"demonstrations\[0\].word is missing; demonstrations\[1\] must be an object",
        ),
        (
            '{"prefix": "", "suffix": "", "demonstrations": [{"text": "", "word": 3}]}',
            r"demonstrations\[0\].word must be text, found int",
        ),
        (
            '{"prefix": "", "suffix": "", "demonstrations": {}}',
            "demonstrations must be a list, found dict",
        ),
    ],
)
def test_refuses_a_bad_json_file_with_all_its_problems(content, message, tmp_path):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_template(str(tmp_path / "mine.json"))


def test_refuses_a_text_file_without_a_slot(tmp_path):
    (tmp_path / "mine.txt").write_text("This sentence means")
    with pytest.raises(ValueError, match="template mine has 0 slots"):
        read_template(str(tmp_path / "mine.txt"))


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("", ""),
        ("a dog", "a dog."),
        ("a dog.", "a dog."),
        ("a dog?", "a dog."),
        ("a dog??", "a dog?."),
        ("a dog!", "a dog!."),
        ("a dog ", "a dog ."),
        ("he said 'no'", "he said 'no'"),
        ('he said "no"', "he said 'no'"),
        ('a "dog" runs', "a 'dog' runs."),
        ('why?"', "why?'"),
        ("?", "."),
        ('"', "'"),
    ],
)
def test_clean_sentence_follows_the_original(raw, cleaned):
    assert clean_sentence(raw) == cleaned


@given(st.text(min_size=1))
def test_cleaned_text_has_no_double_quote_and_ends_like_a_sentence(text):
    cleaned = clean_sentence(text)
    assert '"' not in cleaned
    assert cleaned[-1] in ".'"
