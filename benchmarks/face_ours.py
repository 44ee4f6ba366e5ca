"""The face VAE as this project trains it and encodes with it, and directions found with its encoder."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from benchmarks import face_work
from benchmarks.side_by_side import time_repeats
from latent_arith import experiment
from latent_arith.config import ORIGINAL
from latent_arith.datasets.synthetic_faces import ATTRIBUTES
from latent_arith.directions import Batch, find_directions
from latent_arith.model import Encode, FaceVae, global_batch_size, make_encode
from latentlab.training.loop import LoopSchedule, streaming_train_steps


def step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Train as `latent_arith.experiment` does, on batches that come from the host.

    A repeat hands out its steps and waits for those of the repeat before, as `fit` does: while the device computes, the
    next batches are on their way to it. The first repeat hands out two.
    """
    model, steps = experiment.make_model(ORIGINAL), face_work.steps(images)
    train_steps = streaming_train_steps(
        face_work.batches(images),
        LoopSchedule(steps * ORIGINAL.batch_size, ORIGINAL.batch_size, 1, steps, 1),
        loss=partial(model.loss, train=True),
        optimizer=experiment.make_optimizer(ORIGINAL),
    )
    state, running = experiment.initial_state(ORIGINAL, model), None

    def work() -> float:
        nonlocal state, running
        if running is None:
            state, running = train_steps(state, steps)
        before = running
        state, running = train_steps(state, steps)
        return float(np.mean(jax.device_get(before)["loss"]))

    seconds, losses = time_repeats(work, repeats)
    return [second / steps for second in seconds], losses


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encode all images in one call."""
    return face_work.time_encoding(_encoder(), images, repeats)


def all_directions_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Find the directions of as many attributes as synthetic faces have."""
    return _directions_seconds(images, repeats, len(ATTRIBUTES))


def one_direction_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Find the direction of one attribute."""
    return _directions_seconds(images, repeats, 1)


def _directions_seconds(images: np.ndarray, repeats: int, count: int) -> tuple[list[float], list[float]]:
    encode = _encoder()
    signs = np.random.default_rng(1).choice(np.asarray([-1, 1], np.int8), (len(images), count))
    weights = np.ones((1, *signs.shape), np.float32)

    def read() -> Iterator[Batch]:
        for start in range(0, len(images), global_batch_size()):
            rows = slice(start, start + global_batch_size())
            yield images[rows], signs[rows], weights[:, rows]

    seconds, _ = time_repeats(lambda: find_directions(encode, read(), ATTRIBUTES[:count]), repeats)
    return seconds, []


def _encoder() -> Encode:
    model = FaceVae()
    return make_encode(model, jax.jit(model.init)(jax.random.key(ORIGINAL.seed)))
