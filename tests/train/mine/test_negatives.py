"""Laws of mining: the negatives of sentence-transformers' own function, and no positive ever."""

import json

import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.errors import CannotWrite
from prompteol_jax.mesh import make_mesh
from train.data.triplets import Triplet, read_triplets
from train.mine.command import MineOptions, run
from train.mine.negatives import Candidates, MiningLimits, candidates_of, choose


class Fixed:
    """An embedder of given vectors."""

    def __init__(self, texts, D=8):
        rng = np.random.default_rng(0)
        self.vectors = {t: rng.standard_normal(D).astype(np.float32) for t in texts}

    def encode(self, texts, **_):
        return np.stack([self.vectors[text] for text in texts])


# Five anchors have two positives, one after the other: elsewhere sentence-transformers 6.2 takes
# the cosine of another anchor's pair for the margin.
PAIRS = [Triplet(f"q{n // 2 if n < 10 else n}", f"d{n}", None) for n in range(30)]
TEXTS = [pair.sent1 for pair in PAIRS]
LIMITS = {
    "none": {},
    "ranks": dict(range_min=3, range_max=9),
    "margin": dict(margin=0.2),
    "relative": dict(relative_margin=0.3),
    "scores": dict(max_score=0.5, min_score=-0.2),
    "all": dict(range_min=1, range_max=20, max_score=0.9, min_score=-0.9, margin=0.05),
}


@pytest.fixture(scope="module")
def found():
    embedder = Fixed([*TEXTS, *(pair.sent0 for pair in PAIRS)])
    return embedder, candidates_of(PAIRS, TEXTS, embedder.encode, make_mesh((1, 1)), len(TEXTS))


@pytest.mark.parametrize("name", LIMITS)
def test_negatives_are_those_of_sentence_transformers(name, found, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    embedder, _ = found
    how = dict(range_min=0, range_max=24) | LIMITS[name]
    mesh = make_mesh((1, 1))
    candidates = candidates_of(PAIRS, TEXTS, embedder.encode, mesh, how["range_max"])
    chosen, _ = choose(candidates, MiningLimits(**how), 2, None)
    ours = {
        (pair.sent0, pair.sent1, *(TEXTS[n] for n in documents))
        for pair, documents in zip(PAIRS, chosen, strict=True)
        if len(documents) == 2
    }

    class Peer(SentenceTransformer):
        def encode_query(self, texts, **_):
            return embedder.encode(texts)

        encode_document = encode = encode_query

    how["absolute_margin"] = how.pop("margin", None)
    mined = mine_hard_negatives(
        datasets.Dataset.from_dict({"a": [p.sent0 for p in PAIRS], "b": TEXTS}),
        Peer(modules=[torch.nn.Identity()]),
        num_negatives=2,
        output_format="n-tuple",
        verbose=False,
        **how,
    )
    theirs = {tuple(row.values()) for row in mined}
    assert ours == theirs
    assert ours


def test_a_positive_of_the_anchor_is_never_its_negative(found):
    _, candidates = found
    chosen, removed = choose(candidates, MiningLimits(0, 100), 29, None)
    positives = {pair.sent0: set() for pair in PAIRS}
    for pair in PAIRS:
        positives[pair.sent0].add(pair.sent1)
    for pair, documents in zip(PAIRS, chosen, strict=True):
        assert {TEXTS[n] for n in documents} == {*TEXTS} - positives[pair.sent0]
    assert removed["positives"] == 20 + 2 * 10


def test_random_negatives_are_of_the_window_and_of_the_seed(found):
    _, candidates = found
    limits = MiningLimits(2, 12)
    first, again, other = (choose(candidates, limits, 3, seed)[0] for seed in (0, 0, 1))
    assert first == again != other
    window, _ = choose(candidates, limits, 10, None)
    for some, whole in zip(first, window, strict=True):
        assert len(set(some)) == 3
        assert set(some) <= set(whole)


def test_limits_that_remove_all_leave_none():
    one = Candidates(
        np.array([[0, 1, -1]]),
        np.array([[0.5, 0.4, -np.inf]]),
        np.array([[True, False, False]]),
        np.array([0.5]),
    )
    assert choose(one, MiningLimits(0, 3), 2, None)[0] == [[1]]
    assert choose(one, MiningLimits(0, 3, max_score=0.3), 2, None) == (
        [[]],
        {"positives": 1, "max_score": 1},
    )


def test_the_command_writes_rows_that_training_reads(tmp_path):
    rows = ["A man runs.", "A dog sleeps.", "The sea is calm.", "A child eats.", "It rains."]
    data = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"q": f"{text} Yes.", "a": text}) + "\n" for text in rows]
    data.write_text("".join(lines))
    output, counts = tmp_path / "mined.jsonl", tmp_path / "counts.json"
    config = MineOptions(
        model="tiny",
        data=str(data),
        output=output,
        columns=("sent0=q", "sent1=a"),
        negatives=2,
        json=counts,
        dtype="float32",
    )
    result = run(config)
    mined = read_triplets(output).triplets
    assert [row.sent1 for row in mined] == rows
    assert mined[0]._fields == ("sent0", "sent1", "hard_neg", "hard_neg_2")
    assert json.loads(counts.read_text()) == result
    assert (result["pairs"], result["mined"], result["dropped"]) == (5, 5, 0)
    vectors = Embedder.from_pretrained("tiny", dtype="float32").encode(rows + ["A man runs. Yes."])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = [rows[n] for n in np.argsort(-(unit[:5] @ unit[5])) if n != 0][:2]
    assert [mined[0].hard_neg, mined[0].hard_neg_2] == nearest
    with pytest.raises(FileExistsError, match=r"mined\.jsonl exists"):
        run(config)


@pytest.mark.parametrize(
    ("name", "content"),
    [("c.txt", "sea\nbird\n"), ("c.jsonl", '{"q": "sea"}\n{"q": "bird"}\n')],
    ids=["txt", "jsonl"],
)
def test_a_corpus_of_texts_is_mined_under_renamed_columns(name, content, tmp_path):
    data, corpus, output = tmp_path / "pairs.jsonl", tmp_path / name, tmp_path / "mined.jsonl"
    data.write_text('{"q": "A man runs.", "a": "Yes."}\n')
    corpus.write_text(content)
    columns = ("sent0=q", "sent1=a")
    files = {"data": str(data), "corpus": str(corpus), "output": output, "columns": columns}
    run(MineOptions(model="tiny", dtype="float32", negatives=2, **files))
    (row,) = read_triplets(output).triplets
    assert {row.hard_neg, row.hard_neg_2} == {"sea", "bird"}


@pytest.mark.parametrize("name", ["output", "json"])
def test_a_file_that_cannot_be_written_is_refused_before_any_work(name, tmp_path):
    folder = tmp_path / "x.jsonl" / "x.jsonl"
    folder.parent.write_text("no folder")
    files = {"output": tmp_path / "mined.jsonl", "json": None, name: folder}
    with pytest.raises(CannotWrite, match=r"x\.jsonl"):
        run(MineOptions(model="tiny", data="absent.csv", **files))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"range_min": 99, "negatives": 2}, "--range-max 100 leaves fewer than --negatives 2"),
        ({"sampling": "best"}, "--sampling best: choose top or random"),
        ({"margin": -1.0}, "--margin -1.0 must be at least 0"),
    ],
)
def test_refuses_flags_that_cannot_work(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(MineOptions(model="tiny", data="x", output=tmp_path / "x.jsonl", **flags))
