"""`python -m eval.sts`."""

from eval.sts.command import main

main()
