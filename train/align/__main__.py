"""`python -m train.align`."""

from __future__ import annotations

from train.align.command import main

main()
