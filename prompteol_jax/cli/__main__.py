"""`python -m prompteol_jax.cli`."""

from prompteol_jax.cli.main import main

main()
