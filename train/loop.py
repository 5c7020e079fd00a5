"""The loop: steps, development scores, checkpoints, and the best weights kept."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from eval.sts.scores import development_score
from eval.sts.tasks import Pairs
from prompteol_jax import distributed
from prompteol_jax.distributed import Share
from prompteol_jax.embedder import Embedder
from prompteol_jax.ops.scan import Remat
from prompteol_jax.text.template import read_template
from train.config import TrainConfig
from train.data.collate import Collator, make_batches
from train.data.triplets import Batches, Triplet
from train.preemption import StopAgreement, Stopped
from train.remat_choice import choose_remat, device_memory
from train.run.folder import DEV, RunFolder
from train.run.metrics import MetricsLog, say
from train.run.not_finite import not_finite
from train.step import TrainState, TrainStep, make_optimizer, state_places
from train.trainable import Trainable, make_trainable


@dataclasses.dataclass
class Standing:
    """What a run knows of itself beside its state; every checkpoint holds it.

    Attributes:
        best: highest development score after a step, of the weights that are exported.
        dev_last: the newest score; loss: of the newest step.
        worse: scores in a row below the best.
        remat: chosen by mesh, so that a resumed run computes the same bits.
    """

    dev_before: float | None = None
    best: float | None = None
    best_step: int = 0
    dev_last: float | None = None
    loss: float | None = None
    worse: int = 0
    remat: dict[str, Remat] = dataclasses.field(default_factory=dict)


class Run:
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
        share = Share.of(self.mesh)
        self.assemble = Collator(
            self.embedder.prompt, share, distributed.Channel("batch"), config.cut, config.chunks
        )
        warmup = config.warmup_steps
        warmup = min(100, self.steps // 10) if warmup is None else warmup
        optimizer, self.schedule = make_optimizer(config.lr, self.steps, warmup)
        self.learner = TrainStep(
            trainable.graph,
            optimizer,
            state_places(optimizer, trainable.start, self.mesh),
            self.mesh.shape["data"],
            config.chunks,
            "none" if config.remat == "auto" else config.remat,
            stochastic=pretrained.config.dropout > 0 or (not config.full and config.dropout > 0),
        )
        self.pulse = StopAgreement(config.save_minutes)
        self.done = 0
        self.owed = False  # a save that fell due while another was being written
        # What the closing line tells: seconds of steps, seconds they waited for saves, padding.
        self.steps_s: list[float] = []
        self.saving_s: list[float] = []
        self.padding: list[float] = []
        self.checkpoints = folder.checkpoints(config.keep)
        self.key = jax.random.key(config.seed)
        self.standing = Standing()

    def run(self) -> dict[str, Any]:
        """Take the remaining steps; the result of the run without its wall time.

        Raises: Stopped after SIGTERM, once everything is saved.
        """
        state = self._begin()
        self.checkpoints.prepare(state)
        self.done = first = int(state.step)
        with self.pulse, MetricsLog(self.folder.path, first, self.steps) as log:
            if not self._patience_is_over():
                self._advance(state, first, log)
        self.checkpoints.close()
        return {
            "dev_before": self.standing.dev_before,
            "dev_after": self.standing.best,
            "dev_last": self.standing.dev_last,
            "best_step": self.standing.best_step,
            "steps": self.done,
            "loss": self.standing.loss,
        }

    def best(self) -> Embedder:
        """The embedder, with the weights that the run has exported."""
        self.folder.publish()
        distributed.wait_for_all("export")
        best = self.trainable.exported(self.folder.home)
        return Embedder(best, self.embedder.template)

    def remarks(self) -> str:
        """What this process's steps were spent on, for the end of a run; empty without steps."""
        if not self.steps_s:
            return ""
        longest, step_s = max(self.saving_s, default=0.0), float(np.median(self.steps_s))
        return (
            f"padding: {np.mean(self.padding):.1%} of the tokens computed\n"
            f"saves: {len(self.saving_s)}, the longest held a step up for {longest:.3f} s "
            f"({longest / step_s:.1%} of a step)\n"
        )

    def _begin(self) -> TrainState:
        """The state of the newest checkpoint, or the first one, scored."""
        state = self.learner.init(self.trainable.start)
        if self.config.resume and self.checkpoints.steps():
            step, state, meta = self.checkpoints.restore(state)
            self.standing = Standing(**meta)
            if self.folder.exported() > step:
                # The weights of a later step, or half of them, took the place of the best ones.
                self.standing = dataclasses.replace(self.standing, best=None, best_step=0)
            self.folder.forget(after=step)
            return state
        if self.config.resume:
            say(f"{self.folder.home} holds no checkpoint yet: the run starts at its first step")
        self.folder.forget(after=-1)
        self.standing.dev_before = self._score(state.trainable, 0)
        return state

    def _advance(self, state: TrainState, first: int, log: MetricsLog) -> None:
        """Steps `first` to the end; metrics are fetched one step late, while the next one runs."""
        waiting = None
        self._clock = time.perf_counter()
        for step, assembled, triplets in self._prefetched(first):
            batch, prefix_C = assembled.batch, assembled.prefix_C
            arguments = (state, self.trainable.frozen, batch, prefix_C, self.key)
            with jax.set_mesh(self.mesh):
                if step == first:
                    self._choose_remat(arguments)
                state, metrics = self.learner.step(*arguments)
            if waiting is not None:
                self._record(log, *waiting)
            waiting = (step, metrics, triplets, assembled.padding)
            self.done = step + 1
            stop, due, writing = self.pulse.beat(writing=self.checkpoints.busy())
            judged = self._is_time(self.config.eval_every)
            # A save that need not be now lets the one before it finish, and the steps go on.
            self.owed = self.owed or due or self._is_time(self.config.save_every)
            saved = stop or self.done == self.steps or (self.owed and not writing)
            if judged or saved:
                # A checkpoint stands for all steps up to its own, so their metrics come first.
                self._record(log, *waiting)
                waiting = None
            if judged:
                self._judge(state.trainable, self.done)
            over = self._patience_is_over()
            if saved or over:
                self._save(state)
            if judged or saved:
                self._clock = time.perf_counter()
            if over:
                return
            if stop and self.done < self.steps:
                self.checkpoints.close()
                raise Stopped(f"step {self.done} of {self.steps}")

    def _choose_remat(self, arguments: tuple) -> None:
        if self.config.remat != "auto":
            return
        known, mesh = self.standing.remat, self.config.mesh
        if mesh not in known:
            fit = choose_remat(self.learner, arguments, device_memory())
            known[mesh] = fit.remat
            say(str(fit))
        self.learner = dataclasses.replace(self.learner, remat=known[mesh])

    def _is_time(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.steps

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.standing.worse >= self.config.patience

    def _save(self, state: TrainState) -> None:
        jax.block_until_ready(
            state
        )  # the last device ends a step behind the one that gives metrics
        start = time.perf_counter()
        self.checkpoints.save(self.done, state, dataclasses.asdict(self.standing))
        self.pulse.saved()
        self.owed = False
        self.saving_s.append(time.perf_counter() - start)

    def _prefetched(self, first: int) -> Iterator[tuple]:
        """Batches from `first` on, each assembled in a thread while the one before is computed."""

        def assemble(step: int) -> tuple:
            triplets = self.batches[step]
            return step, self.assemble(triplets), triplets

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(assemble, first) if first < self.steps else None
            for step in range(first, self.steps):
                ready = waiting.result()
                waiting = pool.submit(assemble, step + 1) if step + 1 < self.steps else None
                yield ready

    def _record(
        self, log: MetricsLog, step: int, metrics: dict, triplets: Sequence, padding: float
    ) -> None:
        """Log a step, timed from the end of the one before; a loss that is not finite ends the run.

        Raises: NotFinite with the step and its rows.
        """
        values = {name: float(metrics[name]) for name in ("loss", "accuracy", "grad_norm")}
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        if not all(map(math.isfinite, values.values())):
            raise not_finite(self.folder, self.batches, self.config.data, step, metrics)
        roles = 2 if triplets[0].hard_neg is None else 3
        sentences = self.config.batch * roles
        log.write(
            {
                "step": step + 1,
                "loss": values["loss"],
                "accuracy": values["accuracy"],
                "lr": float(self.schedule(step)),
                "grad_norm": values["grad_norm"],
                "step_s": seconds,
                "sentences_per_s": sentences / seconds,
                "padding": padding,
            }
        )
        self.steps_s.append(seconds)
        self.padding.append(padding)
        self.standing.loss = values["loss"]

    def _judge(self, weights: PyTree, step: int) -> None:
        """Score the weights and keep them if they are the best so far; later ties win."""
        score = self._score(weights, step)
        now = self.standing
        now.dev_last = score
        if score is not None and now.best is not None and score < now.best:
            now.worse += 1
            return
        now.best, now.best_step, now.worse = score, step, 0
        self.folder.begin_export(step)
        self.trainable.export(weights, self.folder.path, self.config.model)

    def _score(self, weights: PyTree, step: int) -> float | None:
        if self.dev is None:
            return None
        self.embedder.use(self.trainable.decoder(weights))
        score = development_score(self.embedder, self.dev, progress=False)
        self.folder.append(DEV, {"step": step, "dev": score})
        return score


def make_run(
    config: TrainConfig, mesh: Mesh, triplets: Sequence[Triplet], dev: Pairs | None
) -> Run:
    """The run of these flags before its first step, its model loaded; nothing is written yet."""
    chosen = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    config = dataclasses.replace(config, dtype=config.dtype or chosen)
    folder, batches = RunFolder.find(config), make_batches(config, triplets, Share.of(mesh))
    return Run(config, folder, make_trainable(config, mesh), batches, dev)
