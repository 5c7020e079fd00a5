"""`python -m eval.layers`."""

from eval.layers.command import main

main()
