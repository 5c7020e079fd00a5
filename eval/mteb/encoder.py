"""An `Embedder` as an encoder of MTEB. Only this module imports mteb, which is an extra."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from prompteol_jax.embedder import Embedder
from prompteol_jax.errors import Unreachable, UserError
from prompteol_jax.methods.library import describe
from prompteol_jax.methods.record import Method
from prompteol_jax.pretrained import provenance
from prompteol_jax.text import template

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta


class MtebEncoder:
    """An encoder as MTEB's protocol has it, with one model and a prompt per type of task.

    Args:
        embedder: Model with the template or method of every task that `prompts` does not name.
        prompts: Templates and methods by type and side, such as `Retrieval:query` or
            `Retrieval:document`, by type, `Retrieval`, or by side, `query` or `document`; the first
            of these is taken.
        clean: Whether the original's rules of punctuation are applied first.
    """

    def __init__(
        self,
        embedder: Embedder,
        prompts: Mapping[str, template.Template | Method] | None = None,
        *,
        clean: bool = True,
    ):
        self.embedder, self.clean = embedder, clean
        self.prompts = dict(prompts or {})
        self._by_task = {
            key: embedder.with_method(chosen)
            if isinstance(chosen, Method)
            else embedder.with_template(chosen)
            for key, chosen in self.prompts.items()
        }

    def embedder_for(self, task_type: str, side: str | None) -> Embedder:
        """Return the embedder whose prompt is meant for a type of task and one of its sides."""
        for key in (f"{task_type}:{side}", task_type, str(side)):
            if key in self._by_task:
                return self._by_task[key]
        return self.embedder

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        show_progress_bar: bool = True,
        **_: Any,
    ) -> Float[np.ndarray, "n D"]:
        """Encode the texts of all batches in one call: how they were batched changes no bit."""
        texts = [text for batch in inputs for text in batch["text"]]
        if self.clean:
            texts = [template.clean_sentence(text) for text in texts]
        side = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        chosen = self.embedder_for(task_metadata.type, side)
        return chosen.encode(texts, progress=None if show_progress_bar else False)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, "n m"]:
        """Compute the cosine of every vector on one side with every one on the other."""
        sides = [np.atleast_2d(np.asarray(z)) for z in (embeddings1, embeddings2)]
        return self.embedder.similarity(*sides)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Float[np.ndarray, " n"]:
        """Compute the cosine of each vector with its partner."""
        from eval.sts import scores

        return scores.cosine(np.asarray(embeddings1), np.asarray(embeddings2)).astype(np.float32)

    @functools.cached_property
    def revision(self) -> str:
        """Revision of the weights, with a digest of everything that decides the scores.

        MTEB keeps results by name and revision, so one folder serves any number of settings.
        """
        described = self.embedder.describe()
        prompts = describe_prompts(self.prompts)
        given = {"clean": self.clean, "templates": prompts["task_templates"]}
        methods = prompts["task_methods"]
        digest = provenance.digest(described, given | ({"methods": methods} if methods else {}))
        return f"{described['model']['revision'] or 'local'}-{digest[:16]}"

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Record of the model for MTEB; its name there is ours with the template's."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        model = self.embedder.describe()["model"]
        owner, _, last = model["name"].rstrip("/").rpartition("/")
        owner = owner.split("/")[-1] or "local"
        return ModelMeta.create_empty(
            {
                "name": f"{owner}/{last}-{self.embedder.template.name}",
                "revision": self.revision,
                "embed_dim": self.embedder.width,
                "max_tokens": self.embedder.max_tokens,
                "similarity_fn_name": ScoringFunction.COSINE,
                "framework": ["JAX"],
            }
        )


def describe_prompts(prompts: Mapping[str, template.Template | Method]) -> dict[str, Any]:
    """Return templates and methods by task, for a result file."""
    found: dict[str, Any] = {"task_templates": {}, "task_methods": {}}
    for key, chosen in prompts.items():
        if isinstance(chosen, Method):
            found["task_methods"][key] = describe(chosen)
        else:
            found["task_templates"][key] = chosen.to_json()
    return found


def find_tasks(names: Sequence[str]) -> list[AbsTask]:
    """Find tasks of MTEB by name.

    Raises: UserError naming all unknown names, each with the nearest known ones.
    """
    import mteb

    tasks, unknown = [], []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError:
            unknown.append(name)
    if unknown:
        known = [task.metadata.name for task in mteb.get_tasks()]
        nearest = [", ".join(difflib.get_close_matches(name, known)) for name in unknown]
        lines = [f"{a!r} (nearest: {b or 'none'})" for a, b in zip(unknown, nearest, strict=True)]
        raise UserError(f"MTEB has no task {'; '.join(lines)}")
    return tasks


def run_tasks(
    encoder: MtebEncoder, tasks: Sequence[AbsTask], folder: Path | None
) -> dict[str, dict[str, Any]]:
    """Run tasks and return for each its `score` (100 x MTEB's main score) and all its numbers.

    Args:
        folder: Folder for MTEB's result files, whose results of `encoder.revision` are used again.
    Raises: Unreachable for data that could not be fetched, with the task's name.
    """
    import mteb
    from mteb.cache import ResultCache

    found = {}
    for task in tasks:
        name = task.metadata.name
        try:
            cache = None if folder is None else ResultCache(folder)
            # An encoder of MTEB's protocol, whose signatures name types of MTEB.
            model: Any = encoder
            outcome = mteb.evaluate(model, task, cache=cache, co2_tracker=False)
        except (ConnectionError, OSError) as error:
            raise Unreachable(
                f"could not download the data of {name} from the Hugging Face hub: "
                f"{str(error).splitlines()[0]}"
            ) from error
        (result,) = outcome.task_results
        found[name] = {
            "type": task.metadata.type,
            "score": round(100 * float(result.get_score()), 2),
            "detail": result.to_dict(),
        }
    return found
