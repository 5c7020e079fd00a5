"""Laws of the public face, on the model made in code: a text alone decides its vector."""

import copy
import logging
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from prompteol_jax import Embedder
from prompteol_jax.encoding import runners
from prompteol_jax.models import build
from prompteol_jax.models.decoder import Rows
from prompteol_jax.text import template

WORDS = (
    "a man is playing guitar while the old dog sleeps under that big tree near our house".split()
)
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + n]) for i, n in enumerate([1, 2, 3, 5, 8, 11] * 6)]
ODD = ["", " ", "\n", "😀 emoji 😀", "lone \ud800 surrogate", '"quoted"', "zero\x00byte", "é" * 9]


@pytest.fixture(scope="module")
def vectors(embedders):
    return {text: embedders("tiny").encode([text])[0] for text in {*TEXTS, *ODD}}


@pytest.mark.parametrize("seed", range(3))
def test_a_text_has_the_same_bits_whatever_is_beside_it(seed, embedders, vectors):
    rng = np.random.default_rng(seed)
    texts = list(rng.permutation([*TEXTS, *ODD])[: rng.integers(5, 40)])
    texts = [str(text) for text in texts]
    np.testing.assert_array_equal(embedders("tiny").encode(texts), [vectors[t] for t in texts])


@pytest.mark.slow
def test_a_text_has_the_same_bits_whatever_is_beside_it_on_a_mesh(embedders, vectors):
    spread = embedders("tiny", "4x2")
    whole = spread.encode(TEXTS)
    assert np.abs(whole - [vectors[t] for t in TEXTS]).max() <= 1e-5
    order = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_array_equal(spread.encode([TEXTS[i] for i in order]), whole[order])
    np.testing.assert_array_equal(spread.encode(TEXTS[3:4]), whole[3:4])


@pytest.mark.slow
def test_matrices_sharded_over_data_give_the_same_vectors(embedders, vectors):
    sharded = Embedder.from_pretrained("tiny", mesh="4x1", dtype="float32", fsdp=True)
    w = build.leaves(sharded.decoder)["blocks.mlp.up.w"]
    assert 4 * math.prod(w.sharding.shard_shape(w.shape)) == w.size
    z_nD = sharded.encode(TEXTS)
    np.testing.assert_allclose(z_nD, [vectors[t] for t in TEXTS], atol=1e-5)
    rows = Rows(np.full((4, 8), 5, np.int32), np.full((4, 1), 7, np.int32))
    found = []
    for embedder in (sharded, embedders("tiny")):
        with jax.set_mesh(embedder.pretrained.mesh):  # as an accelerator encodes
            found.append(np.asarray(runners.encode(embedder.decoder, rows)))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_vectors_are_float32_in_the_order_of_the_texts(embedders, vectors):
    z_nD = embedders("tiny").encode(TEXTS)
    assert (z_nD.dtype, z_nD.shape) == (np.float32, (len(TEXTS), 128))
    np.testing.assert_array_equal(z_nD, [vectors[t] for t in TEXTS])
    assert len(np.unique([vectors[t] for t in {*TEXTS}], axis=0)) == len({*TEXTS})
    assert embedders("tiny").encode([]).shape == (0, 128)


def test_duplicates_are_encoded_once(embedders, vectors):
    embedder = embedders("tiny")
    z_nD = embedder.encode(["a dog", "a man", "a dog"] * 50)
    assert (embedder.report.texts, embedder.report.distinct, embedder.report.batches) == (150, 2, 1)
    np.testing.assert_array_equal(z_nD[:3], z_nD[-3:])
    np.testing.assert_array_equal(z_nD[0], z_nD[2])


def test_the_report_counts_what_was_computed(embedders):
    embedder = embedders("tiny")
    texts = [f"a dog {n}" for n in range(512 // 13)]
    embedder.encode(texts)
    report = embedder.report
    assert report.tokens == sum(len(ids) for ids in embedder.prompt(texts).ids)
    assert report.padded_tokens == 13 * (512 // 13)  # one batch of the bucket of thirteen
    assert 0 <= report.waited < report.seconds
    assert report.whole == report.truncated == 0


def test_odd_texts_have_finite_vectors_and_a_surrogate_is_the_replacement_character(
    vectors, embedders
):
    assert all(np.isfinite(vectors[text]).all() for text in ODD)
    replaced = embedders("tiny").encode(["lone \ufffd surrogate"])[0]
    np.testing.assert_array_equal(replaced, vectors["lone \ud800 surrogate"])


def test_a_text_too_long_is_cut_counted_and_reported(embedders, caplog):
    embedder = embedders("tiny")
    endless = " ".join(["dog"] * 10_000)
    with caplog.at_level(logging.WARNING, "prompteol_jax"):
        z_nD = embedder.encode([endless, "a dog", endless + " cat"])
    assert embedder.report.truncated == 2
    assert "2 of 3 texts were longer than the model's 512 positions allow" in caplog.text
    assert np.isfinite(z_nD).all()
    np.testing.assert_array_equal(z_nD[0], z_nD[2])


@pytest.mark.slow
def test_a_prompt_that_leaves_the_prefix_is_computed_whole_with_equal_results(embedders):
    # With its space at the end, the template's last id depends on how a sentence begins.
    made = template.Template("made", "This sentence : ", ' means in one word:"')
    embedder = embedders("tiny", template=made)
    assert embedder.encode(["dog"]).shape == (1, 128)
    prefix_C = embedder.prompt.prefix_C
    shared = embedder.encode(TEXTS[:6])
    whole = Embedder(embedder.pretrained, made)
    whole.prompt.prefix_C = np.append(prefix_C[:-1], prefix_C[-1] + 1)  # that no prompt begins with
    np.testing.assert_allclose(whole.encode(TEXTS[:6]), shared, atol=2e-5)
    assert whole.report.whole == len({*TEXTS[:6]})


def test_normalized_vectors_have_length_one_and_the_same_direction(embedders):
    embedder = embedders("tiny")
    z_nD, unit = embedder.encode(TEXTS), embedder.encode(TEXTS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(unit, z_nD / np.linalg.norm(z_nD, axis=1, keepdims=True), rtol=1e-6)


def test_similarity_is_the_cosine_of_texts_or_vectors(embedders):
    embedder = embedders("tiny")
    a, b = TEXTS[:3], TEXTS[3:5]
    z_a, z_b = embedder.encode(a, normalize=True), embedder.encode(b, normalize=True)
    np.testing.assert_allclose(embedder.similarity(a, 3 * z_b), z_a @ z_b.T, atol=1e-6)
    np.testing.assert_allclose(embedder.similarity(a, a).diagonal(), 1, atol=1e-6)
    np.testing.assert_allclose(embedder.similarity(np.array(a), z_b[0]), z_a @ z_b[:1].T, atol=1e-6)
    np.testing.assert_allclose(embedder.similarity(a, list(z_b)), z_a @ z_b.T, atol=1e-6)


def test_other_weights_take_effect_at_once_prefix_included(embedders, vectors):
    shared = embedders("tiny")
    embedder = Embedder(shared.pretrained, shared.template)
    embedder.encode(["a dog"])
    doubled = jax.tree.map(lambda leaf: leaf * 1.5, shared.decoder)
    embedder.use(doubled)
    changed = embedder.encode(["a dog"])
    assert np.abs(changed - shared.encode(["a dog"])).max() > 1e-3
    fresh = Embedder(shared.pretrained, shared.template)
    fresh.use(doubled)
    np.testing.assert_array_equal(fresh.encode(["a dog"]), changed)


def test_damaged_weights_are_an_error_that_names_the_text(embedders):
    shared = embedders("tiny")
    embedder = Embedder(shared.pretrained, shared.template)
    leaves = build.leaves(shared.decoder)
    (dog,) = embedder.pretrained.tokenizer.ids([" dog"])
    tokens = leaves["embedding.tokens"].at[dog[-1]].set(np.nan)
    embedder.use(build.fill(shared.decoder, leaves | {"embedding.tokens": tokens}))
    assert np.isfinite(embedder.encode(["a man"])).all()
    with pytest.raises(
        FloatingPointError, match=r"1 vectors are not finite, the first that of 'a dog'"
    ):
        embedder.encode(["a man", "a dog"])


def past_annotations(method):
    """The function behind the check of annotations, which only tests execute."""
    return getattr(method, "__wrapped__", method)


@pytest.mark.parametrize("method", [Embedder.encode, Embedder.encode_layers])
def test_refuses_anything_but_texts(method, embedders):
    with pytest.raises(TypeError, match="texts is one string; give a list of strings"):
        past_annotations(method)(embedders("tiny"), "one text")


def test_takes_what_python_callers_have(embedders, vectors, tmp_path):
    tiny, expected = embedders("tiny"), [vectors[text] for text in TEXTS[:5]]
    for texts in (iter(TEXTS[:5]), np.array(TEXTS[:5]), tuple(TEXTS[:5])):
        np.testing.assert_array_equal(tiny.encode(texts), expected)
    (tmp_path / "mine.txt").write_text('This_sentence_:_"*sent_0*"_means_in_one_word:"')
    for given in (tmp_path / "mine.txt", str(tmp_path / "mine.txt"), "eol"):
        embedder = Embedder(tiny.pretrained, given)
        np.testing.assert_array_equal(embedder.encode(TEXTS[:5]), expected)
    with pytest.raises(FileNotFoundError, match="missing"):
        Embedder.from_pretrained(tmp_path / "missing", template=tmp_path / "mine.txt")


@pytest.mark.slow
def test_threads_get_their_own_vectors_and_reports(embedders, vectors):
    for mesh in ("1x1", "4x2"):
        embedder = embedders("tiny", mesh)
        expected = embedder.encode(TEXTS)

        def encode(n, embedder=embedder):
            z_nD = embedder.encode(TEXTS[: n + 1])
            return z_nD, embedder.report.texts

        with ThreadPoolExecutor(3) as pool:
            for n, (z_nD, texts) in enumerate(pool.map(encode, range(6))):
                np.testing.assert_array_equal(z_nD, expected[: n + 1])
                assert texts == n + 1


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_embedder_that_is_sent_elsewhere_says_what_to_send(send, embedders):
    with pytest.raises(TypeError, match="pass the arguments of Embedder.from_pretrained instead"):
        send(embedders("tiny"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(max_tokens=0), "max_tokens 0 is not allowed; give 1 or more"),
        (dict(max_tokens=513), "at most the model's 512 positions"),
        (dict(max_tokens=4), "template eol alone is .* tokens and a prompt may have 4"),
    ],
)
def test_refuses_a_limit_that_no_prompt_can_keep(settings, message):
    with pytest.raises(ValueError, match=message):
        Embedder.from_pretrained("tiny", **settings)


def test_max_tokens_cuts_the_text_and_never_the_template(embedders, caplog):
    tiny = embedders("tiny")
    embedder = Embedder(tiny.pretrained, "eol", max_tokens=40)
    long = " ".join(WORDS * 20)
    with caplog.at_level(logging.WARNING, "prompteol_jax"):
        z_nD = embedder.encode([long, "a dog"])
    assert "1 of 2 texts were longer than max_tokens 40 tokens allow" in caplog.text
    assert (embedder.max_tokens, embedder.report.truncated) == (40, 1)
    ids, usual = embedder.prompt([long]).ids[0], tiny.prompt(["a dog"]).ids[0]
    assert len(ids) + len(embedder.prompt.prefix_C) == 40
    assert ids[-embedder.prompt.suffix_tokens + 1 :].tolist() == (
        usual[-embedder.prompt.suffix_tokens + 1 :].tolist()
    )
    np.testing.assert_array_equal(z_nD[1], tiny.encode(["a dog"])[0])
    assert embedder.describe()["max_tokens"] == 40


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.ones((2, 2, 2)), np.ones(2), r"vectors have the shape \(2, 2, 2\); give \[n, D\]"),
        (np.ones((2, 3)), np.ones((2, 4)), "vectors of 3 and 4 features have no cosine"),
        (np.ones((1, 2)), np.zeros((1, 2)), "a vector of zeros, or one that is not finite"),
        ("a dog", ["a man"], "texts is one string"),
    ],
)
def test_refuses_what_has_no_cosine(a, b, message, embedders):
    with pytest.raises((ValueError, TypeError, ArithmeticError), match=message):
        past_annotations(Embedder.similarity)(embedders("tiny"), a, b)


def test_another_template_keeps_weights_and_settings(embedders):
    tiny = embedders("tiny")
    embedder = Embedder(tiny.pretrained, "eol", pooling="mean", batch_tokens=100, max_tokens=60)
    embedder.use(jax.tree.map(lambda leaf: leaf * 1.5, tiny.decoder))
    other = embedder.with_template("none").with_template("eol")
    np.testing.assert_array_equal(other.encode(TEXTS[:3]), embedder.encode(TEXTS[:3]))
    assert (other.plan, other.max_tokens) == (embedder.plan, 60)


@pytest.mark.parametrize("settings", [dict(layer=1), dict(pooling="mean")])
def test_refuses_words_where_no_head_reads_the_state(settings, embedders):
    embedder = embedders("tiny", **settings)
    with pytest.raises(ValueError, match="words need the last layer and the last token"):
        embedder.words("a dog")


def test_words_have_falling_probabilities(embedders):
    words = embedders("tiny").words("a dog", 5)
    assert [p for _, p in words] == sorted((p for _, p in words), reverse=True)
    assert len(words) == 5


def test_next_tokens_of_no_text_are_none_and_k_has_limits(embedders):
    tiny = embedders("tiny")
    ids, p = tiny.next_tokens([], 3)
    assert ids.shape == p.shape == (0, 3)
    V = tiny.pretrained.config.V
    assert tiny.next_tokens(["a dog"], V)[0].shape == (1, V)
    for k in (0, V + 1):
        with pytest.raises(ValueError, match=f"k {k} is not allowed: the model ranks 1 to {V}"):
            tiny.words("a dog", k)


def test_refuses_a_dtype_it_does_not_compute_in():
    with pytest.raises(
        ValueError, match="dtype 'float16' is not supported; supported: float32, bf"
    ):
        Embedder.from_pretrained("tiny", dtype="float16")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x1", "4x2"])
def test_a_sentence_keeps_its_bits_in_a_thousand_batches_and_orders(mesh, embedders, data):
    import oracle

    embedder, texts = embedders("tinystories-656k", mesh), oracle.sentences(data, 500)
    whole = embedder.encode(texts)
    assert len(texts) == len(set(texts)) == 500
    rng = np.random.default_rng(0)
    for _ in range(1000):
        some = rng.permutation(500)[: int(2 ** rng.uniform(0, 9))]
        np.testing.assert_array_equal(embedder.encode([texts[i] for i in some]), whole[some])
