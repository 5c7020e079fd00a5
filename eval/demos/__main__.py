"""`python -m eval.demos`."""

from eval.demos.command import main

main()
