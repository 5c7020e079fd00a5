"""`python -m eval.sts`."""

from __future__ import annotations

from eval.sts.command import main

main()
