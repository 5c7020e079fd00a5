"""`prompteol serve`, whose server needs an extra."""

from __future__ import annotations

from prompteol_jax.errors import UserError
from prompteol_jax.serve.options import ServeOptions


def serve(options: ServeOptions) -> None:
    """Serve vectors over HTTP until a signal ends it."""
    try:
        from prompteol_jax.serve import command
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'prompteol-jax[serve]'") from error
    command.serve(options)
