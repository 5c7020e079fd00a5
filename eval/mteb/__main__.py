"""`python -m eval.mteb`."""

from eval.mteb.command import main

main()
