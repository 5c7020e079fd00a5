"""`python -m tpu.bench`."""

from tpu.bench.command import main

main()
