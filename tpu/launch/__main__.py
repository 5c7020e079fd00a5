"""`python -m tpu.launch`."""

from tpu.launch.command import main

main()
