"""`python -m eval.search`."""

from __future__ import annotations

from eval.search.command import main

main()
