"""The loop: steps, development scores, checkpoints, and the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

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
from train.run_folder import RunFolder
from train.step import Learner, TrainState, make_optimizer


def compute_dtype(config: TrainConfig) -> Any:
    """The dtype asked for, or float32 on a CPU and bfloat16 on an accelerator."""
    if config.dtype is not None:
        return jnp.dtype(config.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


class Course:
    """One run from its first step, or the one it is resumed at, to its last."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        trainable: Trainable,
        mesh: Mesh,
        triplets: Sequence[Triplet],
        dev: Pairs | None,
    ):
        self.config, self.folder, self.trainable, self.dev = config, folder, trainable, dev
        pretrained = trainable.pretrained
        self.embedder = Embedder(pretrained, read_template(config.template))
        self.batches = Batches(
            triplets, batch=config.batch, epochs=_epochs(config, len(triplets)), seed=config.seed
        )
        self.steps = min(len(self.batches), config.steps or len(self.batches))
        self.assemble = Assembler(self.embedder.prompt, mesh, config.cut, config.chunks)
        warmup = config.warmup_steps
        warmup = min(100, self.steps // 10) if warmup is None else warmup
        optimizer, self.schedule = make_optimizer(config.lr, self.steps, warmup)
        stochastic = pretrained.config.dropout > 0 or (not config.full and config.dropout > 0)
        self.learner = Learner(trainable.graph, optimizer, config.chunks, config.remat, stochastic)
        self.checkpoints = Checkpoints(folder.path / "checkpoints", keep=config.keep)
        self.key = jax.random.key(config.seed)
        self.mesh = mesh
        self.dev_before: float | None = None
        self.best: float | None = None
        self.best_step = 0

    def run(self) -> dict[str, Any]:
        """Take the remaining steps; the result of the run without its wall time."""
        with jax.set_mesh(self.mesh):
            state = self._begin()
            first = int(state.step)
            with MetricsLog(self.folder.path, first, self.steps) as log:
                state, loss, last = self._advance(state, first, log)
            self.checkpoints.close()
        return {
            "dev_before": self.dev_before,
            "dev_after": last if self.best is None else self.best,
            "dev_last": last,
            "best_step": self.best_step,
            "steps": self.steps,
            "loss": loss,
            "exported": str(self._exported),
        }

    def _begin(self) -> TrainState:
        """The state of the newest checkpoint, or the first one, scored."""
        state = self.learner.init(self.trainable.start)
        if self.config.resume and self.checkpoints.steps():
            step, state, meta = self.checkpoints.restore(state)
            self.dev_before, self.best, self.best_step = (
                meta[k] for k in ("dev_before", "best", "best_step")
            )
            for name in ("metrics.jsonl", "dev.jsonl"):
                self.folder.forget(name, step)
            return state
        for name in ("metrics.jsonl", "dev.jsonl"):
            self.folder.forget(name, -1)
        self.dev_before = self._score(state.trainable, 0)
        return state

    def _advance(
        self, state: TrainState, first: int, log: MetricsLog
    ) -> tuple[TrainState, float, float | None]:
        """Steps `first` to the end; metrics are fetched one step late, while the next one runs."""
        loss, last, waiting = math.nan, self.best, None
        clock = time.perf_counter()
        for step, batch, prefix_C, triplets in self._prefetched(first):
            state, metrics = self.learner.step(
                state, self.trainable.frozen, batch, prefix_C, self.key
            )
            if waiting is not None:
                loss = self._record(log, *waiting)
            now = time.perf_counter()
            waiting = (step, metrics, triplets, now - clock)
            clock = now
            done = step + 1
            if done % self.config.eval_every == 0 or done == self.steps:
                loss, waiting = self._record(log, *waiting), None
                last = self._judge(state.trainable, done)
                clock = time.perf_counter()
            if done % self.config.save_every == 0 or done == self.steps:
                self.checkpoints.save(done, state, self._meta(done))
        return state, loss, last

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

    def _record(
        self, log: MetricsLog, step: int, metrics: dict, triplets: Sequence, seconds: float
    ) -> float:
        """Log a step; a loss that is not finite ends the run.

        Raises: FloatingPointError with the step and the first rows of its batch.
        """
        values = {name: float(value) for name, value in metrics.items()}
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
                **values,
                "lr": float(self.schedule(step)),
                "step_s": seconds,
                "sentences_per_s": sentences / seconds,
            }
        )
        return values["loss"]

    def _judge(self, weights: nnx.State, step: int) -> float | None:
        """Score the weights and keep them if they are the best so far; later ties win."""
        score = self._score(weights, step)
        if score is None or self.best is None or score >= self.best:
            self.best, self.best_step = score, step
            self.trainable.export(weights, self.folder.path, self.config.model)
        return score

    def _score(self, weights: nnx.State, step: int) -> float | None:
        if self.dev is None:
            return None
        self.embedder.use(self.trainable.decoder(weights))
        score = development_score(self.embedder, self.dev)
        self.folder.append("dev.jsonl", {"step": step, "dev": score})
        return score

    def _meta(self, step: int) -> dict[str, Any]:
        return {
            "position": step,
            "dev_before": self.dev_before,
            "best": self.best,
            "best_step": self.best_step,
        }

    @property
    def _exported(self) -> Any:
        return self.folder.path / ("model" if self.config.full else "adapter")


def _epochs(config: TrainConfig, rows: int) -> float:
    """Enough epochs for the steps asked for."""
    if config.steps is None:
        return config.epochs
    return config.steps / max(1, rows // config.batch)
