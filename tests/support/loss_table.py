"""Train with each loss and several seeds, and print what STS-B dev says: mean and spread.

    python tests/support/loss_table.py --model M --data NLI.csv --senteval FOLDER --output FOLDER

First stages train a fresh adapter on triplets, second stages go on from that of `infonce` with the
same seed: on STS-B's training pairs, or on the triplets with `train.align`. What is in the output
folder is not trained again; a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path

TWO_PARTS = 'This_sentence_:_"*sent_0*"_means_something,_it_can_also_be_summarized_as'
FIRST = {
    "infonce": (),
    "infonce-symmetric": (),
    "infonce-joint": (),
    "infonce-masked": (),
    "sfp": ("--loss", "sfp", "--template", TWO_PARTS),
    "infonce, matryoshka 128 64 32": ("--loss", "infonce", "--matryoshka", "128", "64", "32"),
}
SECOND = ("cosent", "angle", "pearson", "dpo")


def graded_pairs(senteval: Path, file: Path) -> Path:
    """Write STS-B's training pairs as a table of sent0, sent1 and score."""
    lines = (senteval / "downstream/STS/STSBenchmark/sts-train.csv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["sent0", "sent1", "score"])
        table.writerows([row[5], row[6], row[4]] for row in rows)
    return file


def train(module: str, folder: Path, flags: list[str]) -> dict[str, float]:
    """Run a command once; return its result."""
    result = folder / "result.json"
    if not result.exists():
        command = [sys.executable, "-m", module, *flags, "--resume", "--output", str(folder)]
        subprocess.run([*command, "--json", str(result)], check=True)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("model", "data", "senteval", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--only", nargs="+", default=[*FIRST, *SECOND])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    pairs = graded_pairs(options.senteval, options.output / "pairs.csv")
    for name in options.only:
        found = []
        for seed in options.seeds:
            folder = options.output / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            flags = ["--model", str(options.model), "--dev", str(options.senteval)]
            flags += ["--seed", str(seed)]
            module = "train.align" if name == "dpo" else "train.contrastive"
            if name in FIRST:
                flags += ["--data", str(options.data), "--epochs", "3", "--warmup-steps", "10"]
                flags += FIRST[name] or ("--loss", name)
            else:
                data = options.data if name == "dpo" else pairs
                flags += ["--data", str(data), "--adapter"]
                flags += [str(options.output / f"infonce-{seed}/adapter")]
                flags += [] if name == "dpo" else ["--loss", name, "--lr", "1e-4"]
            found.append(train(module, folder, flags))
        before, after = ([one[key] for one in found] for key in ("dev_before", "dev_after"))
        spread = max(after) - min(after)
        print(
            f"{name:32} before {statistics.mean(before):.2f}  "
            f"after {statistics.mean(after):.2f}, spread {spread:.2f}  {after}",
            flush=True,
        )


if __name__ == "__main__":
    main()
