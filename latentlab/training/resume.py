"""Training with everything beside it, from the newest checkpoint where there is one."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from latentlab.model import Variables
from latentlab.storage.checkpoints import CheckpointableIterator, Checkpoints
from latentlab.storage.metrics import MetricsLog
from latentlab.training.callbacks import (
    Callback,
    CheckFinite,
    Evaluate,
    RecordMetrics,
    SaveCheckpoints,
    StopOnSignal,
)
from latentlab.training.loop import LoopSchedule, TrainSteps, fit
from latentlab.training.state import TrainState


def train_with_checkpoints(
    state: TrainState,
    train_steps: TrainSteps,
    schedule: LoopSchedule,
    *,
    label: str,
    metrics: MetricsLog,
    evaluate: Callable[[Variables], Mapping[str, np.ndarray]],
    checkpoint_dir: Path | None = None,
    batches: CheckpointableIterator | None = None,
    log: Callable[[str], None] = print,
) -> TrainState:
    """Train until the schedule ends, from the newest checkpoint or else from `state`.

    Args:
        state: State before training.
        train_steps: `resident_train_steps` or `streaming_train_steps`.
        schedule: How long to train.
        label: Name of the model in metrics and messages.
        metrics: Where rows of epochs are appended; those after the checkpoint are removed first.
        evaluate: Variables to metrics of held-out images, one number a seed.
        checkpoint_dir: Where checkpoints are; None for none.
        batches: The iterator that `train_steps` reads, where there is one: its position is part of checkpoints.
        log: Called with lines that say what is going on.

    Raises:
        UserError: The loss or the weights became NaN or infinite, or a file could not be written.
        Interrupted: SIGINT or SIGTERM came to the command line; the state had been written first.
    """
    checkpoints = Checkpoints(checkpoint_dir) if checkpoint_dir else None
    restored = checkpoints and checkpoints.restore(
        state, warn=lambda line: log(f"{label}: {line}"), batches=batches, delete_damaged=True
    )
    if restored:
        state = restored.state
        log(f"{label}: resuming after {schedule.format_step(restored.step)} of {schedule.epochs}")
    metrics.rewind(label, restored.step // schedule.steps_per_epoch if restored else 0)
    recorder = RecordMetrics(label, schedule, metrics, restored.extra if restored else None, log)
    callbacks: list[Callback] = [CheckFinite(label, schedule), recorder]
    if checkpoints:
        callbacks.append(SaveCheckpoints(checkpoints, recorder, batches))
    state = fit(
        state, train_steps, schedule, [*callbacks, Evaluate(label, schedule, metrics, evaluate), StopOnSignal()]
    )
    if checkpoints:
        checkpoints.close()
    return state
