"""The flags of `prompteol serve`; nothing here needs the extra `serve`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Final, Literal

import tyro

from prompteol_jax.cli.options import ModelOptions, flag
from prompteol_jax.cli.several import with_prompt
from prompteol_jax.errors import NotFound, UserError

KEYS: Final = "PROMPTEOL_API_KEYS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Serves vectors over HTTP in the form of OpenAI's embeddings API."""

    model: str = ""
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny` (random weights)."""
    like: Path | None = None
    """Folder that `prompteol encode` wrote, or its manifest.json: serve the model, template and
    settings of those vectors; other flags may name the same files elsewhere."""
    also: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=TEMPLATE: another template of the same model, for requests that give NAME as `model`.
    Repeat it for several."""
    also_method: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=METHOD: another method of the same model, as --also has templates."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = flag(8000, at_least=0, at_most=65535)
    """Port to listen on; 0 for a free one, which is printed."""
    served_name: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name that requests may give as `model`; --model by default. Repeat it for several."""
    clean: bool = False
    """Rewrite each text as `prompteol encode --clean` does."""
    truncate: Literal["end", "middle", "error"] = "error"
    """What happens to a text that is too long: it is refused, or cut as `encode` does."""
    raw: bool = False
    """Return vectors as they are, instead of scaled to length one."""
    max_texts: int = flag(2048, at_least=1)
    """Most texts of a request."""
    max_body_mb: float = flag(16.0, above=0)
    """Largest body of a request, in megabytes."""
    max_waiting: int = flag(4096, at_least=1)
    """Most texts that wait for an answer; more are refused with 429."""
    api_key_file: Path | None = None
    """File of keys, one a line, of which a request must carry one; or the environment variable
    PROMPTEOL_API_KEYS, separated by commas."""
    drain_s: float = flag(30.0, at_least=0)
    """Seconds that SIGTERM leaves to requests that were admitted."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        found = []
        if not self.model and self.like is None:
            found.append("--model is needed, or --like with what a corpus was encoded with")
        if self.plan != "fixed":
            found.append(f"--plan {self.plan} lets vectors depend on others; serve takes fixed")
        names = list(self.names)
        for flag_, given, kind in (
            ("--also", self.also, "TEMPLATE"),
            ("--also-method", self.also_method, "METHOD"),
        ):
            for text in given:
                name, prompt = _named(text)
                if not (name and prompt):
                    found.append(f"{flag_} {text} is not NAME={kind}")
                if name in names:
                    found.append(f"{flag_} {name} is served under that name already")
                names.append(name)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the first prompt."""
        return self.served_name or (self.model,)

    @property
    def others(self) -> dict[str, ServeOptions]:
        """The same flags with each of the other templates and methods, by name."""
        return {
            **{name: with_prompt(self, template=given) for name, given in map(_named, self.also)},
            **{
                name: with_prompt(self, method=given)
                for name, given in map(_named, self.also_method)
            },
        }


def _named(text: str) -> tuple[str, str]:
    """Split NAME=PROMPT; both may be empty."""
    name, _, prompt = text.partition("=")
    return name, prompt


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Read the keys of a file, or of the environment.

    Raises: NotFound; UserError for a file without a key.
    """
    if file is None:
        return tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    if not file.is_file():
        raise NotFound(f"no file {file} of --api-key-file")
    lines = file.read_text(encoding="utf-8").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UserError(f"{file} of --api-key-file holds no key; it needs one a line")
    return keys
