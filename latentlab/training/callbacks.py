"""What happens beside training: progress, metrics, checkpoints, the test for finite numbers, evaluation, signals."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np

from latentlab import parallel
from latentlab.errors import UserError
from latentlab.model import Variables
from latentlab.storage.checkpoints import CheckpointableIterator, Checkpoints
from latentlab.storage.metrics import MetricsLog
from latentlab.training import interrupts
from latentlab.training.loop import LoopSchedule
from latentlab.training.progress import Progress
from latentlab.training.state import TrainState

StepMetrics = Mapping[str, np.ndarray]
"""Metrics of steps that follow one another, each (seeds, steps), on the host."""


class Callback:
    """What `fit` calls while it trains; a subclass overrides what it needs."""

    def __enter__(self) -> "Callback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def on_start(self, step: int, state: TrainState) -> None:
        """Handle the start of training, or of its rest, after `step` steps."""

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Handle the metrics of the next steps, in order."""

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Handle a checkpoint that is due, or the end of training, after `step` steps."""

    def on_evaluation(self, step: int, state: TrainState) -> None:
        """Handle a checkpoint that was written, before training goes on."""

    def stop_signal(self) -> int:
        """Return the number of the signal to stop for, 0 for none."""
        return 0


class CheckFinite(Callback):
    """Raise UserError at the first loss or weight that is NaN or infinite.

    It stands before `SaveCheckpoints`, so that no checkpoint has such weights.
    """

    def __init__(self, label: str, schedule: LoopSchedule) -> None:
        self.label, self.schedule = label, schedule
        self.arrived = self.good_step = 0

    def on_start(self, step: int, state: TrainState) -> None:
        """Remember where training begins."""
        self.arrived = self.good_step = step

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Check the losses."""
        loss = metrics["loss"]
        bad = np.argwhere(~np.isfinite(loss))
        if len(bad):
            seed, place = min(map(tuple, bad), key=lambda index: index[1])
            epoch, step = divmod(self.arrived + place, self.schedule.steps_per_epoch)
            where = f"seed {seed}, epoch {epoch + 1}, step {step + 1}"
            self._fail(f"the loss became {loss[seed, place]}", where)
        self.arrived += loss.shape[1]

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Check the weights."""
        for leaf in jax.tree.leaves(parallel.gather_to_host((state.params, state.batch_stats))):
            by_seed = leaf.reshape(len(leaf), -1) if state.step.ndim else leaf.reshape(1, -1)
            finite = np.isfinite(by_seed).all(axis=1)
            if not finite.all():
                where = f"seed {int(finite.argmin())}, epoch {-(-step // self.schedule.steps_per_epoch)}"
                self._fail("the weights became infinite or NaN", where)
        self.good_step = step

    def _fail(self, what: str, where: str) -> None:
        good = (
            f"the checkpoint of step {self.good_step} is the last good one"
            if self.good_step
            else "there is no checkpoint yet"
        )
        raise UserError(f"{self.label}: {what} at {where}; {good}; a smaller --learning-rate may help")


class RecordMetrics(Callback):
    """Append a row to the metrics for every epoch and seed, and show progress.

    Attributes:
        unfinished: Metrics of the steps of an epoch that is not over; part of a checkpoint.
        log: Called with lines of progress where there is no terminal.
    """

    def __init__(
        self,
        label: str,
        schedule: LoopSchedule,
        metrics: MetricsLog,
        unfinished: Mapping[str, Any] | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.label, self.schedule, self.metrics, self.log = label, schedule, metrics, log
        self.unfinished = {name: np.asarray(values) for name, values in (unfinished or {}).items()}
        self.epoch = 0
        self.progress: Progress | None = None

    def on_start(self, step: int, state: TrainState) -> None:
        """Open the progress bar."""
        self.epoch = step // self.schedule.steps_per_epoch
        images = self.schedule.steps_per_epoch * self.schedule.batch_size
        images = (images if self.schedule.drop_remainder else self.schedule.examples) * state.step.size
        self.progress = Progress(self.label, self.schedule.epochs, self.epoch, images, self.log)

    def on_metrics(self, metrics: StepMetrics) -> None:
        """Add the steps to those of the epoch, and write the epochs that are complete."""
        steps, before = self.schedule.steps_per_epoch, self.unfinished
        columns = {
            name: np.concatenate([before[name], value], axis=1) if name in before else value
            for name, value in metrics.items()
        }
        complete = columns["loss"].shape[1] // steps * steps
        if complete:
            self._write({name: value[:, :complete] for name, value in columns.items()})
        self.unfinished = {name: value[:, complete:] for name, value in columns.items()}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress:
            self.progress.close()

    def _write(self, columns: StepMetrics) -> None:
        means = {name: self.schedule.epoch_means(value) for name, value in columns.items()}
        seeds, epochs = means["loss"].shape
        rate = self.progress.update(self.epoch + epochs, float(means["loss"][:, -1].mean())) if self.progress else 0.0
        for offset in range(epochs):
            for seed in range(seeds):
                row = {name: float(mean[seed, offset]) for name, mean in means.items()}
                place = {"model": self.label, "epoch": self.epoch + offset + 1, "seed": seed}
                self.metrics.append({**place, **row, "images_per_second": rate})
        self.epoch += epochs


class SaveCheckpoints(Callback):
    """Write the state, the position of the batches and the metrics of an unfinished epoch at every checkpoint."""

    def __init__(
        self, checkpoints: Checkpoints, recorder: RecordMetrics, batches: CheckpointableIterator | None = None
    ) -> None:
        self.checkpoints, self.recorder, self.batches = checkpoints, recorder, batches

    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """Write the checkpoint of a step."""
        unfinished = step % self.recorder.schedule.steps_per_epoch
        extra = {name: value.tolist() for name, value in self.recorder.unfinished.items()} if unfinished else {}
        self.checkpoints.save(step, state, self.batches, extra)


class Evaluate(Callback):
    """Append the metrics of held-out images at every checkpoint, one number a seed each, named `test_…`."""

    def __init__(
        self,
        label: str,
        schedule: LoopSchedule,
        metrics: MetricsLog,
        evaluate: Callable[[Variables], Mapping[str, np.ndarray]],
    ) -> None:
        self.label, self.schedule, self.metrics, self.evaluate = label, schedule, metrics, evaluate

    def on_start(self, step: int, state: TrainState) -> None:
        """Evaluate a checkpoint that a killed run had written but not evaluated."""
        epoch = step // self.schedule.steps_per_epoch
        rows = [row for row in self.metrics.rows() if row["model"] == self.label and row["epoch"] == epoch]
        if self.schedule.is_checkpoint(step) and not any(name.startswith("test_") for row in rows for name in row):
            self.on_evaluation(step, state)

    def on_evaluation(self, step: int, state: TrainState) -> None:
        """Evaluate the state and append a row a seed."""
        epoch = step // self.schedule.steps_per_epoch
        for name, values in self.evaluate(state.variables).items():
            for seed, value in enumerate(np.atleast_1d(parallel.gather_to_host(values))):
                self.metrics.append({"model": self.label, "epoch": epoch, "seed": seed, f"test_{name}": float(value)})


class StopOnSignal(Callback):
    """Stop between calls for a signal that the command line caught, in all processes of a run at the same step."""

    def __enter__(self) -> "Callback":
        self._deferral = interrupts.defer()
        self._pending = self._deferral.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deferral.__exit__(kind, error, trace)

    def stop_signal(self) -> int:
        """Return the signal that any process has got."""
        return max(parallel.all_gather(self._pending.number or 0))
