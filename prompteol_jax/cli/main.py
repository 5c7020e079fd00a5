"""The `prompteol` command: encode a corpus, look at words and prompts, verify, compare results.

prompteol encode --model facebook/opt-2.7b --input texts.txt --output vectors.npy
prompteol words --model facebook/opt-2.7b "A jockey riding a horse."
prompteol show --model facebook/opt-2.7b "A jockey riding a horse."
prompteol verify --model facebook/opt-2.7b --json certificate.json
prompteol serve --model facebook/opt-2.7b --port 8000
prompteol methods tp
prompteol fit --model facebook/opt-2.7b --method whitening/eol --input texts.txt --output white
prompteol compare a.json b.json
prompteol export runs/opt-1.3b --to hf --output merged
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from prompteol_jax.cli import names
from prompteol_jax.cli.commands import Commands, run_one_of

# Names, and no imports: a command may be of a package above this one.
COMMANDS: Final = Commands(
    encode=("prompteol_jax.cli.encode:EncodeOptions", "prompteol_jax.cli.encode:encode_corpus"),
    words=("prompteol_jax.cli.words:WordsOptions", "prompteol_jax.cli.words:words"),
    show=("prompteol_jax.cli.words:ShowOptions", "prompteol_jax.cli.words:show"),
    verify=("prompteol_jax.cli.verify:VerifyOptions", "prompteol_jax.cli.verify:verify_checkpoint"),
    serve=("prompteol_jax.serve.options:ServeOptions", "prompteol_jax.cli.serve:serve"),
    methods=("prompteol_jax.cli.methods:MethodsOptions", "prompteol_jax.cli.methods:list_methods"),
    fit=("prompteol_jax.cli.methods:FitOptions", "prompteol_jax.cli.methods:fit"),
    compare=("eval.compare.command:CompareOptions", "eval.compare.command:run"),
    export=("prompteol_jax.export.export:ExportOptions", "prompteol_jax.export.export:export_run"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    for line in names.taken():
        sys.stderr.write(f"prompteol: warning: {line}\n")
    description = "PromptEOL sentence embeddings from decoder checkpoints: OPT, LLaMA, Qwen, ..."
    run_one_of("prompteol", description, COMMANDS, argv)
