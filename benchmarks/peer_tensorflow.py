"""Epochs of the MNIST VAE in Keras 3 on TensorFlow: a whole epoch is one `tf.function` (README.md has the others)."""

import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from vae.config import SEED


def networks() -> tuple[keras.Model, keras.Model]:
    """Encoder, images to mean and log variance, and decoder, latents to logits, of SPEC §1."""
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


def epoch_seconds(images: np.ndarray, epochs: int) -> tuple[list[float], list[float]]:
    """Trains on the images and times every epoch; arguments and result are those of `ours.epoch_seconds`."""
    keras.utils.set_random_seed(SEED.seed)
    encoder, decoder = networks()
    variables = encoder.trainable_variables + decoder.trainable_variables
    optimizer = keras.optimizers.Adam(SEED.learning_rate, epsilon=SEED.adam_epsilon)
    optimizer.build(variables)
    data = tf.constant(images.astype(np.float32) / 255)
    whole = len(images) // SEED.batch_size * SEED.batch_size

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
        for start in tf.range(0, whole, SEED.batch_size):
            total += step(tf.reshape(order[start : start + SEED.batch_size], [SEED.batch_size]))
        if whole < len(images):
            total += step(order[whole:])
        return total / len(images)

    seconds, losses = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        losses.append(float(epoch()))
        seconds.append(time.perf_counter() - start)
    return seconds, losses
