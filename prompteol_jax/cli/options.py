"""Flags that commands share: dataclasses to inherit from, and one check of every flag's range."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final, Literal

from prompteol_jax import processes
from prompteol_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from prompteol_jax.embedder import Embedder
    from prompteol_jax.methods.record import Method
    from prompteol_jax.text.template import Template

# Flags that change how fast vectors are computed, and of the vectors only their rounding.
_NOT_DECISIVE: Final = ("mesh", "fsdp", "batch_tokens", "plan", "any_method")


def flag(
    default: Any,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    below: int | float | None = None,
    why: str = "",
) -> Any:
    """Return a field of options with a range, which `check` holds its value to.

    Args:
        why: reason for the range, added to the error.
    """
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    given = {word: bound for word, bound in bounds.items() if bound is not None}
    return dataclasses.field(default=default, metadata={"bounds": given, "why": why})


def check(options: Any) -> None:
    """Refuse options that cannot work, all problems in one error; see `misfits`.

    Raises: UserError.
    """
    found = misfits(options)
    if found:
        raise UserError("; ".join(found))


def misfits(options: Any) -> list[str]:
    """List what is wrong with options.

    Ranges are those of the fields. Other conditions come from a method `problems` of the options,
    which returns a list of messages.
    """
    found = [text for field in dataclasses.fields(options) for text in _misfit(options, field)]
    return found + (options.problems() if hasattr(options, "problems") else [])


def spelled(name: str) -> str:
    """Return how a field is written on a command line."""
    return f"--{name.replace('_', '-')}"


def _misfit(options: Any, field: dataclasses.Field) -> list[str]:
    value = getattr(options, field.name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    bounds = field.metadata.get("bounds", {})
    largest = 2**63 if isinstance(value, int) else math.inf
    fits = abs(value) < largest and all(
        {
            "at least": value >= bound,
            "above": value > bound,
            "at most": value <= bound,
            "below": value < bound,
        }[word]
        for word, bound in bounds.items()
    )
    if fits:
        return []
    words = [f"{word} {bound}" for word, bound in bounds.items()]
    if isinstance(value, int) and abs(value) >= largest:
        words.append("below 2**63")
    allowed = " and ".join(words) or "finite"
    why = f": {field.metadata['why']}" if field.metadata.get("why") else ""
    return [f"{spelled(field.name)} {value} must be {allowed}{why}"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedOptions:
    """Several processes that work on one task."""

    coordinator: str | None = None
    """HOST:PORT of process 0 of several, or `auto` on a TPU pod."""
    processes: int | None = flag(None, at_least=1)
    """Number of processes; together they have the devices of --mesh."""
    process: int | None = flag(None, at_least=0)
    """Number of this process, from 0."""
    wait_minutes: float = flag(5.0, above=0, at_most=10_000)
    """Minutes to wait at the start for the other processes, before an error names the missing."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        return processes.problems(self.coordinator, self.processes, self.process)

    def join(self) -> None:
        """Join the other processes; see `distributed.initialize` for errors."""
        from prompteol_jax import distributed

        distributed.initialize(
            self.coordinator, self.processes, self.process, seconds=60 * self.wait_minutes
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model encodes, how and where."""

    model: str
    """A Hugging Face folder, a hub name such as facebook/opt-2.7b, or `tiny` (random weights)."""
    adapter: str | None = None
    """A PEFT folder or hub name, or the folder of a training run."""
    template: str = "eol"
    """A template's name (eol, eol-icl-2.7b, ...) or file."""
    method: str | None = None
    """A method's name (see `prompteol methods`), record or folder, in place of --template and
    --pooling."""
    any_method: bool = False
    """Use an adapter with another method or template than it was trained with."""
    mesh: str = "1x1"
    """DATAxMODEL: devices along each axis; a CPU simulates what it lacks."""
    fsdp: bool = False
    """Shard matrices over DATA too, and gather each layer's when it runs. It is
    chosen by itself where the weights would not fit otherwise."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of activations and weights; bfloat16 for encode, float32 for evaluation by default."""
    quantize: Literal["nf4", "int8"] | None = None
    """Keep the matrices of linear layers in 4 or 8 bits."""
    layer: int | None = None
    """Take hidden_states[LAYER], negative from the end; by default the last, after its norm."""
    pooling: Literal["last", "mean", "second-mean", "mean-last"] = "last"
    """The last token's state, the mean over all tokens of the prompt, over those of the text's
    second copy, or half the mean and half the last."""
    batch_tokens: int | None = flag(None, at_least=1)
    """Tokens computed at once over all devices; chosen for the device by default."""
    plan: Literal["fixed", "fitted", "packed"] = "fixed"
    """How sentences form batches: in fixed buckets of lengths, in buckets fitted to the texts, or
    packed, several in a row. Only `fixed` promises the same bits."""
    max_tokens: int | None = flag(None, at_least=1)
    """Largest number of ids of a prompt; longer texts are cut. By default the model's positions."""
    truncate: Literal["end", "middle", "error"] = "end"
    """What a text that is too long loses: its end, or its middle; or it is an error. The template
    stays whole."""

    def load(
        self, default_dtype: str, mesh: Mesh | None = None, method: Method | None = None
    ) -> Embedder:
        """Load the model; see `Embedder.from_pretrained` for errors.

        Args:
            mesh: to load it onto, in the place of one over the first devices.
            method: in the place of the one that the flags name.
        """
        from prompteol_jax.embedder import Embedder

        chosen = method or self.record()
        if chosen is None:
            self._check_asked()
        return Embedder.from_pretrained(
            self.model,
            adapter=self.adapter,
            template=None if chosen else self.template,
            method=chosen,
            any_method=self.any_method,
            mesh=mesh or self.mesh,
            dtype=self.dtype or default_dtype,
            quantize=self.quantize,
            fsdp=self.fsdp,
            layer=self.layer,
            pooling="last" if chosen else self.pooling,
            batch_tokens=self.batch_tokens,
            plan=self.plan,
            max_tokens=self.max_tokens,
            truncate=self.truncate,
        )

    def _check_asked(self) -> None:
        """Refuse the default template where a folder of another project has its own prompts."""
        from prompteol_jax.pretrained import sentence_folder, source

        if self.template == "eol":
            sentence_folder.refuse_unasked(source.resolve(self.model).folder)

    def record(self) -> Method | None:
        """Return the method that is asked for; None without one.

        Raises: UserError where it is unknown, or a template or a pooling is given as well.
        """
        if self.method is None:
            return None
        from prompteol_jax.methods import on_model

        template = None if self.template == "eol" else self.template
        return on_model.choose(self.method, template, self.pooling, self.layer)

    def as_method(self) -> Method:
        """Return the method of these flags: the record that they name, or a template alone.

        Raises: UserError, NotFound where it is unknown.
        """
        from prompteol_jax.methods.library import plain_method
        from prompteol_jax.text.template import read_template

        template = read_template(self.template)
        return self.record() or plain_method(template, self.pooling, self.layer)

    def base_template(self) -> Template:
        """Return the template, which may be that of a method of one prompt and nothing else.

        Raises: UserError where the method does more.
        """
        from prompteol_jax.methods.record import one_template
        from prompteol_jax.text.template import read_template

        chosen = self.record()
        return read_template(self.template) if chosen is None else one_template(chosen)

    def work(self, default_dtype: str) -> dict[str, Any]:
        """Describe everything in these flags that decides a vector, for `same_work`.

        Files count by their content: `weights` and `adapter` hold the SHA-256 of each file,
        `prompt` the template's text. `model` and `template` only name them. `vectors` is a number
        that rises when the project itself computes other vectors.

        Raises: UserError, NotFound where the model, adapter or template cannot be found.
        """
        from prompteol_jax.methods.library import describe
        from prompteol_jax.pretrained import provenance, source
        from prompteol_jax.pretrained.load import find_adapter
        from prompteol_jax.text.template import read_template

        template, chosen = read_template(self.template), self.record()
        if chosen is None:
            self._check_asked()
        adapter = find_adapter(self.adapter) if self.adapter else None
        found = source.resolve(self.model)
        flags = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(ModelOptions)
            if field.name not in _NOT_DECISIVE
        }
        if chosen is None:
            del flags["method"]
        else:
            flags["method"] = describe(chosen)
        return flags | {
            "weights": provenance.model_files(found.folder) if found.folder else found.name,
            "adapter": provenance.adapter_files(adapter) if adapter else None,
            "template": template.name,
            "prompt": template.content,
            "dtype": self.dtype or default_dtype,
            "vectors": provenance.VECTORS,
        }
