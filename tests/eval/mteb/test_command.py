"""An embedder is an encoder of MTEB: a local task gives the scores that our own harness gives."""

import importlib.util
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from eval.mteb import command
from prompteol_jax import Embedder
from prompteol_jax.methods.library import find_method
from prompteol_jax.text.template import TEMPLATES, Template, clean_sentence

# mteb itself, which takes seconds, is imported where it is used.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mteb") is None, reason="the extra mteb is not installed"
)

PAIRS = [
    (5.0, "A cat sleeps", "A cat is asleep?"),
    (4.0, "Two men talk", 'Some men are "talking"'),
    (3.0, "She reads a book", "A girl has a book"),
    (1.5, "The train is late", "He missed the bus"),
    (1.0, "Rain falls on the town", "The soup is too hot"),
]
LABELS = [("good", 1), ("bad", 0)]


@pytest.fixture(autouse=True)
def ignore_warnings_of_mteb():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def embedder():
    return Embedder.from_pretrained("tiny", dtype="float32")


@pytest.fixture
def encoder(embedder):
    from eval.mteb.encoder import MtebEncoder

    return MtebEncoder(embedder)


def local_task(kind, name, columns):
    """A task of MTEB whose data is made here."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        **{"name": name, "description": name, "reference": "https://example.org"},
        **{"type": "STS" if "STS" in kind.__name__ else "Classification", "category": "t2t"},
        **{"eval_splits": ["test"], "eval_langs": ["eng-Latn"], "modalities": ["text"]},
        **{"main_score": "cosine_spearman" if "STS" in kind.__name__ else "accuracy"},
        **{"dataset": {"path": "local/data", "revision": "1"}, "bibtex_citation": ""},
    )

    class Local(kind):
        def load_data(self, **_):
            splits = {split: Dataset.from_dict(columns) for split in ("train", "test")}
            self.dataset = DatasetDict(splits)
            self.data_loaded = True

    Local.metadata = metadata
    return Local()


@pytest.fixture
def sts_task():
    from mteb.abstasks import AbsTaskSTS

    gold, first, second = map(list, zip(*PAIRS, strict=True))
    columns = {"sentence1": first, "sentence2": second, "score": gold}
    return local_task(AbsTaskSTS, "LocalSTS", columns)


def test_the_adapter_satisfies_the_protocol(encoder):
    from mteb import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert meta.name == "local/tiny-eol"
    assert meta.embed_dim == encoder.embedder.width
    z = encoder.embedder.encode(["A cat.", "A dog.", "It rains."])
    whole = encoder.similarity(z, z)
    assert np.diag(whole) == pytest.approx(1, abs=1e-6)
    assert encoder.similarity_pairwise(z[:2], z[1:]) == pytest.approx([whole[0, 1], whole[1, 2]])


@pytest.mark.slow
def test_a_local_task_scores_what_our_cosines_score(encoder, embedder, sts_task):
    from eval.mteb.encoder import run_tasks

    found = run_tasks(encoder, [sts_task], None)["LocalSTS"]
    sides = [[clean_sentence(pair[side]) for pair in PAIRS] for side in (1, 2)]
    cosines = np.diag(embedder.similarity(*sides))
    expected = 100 * stats.spearmanr(cosines, [pair[0] for pair in PAIRS]).statistic
    assert found["score"] == pytest.approx(expected, abs=0.01)
    assert found["type"] == "STS"


@pytest.mark.slow
def test_results_of_other_settings_in_one_folder_are_not_used(
    embedder, sts_task, tmp_path, monkeypatch
):
    from eval.mteb.encoder import MtebEncoder, run_tasks

    def score(encoder, folder):
        return run_tasks(encoder, [sts_task], folder)["LocalSTS"]["score"]

    mean = Embedder(embedder.pretrained, embedder.template, pooling="mean")
    encoders = [
        MtebEncoder(embedder),
        MtebEncoder(mean),
        MtebEncoder(embedder, clean=False),
        MtebEncoder(embedder, {"STS": TEMPLATES["none"]}),
        MtebEncoder(embedder.with_template(Template("eol", "the same name: ", " means "))),
        MtebEncoder(embedder, {"STS": find_method("attention-sum")}),
    ]
    assert len({encoder.revision for encoder in encoders}) == len(encoders)
    found = [score(encoder, tmp_path) for encoder in encoders]
    assert found == [score(encoder, None) for encoder in encoders]
    assert found[0] != found[1]
    monkeypatch.setattr(MtebEncoder, "encode", None)  # what is kept is not run again
    assert [score(encoder, tmp_path) for encoder in encoders] == found


@pytest.mark.slow
def test_a_classification_task_runs(encoder):
    from mteb.abstasks import AbsTaskClassification

    from eval.mteb.encoder import run_tasks

    texts = [f"It was {word}, number {n}." for n in range(10) for word, _ in LABELS]
    labels = [label for _ in range(10) for _, label in LABELS]
    task = local_task(AbsTaskClassification, "LocalWords", {"text": texts, "label": labels})
    assert 50 <= run_tasks(encoder, [task], None)["LocalWords"]["score"] <= 100


@pytest.mark.slow
def test_a_type_of_task_and_a_side_have_their_prompts(embedder):
    from eval.mteb.encoder import MtebEncoder

    query = Template("q", "Query: ", "")
    encoder = MtebEncoder(
        embedder,
        {
            **{"Retrieval": TEMPLATES["cot"], "Retrieval:query": query},
            "Clustering": find_method("reverse-eol"),
        },
        clean=False,
    )

    def vector(kind, side):
        meta = SimpleNamespace(type=kind)
        batches = [{"text": ["A cat"]}]
        where = {"hf_split": "test", "hf_subset": "default"}
        return encoder.encode(batches, task_metadata=meta, prompt_type=side, **where)

    made = {
        ("STS", None): TEMPLATES["eol"],
        ("Retrieval", "document"): TEMPLATES["cot"],
        ("Retrieval", "query"): query,
    }
    for (kind, side), template in made.items():
        alone = Embedder(embedder.pretrained, template).encode(["A cat"])
        assert np.array_equal(vector(kind, side), alone)
    method = embedder.with_method("reverse-eol").encode(["A cat"])
    assert np.array_equal(vector("Clustering", None), method)


def test_the_template_of_a_side_serves_every_type_that_has_none(embedder):
    from eval.mteb.encoder import MtebEncoder

    asked = {
        "query": TEMPLATES["cot"],
        "Reranking": TEMPLATES["ke"],
        "STS:query": TEMPLATES["none"],
    }
    encoder = MtebEncoder(embedder, asked)
    found = {
        (kind, side): encoder.embedder_for(kind, side).template.name
        for kind in ("Retrieval", "Reranking", "STS")
        for side in ("query", "document")
    }
    assert found == {
        **{("Retrieval", "query"): "cot", ("Retrieval", "document"): "eol"},
        **{("Reranking", "query"): "ke", ("Reranking", "document"): "ke"},
        **{("STS", "query"): "none", ("STS", "document"): "eol"},
    }


DOCUMENTS = ["A cat sleeps on the sofa.", "Two men talk in a bar.", "It rains.", "A train is late."]
QUESTIONS = {"q0": "a sleeping cat", "q1": "men who talk", "q2": "a late train"}
ANSWERS = {"q0": {"d0": 1}, "q1": {"d1": 1, "d2": 0}, "q2": {"d3": 2}}


def retrieval_task():
    """A retrieval task of MTEB whose data is made here."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        **{"name": "LocalRetrieval", "description": "local", "reference": "https://example.org"},
        **{
            "type": "Retrieval",
            "category": "t2t",
            "modalities": ["text"],
            "main_score": "ndcg_at_10",
        },
        **{"eval_splits": ["test"], "eval_langs": ["eng-Latn"], "bibtex_citation": ""},
        dataset={"path": "local/data", "revision": "1"},
    )
    corpus = [{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(DOCUMENTS)]
    queries = [{"id": name, "text": text} for name, text in QUESTIONS.items()]

    class Local(AbsTaskRetrieval):
        def load_data(self, **_):
            split = {
                "corpus": Dataset.from_list(corpus),
                "queries": Dataset.from_list(queries),
                "relevant_docs": ANSWERS,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    Local.metadata = metadata
    return Local()


@pytest.mark.slow
def test_a_retrieval_task_scores_what_the_exported_folder_does_in_mteb(embedder, tmp_path):
    import mteb
    import sentence_transformers

    from eval.mteb.encoder import MtebEncoder, run_tasks
    from prompteol_jax.export.sentence_transformers import write_sentence_files
    from prompteol_jax.methods.library import plain_method
    from prompteol_jax.pretrained.load import save_pretrained

    ours = run_tasks(MtebEncoder(embedder, clean=False), [retrieval_task()], None)
    folder = tmp_path / "exported"
    save_pretrained(embedder.pretrained, embedder.decoder, folder, dtype="float32")
    method = plain_method(embedder.template, "last", None)
    write_sentence_files(folder, method, [], width=embedder.width)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    (result,) = mteb.evaluate(theirs, retrieval_task(), cache=None, co2_tracker=False).task_results
    assert ours["LocalRetrieval"]["score"] == pytest.approx(100 * result.get_score(), abs=0.01)


@pytest.mark.slow
def test_the_command_writes_a_result(sts_task, monkeypatch, tmp_path, capsys):
    from eval.mteb import encoder as mteb_encoder

    monkeypatch.setattr(mteb_encoder, "find_tasks", lambda names: [sts_task])
    file = tmp_path / "mteb.json"
    settings = {"tasks": ("LocalSTS",), "task_templates": ("STS=cot",), "output": tmp_path / "o"}
    settings["task_methods"] = ("Retrieval=attention-sum",)
    command.run(command.MtebOptions(model="tiny", json=file, **settings))
    result = json.loads(file.read_text())
    assert result["average"] == result["scores"]["LocalSTS"]
    assert result["task_templates"]["STS"]["prefix"].startswith("After thinking")
    assert result["task_methods"]["Retrieval"]["collect"] == {}
    assert result["provenance"]["versions"]["jax"]
    assert "LocalSTS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "STS1200"], "STS1200"),
        (["--tasks", "STS12", "--task-templates", "STS"], "takes TYPE=TEMPLATE"),
        (["--tasks", "STS12", "--task-templates", "STS=none.json"], "none.json"),
        (["--tasks", "STS12", "--task-methods", "STS"], "--task-methods takes TYPE=METHOD"),
        (["--tasks", "STS12", "--task-methods", "STS=cck"], "did you mean ck"),
        (
            ["--tasks", "STS12", "--task-templates", "STS=eol", "--task-methods", "STS=ck"],
            "--task-methods STS=ck: STS has another prompt already",
        ),
        (["--tasks", "STS12"], "could not download the data of STS12"),
    ],
)
def test_what_cannot_be_run_is_one_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--model", "tiny", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("python -m eval.mteb: error: ") and message in error


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        command.main(["--model", "tiny", "--tasks", "STS12"])
    assert 'pip install ".[mteb]"' in capsys.readouterr().err
