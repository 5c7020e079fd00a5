"""`python -m eval.mteb`."""

from __future__ import annotations

from eval.mteb.command import main

main()
