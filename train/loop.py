"""The loop: steps, development scores, checkpoints, and the best weights kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from eval.scores import development_score
from eval.tasks import Pairs
from prompteol_jax.embedder import Embedder
from prompteol_jax.template import read_template
from train.batches import Assembler
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.data import Batches, Triplet
from train.learning import Trainable
from train.metrics import MetricsLog
from train.run_folder import DEV, RunFolder
from train.step import Learner, TrainState, make_optimizer, state_places


def compute_dtype(config: TrainConfig) -> Any:
    """The dtype asked for, or float32 on a CPU and bfloat16 on an accelerator."""
    if config.dtype is not None:
        return jnp.dtype(config.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


@dataclasses.dataclass
class Standing:
    """What a run knows of itself beside its state; every checkpoint holds it.

    Attributes:
        best: highest development score after a step, of the weights that are exported.
        dev_last: the newest score; loss: of the newest step.
    """

    dev_before: float | None = None
    best: float | None = None
    best_step: int = 0
    dev_last: float | None = None
    loss: float | None = None


class Course:
    """One run from its first step, or the one it is resumed at, to its last."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        trainable: Trainable,
        batches: Batches,
        dev: Pairs | None,
    ):
        self.config, self.folder, self.trainable = config, folder, trainable
        self.batches, self.dev = batches, dev
        pretrained = trainable.pretrained
        self.mesh, self.steps = pretrained.mesh, len(batches)
        self.embedder = Embedder(pretrained, read_template(config.template))
        self.assemble = Assembler(self.embedder.prompt, self.mesh, config.cut, config.chunks)
        warmup = config.warmup_steps
        warmup = min(100, self.steps // 10) if warmup is None else warmup
        optimizer, self.schedule = make_optimizer(config.lr, self.steps, warmup)
        self.learner = Learner(
            trainable.graph,
            optimizer,
            state_places(optimizer, trainable.start, self.mesh),
            config.chunks,
            config.remat,
            stochastic=pretrained.config.dropout > 0 or (not config.full and config.dropout > 0),
        )
        self.checkpoints = Checkpoints(folder.path / "checkpoints", keep=config.keep)
        self.key = jax.random.key(config.seed)
        self.standing = Standing()

    def run(self) -> dict[str, Any]:
        """Take the remaining steps; the result of the run without its wall time."""
        state = self._begin()
        first = int(state.step)
        with MetricsLog(self.folder.path, first, self.steps) as log:
            self._advance(state, first, log)
        self.checkpoints.close()
        return {
            "dev_before": self.standing.dev_before,
            "dev_after": self.standing.best,
            "dev_last": self.standing.dev_last,
            "best_step": self.standing.best_step,
            "steps": self.steps,
            "loss": self.standing.loss,
        }

    def _begin(self) -> TrainState:
        """The state of the newest checkpoint, or the first one, scored."""
        state = self.learner.init(self.trainable.start)
        if self.config.resume and self.checkpoints.steps():
            step, state, meta = self.checkpoints.restore(state)
            self.standing = Standing(**meta)
            self.folder.forget(after=step)
            return state
        self.folder.forget(after=-1)
        self.standing.dev_before = self._score(state.trainable, 0)
        return state

    def _advance(self, state: TrainState, first: int, log: MetricsLog) -> None:
        """Steps `first` to the end; metrics are fetched one step late, while the next one runs."""
        waiting = None
        self._clock = time.perf_counter()
        for step, batch, prefix_C, triplets in self._prefetched(first):
            with jax.set_mesh(self.mesh):
                state, metrics = self.learner.step(
                    state, self.trainable.frozen, batch, prefix_C, self.key
                )
            if waiting is not None:
                self._record(log, *waiting)
            waiting = (step, metrics, triplets)
            done = step + 1
            judged = done % self.config.eval_every == 0 or done == self.steps
            saved = done % self.config.save_every == 0 or done == self.steps
            if judged or saved:
                # A checkpoint stands for all steps up to its own, so their metrics come first.
                self._record(log, *waiting)
                waiting = None
            if judged:
                self._judge(state.trainable, done)
            if saved:
                self.checkpoints.save(done, state, dataclasses.asdict(self.standing))
            if judged or saved:
                self._clock = time.perf_counter()

    def _prefetched(self, first: int) -> Iterator[tuple]:
        """Batches from `first` on, each assembled in a thread while the one before is computed."""

        def assemble(step: int) -> tuple:
            triplets = self.batches[step]
            batch, prefix_C, _ = self.assemble(triplets)
            return step, batch, prefix_C, triplets

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(assemble, first) if first < self.steps else None
            for step in range(first, self.steps):
                ready = waiting.result()
                waiting = pool.submit(assemble, step + 1) if step + 1 < self.steps else None
                yield ready

    def _record(self, log: MetricsLog, step: int, metrics: dict, triplets: Sequence) -> None:
        """Log a step, timed from the end of the one before; a loss that is not finite ends the run.

        Raises: FloatingPointError with the step and the first rows of its batch.
        """
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        if not all(map(math.isfinite, values.values())):
            rows = "; ".join(repr(triplet.sent0[:80]) for triplet in triplets[:3])
            raise FloatingPointError(
                f"step {step + 1}: loss {values['loss']}, gradient norm {values['grad_norm']}. "
                f"Its batch begins with {rows}. A lower --lr or --dtype float32 may help."
            )
        sentences = len(triplets) * (2 if triplets[0].hard_neg is None else 3)
        log.write(
            {
                "step": step + 1,
                "loss": values["loss"],
                "accuracy": values["accuracy"],
                "lr": float(self.schedule(step)),
                "grad_norm": values["grad_norm"],
                "step_s": seconds,
                "sentences_per_s": sentences / seconds,
            }
        )
        self.standing.loss = values["loss"]

    def _judge(self, weights: PyTree, step: int) -> None:
        """Score the weights and keep them if they are the best so far; later ties win."""
        score = self._score(weights, step)
        now = self.standing
        now.dev_last = score
        if score is None or now.best is None or score >= now.best:
            now.best, now.best_step = score, step
            self.trainable.export(weights, self.folder.path, self.config.model)

    def _score(self, weights: PyTree, step: int) -> float | None:
        if self.dev is None:
            return None
        self.embedder.use(self.trainable.decoder(weights))
        score = development_score(self.embedder, self.dev, progress=False)
        self.folder.append(DEV, {"step": step, "dev": score})
        return score


def make_batches(config: TrainConfig, triplets: Sequence[Triplet]) -> Batches:
    """The batches of the run: those of its epochs, or of `--steps` steps."""
    epochs = config.epochs
    if config.steps is not None:
        epochs = config.steps / max(1, len(triplets) // config.batch)
    return Batches(triplets, batch=config.batch, epochs=epochs, seed=config.seed)
