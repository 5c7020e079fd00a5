"""Laws of tokenizers: the ids of transformers, BOS once, a clear error for each broken folder."""

import csv
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from prompteol_jax.models.tiny import tiny_tokenizer
from prompteol_jax.text.template import PROMPTEOL
from prompteol_jax.text.tokenizer import Tokenizer, load_tokenizer, paired

pytestmark = pytest.mark.unit

REAL = ("opt-tokenizer", "llama-tokenizer", "tinystories-656k")
TINY = tiny_tokenizer()
CONFIG = {"bos_token": "</s>", "eos_token": "<s>", "unk_token": "<unk>"}


@pytest.fixture(params=REAL)
def folder(request, data):
    return data / "weights" / request.param


@pytest.fixture(scope="session")
def sts(data):
    path = data / "senteval" / "downstream" / "STS" / "STSBenchmark" / "sts-dev.csv"
    rows = path.read_text(encoding="utf-8").splitlines()
    return [text for row in rows for text in row.split("\t")[5:7]][:500]


@pytest.fixture(scope="session")
def nli(data):
    with (data / "nli" / "nli_triplets.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[::40]
    return [row[column] for row in rows for column in ("sent0", "sent1", "hard_neg")]


@lru_cache
def loaded(folder):
    return load_tokenizer(folder)


@lru_cache
def oracle(folder):
    """transformers' own tokenizer, the one to agree with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def copy(source, target, *names, **fields):
    """Copy some files of a folder, beside a tokenizer_config.json of the given fields."""
    target.mkdir()
    for name in names:
        shutil.copy(source / name, target / name)
    if fields:
        (target / "tokenizer_config.json").write_text(json.dumps(fields))
    return target


def written(folder, *, frame="</s> $A", config=CONFIG, **changes):
    """Write the tiny tokenizer as a checkpoint folder whose backend frames a text as told."""
    backend = tokenizers.Tokenizer.from_str(TINY.backend.to_str())
    special = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>", "<pad>", "<unk>")]
    backend.post_processor = TemplateProcessing(single=frame, special_tokens=special)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_ids_are_those_of_transformers(folder, sts):
    texts = [*(PROMPTEOL.fill(text) for text in sts), *sts, "", "a</s>b", "😀", "a\nb"]
    ids = loaded(folder).ids(texts)
    assert [each.tolist() for each in ids] == oracle(folder)(texts).input_ids
    assert {each.dtype for each in ids} == {np.dtype(np.int32)}


@pytest.mark.parametrize("max_tokens", [3, 12, 32])
def test_cut_gives_the_strings_of_transformers(folder, nli, max_tokens):
    encode, decode = oracle(folder), oracle(folder).decode
    kept = encode(nli, truncation=True, max_length=max_tokens, add_special_tokens=False).input_ids
    expected = [decode(ids) for ids in kept]
    assert loaded(folder).cut(nli, max_tokens) == expected
    assert expected != nli


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("opt-tokenizer", "Hello, my dog is cute", [2, 31414, 6, 127, 2335, 16, 11962]),
        ("llama-tokenizer", "Hello world", [1, 15043, 3186]),
        ("tinystories-656k", "Hello", [1, 80, 1288, 67]),
        ("opt-tokenizer", "", [2]),
        ("llama-tokenizer", "", [1]),
    ],
)
def test_golden_ids(data, name, text, ids):
    assert loaded(data / "weights" / name).ids([text])[0].tolist() == ids


def test_model_file_alone_gives_the_ids_of_the_full_folder(data, tmp_path, sts):
    full = data / "weights" / "llama-tokenizer"
    alone = load_tokenizer(copy(full, tmp_path / "alone", "tokenizer.model"))
    texts = [PROMPTEOL.fill(text) for text in sts]
    for a, b in zip(alone.ids(texts), loaded(full).ids(texts), strict=True):
        assert a.tolist() == b.tolist()


def test_flags_for_bos_and_eos_change_no_ids(data, tmp_path):
    full = data / "weights" / "llama-tokenizer"
    flags = {"add_bos_token": False, "add_eos_token": True}
    folder = copy(full, tmp_path / "eos", "tokenizer.model", **flags)
    assert load_tokenizer(folder).ids(["Hello world"])[0].tolist() == [1, 15043, 3186]


@pytest.mark.parametrize("frame", ["</s> $A", "$A", "$A <s>", "</s> $A <s>"])
def test_bos_comes_once_and_eos_never_whatever_the_backend_adds(tmp_path, frame):
    loaded = load_tokenizer(written(tmp_path, frame=frame))
    assert loaded.ids(["the man"])[0].tolist() == TINY.ids(["the man"])[0].tolist()


def test_bos_is_taken_from_the_backend_where_no_config_names_it(tmp_path):
    assert load_tokenizer(written(tmp_path, config=None)).bos_id == 2


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path):
    written(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(pad_id=1, length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert [len(ids) for ids in loaded.ids(["a", " man is running here"])] == [2, 5]


def marked(data, tmp_path):
    """Write a folder whose tokens carry a mark that tokenizers does not know."""
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    token = {"content": "</s>", **flags, "__type": "AddedToken"}
    tokens = {"bos_token": token, "eos_token": token, "unk_token": token}
    opt = data / "weights" / "opt-tokenizer"
    folder = copy(opt, tmp_path / "opt", "vocab.json", "merges.txt", **tokens)
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    return folder


def test_nothing_is_printed_on_stdout(data, tmp_path, capfd):
    loaded = load_tokenizer(marked(data, tmp_path))
    assert loaded.bos_id == 2
    assert loaded.ids(["Hello"])[0].tolist() == [2, 31414]
    assert capfd.readouterr().out == ""


def test_threads_that_load_leave_stdout_where_it_was(data, tmp_path):
    folder, before = marked(data, tmp_path), os.fstat(1)
    with ThreadPoolExecutor(4) as pool:
        bos = list(pool.map(lambda _: load_tokenizer(folder).bos_id, range(8)))
    assert bos == [2] * 8
    assert os.path.samestat(os.fstat(1), before)


@pytest.mark.parametrize(
    ("name", "asked", "does"),
    [
        ("llama-tokenizer", False, "puts a space before a text"),
        ("llama-tokenizer", True, None),
        ("opt-tokenizer", False, None),
    ],
)
def test_a_config_that_contradicts_the_tokenizer_on_the_first_space_is_refused(
    name, asked, does, data, tmp_path
):
    source = data / "weights" / name
    fields = json.loads((source / "tokenizer_config.json").read_text())
    files = [path.name for path in source.iterdir() if path.name != "tokenizer_config.json"]
    folder = copy(source, tmp_path / "copy", *files, **{**fields, "add_prefix_space": asked})
    if does is None:
        load_tokenizer(folder)
        return
    with pytest.raises(ValueError, match=f"it {does}, but .* says add_prefix_space false"):
        load_tokenizer(folder)


def test_an_entry_is_what_the_vocabulary_holds():
    assert [TINY.entry(number) for number in (0, np.int32(2), 10**6)] == ["<s>", "</s>", None]


def test_definition_has_a_stable_digest(data):
    digests = [load_tokenizer(data / "weights" / name).sha256 for name in (*REAL, *REAL)]
    assert digests[:3] == digests[3:]
    assert len({*digests, TINY.sha256}) == 4


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_invalid_unicode_counts_as_replacement_characters(text):
    repaired = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    assert paired(text) == repaired
    assert TINY.ids([text])[0].tolist() == TINY.ids([repaired])[0].tolist()
    assert TINY.cut([text], 10**6) == [repaired]


def test_invalid_utf8_is_tokenized():
    text = b"caf\xe9 \xff".decode(errors="surrogateescape")
    assert TINY.decode(TINY.ids([text])[0]) == "caf\ufffd \ufffd"


def test_spans_cover_the_text(sts):
    for text in sts[:50]:
        spans = TINY.spans(text)
        assert "".join(text[start:end] for start, end in spans) == text
        assert len(spans) == len(TINY.ids([text])[0]) - 1


def test_refuses_a_folder_without_tokenizer(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    message = "holds no tokenizer: needed is tokenizer.json or tokenizer.model or vocab.json with"
    with pytest.raises(FileNotFoundError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer.model"])
def test_refuses_an_unreadable_file(tmp_path, file):
    (tmp_path / file).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"{file} cannot be read as a tokenizer: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("empty", ["", {"content": "", "lstrip": False}])
def test_refuses_empty_special_tokens(tmp_path, empty):
    written(tmp_path, bos_token=empty, unk_token="")
    message = "bos_token in tokenizer_config.json, unk_token in tokenizer_config.json empty, as in"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_refuses_a_config_that_is_not_json(tmp_path):
    (written(tmp_path) / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is not JSON"):
        load_tokenizer(tmp_path)


def test_refuses_a_tokenizer_without_bos(tmp_path):
    written(tmp_path, frame="$A", config={"eos_token": "</s>"})
    with pytest.raises(ValueError, match="has no BOS token, with which every prompt must begin"):
        load_tokenizer(tmp_path)


def test_refuses_everything_wrong_at_once(tmp_path):
    written(tmp_path, frame="<pad> $A", bos_token="<unk>")
    message = (
        r"it frames the ids \[68\] as \[1, 68\], where only BOS 3 is expected; its largest id is "
        r"2423 \(.*\), but the model's embedding has 2000 rows; its BOS, id 3, is its unknown token"
    )
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path, vocab_size=2000)


def added(folder, *, pad, special=True):
    """Add a token as fine-tunes do, behind the vocabulary, and return the embedding's rows."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = backend.get_vocab_size(with_added_tokens=True)
    backend.add_tokens([tokenizers.AddedToken(pad, special=special)])
    backend.save(str(folder / "tokenizer.json"))
    return rows


def test_a_padding_token_may_be_beyond_the_embedding(tmp_path):
    rows = added(written(tmp_path), pad="[PAD]")
    tokenizer = load_tokenizer(tmp_path, vocab_size=rows)
    assert tokenizer.vocab_size == rows + 1
    assert tokenizer.ids(["the man"])[0].max() < rows
    message = rf"the text 'a \[PAD\] b' holds '\[PAD\]', id {rows}, but .* has {rows} rows; write"
    with pytest.raises(ValueError, match=message):
        tokenizer.ids(["the man", "a [PAD] b"])
    assert load_tokenizer(tmp_path, vocab_size=rows + 1).ids(["a [PAD] b"])[0].max() == rows


@pytest.mark.parametrize("changes", [{"special": False}, {"pad": "<new>"}], ids=["word", "unknown"])
def test_a_token_that_a_prompt_can_need_may_not(tmp_path, changes):
    unknown = {"unk_token": "<new>"} if "pad" in changes else {}
    rows = added(written(tmp_path, **unknown), **{"pad": "[PAD]", **changes})
    with pytest.raises(ValueError, match=f"its largest id is {rows} .* has {rows} rows"):
        load_tokenizer(tmp_path, vocab_size=rows)


def test_accepts_an_embedding_with_more_rows_than_the_tokenizer_has_ids(data):
    assert load_tokenizer(data / "weights" / "opt-tokenizer", vocab_size=50272).vocab_size == 50265


def test_refuses_opt_with_the_bos_of_another_family(data, tmp_path):
    opt = data / "weights" / "opt-tokenizer"
    folder = copy(opt, tmp_path / "opt", "vocab.json", "merges.txt", bos_token="<s>")
    message = r"vocabulary is OPT's, .* \[2, 31414, 6, .*\], but here \[0, 31414, 6, "
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def test_refuses_opt_without_all_its_merges(data, tmp_path):
    opt = data / "weights" / "opt-tokenizer"
    folder = copy(opt, tmp_path / "opt", "vocab.json", bos_token="</s>")
    merges = (opt / "merges.txt").read_text(encoding="utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:1000]), encoding="utf-8")
    with pytest.raises(ValueError, match="the tokenizer does not fit: its vocabulary is OPT's"):
        load_tokenizer(folder)


@pytest.mark.parametrize("bos", ["</s>", "<unk>"])
def test_refuses_llama_with_a_wrong_bos(data, tmp_path, bos):
    llama = data / "weights" / "llama-tokenizer"
    folder = copy(llama, tmp_path / "llama", "tokenizer.model", bos_token=bos)
    message = r"vocabulary is LLaMA 1 and 2's, where 'Hello world' is \[1, 15043, 3186\], but here"
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize(("bos", "fits"), [("<|begin_of_text|>", True), ("<|end_of_text|>", False)])
def test_llama_3_is_recognized_by_its_entries(tmp_path, bos, fits):
    entries = {"Hello": 9906, "\u0120world": 1917, "<|end_of_text|>": 128001}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({**entries, "<|begin_of_text|>": 128000}, unk_token="Hello")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": bos}))
    if fits:
        ids = load_tokenizer(tmp_path, vocab_size=128256).ids(["Hello world"])[0]
        assert ids.tolist() == [128000, 9906, 1917]
    else:
        with pytest.raises(ValueError, match=r"LLaMA 3's, .* but here \[128001, 9906, 1917\]"):
            load_tokenizer(tmp_path)


def test_own_decoder_replaces_the_backends():
    loud = Tokenizer(TINY.backend, bos_id=2, decode=lambda ids: TINY.decode(ids).upper())
    assert loud.decode(TINY.ids(["the man"])[0]) == "THE MAN"
    assert loud.cut(["the man is"], 3) == ["THE"]
