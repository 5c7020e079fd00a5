"""Laws of folders of sentence-transformers: the same vectors, and refusals by name."""

import json
import re
import shutil

import numpy as np
import oracle
import pytest

from prompteol_jax import Embedder
from prompteol_jax.cli.main import main
from prompteol_jax.errors import UserError
from prompteol_jax.pretrained.sentence_folder import read_sentence_folder
from prompteol_jax.sentence_embedder import SentenceEmbedder

PROMPTS = {"query": "Instruct: find what answers it.\nQuery: ", "document": ""}
TEXTS = ["A cat sleeps.", "  spaces  around ", "", "Größe 日本 😀", "It rains, " * 9, "q\n"]
EMBEDDING_GEMMA = dict(
    use_bidirectional_attention=True, num_hidden_layers=3, vocab_size=32000, sliding_window=6
)
# Name of a shape, its changes, pooling, output widths of dense modules with their activations.
FOLDERS = {
    "qwen3-embedding": ("qwen3-tiny", {}, "lasttoken", ()),
    "e5-mistral": ("mistral-tiny", {}, "lasttoken", ()),
    "embeddinggemma": (
        *("gemma3-tiny", EMBEDDING_GEMMA | {"layer_types": None, "sliding_window_pattern": 3}),
        *("mean", ((48, "Identity"), (24, "Tanh"))),
    ),
}


def with_end(folder, before, after):
    """Let the tokenizer of a folder put its tokens around a text, as these models' do."""
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [(token, backend.token_to_id(token)) for token in (before, after) if token]
    single = " ".join(filter(None, (before, "$A", after)))
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    backend.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": before}
    fields |= {"eos_token": after, "pad_token": after}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


@pytest.fixture(scope="module")
def folders(tokenizers, tmp_path_factory):
    """Folders that sentence-transformers wrote, with random weights, and it itself."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    found = {}

    def make(name):
        if name in found:
            return found[name]
        shape, changes, pooling, dense = FOLDERS[name]
        place = tmp_path_factory.mktemp(name)
        tokenizer = tokenizers("llama-tiny" if "qwen" not in name else shape)
        oracle.write(oracle.build(shape, **changes), place / "model", tokenizer)
        frame = (None, "<|endoftext|>") if "qwen" in name else ("<s>", "</s>")
        with_end(place / "model", *frame)
        modules = [Transformer(str(place / "model"), max_seq_length=96)]
        width = modules[0].get_embedding_dimension()
        modules.append(Pooling(width, pooling_mode=pooling))
        for wider, activation in dense:
            function = getattr(torch.nn, activation)()
            bias = activation == "Tanh"
            modules.append(Dense(width, wider, bias=bias, activation_function=function))
            width = wider
        model = SentenceTransformer(modules=[*modules, Normalize()], device="cpu", prompts=PROMPTS)
        model.save(str(place / "saved"))
        found[name] = place / "saved", model.eval()
        return found[name]

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_those_of_sentence_transformers(name, folders, texts):
    folder, theirs = folders(name)
    ours = SentenceEmbedder.from_pretrained(folder, dtype="float32")
    assert ours.prompts == PROMPTS
    both = [*TEXTS, *texts[:20]]
    for prompt in (None, "query", "document"):
        given = "" if prompt is None else PROMPTS[prompt]
        wanted = theirs.encode(both, prompt=given, show_progress_bar=False)
        oracle.assert_close(ours.encode(both, prompt), np.asarray(wanted, np.float32))


@pytest.fixture(scope="module")
def plain(folders):
    return folders("embeddinggemma")[0]


CHANGES = [
    ("modules.json", [], "supported are a Transformer in the folder itself, Pooling, and then"),
    (
        "modules.json",
        [{"type": "x.Transformer", "path": ""}, {"type": "x.CNN", "path": "1_CNN"}],
        "the module {'type': 'x.CNN', 'path': '1_CNN'} is not supported",
    ),
    (
        "modules.json",
        [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../elsewhere"}],
        "refused, '../elsewhere' is no folder in",
    ),
    ("1_Pooling/config.json", {"pooling_mode": "cls"}, "pooling_mode = ['cls'] is not supported"),
    ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, "pooling_mode = ['mean', 'max']"),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode = ['max'] is not"),
    ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt = False is not supported"),
    (
        "2_Dense/config.json",
        {"in_features": 7, "out_features": 3},
        "in_features = 7, where 64",
    ),
    (
        "2_Dense/config.json",
        {"in_features": 64, "out_features": 3, "activation_function": "os.system"},
        "activation_function = 'os.system' is not one of ['torch.nn.modules.linear.Identity'",
    ),
    (
        "2_Dense/config.json",
        {"in_features": 64, "out_features": 3},
        "holds tensors of shapes {'linear.weight': (48, 64)}, should be {'linear.weight': (3, 64)",
    ),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case = True is not supported"),
    (
        "sentence_bert_config.json",
        {"modality_config": {"message": {}}},
        "modality_config = {'message': {}} is not supported",
    ),
    ("config_sentence_transformers.json", {"truncate_dim": 9}, "truncate_dim = 9 is not supported"),
    (
        "config_sentence_transformers.json",
        {"prompts": {"a": 1}, "default_prompt_name": "b"},
        "prompts = {'a': 1} are not texts by name; default_prompt_name = 'b' is none of ['a']",
    ),
]


@pytest.mark.parametrize(("file", "content", "message"), CHANGES, ids=str)
def test_refuses_what_would_change_the_vectors(file, content, message, plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "folder")
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)):
        read_sentence_folder(folder)


def test_reads_the_older_forms_of_a_pooling(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "folder")
    older = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False}
    older |= {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(older))
    found = read_sentence_folder(folder)
    assert (found.pooling, found.max_tokens, found.prompts) == ("last", 96, PROMPTS)


def test_refuses_a_prompt_that_the_folder_does_not_have(plain):
    ours = SentenceEmbedder.from_pretrained(plain, dtype="float32")
    with pytest.raises(UserError, match=r"no prompt 'qery' \(did you mean query\?\); it has"):
        ours.encode(["A cat."], "qery")


def test_refuses_a_folder_without_modules(checkpoints):
    with pytest.raises(FileNotFoundError, match=r"holds no modules.json: it is no folder of sent"):
        SentenceEmbedder.from_pretrained(checkpoints("llama-tiny"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-embedding", "embeddinggemma"])
def test_commands_refuse_such_a_folder_or_read_the_plain_decoder_if_asked(
    name, folders, tmp_path, capsys
):
    folder, _ = folders(name)
    (tmp_path / "texts.txt").write_text("A cat sleeps.\nIt rains.\n")
    given = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "z.npy")]
    for command in (["encode", *given], ["words", "A cat."]):
        with pytest.raises(SystemExit) as stopped:
            main([command[0], "--model", str(folder), *command[1:]])
        *_, error = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and "(modules.json), and no prompt is given" in error
        assert "--method eol" in error and "SentenceEmbedder in Python" in error
    assert not (tmp_path / "z.npy").exists()
    main(["encode", "--model", str(folder), "--method", "eol", "--dtype", "float32", *given])
    plain = Embedder.from_pretrained(folder, method="eol", dtype="float32")
    np.testing.assert_array_equal(
        np.load(tmp_path / "z.npy"), plain.encode(["A cat sleeps.", "It rains."])
    )
