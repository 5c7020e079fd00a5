"""`--final-eval`: the best weights of a run, scored on all STS tasks as `eval.sts` does."""

from __future__ import annotations

from collections.abc import Sequence

from eval.shared import results
from eval.sts import command as sts
from eval.sts import report
from eval.sts.tasks import Task
from prompteol_jax import distributed
from prompteol_jax.embedder import Embedder
from train.flags import RunConfig
from train.run.folder import RunFolder


def final_scores(
    flags: RunConfig, embedder: Embedder, tasks: Sequence[Task], folder: RunFolder
) -> dict[str, float]:
    """Score an embedder on the tasks, write RUN/sts.json, and return the scores and the average."""
    file = folder.path / "sts.json"
    assert flags.dev is not None  # --final-eval needs it
    options = sts.StsOptions(
        model=flags.model,
        adapter=None if flags.full else str(folder.home),
        template=flags.template,
        mesh=flags.mesh,
        dtype=flags.dtype,
        data=flags.dev,
        json=file,
    )
    result, _ = sts.score(embedder, tasks, options)
    if distributed.is_primary():
        report.print_scores(result)
        results.write(file, result)
    return {**result["scores"], "average": result["average"]}
