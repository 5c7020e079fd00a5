"""Candidates: every kind of file gives the same templates, and sets are made as told."""

import json

import pytest

from eval.demos import build as demos_build
from eval.demos import candidates
from eval.demos.build import BuildOptions
from prompteol_jax import Embedder
from prompteol_jax.text.template import PROMPTEOL, Demonstration

SHOWN = [Demonstration("A man, smoking.", "Smoking"), Demonstration("meat from a deer.", "Venison")]
NOTATION = (
    'This_sentence_:_"A_man,_smoking."_means_in_one_word:"Smoking".'
    'This_sentence_:_"*sent_0*"_means_in_one_word:"\n'
    "\n"
    'This_sentence_:_"meat_from_a_deer."_means_in_one_word:"Venison".'
    'This_sentence_:_"*sent_0*"_means_in_one_word:"\n'
)
FILES = {
    "set.txt": NOTATION,
    "set.csv": 'word,text\nSmoking,"A man, smoking."\nVenison,meat from a deer.\n',
    "set.jsonl": "".join(json.dumps(d._asdict()) + "\n" for d in SHOWN),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_templates(name, tmp_path):
    (tmp_path / name).write_text(FILES[name])
    found = candidates.read_candidates(tmp_path / name, PROMPTEOL)
    assert [t.demonstrations for t in found] == [(d,) for d in SHOWN]
    assert {(t.prefix, t.suffix) for t in found} == {(PROMPTEOL.prefix, PROMPTEOL.suffix)}
    assert all(t.name.startswith("set:") for t in found)


def test_several_demonstrations_stand_in_their_order_behind_those_of_the_template(tmp_path):
    lines = [{"demonstrations": [d._asdict() for d in SHOWN]}, SHOWN[0]._asdict()]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *lines]))
    base = candidates.extended(PROMPTEOL, [Demonstration("a", "b")], "base")
    two, one = candidates.read_candidates(path, base)  # repeated ones are kept once
    assert two.demonstrations == (("a", "b"), *SHOWN)
    assert one.demonstrations == (("a", "b"), SHOWN[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.tsv", "x", "unknown kind '.tsv'; candidates come as .txt, .csv, .jsonl"),
        ("set.txt", "no slot\n", "line 1: template candidate has 0 slots"),
        ("set.txt", "\n", "holds no candidates"),
        ("set.csv", "text,label\na,b\n", "no column word in the header"),
        ("set.csv", "text,word\na,\n", "line 2: a demonstration needs a text and a word, neither"),
        ("set.csv", "text,word\na\n", "line 2: 1 cells where the header names 2"),
        ("set.csv", 'text,word\n"a,b\n', "line 2: a quote that is never closed"),
        ("set.jsonl", "[" * 100_000, "line 1: JSON that is nested too deeply"),
        ("set.jsonl", '{"text": "a"}\n[1]\n', "2 bad lines"),
        ("set.jsonl", '{"text": "a"}\n', r"demonstrations\[0\].word is missing"),
        ("set.jsonl", '{"text"\n', "line 1: "),
        ("set.jsonl", '{"demonstrations": []}\n', "needs a text and a word"),
        ("set.jsonl", '{"demonstrations": 3}\n', "demonstrations must be a list, found int"),
    ],
)
def test_bad_files_are_refused_with_all_their_lines(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        candidates.read_candidates(tmp_path / name, PROMPTEOL)


@pytest.fixture
def sources(tmp_path):
    train = tmp_path / "STS/STSBenchmark/sts-train.csv"
    train.parent.mkdir(parents=True)
    texts = "a man is sleeping", "a dog runs", "the child eats", 'he says " no "'
    train.write_text("".join(f"g\tf\ty\t0\t{n}\t{t}\ta dog runs\n" for n, t in enumerate(texts)))
    (tmp_path / "dict.csv").write_text("word,definition\nVenison,meat from a deer\nTheta,a star\n")
    (tmp_path / "texts.txt").write_text("one thing\nanother?\n")
    (tmp_path / "words.txt").write_text("One\nTwo\n")
    return tmp_path


@pytest.mark.slow
def test_sentences_are_drawn_cleaned_and_get_words_of_the_model(sources, capsys):
    shown = demos_build.build(
        BuildOptions(
            model="tiny",
            data=sources,
            n=4,
            dictionary=sources / "dict.csv",
            entries=1,
            output=sources / "set.jsonl",
        )
    )
    drawn = {"a man is sleeping.", "a dog runs.", "the child eats.", "he says ' no '"}
    assert {d.text for d in shown[:-1]} == drawn
    assert shown[-1] in [("meat from a deer.", "Venison"), ("a star.", "Theta")]
    found = candidates.read_candidates(sources / "set.jsonl", PROMPTEOL)
    assert [t.demonstrations[0] for t in found] == shown
    assert "set.jsonl: 5 candidates\n" in capsys.readouterr().err


@pytest.mark.wide
def test_a_word_begins_with_the_most_likely_piece_of_letters_and_goes_on_greedily():
    embedder = Embedder.from_pretrained("tiny", dtype="float32")
    texts = ["a dog runs.", "the child eats bread."]
    for text, word in zip(texts, demos_build.model_words(embedder, texts), strict=True):
        assert word.isalpha() and word.isascii()
        ids, _ = embedder.next_tokens([text], demos_build.CHOICES)
        pieces = [embedder.pretrained.tokenizer.backend.id_to_token(int(n)) for n in ids[0]]
        bare = [piece.lstrip("\u0120") for piece in pieces]
        first = next(piece for piece in bare if piece.isascii() and piece.isalpha())
        assert word.startswith(first)


def test_words_of_a_file_go_with_the_sentences_of_a_file(sources):
    options = BuildOptions(
        sentences=sources / "texts.txt", words=sources / "words.txt", output=sources / "set.jsonl"
    )
    assert demos_build.build(options) == [("one thing.", "One"), ("another.", "Two")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(output="set.csv"), "must end in .jsonl"),
        (dict(), "give --data or --sentences, or --dictionary"),
        (dict(data="."), "give --model, whose words sum up the sentences, or --words"),
        (dict(data=".", sentences="texts.txt"), "both name sentences"),
        (dict(data=".", words="words.txt"), "--words needs --sentences"),
        (dict(data=".", model="tiny", n=9), "--n 9: STS-B's training part has 4 sentences"),
        (dict(sentences="none.txt", words="words.txt"), "none.txt does not exist"),
        (dict(sentences="dict.csv", words="words.txt"), "2 words for the 3 sentences"),
        (dict(dictionary="words.txt"), "lacks the column definition and word"),
        (dict(dictionary="dict.csv", entries=-1), "--entries -1 must be at least 0"),
        (dict(dictionary="dict.csv", layer=1), "words are read from the last layer"),
    ],
)
def test_wrong_sources_are_refused_before_a_model_is_loaded(changes, message, sources, monkeypatch):
    monkeypatch.setattr(BuildOptions, "load", None)
    paths = ("output", "data", "sentences", "words", "dictionary")
    given = {"output": "set.jsonl"} | changes
    given = {k: sources / v if k in paths else v for k, v in given.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        demos_build.build(BuildOptions(**given))
