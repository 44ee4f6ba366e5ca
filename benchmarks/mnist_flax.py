"""Epochs of the MNIST VAE with Flax's own convolutions, as a straight port has them: step by step, or in a scan."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from benchmarks.side_by_side import time_repeats
from vae.config import ORIGINAL


class Vae(nn.Module):
    """Encoder and decoder of the digits' VAE; images to logits of pixels, posterior mean and log variance."""

    @nn.compact
    def __call__(self, images: Array, key: Array) -> tuple[Array, Array, Array]:
        """Apply both with one posterior sample per image."""
        glorot = nn.initializers.glorot_uniform()
        dense = partial(nn.Dense, kernel_init=glorot)
        convolution = partial(nn.Conv, kernel_size=(3, 3), kernel_init=glorot)
        transposed = partial(nn.ConvTranspose, kernel_size=(3, 3), kernel_init=glorot)
        hidden = images
        for features, stride in ((32, 1), (64, 2), (64, 2), (64, 1)):
            hidden = nn.leaky_relu(convolution(features, strides=(stride, stride))(hidden), 0.3)
        hidden = hidden.reshape(len(images), -1)
        mean, log_variance = dense(2)(hidden), dense(2)(hidden)
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        hidden = dense(3136)(latent).reshape(-1, 7, 7, 64)
        for features, stride in ((64, 1), (64, 2), (32, 2)):
            hidden = nn.leaky_relu(transposed(features, strides=(stride, stride))(hidden), 0.3)
        return transposed(1)(hidden), mean, log_variance


class State(NamedTuple):
    """Parameters, optimiser state, key, and the sum of the losses of this epoch's examples."""

    params: Any
    optimizer_state: optax.OptState
    key: Array
    total: Array


def epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains with one dispatch a step and times every epoch; see `mnist_ours.epoch_seconds`."""
    step = jax.jit(_step, donate_argnums=0)

    def epoch(state: State, data: Array, order: np.ndarray) -> State:
        for start in range(0, len(order), ORIGINAL.batch_size):
            state = step(state, data, order[start : start + ORIGINAL.batch_size])
        return state

    return _epochs(epoch, images, repeats)


def scanned_epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains with one dispatch an epoch and times every epoch; see `mnist_ours.epoch_seconds`."""

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: State, data: Array, order: Array) -> State:
        whole = len(order) // ORIGINAL.batch_size * ORIGINAL.batch_size
        batches = order[:whole].reshape(-1, ORIGINAL.batch_size)
        state, _ = jax.lax.scan(lambda state, indices: (_step(state, data, indices), None), state, batches)
        return _step(state, data, order[whole:]) if whole < len(order) else state

    return _epochs(epoch, images, repeats)


def _step(state: State, data: Array, indices: Array) -> State:
    key, noise_key = jax.random.split(state.key)
    batch = data[indices]

    def mean_loss(params: Any) -> Array:
        outputs: Any = Vae().apply(params, batch, noise_key)
        logits, mean, log_variance = outputs
        cross_entropy = jnp.sum(jax.nn.softplus(logits) - batch * logits)
        kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance))
        return (cross_entropy + kl) / len(batch)

    loss, gradients = jax.value_and_grad(mean_loss)(state.params)
    updates, optimizer_state = _optimizer().update(gradients, state.optimizer_state)
    return State(optax.apply_updates(state.params, updates), optimizer_state, key, state.total + loss * len(batch))


def _epochs(
    epoch: Callable[[State, Array, Any], State], images: np.ndarray, repeats: int
) -> tuple[list[float], list[float]]:
    key, generator = jax.random.key(ORIGINAL.seed), np.random.default_rng(ORIGINAL.seed)
    data = jax.device_put(images.astype(np.float32) / 255)
    params = Vae().init(key, data[:1], key)
    state = State(params, _optimizer().init(params), key, jnp.zeros(()))

    def work() -> float:
        nonlocal state
        state = epoch(state._replace(total=jnp.zeros(())), data, generator.permutation(len(images)))
        return float(jax.block_until_ready(state).total) / len(images)

    return time_repeats(work, repeats)


def _optimizer() -> optax.GradientTransformation:
    return optax.adam(ORIGINAL.learning_rate, eps=ORIGINAL.adam_epsilon)
