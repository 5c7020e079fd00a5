"""BEIR folders for tests: one made with every trap, and two real sets from STS-B and NLI.

python tests/support/beir_sets.py FOLDER      # real sets: PROMPTEOL_DATA
python tests/support/beir_sets.py FOLDER --million    # 1,000,000 documents, 1,000 queries
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HEADER = "query-id\tcorpus-id\tscore\n"
WORDS = "man woman dog cat guitar horse train beach bread song street river book red old".split()


def write(
    folder: Path,
    corpus: Iterable[Mapping[str, Any]],
    queries: Iterable[Mapping[str, Any]],
    judged: Iterable[tuple[str, str, int]],
) -> Path:
    """Write a folder of one split, `test`."""
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    lines = "".join(f"{q}\t{d}\t{score}\n" for q, d, score in judged)
    (folder / "qrels" / "test.tsv").write_text(HEADER + lines, encoding="utf-8")
    return folder


def sentence(rng: np.random.Generator, words: int) -> str:
    """Return random words."""
    return " ".join(rng.choice(WORDS, words))


def made(folder: Path, seed: int = 0) -> Path:
    """Write a folder with equal texts (ties), empty texts, titles, and odd judgments.

    A document has the id of a query; one query judges nothing relevant, one is judged below 0, one
    has no judgment, one finds only documents that nobody judged.
    """
    rng = np.random.default_rng(seed)
    texts = ["", *(sentence(rng, int(n)) for n in rng.integers(1, 9, 20))]
    ids = [f"{kind}{n}" for kind in "aBz" for n in range(16)] + ["q1"]
    corpus = [{"_id": name, "title": "", "text": str(rng.choice(texts))} for name in ids]
    corpus[5] = {"_id": ids[5], "title": "A title", "text": "and a text"}
    queries = [{"_id": f"q{n}", "text": str(rng.choice(texts))} for n in range(12)]
    judged = [
        (f"q{n}", str(name), int(rng.integers(-1, 4)))
        for n in range(10)
        for name in rng.choice(ids, rng.integers(1, 12), replace=False)
    ]
    return write(folder, corpus, queries, [*judged, ("q10", ids[0], 0), ("q10", ids[1], -1)])


def sts_benchmark(data: Path, folder: Path) -> Path:
    """Write the pairs of STS-B's test set with gold 5 as query and document, all its sentences as
    the corpus."""
    path = data / "senteval/downstream/STS/STSBenchmark/sts-test.csv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [(float(row[4]), row[5].strip(), row[6].strip()) for row in rows]
    sentences = list(dict.fromkeys(text for _, *two in pairs for text in two))
    number = {text: f"d{n}" for n, text in enumerate(sentences)}
    equal: dict[str, set[str]] = {}
    for gold, one, other in pairs:
        if gold == 5.0 and one != other:
            equal.setdefault(one, set()).add(other)
    queries = {text: f"q{n}" for n, text in enumerate(equal)}
    judged = [(queries[q], number[d], 1) for q in equal for d in sorted(equal[q])]
    return write(
        folder,
        [{"_id": number[text], "title": "", "text": text} for text in sentences],
        [{"_id": name, "text": text} for text, name in queries.items()],
        judged,
    )


def nli(data: Path, folder: Path, count: int = 500) -> Path:
    """Write premises of NLI as queries, and their entailments and contradictions as documents."""
    with (data / "nli/nli_triplets.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(count), csv.DictReader(file), strict=False)]
    documents = list(dict.fromkeys(row[key] for row in rows for key in ("sent1", "hard_neg")))
    number = {text: f"d{n}" for n, text in enumerate(documents)}
    premises = {text: f"q{n}" for n, text in enumerate(dict.fromkeys(r["sent0"] for r in rows))}
    judged = dict.fromkeys((premises[row["sent0"]], number[row["sent1"]]) for row in rows)
    return write(
        folder,
        [{"_id": number[text], "title": "", "text": text} for text in documents],
        [{"_id": name, "text": text} for text, name in premises.items()],
        [(query, document, 1) for query, document in judged],
    )


def million(folder: Path, documents: int = 1_000_000, queries: int = 1_000) -> Path:
    """Write many short documents; a query is the text of one of them, with one word more."""
    rng = np.random.default_rng(0)
    words = np.array([f"{a}{b}" for a in WORDS for b in WORDS])
    picked = words[rng.integers(len(words), size=(documents, 6))]
    texts = [" ".join(row) for row in picked]
    asked = rng.choice(documents, queries, replace=False)
    return write(
        folder,
        ({"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)),
        ({"_id": f"q{n}", "text": f"{texts[d]} {words[n % 99]}"} for n, d in enumerate(asked)),
        [(f"q{n}", f"d{d}", 1) for n, d in enumerate(asked)],
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if "--million" in sys.argv:
        million(target / "million")
    else:
        real = Path(os.environ["PROMPTEOL_DATA"])
        sts_benchmark(real, target / "sts-b")
        nli(real, target / "nli")
