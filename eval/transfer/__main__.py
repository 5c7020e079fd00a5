"""`python -m eval.transfer`."""

from __future__ import annotations

from eval.transfer.command import main

main()
