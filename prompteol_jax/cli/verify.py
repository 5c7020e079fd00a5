"""`prompteol verify`: checks the user's own checkpoint and writes a certificate."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompteol_jax.cli.options import ModelOptions
from prompteol_jax.errors import UserError
from prompteol_jax.storage import atomic, json_files, paths, same_work

if TYPE_CHECKING:
    from prompteol_jax.verify.certificate import Check


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions(ModelOptions):
    """Checks a checkpoint: tokenizer, parity with transformers, vectors, batches; float32.

    The exit status is 0 where no check failed and 1 where one did.
    """

    json: Path | None = None
    """File for the certificate."""


def verify_checkpoint(options: VerifyOptions) -> dict[str, Any]:
    """Run the checks, print the verdict, write the certificate; exit with 1 if a check fails."""
    from prompteol_jax.mesh import parse_mesh
    from prompteol_jax.text.template import read_template

    read_template(options.template)
    parse_mesh(options.mesh)
    paths.refuse_buckets(options.json)
    atomic.prepare(options.json)
    certificate = _certificate(options)
    _print(options, certificate)
    if options.json:
        json_files.write_object(options.json, same_work.recorded(certificate))
    if certificate["verdict"] == "failed":
        sys.stdout.flush()
        raise SystemExit(1)
    return certificate


def _certificate(options: VerifyOptions) -> dict[str, Any]:
    from prompteol_jax.verify import certificate as verify
    from prompteol_jax.verify.sentences import SENTENCES

    provenance: dict[str, Any] = {}
    try:
        embedder = options.load("float32")
    except UserError as error:
        if isinstance(error, OSError):  # files that are not there: nothing was checked
            raise
        checks = [verify.Check("load", "failed", str(error))]
    else:
        provenance = embedder.describe()
        checks = [verify.Check("load", "passed", _loaded(provenance))]
        checks += verify.verify(embedder, lambda name: sys.stderr.write(f"checking {name} ...\n"))
    return {
        "model": options.model,
        "verdict": _verdict(checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "sentences_sha256": hashlib.sha256("\n".join(SENTENCES).encode()).hexdigest(),
        "options": dataclasses.asdict(options),
        "provenance": provenance,
    }


def _loaded(provenance: dict[str, Any]) -> str:
    files = len(provenance["model"]["files"])
    size = sum(provenance["dtype"]["weight_bytes"].values())
    held = f"{files} files, " if files else "made in code, "
    return f"{held}{size:,} bytes of weights, activations in {provenance['dtype']['activations']}"


def _verdict(checks: Sequence[Check]) -> str:
    return "failed" if any(check.verdict == "failed" for check in checks) else "passed"


def _print(options: VerifyOptions, certificate: dict[str, Any]) -> None:
    from rich import console, table, text

    grid = table.Table(title=text.Text(f"{options.model}, template {options.template}"))
    grid.title_justify = "left"
    for name in ("check", "verdict", "what was found"):
        grid.add_column(name)
    styles = {"passed": "green", "failed": "bold red", "not checked": "yellow"}
    for check in certificate["checks"]:
        verdict = text.Text(check["verdict"], style=styles[check["verdict"]])
        grid.add_row(check["name"], verdict, text.Text(check["detail"]))
    shown = console.Console()
    shown.print(grid)
    left = sum(check["verdict"] == "not checked" for check in certificate["checks"])
    open_ = f", {left} of {len(certificate['checks'])} not checked" if left else ""
    shown.print(text.Text(f"verdict: {certificate['verdict']}{open_}", style="bold"))
