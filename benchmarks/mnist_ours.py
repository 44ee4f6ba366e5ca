"""The MNIST VAE as this project trains it: what `vae.train.fit` dispatches, without its bookkeeping."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import time_repeats
from vae import experiment, models, train
from vae.config import SEED

EPOCHS_PER_DISPATCH = 20
"""Epochs in one compiled call of `run_seconds`, as `--epochs-per-dispatch 20` has them."""


def epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains one seed and times every epoch.

    Args:
        images: Pixels 0…255, uint8 (n, 28, 28, 1).
        repeats: Number of epochs; the first one holds compilation.

    Returns:
        Seconds of each epoch until its results are there, and the mean loss of its examples.
    """
    return _epochs(images, repeats, 1)


def epoch_of_8_seeds_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """The same with eight seeds at once; the loss is that of the first, which does not depend on the others."""
    return _epochs(images, repeats, 8)


def run_seconds(given: tuple[np.ndarray, int], repeats: int) -> tuple[list[float], list[float]]:
    """Trains the autoencoder and then the VAE, as experiment 1 does; the loss is the VAE's in its last epoch.

    Args:
        given: Images, and the number of epochs of each model.
        repeats: Number of such trainings, each from the same states; the first one holds compilation.
    """
    images, epochs = given
    on_device = jax.device_put(images)
    training = []
    for index, model in enumerate((models.autoencoder(), models.variational_autoencoder(SEED))):
        training.append((_trainer(on_device, model), experiment.initial_states(model, index, SEED)))

    def work() -> float:
        for run, initial in training:
            state = jax.tree.map(jnp.copy, initial)  # states that go in are donated
            for done in range(0, epochs, EPOCHS_PER_DISPATCH):
                state, metrics = run(state, min(EPOCHS_PER_DISPATCH, epochs - done))
            jax.block_until_ready(state)
        return _mean_loss(metrics, len(images))

    return time_repeats(work, repeats)


def _epochs(images: np.ndarray, repeats: int, seeds: int) -> tuple[list[float], list[float]]:
    model = models.variational_autoencoder(SEED)
    run = _trainer(jax.device_put(images), model)
    state = experiment.initial_states(model, 1, replace(SEED, seeds=seeds))

    def work() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(run(state, train.steps_per_epoch(len(images), SEED.batch_size)))
        return _mean_loss(metrics, len(images))

    return time_repeats(work, repeats)


def _trainer(images: jax.Array, model: models.Model) -> train.TrainSteps:
    return train.steps_on_images(
        images, batch_size=SEED.batch_size, loss=model.loss, optimizer=experiment.optimizer(SEED)
    )


def _mean_loss(metrics: Mapping[str, Any], count: int) -> float:
    """Mean over the examples of the last epoch of the first seed."""
    sizes = np.diff([*range(0, count, SEED.batch_size), count])
    return float(np.average(np.asarray(metrics["loss"])[0, -len(sizes) :], weights=sizes))
