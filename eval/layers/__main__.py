"""`python -m eval.layers`."""

from __future__ import annotations

from eval.layers.command import main

main()
