"""The face VAE as this project trains it and encodes with it, and directions found with its encoder."""

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import face_work
from benchmarks.side_by_side import time_repeats
from latent_arith import directions, experiment, faces, models
from latent_arith.config import SEED
from vae import train


def step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains one seed as `latent_arith.experiment` does, on batches that come from the host."""
    model = models.FaceVae(SEED.dropout, SEED.reconstruction_weight)
    optimizer = train.adam(SEED.learning_rate, SEED.adam_epsilon)
    steps = face_work.steps(images)
    run = train.steps_on_batches(
        face_work.batches(images), steps, batch_size=SEED.batch_size, loss=model.loss, optimizer=optimizer
    )
    state = experiment.initial_state(SEED)

    def work() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(run(state, steps))
        return float(np.mean(metrics["loss"]))

    seconds, losses = time_repeats(work, repeats)
    return [second / steps for second in seconds], losses


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encodes all images in one call."""
    return face_work.time_encoding(_encoder(), images, repeats)


def all_directions_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Finds the directions of as many attributes as synthetic faces have."""
    return _directions_seconds(images, repeats, len(faces.ATTRIBUTES))


def one_direction_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Finds the direction of one attribute."""
    return _directions_seconds(images, repeats, 1)


def _directions_seconds(images: np.ndarray, repeats: int, count: int) -> tuple[list[float], list[float]]:
    encode = _encoder()
    signs = np.random.default_rng(1).choice(np.asarray([-1, 1], np.int8), (len(images), count))
    weights = np.ones(signs.shape, np.float32)

    def read() -> Iterator[directions.Batch]:
        for start in range(0, len(images), models.rows_at_once()):
            rows = slice(start, start + models.rows_at_once())
            yield images[rows], signs[rows], weights[rows]

    seconds, _ = time_repeats(lambda: directions.find(encode, read(), faces.ATTRIBUTES[:count]), repeats)
    return seconds, []


def _encoder() -> models.Encode:
    return models.encoder(jax.jit(models.FaceVae().init)(jax.random.key(SEED.seed)))
