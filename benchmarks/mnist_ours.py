"""The MNIST VAE as this project trains it: what `latentlab.training.fit` dispatches, without its callbacks."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import time_repeats
from latentlab.model import LatentVariableModel
from latentlab.training.loop import LoopSchedule, TrainSteps, resident_train_steps
from latentlab.training.optimizer import adam
from vae import experiment
from vae.config import ORIGINAL

EPOCHS_PER_DISPATCH = 20
"""Epochs in one compiled call of `run_seconds`, as `--epochs-per-dispatch 20` has them."""


def epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Train one seed and time every epoch.

    Args:
        images: Pixels 0…255, uint8 (n, 28, 28, 1).
        repeats: Number of epochs; the first one holds compilation.

    Returns:
        Seconds of each epoch until its results are there, and the mean loss of its examples.
    """
    return _epochs(images, repeats, 1)


def epoch_of_8_seeds_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Train eight seeds in one call; the loss is that of the first, which does not depend on the others."""
    return _epochs(images, repeats, 8)


def run_seconds(given: tuple[np.ndarray, int], repeats: int) -> tuple[list[float], list[float]]:
    """Train the autoencoder and then the VAE, as experiment 1 does; the loss is the VAE's in its last epoch.

    Args:
        given: Images, and the number of epochs of each model.
        repeats: Number of such trainings, each from the same states; the first one holds compilation.
    """
    images, epochs = given
    on_device, steps = jax.device_put(images), _schedule(images, 1).steps_per_epoch
    training = []
    for label, model in experiment.make_models(ORIGINAL).items():
        training.append((_train_steps(on_device, model), experiment.initial_states(ORIGINAL, model, label)))

    def work() -> float:
        for train_steps, initial in training:
            state = jax.tree.map(jnp.copy, initial)  # states that go in are donated
            for done in range(0, epochs, EPOCHS_PER_DISPATCH):
                state, metrics = train_steps(state, steps * min(EPOCHS_PER_DISPATCH, epochs - done))
            jax.block_until_ready(state)
        return _mean_loss(metrics, images)

    return time_repeats(work, repeats)


def _epochs(images: np.ndarray, repeats: int, seeds: int) -> tuple[list[float], list[float]]:
    model = experiment.make_vae(ORIGINAL)
    train_steps = _train_steps(jax.device_put(images), model, seeds)
    state = experiment.initial_states(replace(ORIGINAL, seeds=seeds), model, "vae")

    def work() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_steps(state, _schedule(images, seeds).steps_per_epoch))
        return _mean_loss(metrics, images)

    return time_repeats(work, repeats)


def _schedule(images: Any, seeds: int) -> LoopSchedule:
    return experiment.make_schedule(replace(ORIGINAL, train_images=len(images), seeds=seeds))


def _train_steps(images: jax.Array, model: LatentVariableModel, seeds: int = 1) -> TrainSteps:
    optimizer = adam(ORIGINAL.learning_rate, ORIGINAL.adam_epsilon)
    loss = partial(model.loss, train=True)
    return resident_train_steps(images, _schedule(images, seeds), loss=loss, optimizer=optimizer, seeds=seeds)


def _mean_loss(metrics: Mapping[str, Any], images: Any) -> float:
    """Return the mean over the examples of the last epoch of the first seed."""
    losses, schedule = np.atleast_2d(np.asarray(metrics["loss"])), _schedule(images, 1)
    return float(schedule.epoch_means(losses[:1, -schedule.steps_per_epoch :])[0, -1])
