"""The face VAE in Keras 3 on TensorFlow: Keras's layers and Adam, a step in one `tf.function`; `predict` to encode."""

from typing import Any

import face_work
import keras
import numpy as np
import tensorflow as tf
from keras import layers

from latent_arith.config import SEED


def networks() -> tuple[keras.Model, keras.Model]:
    """Encoder, images to mean and log variance, and decoder, latents to logits, of SPEC §2."""

    def normalized(hidden: Any) -> Any:
        return layers.LeakyReLU(0.3)(layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(hidden))

    hidden = images = keras.Input((128, 128, 3))
    for index, features in enumerate((32, 64, 64, 64)):
        hidden = normalized(layers.Conv2D(features, 3, 2, padding="same")(hidden))
        if index:
            hidden = layers.Dropout(SEED.dropout)(hidden)
    hidden = layers.Flatten()(hidden)
    encoder = keras.Model(images, [layers.Dense(200)(hidden), layers.Dense(200)(hidden)])
    latents = keras.Input((200,))
    hidden = layers.Reshape((8, 8, 64))(layers.Dense(4096)(latents))
    for features in (64, 64, 32):
        hidden = normalized(layers.Conv2DTranspose(features, 3, 2, padding="same")(hidden))
        hidden = layers.Dropout(SEED.dropout)(hidden)
    return encoder, keras.Model(latents, layers.Conv2DTranspose(3, 3, 2, padding="same")(hidden))


def step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images, with `training=True` (without it BatchNorm and Dropout are inert)."""
    keras.utils.set_random_seed(SEED.seed)
    encoder, decoder = networks()
    variables = encoder.trainable_variables + decoder.trainable_variables
    optimizer = keras.optimizers.Adam(SEED.learning_rate, epsilon=SEED.adam_epsilon)
    optimizer.build(variables)

    @tf.function
    def step(pixels: tf.Tensor) -> tf.Tensor:
        batch = tf.cast(pixels, tf.float32) / 255
        with tf.GradientTape() as tape:
            mean, log_variance = encoder(batch, training=True)
            latent = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
            logits = decoder(latent, training=True)
            cross_entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(batch, logits))
            kl = -0.5 * tf.reduce_sum(1 + log_variance - mean**2 - tf.exp(log_variance)) / len(batch)
            loss = SEED.reconstruction_weight * cross_entropy + kl
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return face_work.time_steps(lambda batch: step(tf.constant(batch)), images, repeats)


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encodes all images by `predict` in one batch; they are floats already."""
    return _predict_seconds(images, repeats, len(images))


def encode_seconds_in_small_batches(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """The same in batches of 32, which `predict` takes if it is told nothing."""
    return _predict_seconds(images, repeats, 32)


def _predict_seconds(images: np.ndarray, repeats: int, batch_size: int) -> tuple[list[float], list[float]]:
    encoder, _ = networks()
    means = keras.Model(encoder.input, encoder.outputs[0])
    pixels = images.astype(np.float32) / 255
    return face_work.time_repeats(lambda: means.predict(pixels, batch_size=batch_size, verbose=0), repeats)
