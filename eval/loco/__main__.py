"""`python -m eval.loco`."""

from __future__ import annotations

from eval.loco.command import main

main()
