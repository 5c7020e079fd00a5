"""Semantic search: which of some texts are closest to a question?

    python examples/semantic_search.py
    python examples/semantic_search.py facebook/opt-1.3b

`tiny` is random, so its ranking means nothing; a real model's does.
"""

from __future__ import annotations

import sys

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
    vectors = embedder.encode(TEXTS)  # [n, D]; np.save keeps them for the next time
    (ranking,), (cosines,) = embedder.search([QUESTION], vectors, k=len(TEXTS))
    sys.stdout.write(f"{QUESTION}\n")
    for number, cosine in zip(ranking, cosines, strict=True):
        sys.stdout.write(f"  {cosine:.3f}  {TEXTS[number]}\n")
    return ranking.tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
