"""Epochs of the MNIST VAE as this project trains it: what `vae.train.fit` dispatches, without its bookkeeping."""

import time

import jax
import numpy as np

from vae import experiment, models, train
from vae.config import SEED


def epoch_seconds(images: np.ndarray, epochs: int) -> tuple[list[float], list[float]]:
    """Trains on the images and times every epoch.

    Args:
        images: Pixels 0…255, uint8 (n, 28, 28, 1).
        epochs: Number of epochs; the first one holds compilation.

    Returns:
        Seconds of each epoch until its results are there, and the mean loss of its examples.
    """
    model = models.variational_autoencoder(SEED)
    run = train.epochs_of_images(
        jax.device_put(images), batch_size=SEED.batch_size, loss=model.loss, optimizer=experiment.optimizer(SEED)
    )
    state = experiment.initial_states(model, 1, SEED)
    seconds, losses = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state, 1))
        seconds.append(time.perf_counter() - start)
        sizes = np.diff([*range(0, len(images), SEED.batch_size), len(images)])
        losses.append(float(np.average(np.asarray(metrics["loss"])[0, 0], weights=sizes)))
    return seconds, losses
