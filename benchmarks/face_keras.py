"""The face VAE in Keras 3: its layers and its Adam, a step in one `tf.function` or one jitted call of JAX.

To encode it is `predict` on both.
"""

from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers

from benchmarks import face_work
from benchmarks.mnist_keras import training
from latent_arith.config import ORIGINAL


def networks() -> tuple[keras.Model, keras.Model]:
    """Build the encoder, images to mean and log variance, and decoder, latents to logits, of the face VAE."""

    def normalized(hidden: Any) -> Any:
        return layers.LeakyReLU(0.3)(layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(hidden))

    hidden = images = keras.Input((128, 128, 3))
    for index, features in enumerate((32, 64, 64, 64)):
        hidden = normalized(layers.Conv2D(features, 3, 2, padding="same")(hidden))
        if index:
            hidden = layers.Dropout(ORIGINAL.dropout)(hidden)
    hidden = layers.Flatten()(hidden)
    encoder = keras.Model(images, [layers.Dense(200)(hidden), layers.Dense(200)(hidden)])
    latents = keras.Input((200,))
    hidden = layers.Reshape((8, 8, 64))(layers.Dense(4096)(latents))
    for features in (64, 64, 32):
        hidden = normalized(layers.Conv2DTranspose(features, 3, 2, padding="same")(hidden))
        hidden = layers.Dropout(ORIGINAL.dropout)(hidden)
    return encoder, keras.Model(latents, layers.Conv2DTranspose(3, 3, 2, padding="same")(hidden))


def tensorflow_step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images, with `training=True` (without it BatchNorm and Dropout are inert)."""
    import tensorflow as tf

    encoder, decoder, optimizer = training(networks, ORIGINAL)
    variables = encoder.trainable_variables + decoder.trainable_variables

    @tf.function
    def step(pixels: tf.Tensor) -> tf.Tensor:
        batch = tf.cast(pixels, tf.float32) / 255
        with tf.GradientTape() as tape:
            mean, log_variance = encoder(batch, training=True)
            latent = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
            logits = decoder(latent, training=True)
            cross_entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch, logits))
            kl = -0.5 * tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance)) / len(batch)
            loss = ORIGINAL.reconstruction_weight * cross_entropy + kl
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return face_work.time_steps(lambda batch: step(tf.constant(batch)), images, repeats)


def jax_step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same on JAX, with the networks and the optimizer as pure functions."""
    import jax
    import jax.numpy as jnp

    encoder, decoder, optimizer = training(networks, ORIGINAL)

    def loss_of(weights: Any, others: Any, batch: Any, key: Any) -> Any:
        (mean, log_variance), of_encoder = encoder.stateless_call(weights[0], others[0], batch, training=True)
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        logits, of_decoder = decoder.stateless_call(weights[1], others[1], latent, training=True)
        cross_entropy = jnp.mean(jax.nn.softplus(logits) - batch * logits)
        kl = -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance)) / len(batch)
        return ORIGINAL.reconstruction_weight * cross_entropy + kl, (of_encoder, of_decoder)

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, pixels: Any) -> Any:
        weights, others, slots, key = state
        key, noise_key = jax.random.split(key)
        batch = pixels.astype(jnp.float32) / 255
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, others, batch, noise_key)
        moved, slots = optimizer.stateless_apply(slots, [*gradients[0], *gradients[1]], [*weights[0], *weights[1]])
        count = len(weights[0])
        return ((moved[:count], moved[count:]), others, slots, key), loss

    weights = tuple([variable.value for variable in model.trainable_variables] for model in (encoder, decoder))
    others = tuple([variable.value for variable in model.non_trainable_variables] for model in (encoder, decoder))
    state = weights, others, [variable.value for variable in optimizer.variables], jax.random.key(ORIGINAL.seed)

    def keep(batch: np.ndarray) -> Any:
        nonlocal state
        state, loss = step(state, batch)
        return loss

    return face_work.time_steps(keep, images, repeats)


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encode all images, floats already, by `predict` in one batch."""
    return _predict_seconds(images, repeats, len(images))


def small_batches_encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same in batches of 32, the default of `predict`."""
    return _predict_seconds(images, repeats, 32)


def _predict_seconds(images: np.ndarray, repeats: int, batch_size: int) -> tuple[list[float], list[float]]:
    encoder, _ = networks()
    means = keras.Model(encoder.input, encoder.outputs[0])
    pixels = images.astype(np.float32) / 255

    def encode(pixels: np.ndarray) -> np.ndarray:
        return means.predict(pixels, batch_size=batch_size, verbose=0)

    return face_work.time_encoding(encode, pixels, repeats)
