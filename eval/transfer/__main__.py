"""`python -m eval.transfer`."""

from eval.transfer.command import main

main()
