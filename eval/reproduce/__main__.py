"""`python -m eval.reproduce`."""

from eval.reproduce.command import main

main()
