"""`python -m train.mine`."""

from __future__ import annotations

from train.mine.command import main

main()
