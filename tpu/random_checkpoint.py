"""Write a checkpoint of a published shape with random weights, drawn on the device.

    python -m tpu.random_checkpoint opt-1.3b FOLDER --tokenizer OPT-TOKENIZER [--dtype bfloat16]

It runs at the cost of the real one, and needs no torch, download or license. Its vectors mean
nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import jax
import jax.numpy as jnp
import tyro

from prompteol_jax.cli.commands import run_main
from prompteol_jax.errors import UserError, nearest
from prompteol_jax.mesh import make_mesh
from prompteol_jax.models import build
from prompteol_jax.models.published import PUBLISHED, published
from prompteol_jax.pretrained.load import TOKENIZER_FILES

PROGRAM: Final = "python -m tpu.random_checkpoint"
DEVIATION: Final = 0.02  # of every matrix, as Hugging Face initializes OPT and LLaMA


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOptions:
    """Writes a checkpoint of a published shape with random weights."""

    shape: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SHAPE")]
    """A published shape, such as opt-1.3b."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder to write."""
    tokenizer: Path
    """Folder to copy a tokenizer from."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the stored weights."""


def write_random_checkpoint(name: str, folder: Path, tokenizer: Path, *, dtype: str) -> None:
    """Write a Hugging Face folder that transformers and this project load.

    Raises: UserError for a shape that is not known, or a folder without a tokenizer.
    """
    config = published(name)
    if config is None:
        raise UserError(
            f"no published shape {name!r}; there are {', '.join(PUBLISHED)}"
            f"{nearest(name, PUBLISHED)}"
        )
    files = [tokenizer / file for file in TOKENIZER_FILES if (tokenizer / file).is_file()]
    if not files:
        raise UserError(f"{tokenizer} holds no tokenizer; give the folder of one that fits {name}")
    mesh = make_mesh((1, 1))
    model = build.abstract_decoder(config, mesh, dtype=jnp.dtype(dtype))
    drawn = {path: _draw(path, leaf) for path, leaf in build.leaves(model).items()}
    head = None
    if not config.tied:
        head = _draw("head", jax.ShapeDtypeStruct((config.V, config.D), jnp.dtype(dtype)))
    build.save_decoder(folder, config, build.fill(model, drawn), dtype=dtype, head=head)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _draw(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Draw a leaf: matrices normal, norm scales one, biases zero."""
    if path.endswith((".scale", ".b", ".bias")):
        fill = jnp.ones if path.endswith(".scale") else jnp.zeros
        return fill(leaf.shape, leaf.dtype)
    key = jax.random.key(zlib.crc32(path.encode()))
    if not path.startswith("blocks."):
        return _normal(key[None], leaf.shape, leaf.dtype)[0]
    return _normal(jax.random.split(key, leaf.shape[0]), leaf.shape[1:], leaf.dtype)


@jax.jit(static_argnums=(1, 2))
def _normal(keys: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Draw layer after layer, so that at most one layer is in memory twice."""
    return jax.lax.map(lambda key: DEVIATION * jax.random.normal(key, shape, dtype), keys)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    run_main(PROGRAM, RandomOptions, run, argv)


def run(options: RandomOptions) -> None:
    """Write the checkpoint that the flags describe."""
    write_random_checkpoint(options.shape, options.folder, options.tokenizer, dtype=options.dtype)


if __name__ == "__main__":
    main()
