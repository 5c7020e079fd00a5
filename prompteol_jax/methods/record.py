"""A method as data: prompts, what happens along the depth, what is read, and what follows.

A record is a JSON object; fields that are left out have their default. For PromptEOL with token
prepending (Fu et al. 2025):

    {"name": "tp/eol",
     "prompts": [{"prefix": "This sentence : <PST> \\"", "suffix": "\\" means in one word:\\""}],
     "layer": 27,
     "copy": {"start": 1, "exit": 7}}

Every published method is such a file in `records/`. Blocks count from 0. A bound of blocks is a
number of a block, negative from the end, or a fraction of the depth such as 0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prompteol_jax.errors import UserError
from prompteol_jax.methods import schema
from prompteol_jax.methods.pooling import POOLINGS
from prompteol_jax.methods.schema import Misfit, entry
from prompteol_jax.text.template import TEMPLATES, Template

PLACEHOLDER: Final = "<PST>"  # in a prompt: the token that the last token's state is copied to
TRANSFORMS: Final = ("reversed-words", "expansion", "chunks")
SUBTRACTIONS: Final = ("ns", "nr", "scaled_norm", "sub_head_norm", "self_scaled")
POST_STAGES: Final = ("center", "whiten", "embed-filter", "truncate", "normalize")
FITTED: Final = ("center", "whiten")  # stages whose numbers are fitted on texts and stored
HARNESSES: Final = ("senteval", "mteb")


def _template(value: Any) -> Template:
    """Take a template by its name, or by its fields."""
    if isinstance(value, str):
        return TEMPLATES[schema.one_of(*TEMPLATES)(value)]
    try:
        return Template.from_json(value, "given")
    except UserError as error:
        raise Misfit(f": {error}") from None


def _template_json(template: Template) -> Any:
    if TEMPLATES.get(template.name) == template:
        return template.name
    return {name: value for name, value in template.to_json().items() if value != []}


@dataclass(frozen=True)
class Transform:
    """What is done to a text before it is put into the prompt.

    Attributes:
        kind: `reversed-words`, the words in reverse order; `expansion`, other texts for this one
            from a file; `chunks`, the text in pieces of `words` words.
        file: name of the expansion file, next to the record: JSON lines of
            `{"text": ..., "variants": [...]}`.
        words: words of a chunk.
    """

    kind: str = entry(schema.one_of(*TRANSFORMS))
    file: str | None = entry(schema.optional(schema.file_name), None)
    words: int | None = entry(schema.optional(schema.whole(1)), None)

    def problems(self) -> list[str]:
        """List what does not fit between the fields."""
        found = []
        if (self.words is None) == (self.kind == "chunks"):
            found.append(f"transform {self.kind} {_takes(self.words)} `words`")
        if self.file is not None and self.kind != "expansion":
            found.append(f"transform {self.kind} takes no `file`")
        return found


@dataclass(frozen=True)
class PromptView:
    """One prompt of a method; its vectors count in the mean.

    Attributes:
        template: name of a template, or its fields; in JSON a prompt without a transform is the
            template alone.
        transform: what is done to the text first; None for nothing.
    """

    template: Template
    transform: Transform | None = None

    def to_json(self) -> Any:
        """Return what `from_json` reads."""
        template = _template_json(self.template)
        if self.transform is None:
            return template
        return {"template": template, "transform": schema.write(self.transform)}

    @classmethod
    def from_json(cls, value: Any) -> PromptView:
        """Read a prompt; raises Misfit."""
        if not (isinstance(value, Mapping) and "template" in value):
            return cls(_template(value))
        unknown = sorted(set(value) - {"template", "transform"})
        if unknown:
            raise Misfit(f".{unknown[0]} is unknown; a prompt has template and transform")
        try:
            transform = schema.part(Transform)(value.get("transform"))
        except Misfit as error:
            raise Misfit(*(f".transform{problem}" for problem in error.problems)) from None
        return cls(_template(value["template"]), transform)


@dataclass(frozen=True)
class Copy:
    """Token prepending: the last token's state replaces the placeholder's before some blocks.

    Attributes:
        start, exit: before every block i with start <= i < exit.
        seed: of the placeholder's state before block 0, standard normal, where start is above 0.
    """

    start: int = entry(schema.whole(0))
    exit: int = entry(schema.whole(0))
    seed: int = entry(schema.whole(0), 0)


@dataclass(frozen=True)
class Subtract:
    """Contrastive prompting: the last token's joined heads v in one block, before W_O, are changed.

    With a the joined heads of the auxiliary prompt's last token in that block, and d = v - a:

        ns             scale * d
        nr             d * |v| / (|d| + 1e-7)
        scaled_norm    scale * nr
        sub_head_norm  nr for each head
        self_scaled    scale * v, for all tokens; there is no auxiliary prompt

    Attributes:
        template: the auxiliary prompt; None for `self_scaled` alone.
        block: number of the block.
        kind: one of the five.
        scale: factor; 1 where the kind has none.
    """

    block: int = entry(schema.whole())
    kind: str = entry(schema.one_of(*SUBTRACTIONS))
    scale: float = entry(schema.number, 1.0)
    template: Template | None = entry(schema.optional(_template), None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        found = schema.write(dataclasses.replace(self, template=None))
        return found | ({"template": _template_json(self.template)} if self.template else {})

    def problems(self) -> list[str]:
        """List what does not fit between the fields."""
        found = []
        if (self.template is None) != (self.kind == "self_scaled"):
            found.append(f"subtract {self.kind} {_takes(self.template)} `template`")
        if self.scale != 1.0 and self.kind in ("nr", "sub_head_norm"):
            found.append(f"subtract {self.kind} takes no `scale`")
        return found


@dataclass(frozen=True)
class Collect:
    """The vector is made of attention outputs after W_O at the last token, over some blocks.

    Attributes:
        first, end: blocks first <= i < end; by default all.
        reduce: their `sum` or `mean`.
    """

    first: schema.Bound = entry(schema.bound, 0)
    end: schema.Bound | None = entry(schema.optional(schema.bound), None)
    reduce: str = entry(schema.one_of("sum", "mean"), "sum")


@dataclass(frozen=True)
class ExtraSlot:
    """KV-Embedding: all tokens also attend to the last token's key and value, in some blocks.

    The key keeps the rotation of the last token's position.

    Attributes:
        first, end: blocks first <= i < end.
    """

    first: schema.Bound = entry(schema.bound)
    end: schema.Bound | None = entry(schema.optional(schema.bound), None)


@dataclass(frozen=True)
class PostStage:
    """A step after the mean over prompts.

        center        z - mean, of fitted vectors
        whiten        (z - mean) W, of fitted vectors; the first `dims` components
        embed-filter  the middle 1/ratio of the right singular vectors of the LM head, applied to z
        truncate      the first `dims` features
        normalize     z / |z|

    Attributes:
        file: name of the fitted numbers' file, next to the record, from `prompteol fit`.
        dims: features that are left.
        ratio: D over the number of features that are left.
    """

    kind: str = entry(schema.one_of(*POST_STAGES))
    file: str | None = entry(schema.optional(schema.file_name), None)
    dims: int | None = entry(schema.optional(schema.whole(1)), None)
    ratio: int | None = entry(schema.optional(schema.whole(1)), None)

    def problems(self) -> list[str]:
        """List what does not fit between the fields."""
        found = []
        if self.file is not None and self.kind not in FITTED:
            found.append(f"post {self.kind} takes no `file`")
        if (self.ratio is None) == (self.kind == "embed-filter"):
            found.append(f"post {self.kind} {_takes(self.ratio)} `ratio`")
        if self.kind != "whiten" and (self.dims is None) == (self.kind == "truncate"):
            found.append(f"post {self.kind} {_takes(self.dims)} `dims`")
        return found


@dataclass(frozen=True)
class PublishedScore:
    """What a source reports for a method.

    Attributes:
        model: hub name of the model.
        sts: mean of the seven STS tasks, Spearman x 100; transfer: mean accuracy of the seven.
        harness: `senteval`, or `mteb`, whose numbers differ.
        source: paper or repository that reports it, where that is not the method's own.
    """

    model: str = entry(schema.text)
    sts: float | None = entry(schema.optional(schema.number), None)
    transfer: float | None = entry(schema.optional(schema.number), None)
    harness: str = entry(schema.one_of(*HARNESSES), "senteval")
    source: str | None = entry(schema.optional(schema.text), None)


@dataclass(frozen=True)
class Method:
    """A method of the one-word family.

    Attributes:
        name: name in the library of records, or of a file.
        prompts: their raw vectors are averaged, each text of a transform counting as one.
        about: one sentence.
        paper: arXiv number or address.
        layer: number of the `hidden_states` entry; None for the last one, after the final norm.
        pooling: name in `methods.pooling.POOLINGS`.
        copy, subtract, collect, slot: what happens along the depth; None for nothing.
        post: stages in their order.
        published: scores that sources report.
        unverified: what of the record is a reading of an unclear source; None where nothing is.
        folder: where the files are that the record names; not part of the JSON.
    """

    name: str = entry(schema.text)
    prompts: tuple[PromptView, ...] = entry(schema.several(PromptView.from_json))
    about: str | None = entry(schema.optional(schema.text), None)
    paper: str | None = entry(schema.optional(schema.text), None)
    layer: int | None = entry(schema.optional(schema.whole()), None)
    pooling: str = entry(schema.one_of(*POOLINGS), "last")
    copy: Copy | None = entry(schema.part(Copy), None)
    subtract: Subtract | None = entry(schema.part(Subtract), None)
    collect: Collect | None = entry(schema.part(Collect), None)
    slot: ExtraSlot | None = entry(schema.part(ExtraSlot), None)
    post: tuple[PostStage, ...] = entry(schema.several(schema.part(PostStage)), ())
    published: tuple[PublishedScore, ...] = entry(schema.several(schema.part(PublishedScore)), ())
    unverified: str | None = entry(schema.optional(schema.text), None)
    folder: Path | None = dataclasses.field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the record's file."""
        return schema.write(self)

    @classmethod
    def from_json(cls, fields: Any, source: str, folder: Path | None = None) -> Method:
        """Build a method from parsed JSON.

        Args:
            source: name of the file, for errors.
            folder: where the files are that the record names.
        Raises: UserError naming everything that is missing, unknown or does not fit.
        """
        problems: list[str] = []
        method = schema.read(cls, fields, "", problems)
        problems += [] if method is None else method.problems()
        if method is None or problems:
            raise UserError(f"method {source}: {'; '.join(problems)}")
        named = tuple(
            dataclasses.replace(view, template=_named(view.template, method.name, number))
            for number, view in enumerate(method.prompts, 1)
        )
        return dataclasses.replace(method, prompts=named, folder=folder)

    def problems(self) -> list[str]:
        """List what does not fit between the fields."""
        found = [] if self.prompts else ["prompts must hold one prompt or more"]
        parts = [self.subtract, *(view.transform for view in self.prompts), *self.post]
        found += [problem for item in parts if item for problem in item.problems()]
        found += _placeholder_problems(self)
        found += _together_problems(self)
        return found


def with_template(method: Method, template: Template) -> Method:
    """Return a method of one prompt with another template.

    Raises: UserError where it has several prompts, or marks a place in its own.
    """
    if len(method.prompts) > 1 or method.copy is not None:
        why = "marks a place in its prompt" if method.copy else "has several prompts"
        raise UserError(f"the method {method.name} {why}, so no template can take its place")
    prompts = tuple(dataclasses.replace(view, template=template) for view in method.prompts)
    return dataclasses.replace(method, prompts=prompts)


def one_template(method: Method) -> Template:
    """Return the template of a method that is a template and nothing else but a layer.

    Raises: UserError where it does more.
    """
    plain = Method(method.name, method.prompts, layer=method.layer, pooling=method.pooling)
    known = dataclasses.replace(method, about=None, paper=None, published=(), unverified=None)
    first, *more = method.prompts
    if more or first.transform or known != plain:
        raise UserError(f"the method {method.name} is more than one template, which is wanted here")
    return first.template


def _placeholder_problems(method: Method) -> list[str]:
    found = []
    for number, view in enumerate(method.prompts, 1):
        template, where = view.template, f"prompt {number}"
        marks = template.prefix.count(PLACEHOLDER)
        if PLACEHOLDER in template.suffix or marks > 1:
            found.append(f"{where} may hold {PLACEHOLDER} once, before the text")
        elif marks != (method.copy is not None):
            lacks = f"{where} holds no {PLACEHOLDER}, which `copy` writes to"
            found.append(f"{where} holds {PLACEHOLDER} without `copy`" if marks else lacks)
        elif marks and template.demonstrations:
            found.append(f"{where}: `copy` takes no demonstrations")
    return found


def _together_problems(method: Method) -> list[str]:
    """List the parts that exclude each other."""
    found = []
    if method.copy is not None and method.copy.exit < method.copy.start:
        found.append(f"copy.exit {method.copy.exit} is below start {method.copy.start}")
    if method.collect is not None and method.pooling != "last":
        found.append("collect reads the last token: pooling last")
    if method.collect is not None and method.layer is not None:
        found.append("collect and layer exclude each other: `collect.end` says where to stop")
    auxiliary = method.subtract and method.subtract.template
    if auxiliary and PLACEHOLDER in auxiliary.prefix + auxiliary.suffix:
        found.append(f"subtract.template may not hold {PLACEHOLDER}")
    return found


def _takes(value: object) -> str:
    return "needs" if value is None else "takes no"


def _named(template: Template, method: str, number: int) -> Template:
    if template.name != "given":
        return template
    return dataclasses.replace(template, name=f"{method}#{number}")
