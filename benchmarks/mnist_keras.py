"""Epochs of the MNIST VAE in Keras 3: its layers and its Adam, on TensorFlow or on JAX, each in its fastest form.

On TensorFlow a whole epoch is one `tf.function`, on JAX a step is one jitted call (README.md has the other forms).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks.side_by_side import time_repeats
from latent_arith.config import LatentArithConfig
from vae.config import ORIGINAL, VaeConfig


def networks() -> tuple[keras.Model, keras.Model]:
    """Build the encoder, images to mean and log variance, and decoder, latents to logits, of the digits' VAE."""
    hidden = images = keras.Input((28, 28, 1))
    for features, stride in ((32, 1), (64, 2), (64, 2), (64, 1)):
        hidden = layers.LeakyReLU(0.3)(layers.Conv2D(features, 3, stride, padding="same")(hidden))
    hidden = layers.Flatten()(hidden)
    encoder = keras.Model(images, [layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
    latents = keras.Input((2,))
    hidden = layers.Reshape((7, 7, 64))(layers.Dense(3136)(latents))
    for features, stride in ((64, 1), (64, 2), (32, 2)):
        hidden = layers.LeakyReLU(0.3)(layers.Conv2DTranspose(features, 3, stride, padding="same")(hidden))
    return encoder, keras.Model(latents, layers.Conv2DTranspose(1, 3, padding="same")(hidden))


def tensorflow_epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images and times every epoch; arguments and result are those of `mnist_ours.epoch_seconds`."""
    import tensorflow as tf

    encoder, decoder, optimizer = training(networks, ORIGINAL)
    variables = encoder.trainable_variables + decoder.trainable_variables
    data = tf.constant(images.astype(np.float32) / 255)
    whole = len(images) // ORIGINAL.batch_size * ORIGINAL.batch_size

    @tf.function
    def step(indices: tf.Tensor) -> tf.Tensor:
        """One step on the images at `indices`; returns the sum of their losses."""
        batch = tf.gather(data, indices)
        with tf.GradientTape() as tape:
            mean, log_variance = encoder(batch, training=True)
            latent = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
            logits = decoder(latent, training=True)
            cross_entropy = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(batch, logits))
            kl = -0.5 * tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance))
            loss = (cross_entropy + kl) / len(indices)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return cross_entropy + kl

    @tf.function
    def epoch() -> tf.Tensor:
        order = tf.random.shuffle(tf.range(len(images)))
        total = tf.constant(0.0)
        for start in tf.range(0, whole, ORIGINAL.batch_size):
            total += step(tf.reshape(order[start : start + ORIGINAL.batch_size], [ORIGINAL.batch_size]))
        if whole < len(images):
            total += step(order[whole:])
        return total / len(images)

    return time_repeats(lambda: float(epoch()), repeats)


def jax_epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same on JAX: one dispatch a step, on the networks and the optimizer as pure functions."""
    import jax
    import jax.numpy as jnp

    encoder, decoder, optimizer = training(networks, ORIGINAL)
    data, generator = jax.device_put(images.astype(np.float32) / 255), np.random.default_rng(ORIGINAL.seed)

    def mean_loss(weights: Any, batch: Any, key: Any) -> Any:
        of_encoder, of_decoder = weights
        (mean, log_variance), _ = encoder.stateless_call(of_encoder, [], batch, training=True)
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        logits, _ = decoder.stateless_call(of_decoder, [], latent, training=True)
        cross_entropy = jnp.sum(jax.nn.softplus(logits) - batch * logits)
        kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance))
        return (cross_entropy + kl) / len(batch)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, data: Any, indices: Any) -> Any:
        weights, slots, key, total = state
        key, noise_key = jax.random.split(key)
        loss, gradients = jax.value_and_grad(mean_loss)(weights, data[indices], noise_key)
        moved, slots = optimizer.stateless_apply(slots, [*gradients[0], *gradients[1]], [*weights[0], *weights[1]])
        count = len(weights[0])
        return (moved[:count], moved[count:]), slots, key, total + loss * len(indices)

    weights = tuple([variable.value for variable in model.trainable_variables] for model in (encoder, decoder))
    state: Any = weights, [variable.value for variable in optimizer.variables], jax.random.key(ORIGINAL.seed)

    def work() -> float:
        nonlocal state
        order = generator.permutation(len(images))
        moving = *state, jnp.zeros(())
        for start in range(0, len(order), ORIGINAL.batch_size):
            moving = step(moving, data, order[start : start + ORIGINAL.batch_size])
        *state, total = moving
        return float(total) / len(images)

    return time_repeats(work, repeats)


def training(
    networks: Callable[[], tuple[keras.Model, keras.Model]], config: VaeConfig | LatentArithConfig
) -> tuple[keras.Model, keras.Model, keras.optimizers.Adam]:
    """Return encoder and decoder, and Keras's Adam for the variables of both."""
    keras.utils.set_random_seed(config.seed)
    encoder, decoder = networks()
    optimizer = keras.optimizers.Adam(config.learning_rate, epsilon=config.adam_epsilon)
    optimizer.build(encoder.trainable_variables + decoder.trainable_variables)
    return encoder, decoder, optimizer
