"""`python -m tpu.plan`."""

from tpu.plan.command import main

main()
