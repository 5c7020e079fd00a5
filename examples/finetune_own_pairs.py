"""Fine-tune on your own pairs: write a csv, train an adapter, encode with it.

    python examples/finetune_own_pairs.py

The same on a command line:

    python -m train.contrastive --model tiny --data pairs.csv --batch 8 --steps 5 --output run
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

from prompteol_jax import Embedder
from train import contrastive
from train.config import TrainConfig

# An anchor and its positive; every other row of the batch is a negative. A third column,
# hard_neg, would hold a hard negative for each row.
PAIRS = [
    ("A man plays a guitar.", "Someone makes music."),
    ("Two dogs run on a beach.", "Animals are outside."),
    ("A chef cuts an onion.", "Somebody prepares food."),
    ("A girl reads a book.", "A child is reading."),
    ("The train is late.", "The railway has a delay."),
    ("It rains in the town.", "The weather is wet."),
    ("A boy kicks a ball.", "A kid plays football."),
    ("A woman drives a car.", "Somebody is driving."),
]


def main() -> float:
    """Train for five steps; print and return how far the vector of one text moved (cosine)."""
    folder = Path(tempfile.mkdtemp())
    data = folder / "pairs.csv"
    with data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sent0", "sent1"), *PAIRS])
    contrastive.run(
        TrainConfig(
            model="tiny",
            data=str(data),
            output=folder / "run",
            mesh="1x1",
            batch=len(PAIRS),
            steps=5,
            warmup_steps=1,
        )
    )
    text = [PAIRS[0][0]]
    before = Embedder.from_pretrained("tiny", dtype="float32").encode(text)
    after = Embedder.from_pretrained("tiny", str(folder / "run"), dtype="float32")
    cosine = float(after.similarity(before, text)[0, 0])
    sys.stdout.write(f"{text[0]} cosine of the vectors before and after: {cosine:.3f}\n")
    return cosine


if __name__ == "__main__":
    main()
