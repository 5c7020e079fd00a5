"""Laws of the search: each candidate scores what it scores alone, and a kill loses nothing."""

import json

import numpy as np
import pytest

from eval.demos import command as demos
from eval.demos import cost as demos_cost
from eval.demos import report
from eval.demos.candidates import key
from eval.demos.search import Scored, Search, stages
from eval.shared.journal import Journal
from eval.sts import scores
from eval.sts.pairs import Pairs
from prompteol_jax import Embedder
from prompteol_jax.encoding.prefixes import PrefixEncoder
from prompteol_jax.encoding.runners import encode
from prompteol_jax.models.decoder import Rows
from prompteol_jax.text.template import PROMPTEOL, Demonstration, Template, read_template

pytestmark = pytest.mark.usefixtures("coarse")

SUBJECTS = "a man", "the old dog", "two women", "a small child", "the black cat"
DEEDS = "is sleeping", "plays the guitar", "runs quickly outdoors today", "is eating bread"
TEXTS = [f"{subject} {deed}" for subject in SUBJECTS for deed in DEEDS]
TEXTS += ["(a dog)", "dog " * 560]  # merges with the quote; too long for any prompt
RNG = np.random.default_rng(0)
SIDES = RNG.permutation(len(TEXTS)), RNG.permutation(len(TEXTS))
PAIRS = Pairs(
    "made",
    [TEXTS[n] for n in SIDES[0]],
    [TEXTS[n] for n in SIDES[1]],
    RNG.integers(0, 6, len(TEXTS)).astype(np.float64),
)
SHOWN = [
    Demonstration(text, word)
    for text, word in (
        ("a dog runs.", "Running"),
        ("two women play the guitar together.", "Music"),
        ("a man is eating.", "Food"),
        ("the child sleeps.", "Sleep"),
        ("it is cold and the old man goes home again very quickly today.", "Winter"),
    )
]
CANDIDATES = [Template(d.word, PROMPTEOL.prefix, PROMPTEOL.suffix, (d,)) for d in SHOWN]


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", dtype="float32")


@pytest.fixture
def search(embedder, tmp_path):
    """Makes a search of its own journal, unless one is named."""

    def make(name="journal", batch_tokens=2048, **settings):
        journal = Journal(tmp_path / name, {"of": "a test"})
        return Search(embedder.prefix_encoder(batch_tokens), PAIRS, journal, **settings)

    return make


@pytest.mark.slow
def test_each_candidate_scores_what_it_scores_alone(embedder, search):
    ranking = search().run(CANDIDATES)
    alone = {
        template.name: scores.development_score(Embedder(embedder.pretrained, template), PAIRS)
        for template in CANDIDATES
    }
    assert [s.template.name for s in ranking] == sorted(alone, key=lambda name: -alone[name])
    for standing in ranking:
        assert standing.score == pytest.approx(alone[standing.template.name], abs=0.01)


@pytest.mark.slow
def test_a_search_that_was_killed_goes_on_to_the_same_bits(search, tmp_path, monkeypatch):
    whole = search("whole").run(CANDIDATES)
    cut = search("cut")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn").write_bytes(b"".join(lines[:3]) + lines[3][:30])
    cut.run(CANDIDATES[:2])
    resumed = search("torn")
    assert resumed.journal.resumed == 2
    assert [(s.template, s.score) for s in resumed.run(CANDIDATES)] == [
        (s.template, s.score) for s in whole
    ]
    monkeypatch.setattr(PrefixEncoder, "encode", None)  # nothing is left to encode
    assert search("torn").run(CANDIDATES) == whole


@pytest.mark.slow
def test_halving_scores_nested_parts_and_the_better_half_goes_on(search):
    ranking = search(halving=True).run(CANDIDATES)
    assert stages(len(PAIRS), True) == (3, 6, 11, 22)
    assert stages(1500, True) == (188, 375, 750, 1500)
    assert stages(1500, False) == (1500,)
    assert sorted((s.pairs for s in ranking), reverse=True) == [s.pairs for s in ranking]
    assert [s.pairs for s in ranking] == [22, 11, 6, 3, 3]
    everything = {s.template.name: s.score for s in search("all").run(CANDIDATES)}
    assert ranking[0].score == pytest.approx(everything[ranking[0].template.name], abs=1e-9)
    assert search("again", halving=True).run(CANDIDATES) == ranking


@pytest.mark.slow
def test_a_further_demonstration_stands_behind_the_best(search):
    found = search()
    ranking = found.run(CANDIDATES)
    grown = found.extend(ranking[0].template, ranking, 2)
    assert len(grown) == len(CANDIDATES) - 1
    for standing in grown:
        first, second = standing.template.demonstrations
        assert (first,) == ranking[0].template.demonstrations and second != first
        assert standing.shots == 2
    assert grown[0].score == max(s.score for s in grown)


def test_products_are_counted_in_loops_and_behind_several_prefixes(embedder):
    import jax
    import jax.numpy as jnp

    x = jax.ShapeDtypeStruct((3, 4, 5), jnp.float32)
    w = jax.ShapeDtypeStruct((5, 6), jnp.float32)
    assert demos_cost.products(lambda x, w: jnp.einsum("abc,cd->abd", x, w), x, w) == 2 * 3 * 4 * 30

    def looped(x, w):
        return jax.lax.scan(lambda carry, _: (carry, x @ w), 0.0, None, length=7)

    assert demos_cost.products(looped, x, w) == 7 * 2 * 3 * 4 * 30
    encoder = embedder.prefix_encoder(2048)
    for group in encoder.groups(CANDIDATES[:4]):
        encoder.encode(group, TEXTS[:20], lambda steps=1: None)
    ours = demos_cost.of_search(encoder)
    alone = demos_cost.of_each_alone(encoder, CANDIDATES[:4], TEXTS[:20])
    (shape, times), *_ = encoder.runs.items()
    A, _, B, T = shape
    rows = Rows(np.zeros((B, T), np.int32), np.zeros((B, 1), np.int32))
    bare = demos_cost.products(encode, embedder.decoder, rows)
    assert ours > A * times * bare  # attention to a prefix comes on top
    wide = Rows(np.zeros((40, 96), np.int32), np.zeros((40, 1), np.int32))
    assert alone == 4 * demos_cost.products(encode, embedder.decoder, wide)  # a slab for each


def journal(path, **work):
    return Journal(path, {"model": "a", "weights": {"file": "1"}} | work)


def test_a_journal_gives_back_the_bits_it_was_given(tmp_path):
    values = np.array([0.1, -1e-300, np.nextafter(1, 2)])
    journal(tmp_path / "j").add(0, 3, {"x": values, "y": values[::-1]})
    again = journal(tmp_path / "j")
    assert again.resumed == 2
    assert again.find("x", 0, 3).tobytes() == values.tobytes()
    assert again.find("x", 0, 2) is None and again.find("z", 0, 3) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model="b"), "belongs to another run: model was 'a' and is now 'b'"),
        (dict(weights={"file": "2"}), "another run: weights.file was '1' and is now '2'"),
    ],
)
def test_a_journal_of_another_search_is_refused(change, message, tmp_path):
    journal(tmp_path / "j")
    with pytest.raises(ValueError, match=message):
        journal(tmp_path / "j", **change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("something else\n", "is no journal of a search"),
        ('{"work": {"model": "a", "weights": {"file": "1"}}}\n{"candidate"\n', ":2: a damaged"),
        (
            '{"work": {"model": "a", "weights": {"file": "1"}}}\n'
            '{"candidate": "x", "pairs": [0, 3], "cosines": "AAAAAAAAAAA="}\n',
            ":2: 1 cosines for 3 pairs",
        ),
    ],
)
def test_a_damaged_journal_is_refused(content, message, tmp_path):
    (tmp_path / "j").write_text(content)
    with pytest.raises(ValueError, match=message):
        journal(tmp_path / "j")


@pytest.fixture
def folder(tmp_path):
    """SentEval's folder with the made pairs, and a file of candidates."""
    dev = tmp_path / "STS/STSBenchmark/sts-dev.csv"
    dev.parent.mkdir(parents=True)
    rows = zip(PAIRS.gold, PAIRS.texts_a, PAIRS.texts_b, strict=True)
    dev.write_text("".join(f"g\tf\ty\t0\t{gold}\t{a}\t{b}\n" for gold, a, b in rows))
    lines = [json.dumps(d._asdict()) + "\n" for d in SHOWN]
    (tmp_path / "candidates.jsonl").write_text("".join(lines))
    return tmp_path


def options(folder, **changes):
    fields = dict(
        model="tiny",
        data=folder,
        candidates=folder / "candidates.jsonl",
        output=folder / "run",
        json=folder / "result.json",
        report=folder / "page.html",
    )
    return demos.SearchOptions(**(fields | changes))


@pytest.mark.slow
def test_the_command_writes_a_template_that_every_command_takes(folder, capsys):
    result = demos.search(options(folder, shots=2, batch_tokens=2048))
    best = read_template(str(folder / "run" / "template.json"))
    assert [d._asdict() for d in best.demonstrations] == result["best"]["demonstrations"]
    assert (best.prefix, best.suffix) == (PROMPTEOL.prefix, PROMPTEOL.suffix)
    assert len(result["ranking"]) == 5 + 4
    assert result["candidates"] == 5 and result["stages"] == [len(PAIRS)]
    first = result["ranking"][0]
    is_better = first["score"] > result["zero_shot"]
    assert result["best"]["rank"] == (1 if is_better else 0)
    assert result["best"]["score"] == pytest.approx(
        max(result["zero_shot"], first["score"]), abs=0.01
    )
    assert result["operations"]["share"] > 0
    assert json.loads((folder / "result.json").read_text())["ranking"] == result["ranking"]
    page = (folder / "page.html").read_text()
    assert page.count("<svg") == 1 and "Running" in page
    shown = capsys.readouterr().out
    assert "As it is, the template scores" in shown and "tiny, template eol, float32" in shown
    again = demos.search(options(folder, shots=2))
    assert again["ranking"] == result["ranking"]
    assert (again["resumed"], again["operations"]) == (10, None)
    capsys.readouterr()


class Unloadable(demos.SearchOptions):
    """Options whose model must not be reached."""

    def load(self, default_dtype):
        raise AssertionError("loaded before everything was checked")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(shots=0), "--shots 0 must be at least 1"),
        (dict(pooling="mean"), "--pooling mean: demonstrations are compared at the last"),
        (dict(template="eoll"), "unknown template 'eoll'; nearest: eol"),
        (dict(candidates="none.jsonl"), "no file .*none.jsonl; give candidates as .txt, .csv"),
        (dict(data="nowhere"), "no folder .*nowhere"),
        (dict(output="candidates.jsonl"), "--output .*candidates.jsonl is a file; give a folder"),
    ],
)
def test_wrong_input_is_refused_before_the_model_is_loaded(changes, message, folder):
    names = ("candidates", "data", "output")
    changes = {k: folder / v if k in names else v for k, v in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        demos.search(Unloadable(**(vars(options(folder)) | changes)))


def test_a_journal_of_other_settings_is_refused_before_the_model_is_loaded(folder):
    (folder / "run").mkdir()
    Journal(folder / "run" / "journal.jsonl", {"model": "another"})
    with pytest.raises(ValueError, match=r"another run: model was 'another' and is now 'tiny'"):
        demos.search(Unloadable(**vars(options(folder))))


def scored(template, score, cosines):
    examples = {"gold": PAIRS.gold, "cosine": np.asarray(cosines)}
    return Scored(template, score, len(PAIRS), 1, examples)


def test_the_best_template_is_never_worse_than_the_one_given():
    cosines = np.arange(len(PAIRS)) / len(PAIRS)
    bare = scored(PROMPTEOL, 38.07, cosines)
    worse = [scored(t, 33.9 - n, cosines[::-1]) for n, t in enumerate(CANDIDATES)]
    assert report.best_of(bare, worse) is bare
    found = report.outcome(bare, worse) | {"candidates": len(worse)}
    assert found["best"]["rank"] == 0 and found["best"]["demonstrations"] == []
    assert report.verdict(found).endswith("none is better than the template as is.")
    better = [scored(CANDIDATES[0], 40.0, cosines), *worse]
    assert report.outcome(bare, better)["best"]["name"] == CANDIDATES[0].name


def test_keys_tell_contents_apart_and_not_names():
    renamed = Template("x", PROMPTEOL.prefix, PROMPTEOL.suffix)
    assert key(renamed) == key(PROMPTEOL) != key(CANDIDATES[0])
