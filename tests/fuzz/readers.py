"""The readers of files that others wrote: valid inputs, and how one is read."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import numpy as np
from mutations import mutate

from eval.loco import tasks as loco
from eval.retrieval import beir
from eval.shared import results
from eval.shared.journal import Journal
from eval.sts.tasks import read_tasks
from eval.transfer.tasks import read_transfer
from prompteol_jax.lora.peft import read_adapter_config
from prompteol_jax.methods import library
from prompteol_jax.models.build import read_config
from prompteol_jax.models.published import PUBLISHED
from prompteol_jax.storage import corpus, manifest
from prompteol_jax.storage.shards import Shards
from prompteol_jax.text.template import TEMPLATES, read_template
from prompteol_jax.weights.folder import open_tensors
from prompteol_jax.weights.safetensors import open_safetensors
from prompteol_jax.weights.torch_bin import open_bin
from tpu.lengths import read_lengths
from train.data.triplets import read_triplets

CORPUS: Final = Path(__file__).with_name("corpus")


class Reader(NamedTuple):
    """One kind of file.

    Attributes:
        file: name under which an input is written.
        seeds: valid inputs.
        read: function of the written file.
        finish: what makes a damaged input pass the outer checks, such as a checksum.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    finish: Callable[[bytes], bytes] = bytes


def inputs(name: str) -> list[bytes]:
    """The valid inputs of a reader, and those of the corpus."""
    kept = sorted((CORPUS / name).glob("*"))
    return [*READERS[name].seeds(), *(path.read_bytes() for path in kept)]


def damaged(name: str, seed: int, known: list[bytes]) -> bytes:
    """Input number `seed` of a reader: some valid one, damaged."""
    random = Random(f"{name} {seed}")
    content = mutate(random.choice(known), known, random)
    return READERS[name].finish(content) if random.random() < 0.5 else content


def _safetensors() -> list[bytes]:
    import safetensors.numpy

    arrays = {"w": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16), "e": np.ones((0, 2))}
    return [safetensors.numpy.save(arrays), safetensors.numpy.save({"w": np.ones(1)})]


def _with_length(content: bytes) -> bytes:
    """Make the length of a safetensors header that of its JSON."""
    header = content[8:]
    end = header.rfind(b"}}") + 2 if b"}}" in header else len(header)
    return struct.pack("<Q", end) + header


_NAME: Final = b"X\x01\x00\x00\x00w"
_TENSOR: Final = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89}tR"
)


def _pickles() -> list[bytes]:
    plain = b"\x80\x02}q\x00" + _NAME + _TENSOR + b"s."
    ordered = b"\x80\x02ccollections\nOrderedDict\n)R(" + _NAME + _TENSOR + b"u}" + b"_metadata"
    return [_archived(plain), _archived(ordered[:-9] + b"b.")]


def _archived(pickled: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/byteorder", b"little")
        archive.writestr("m/data/0", bytes(24))
    return file.getvalue()


def _repacked(content: bytes) -> bytes:
    """Put what stands in the place of the pickle into a sound archive."""
    start = content.find(b"\x80\x02")
    end = content.find(b"PK", start)
    return _archived(content[max(start, 0) : end if end > 0 else len(content)])


def _configs() -> list[bytes]:
    one_of_each = {config.family: config for config in PUBLISHED.values()}
    return [json.dumps(config.to_hf()).encode() for config in one_of_each.values()]


def _adapters() -> list[bytes]:
    fields = {"peft_type": "LORA", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05}
    more = {"bias": "none", "use_rslora": False, "modules_to_save": None, "rank_pattern": {}}
    return [
        json.dumps({**fields, **more, "target_modules": targets}).encode()
        for targets in (["q_proj", "model.layers.0.mlp.up_proj"], "all-linear")
    ]


def _indexes() -> list[bytes]:
    weight_map = {"w": "other.safetensors", "v": "other.safetensors"}
    return [json.dumps({"metadata": {"total_size": 4}, "weight_map": weight_map}).encode()]


def _read_index(path: Path) -> object:
    import safetensors.numpy

    shard = path.with_name("other.safetensors")
    if not shard.exists():
        safetensors.numpy.save_file({"w": np.ones(1), "v": np.ones(1)}, shard)
    return open_tensors(path.parent)


def _manifests() -> list[bytes]:
    body = {"shards": [{"rows": 3, "sha256": "ab"}], "settings": {"model": "tiny", "layer": None}}
    return [_sealed(json.dumps(body).encode())]


def _sealed(content: bytes) -> bytes:
    """Give a manifest the checksum of its content."""
    try:
        body = json.loads(content)
        body.pop("sha256", None)
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps({**body, "sha256": digest}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content


def _arrays() -> list[bytes]:
    file = io.BytesIO()
    np.save(file, np.ones((3, 4), np.float32))
    return [file.getvalue()]


def _read_array(path: Path) -> object:
    chunks = [corpus.Chunk(3, "")]
    return Shards(path.parent, {}, chunks, [None], [None], 4).read(0)


def _parquets() -> list[bytes]:
    import pyarrow as pa
    from pyarrow import parquet

    texts = ["a cat", "ein Männchen", "", "x" * 3000]
    found = []
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        file = io.BytesIO()
        column = pa.array(texts).dictionary_encode() if "dict" in str(kind) else pa.array(texts)
        parquet.write_table(pa.table({"text": column.cast(kind)}), file)
        found.append(file.getvalue())
    return found


def _read_corpus(path: Path) -> object:
    return [len(chunk) for chunk in corpus.open_corpus(path).chunks(1000)]


def _csvs() -> list[bytes]:
    return [b'text,id\n"a, ""cat""",1\nein M\xc3\xa4nnchen,2\n"two\nlines",3\n', b"text\r\na\r\n"]


def _triplet_csvs() -> list[bytes]:
    return [b'sent0,sent1,hard_neg\na,"b, c",d\n"x\ny",z,w\n', b"sent0,sent1\na,b\n"]


def _jsonls() -> list[bytes]:
    return [b'{"text": "a cat", "id": 1}\n\n{"text": "ein M\\u00e4nnchen"}\n']


def _triplet_jsonls() -> list[bytes]:
    return [b'{"sent0": "a", "sent1": "b", "hard_neg": "c"}\n' * 2, b'{"sent0": "a", "sent1": "b"}']


def _sts() -> list[bytes]:
    row = b"main-captions\tMSRvid\t2012test\t0001\t%s\tA man is playing.\tA dog runs.\n"
    return [row % b"5.000" + row % b"0.5", row % b"2.4" * 20 + row % b"1"]


def _read_sts(path: Path) -> object:
    return read_tasks(_moved(path, "STS/STSBenchmark/sts-dev.csv"), ["STSBenchmark"], "dev")


def _sentences() -> list[bytes]:
    return [b"a fine film .\nan odd , slow one\n" * 8, b"caf\xe9 noir\n" * 12]


def _read_transfer(path: Path) -> object:
    root = _moved(path, "MR/rt-polarity.pos")
    (root / "MR/rt-polarity.neg").write_bytes(b"a dull film\n" * 12)
    return read_transfer(root, ["MR"])


def _moved(path: Path, place: str) -> Path:
    target = path.parent / "downstream" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
    return path.parent / "downstream"


_DOCUMENTS: Final = b'{"_id": "d1", "title": "T", "text": "a cat"}\n{"_id": "d2", "text": "b"}\n'
_JUDGED: Final = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n"


def _beir(path: Path, place: str) -> object:
    """Read a BEIR folder in which one file is the input."""
    folder = path.parent / "beir"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    query = b'{"_id": "q1", "text": "cat?"}\n'
    sound = {"corpus.jsonl": _DOCUMENTS, "queries.jsonl": query, "qrels/test.tsv": _JUDGED}
    for name, content in {**sound, place: path.read_bytes()}.items():
        (folder / name).write_bytes(content)
    return beir.read(folder)


_PASSAGES: Final = b'{"pid": "P0", "passage": "a cat"}\n{"pid": "P1", "passage": "b"}\n'
_ASKED: Final = b'{"qid": "Q0", "query": "cat?", "answer_pids": ["P0"]}\n'


def _loco(path: Path, side: str) -> object:
    """Read a task of LoCoV1 of which one side is the input."""
    for name, content in {
        "documents": _PASSAGES,
        "queries": _ASKED,
        side: path.read_bytes(),
    }.items():
        file = path.parent / "loco" / name / f"qmsum_{loco.SPLIT}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return loco.read(path.parent / "loco", ["qmsum"])


def _results() -> list[bytes]:
    array = {"dtype": "<f4", "base64": "AACAPwAAAEA="}
    example = {"cosine": array, "gold": {"dtype": "|u1", "base64": "AAEC"}}
    return [json.dumps({"model": "m", "scores": {"STS12": 1.5}, "examples": [example]}).encode()]


def _journals() -> list[bytes]:
    entry = {"candidate": "c", "pairs": [0, 1], "cosines": "AAAAAAAA8D8="}
    return [b"".join(json.dumps(e).encode() + b"\n" for e in ({"work": {"a": 1}}, entry, entry))]


def _lengths() -> list[bytes]:
    return [json.dumps({"source": "s", "counts": {"7": 3}, "prefix": {"eol": 4}}).encode()]


def _methods() -> list[bytes]:
    return [path.read_bytes() for path in library.shipped().values()]


def _templates() -> list[bytes]:
    return [json.dumps(template.to_json()).encode() for template in TEMPLATES.values()]


def _notations() -> list[bytes]:
    return [b'This_sentence_:_"*sent_0*"_means_in_one_word:"', b"*cls*_It_*sent_0*_was_*sep+*"]


def _read_template(path: Path) -> object:
    return read_template(str(path))


READERS: Final[Mapping[str, Reader]] = {
    "safetensors": Reader("m.safetensors", _safetensors, open_safetensors, _with_length),
    "bin": Reader("m.bin", _pickles, open_bin, _repacked),
    "adapter": Reader(
        "adapter_config.json", _adapters, lambda path: read_adapter_config(path.parent)
    ),
    "config": Reader("config.json", _configs, lambda path: read_config(path.parent)),
    "index": Reader("model.safetensors.index.json", _indexes, _read_index),
    "manifest": Reader("manifest.json", _manifests, manifest.read, _sealed),
    "npy": Reader("shard-00000.npy", _arrays, _read_array),
    "parquet": Reader("texts.parquet", _parquets, _read_corpus),
    "csv": Reader("texts.csv", _csvs, _read_corpus),
    "csv-triplets": Reader("triplets.csv", _triplet_csvs, read_triplets),
    "jsonl": Reader("texts.jsonl", _jsonls, _read_corpus),
    "jsonl-triplets": Reader("triplets.jsonl", _triplet_jsonls, read_triplets),
    "senteval-sts": Reader("sts-dev.csv", _sts, _read_sts),
    "senteval-transfer": Reader("rt-polarity.pos", _sentences, _read_transfer),
    "beir-corpus": Reader(
        "corpus.jsonl", lambda: [_DOCUMENTS], partial(_beir, place="corpus.jsonl")
    ),
    "beir-qrels": Reader("test.tsv", lambda: [_JUDGED], partial(_beir, place="qrels/test.tsv")),
    "loco-documents": Reader("d.jsonl", lambda: [_PASSAGES], partial(_loco, side="documents")),
    "loco-queries": Reader("q.jsonl", lambda: [_ASKED], partial(_loco, side="queries")),
    "result": Reader("result.json", _results, results.read),
    "journal": Reader("journal.jsonl", _journals, lambda path: Journal(path, {"a": 1})),
    "lengths": Reader("lengths.json", _lengths, lambda path: read_lengths(path, "encode")),
    "method": Reader("method.json", _methods, library.read_method),
    "template-json": Reader("template.json", _templates, _read_template),
    "template-txt": Reader("template.txt", _notations, _read_template),
}
