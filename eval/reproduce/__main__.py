"""`python -m eval.reproduce`."""

from __future__ import annotations

from eval.reproduce.command import main

main()
