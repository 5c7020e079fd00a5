"""A run from its first step to its last: steps, development scores, checkpoints, best weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from eval.sts.scores import development_score
from prompteol_jax import distributed
from prompteol_jax.distributed import Share
from prompteol_jax.embedder import Embedder
from prompteol_jax.errors import UserError
from prompteol_jax.methods.library import FILE as METHOD_FILE
from prompteol_jax.methods.library import plain_method, write_method
from prompteol_jax.ops.scan import Remat
from prompteol_jax.runtime import device_memory
from train.callbacks import NO_CALLBACKS, Callbacks
from train.config import TrainConfig
from train.data.batch_shape import choose_batch_shape
from train.data.collate import CollatedBatch, Collator
from train.data.needs import placeholders
from train.data.read import TrainingData
from train.data.sentences import Sentences, offsets_of
from train.flags import REMAT_WITH_FSDP
from train.optimizer import make_optimizer
from train.preemption import StopAgreement, Stopped
from train.remat_choice import ORDER, choose_remat, compiled
from train.resolve import ResolvedConfig
from train.run.card import write_card
from train.run.folder import DEV, RunFolder
from train.run.metrics import MetricsLog, StepTimes, step_record
from train.run.not_finite import not_finite
from train.run.say import say
from train.step import TrainState, TrainStep, abstract_batch, state_shardings
from train.trainable import make_trainable

Item = TypeVar("Item")


@dataclasses.dataclass
class RunStatus:
    """What a run knows of its scores; every checkpoint holds it with the state.

    Attributes:
        best: highest development score after a step, of the weights that are exported.
        dev_last: newest score; loss: loss of the newest step.
        worse: number of scores in a row below the best.
        remat: choice by mesh, so that a resumed run computes the same bits.
    """

    dev_before: float | None = None
    best: float | None = None
    best_step: int = 0
    dev_last: float | None = None
    loss: float | None = None
    worse: int = 0
    remat: dict[str, Remat] = dataclasses.field(default_factory=dict)


class Taken(NamedTuple):
    """A step that was started; its metrics may still be computed.

    Attributes:
        step: number of the step, from 1.
        state: valid until the next step is taken, which donates it.
    """

    step: int
    state: TrainState
    metrics: dict[str, jax.Array]
    batch: CollatedBatch


class Run:
    """One run, its model loaded; `run` takes it to its end, `steps` is the bare training."""

    def __init__(
        self,
        settings: ResolvedConfig,
        folder: RunFolder,
        data: TrainingData,
        callbacks: Callbacks = NO_CALLBACKS,
    ):
        self.settings, self.folder, self.dev = settings, folder, data.dev
        self.callbacks = callbacks
        flags, mesh = settings.flags, settings.mesh
        self.trainable = make_trainable(settings.model, mesh)
        if self.trainable.pretrained.fsdp and settings.remat == "none":
            raise UserError(REMAT_WITH_FSDP)
        self.embedder = Embedder(self.trainable.pretrained, settings.template)
        self.collate = self._collator()
        self.train_step = self._step()
        self.frozen = self._frozen()
        self.key = jax.random.key(flags.seed)
        self.agreement = StopAgreement(flags.save_minutes)
        self.checkpoints = folder.checkpoints(flags.keep)
        self.status, self.times = RunStatus(), StepTimes()

    def _collator(self) -> Any:
        """Return what makes batches of rows, always of one shape."""
        settings, flags = self.settings, self.settings.flags
        assert isinstance(flags, TrainConfig)
        share, loss = Share.of(settings.mesh), settings.loss
        sentences = Sentences(self.embedder.prompt, flags.cut, settings.columns)
        shape = choose_batch_shape(settings.batches, sentences, share, flags.chunks)
        offsets = offsets_of(loss.positions, self.embedder.prompt)
        return Collator(sentences, share, shape, loss.needs, offsets)

    def _step(self) -> TrainStep:
        settings, flags, trainable = self.settings, self.settings.flags, self.trainable
        optimizer = make_optimizer(settings.schedule, flags.optimizer, flags.weight_decay)
        return TrainStep(
            graph=trainable.graph,
            optimizer=optimizer,
            shardings=state_shardings(optimizer, trainable.start, settings.mesh),
            loss_function=settings.loss.function,
            shards=settings.mesh.shape["data"],
            chunks=flags.chunks,
            stochastic=trainable.stochastic,
            weights=trainable.pretrained.decoder.layers.largest_matrix,
        )

    def _frozen(self) -> Any:
        """Return what a step takes with its state and its batch."""
        return self.trainable.frozen

    def _abstract(self) -> tuple[Any, jax.ShapeDtypeStruct]:
        """Return placeholders of a batch and of its prefix."""
        shape, settings, watched = self.collate.shape, self.settings, len(self.collate.offsets)
        batch = abstract_batch(
            settings.mesh,
            shape.rows * self.train_step.shards,
            (shape.tokens, watched * shape.sentences),
            settings.flags.batch,
            watched * len(settings.columns),
            needs=placeholders(self.collate.needs, settings.batches.rows[0], settings.columns),
        )
        C = len(self.embedder.prompt.prefix_C) if shape.shared else 0
        return batch, jax.ShapeDtypeStruct((C,), np.int32)

    def _described(self) -> str:
        """Return the shape of a batch in words."""
        batch, prefix_C = self._abstract()
        rows, tokens = batch.rows.ids_BT.shape
        return f"{rows} rows of {tokens} tokens after a prefix of {len(prefix_C)}"

    def _method(self) -> str:
        """Return what the weights are trained by."""
        assert isinstance(self.settings.flags, TrainConfig)
        return f"contrastive, loss {self.settings.flags.loss}"

    def run(self) -> dict[str, Any]:
        """Take the remaining steps and return the result of the run, without its time.

        Raises: Stopped after SIGTERM, when everything is saved.
        """
        policy = self.settings.policy
        state = self._begin()
        self.checkpoints.prepare(state)
        first = int(state.step)
        with self.agreement, MetricsLog(self.folder.path, first, policy.steps) as log:
            if not policy.is_out_of_patience(self.status.worse):
                first = self._train(state, first, log)
        self.checkpoints.close()
        return {
            "dev_before": self.status.dev_before,
            "dev_after": self.status.best,
            "dev_last": self.status.dev_last,
            "best_step": self.status.best_step,
            "steps": first,
            "loss": self.status.loss,
        }

    def collated(self, first: int) -> Iterator[tuple[int, CollatedBatch]]:
        """Yield the batch of each step from `first`, counted from 0, to the last."""
        for step in range(first, len(self.settings.batches)):
            yield step, self.collate(self.settings.batches[step])

    def steps(
        self, state: TrainState, batches: Iterable[tuple[int, CollatedBatch]]
    ) -> Iterator[Taken]:
        """Take a step with each batch, all of them by the one program of the run."""
        program = self.program.result()
        self.times.restart()
        for step, batch in batches:
            with jax.set_mesh(self.settings.mesh):
                state, metrics = program(state, self.frozen, batch.batch, batch.prefix_C, self.key)
            yield Taken(step + 1, state, metrics, batch)

    @cached_property
    def program(self) -> Future:
        """The compiled step, begun in a thread when it is first asked for.

        It refuses arguments of another shape, so nothing is compiled later.
        """
        pool = ThreadPoolExecutor(1, "compile")
        future = pool.submit(self._compiled)
        pool.shutdown(wait=False)
        return future

    def best(self) -> Embedder:
        """Return the embedder with the weights that the run has exported."""
        self.folder.publish()
        distributed.wait_for_all("export")
        return Embedder(self.trainable.exported(self.folder.home), self.settings.template)

    def _begin(self) -> TrainState:
        """Return the state of the newest checkpoint, or the first state, scored.

        A run without --resume, or with it and without a checkpoint, begins at its first step. With
        a checkpoint it goes on from there; what the folder says of later steps is dropped. Weights
        that were exported after that checkpoint, perhaps not completely, count as none.
        """
        state = self.train_step.init(self.trainable.start)
        resume = self.settings.flags.resume
        if resume and self.checkpoints.steps():
            step, state, meta = self.checkpoints.restore(state)
            self.status = RunStatus(**meta)
            if self.folder.exported() > step:
                self.status = dataclasses.replace(self.status, best=None, best_step=0)
            self.folder.forget(after=step)
            return state
        if resume:
            say(f"{self.folder.home} holds no checkpoint yet: the run starts at its first step")
        self.folder.forget(after=-1)
        _ = self.program  # compiled while the development pairs are scored
        self.status.dev_before = self._score(state.trainable, 0)
        return state

    def _train(self, state: TrainState, first: int, log: MetricsLog) -> int:
        """Take steps `first` to the end and return the number of the last one.

        Metrics of a step are fetched while the next one runs.
        """
        policy, step, late, due = self.settings.policy, first, None, False
        for taken in self.steps(state, ahead(self.collated(first))):
            if late is not None:
                self._record(log, late)
            step, late = taken.step, taken
            signals = self.agreement.agree(writing=self.checkpoints.busy())
            act = policy.decide(step, signals, due=due)
            due = act.due
            if act.evaluate or act.save:
                # A checkpoint covers all steps up to its own, so their metrics come first.
                self._record(log, late)
                late = None
            if act.evaluate:
                self._evaluate(taken)
            over = policy.is_out_of_patience(self.status.worse)
            if act.save or over:
                self._save(taken)
            if late is None:
                self.times.restart()
            if over:
                break
            if act.stop:
                self.checkpoints.close()
                raise Stopped(f"step {step} of {policy.steps}")
        return step

    def _compiled(self) -> Any:
        """Compile the step for the shape of the run's batches."""
        known, mesh, flags = self.status.remat, self.settings.mesh, self.settings.flags
        fsdp = self.trainable.pretrained.fsdp
        say(f"compiling the step: {self._described()}")
        start = time.perf_counter()
        arguments = (
            self.train_step.abstract_state(self.trainable.start),
            self.frozen,
            *self._abstract(),
            self.key,
        )
        with jax.set_mesh(mesh):
            layout = f"{flags.mesh} --fsdp" if fsdp else flags.mesh
            remat = self.settings.remat or known.get(layout)
            if remat is None:
                # Without recomputation, the layers that --fsdp gathers would all be kept.
                order = ORDER[1:] if fsdp else ORDER
                fit = choose_remat(self.train_step, arguments, device_memory(), order)
                program, known[layout] = fit.program, fit.remat
                say(str(fit))
            else:
                program = compiled(self.train_step, remat, arguments)
        say(f"compiled in {time.perf_counter() - start:.1f} s")
        return program

    def _record(self, log: MetricsLog, taken: Taken) -> None:
        """Log a step, timed from the end of the one before.

        Raises: NotFinite with the step and its rows, for a loss that is not finite.
        """
        values = {name: float(x) for name, x in taken.metrics.items() if x.ndim == 0}
        seconds = self.times.step_done()
        if not all(map(math.isfinite, values.values())):
            settings = self.settings
            data = " ".join(settings.flags.sources)
            raise not_finite(self.folder, settings.batches, data, taken.step, taken.metrics)
        lr = float(self.settings.schedule(taken.step - 1))
        record = step_record(taken.step, values, lr, seconds, taken.batch)
        log.write(record)
        self.callbacks.on_step(record)
        self.times.padding.append(taken.batch.padding)
        self.status.loss = values["loss"]

    def _save(self, taken: Taken) -> None:
        jax.block_until_ready(taken.state)  # the last device ends after the one that gives metrics
        with self.times.saving():
            self.checkpoints.save(taken.step, taken.state, dataclasses.asdict(self.status))
        self.agreement.saved()

    def _evaluate(self, taken: Taken) -> None:
        """Score the weights and export them if they are the best so far; later ties win."""
        score, status = self._score(taken.state.trainable, taken.step), self.status
        status.dev_last = score
        if score is not None and status.best is not None and score < status.best:
            status.worse += 1
            return
        status.best, status.best_step, status.worse = score, taken.step, 0
        self.folder.begin_export(taken.step)
        folder = self.trainable.export(taken.state.trainable, self.folder.path)
        if distributed.is_primary():
            facts = {
                "method": self._method(),
                "step": f"{taken.step} of {self.settings.policy.steps}",
                "Spearman before": status.dev_before,
                "Spearman on the development pairs": score,
            }
            template = self.settings.template
            write_card(folder, self.settings.flags, template, facts)
            write_method(folder / METHOD_FILE, plain_method(template, "last", None))

    def _score(self, weights: PyTree, step: int) -> float | None:
        if self.dev is None:
            return None
        self.embedder.use(self.trainable.decoder(weights))
        score = development_score(self.embedder, self.dev, progress=False)
        self.folder.append(DEV, {"step": step, "dev": score})
        say(f"step {step}: development Spearman {score:.2f}")
        self.callbacks.on_score(step, score)
        return score


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, each of which a thread makes while the one before it is used."""
    rest = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(list, itertools.islice(rest, 1))
        while found := waiting.result():
            waiting = pool.submit(list, itertools.islice(rest, 1))
            yield found[0]
