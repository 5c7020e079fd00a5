"""Semantic search: which of some texts are closest to a question?

    python examples/semantic_search.py
    python examples/semantic_search.py facebook/opt-1.3b

`tiny` is random, so its ranking means nothing; a real model's does.
"""

from __future__ import annotations

import sys

import numpy as np

from prompteol_jax import Embedder

TEXTS = [
    "A man is playing the guitar on a small stage.",
    "The train to the coast leaves at nine.",
    "Two dogs are running along the beach.",
    "Someone is baking bread in the kitchen.",
    "A woman sings a song in a crowded bar.",
]
QUESTION = "Who is making music?"


def main(model: str = "tiny") -> list[int]:
    """Print the texts, the closest first, and return their numbers."""
    embedder = Embedder.from_pretrained(model, dtype="float32")
    index = embedder.encode(TEXTS, normalize=True)  # [n, D]; np.save keeps it for the next time
    question = embedder.encode([QUESTION], normalize=True)[0]  # [D]
    cosines = index @ question
    ranking = np.argsort(-cosines).tolist()
    sys.stdout.write(f"{QUESTION}\n")
    for number in ranking:
        sys.stdout.write(f"  {cosines[number]:.3f}  {TEXTS[number]}\n")
    return ranking


if __name__ == "__main__":
    main(*sys.argv[1:])
