"""A training run to files for others, each read back and compared."""

from prompteol_jax.export.export import ExportOptions, export_run

__all__ = ["ExportOptions", "export_run"]
