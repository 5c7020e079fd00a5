"""Where a model comes from: a Hugging Face folder, the hub, or code for `tiny`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from prompteol_jax import models
from prompteol_jax.models import build, initial, tiny
from prompteol_jax.models.decoder import Decoder
from prompteol_jax.pretrained import hub
from prompteol_jax.quant import formats as quant
from prompteol_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that is found, but not loaded.

    Attributes:
        folder: folder of its files; None for `tiny`, which is made in code.
    """

    name: str
    folder: Path | None
    config: models.Config

    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer.

        Raises: UserError where it does not fit the model.
        """
        if self.folder is None:
            return tiny.tiny_tokenizer()
        return load_tokenizer(self.folder, vocab_size=self.config.V)

    def decoder(
        self,
        mesh: Mesh,
        *,
        dtype: Any,
        weight_dtype: Any = None,
        quantize: quant.Kind | None = None,
        layers: int | None = None,
        fsdp: bool = False,
    ) -> Decoder:
        """Load the weights onto a mesh; arguments are those of `build.load_decoder`.

        Raises: WeightMismatch that lists every missing, unexpected and misshapen tensor.
        """
        kept: dict[str, Any] = {"weight_dtype": weight_dtype, "quantize": quantize}
        kept |= {"layers": layers, "fsdp": fsdp}
        if self.folder is None:
            key = jax.random.key(tiny.SEED)
            return initial.random_decoder(self.config, mesh, key, dtype=dtype, **kept)
        return build.load_decoder(self.folder, self.config, mesh, dtype=dtype, **kept)


def resolve(name: str | Path) -> Source:
    """Find a model by name, downloading its files where it is a hub name.

    Raises: NotFound where there is no such model; UserError where its config is not supported.
    """
    if str(name) == tiny.NAME:
        return Source(tiny.NAME, None, tiny.CONFIG)
    folder = hub.local_folder(name)
    return Source(str(name), folder, build.read_config(folder))


def resolve_config(name: str | Path) -> models.Config:
    """Read the config of a model by name; of a hub name nothing else is downloaded.

    Raises: as `resolve`.
    """
    return tiny.CONFIG if str(name) == tiny.NAME else build.read_config(hub.config_folder(name))
