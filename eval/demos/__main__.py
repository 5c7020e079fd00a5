"""`python -m eval.demos`."""

from __future__ import annotations

from eval.demos.command import main

main()
