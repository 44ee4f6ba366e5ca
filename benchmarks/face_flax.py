"""The face VAE with Flax's own layers: what a straight port gives, one jitted call a step or a chunk."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from benchmarks import face_work
from latent_arith.config import ORIGINAL

ENCODED_AT_ONCE = 50

GLOROT = nn.initializers.glorot_uniform()


class Encoder(nn.Module):
    """Images to posterior mean and log variance of the face VAE."""

    train: bool

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Apply the layers."""
        hidden = images
        for index, features in enumerate((32, 64, 64, 64)):
            convolution = nn.Conv(features, kernel_size=(3, 3), strides=(2, 2), kernel_init=GLOROT)
            hidden = _normalized(convolution(hidden), self.train)
            if index:
                hidden = nn.Dropout(ORIGINAL.dropout, deterministic=not self.train)(hidden)
        hidden = hidden.reshape(len(images), -1)
        return nn.Dense(200, kernel_init=GLOROT)(hidden), nn.Dense(200, kernel_init=GLOROT)(hidden)


class Vae(nn.Module):
    """Encoder and decoder of the face VAE in training; images to logits of pixels, posterior mean and log variance."""

    @nn.compact
    def __call__(self, images: Array, key: Array) -> tuple[Array, Array, Array]:
        """Apply both with one posterior sample per image."""
        transposed = partial(nn.ConvTranspose, kernel_size=(3, 3), strides=(2, 2), kernel_init=GLOROT)
        mean, log_variance = Encoder(True)(images)
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        hidden = nn.Dense(4096, kernel_init=GLOROT)(latent).reshape(-1, 8, 8, 64)
        for features in (64, 64, 32):
            hidden = nn.Dropout(ORIGINAL.dropout, deterministic=False)(_normalized(transposed(features)(hidden), True))
        return transposed(3)(hidden), mean, log_variance


def step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images."""
    optimizer = optax.adam(ORIGINAL.learning_rate, eps=ORIGINAL.adam_epsilon)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, pixels: Array) -> tuple[Any, Array]:
        variables, optimizer_state, key = state
        key, noise_key, dropout_key = jax.random.split(key, 3)
        batch = pixels.astype(jnp.float32) / 255

        def loss(params: Any) -> tuple[Array, Any]:
            outputs, moved = Vae().apply(
                variables | {"params": params}, batch, noise_key, rngs={"dropout": dropout_key}, mutable=["batch_stats"]
            )
            logits, mean, log_variance = outputs
            cross_entropy = jnp.mean(nn.softplus(logits) - batch * logits)
            kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance)) / len(batch)
            return ORIGINAL.reconstruction_weight * cross_entropy + kl, moved

        (value, moved), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, optimizer_state = optimizer.update(gradients, optimizer_state)
        return ({"params": optax.apply_updates(variables["params"], updates), **moved}, optimizer_state, key), value

    @jax.jit
    def initial_state(key: Array) -> Any:
        variables = Vae().init({"params": key, "dropout": key}, jnp.zeros((1, 128, 128, 3)), key)
        return variables, optimizer.init(variables["params"]), key

    state = initial_state(jax.random.key(ORIGINAL.seed))

    def keep(batch: np.ndarray) -> Array:
        nonlocal state
        state, value = step(state, batch)
        return value

    return face_work.time_steps(keep, images, repeats)


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encode all images, in batches of the fastest size."""
    network = Encoder(False)
    variables = jax.jit(network.init)(jax.random.key(ORIGINAL.seed), jnp.zeros((1, 128, 128, 3)))

    @jax.jit
    def means_of(variables: Any, pixels: Array) -> Array:
        outputs: Any = network.apply(variables, pixels.astype(jnp.float32) / 255)
        return outputs[0]

    def encode(images: np.ndarray) -> np.ndarray:
        chunks = np.split(images, range(ENCODED_AT_ONCE, len(images), ENCODED_AT_ONCE))
        return np.concatenate(jax.device_get([means_of(variables, chunk) for chunk in chunks]))

    return face_work.time_encoding(encode, images, repeats)


def _normalized(hidden: Array, train: bool) -> Array:
    return nn.leaky_relu(nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3)(hidden), 0.3)
