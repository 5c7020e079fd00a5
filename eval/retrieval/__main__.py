"""`python -m eval.retrieval`."""

from __future__ import annotations

from eval.retrieval.command import main

main()
