"""keras.io's example of a VAE in Keras on TensorFlow, trained on all of MNIST: what `anchors` is compared with.

    python -m benchmarks.anchors_keras --mnist package/data --seed 0

Layers, losses, optimizer and batches are those of keras.io/examples/generative/vae (F. Chollet, 2020), written anew.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from keras import layers

from benchmarks.anchors import read_all

NAMES = ("loss", "reconstruction_loss", "kl_loss")


def networks() -> tuple[keras.Model, keras.Model]:
    """Return the encoder, images to mean and log variance, and the decoder, latents to pixels."""
    images = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(images)
    hidden = layers.Conv2D(64, 3, activation="relu", strides=2, padding="same")(hidden)
    hidden = layers.Dense(16, activation="relu")(layers.Flatten()(hidden))
    encoder = keras.Model(images, [layers.Dense(2)(hidden), layers.Dense(2)(hidden)])
    latents = keras.Input((2,))
    hidden = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(latents))
    hidden = layers.Conv2DTranspose(64, 3, activation="relu", strides=2, padding="same")(hidden)
    hidden = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(hidden)
    pixels = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(hidden)
    return encoder, keras.Model(latents, pixels)


class KerasVae(keras.Model):
    """The example's model; its metrics are means over the batches of an epoch, as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = networks()
        self.trackers = [keras.metrics.Mean(name=name) for name in NAMES]

    @property
    def metrics(self) -> list[Any]:
        """The three trackers, which Keras resets at each epoch."""
        return self.trackers

    def train_step(self, images: Any) -> dict[str, Any]:
        """Take one step of Adam."""
        with tf.GradientTape() as tape:
            mean, log_variance = self.encoder(images)
            latents = mean + tf.exp(0.5 * log_variance) * tf.random.normal(tf.shape(mean))
            pixels = self.decoder(latents)
            entropy = tf.reduce_sum(keras.losses.binary_crossentropy(images, pixels), axis=(1, 2))
            kl = -0.5 * (1 + log_variance - tf.square(mean) - tf.exp(log_variance))
            parts = tf.reduce_mean(entropy), tf.reduce_mean(tf.reduce_sum(kl, axis=1))
            loss = parts[0] + parts[1]
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (loss, *parts), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def main() -> None:
    """Train and print the losses of the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's four files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    keras.utils.set_random_seed(options.seed)
    model = KerasVae()
    model.compile(optimizer=keras.optimizers.Adam())
    images = read_all(options.mnist).train.images.astype(np.float32) / 255
    history = model.fit(images, epochs=options.epochs, batch_size=128, verbose=2).history
    print(", ".join(f"{name} {history[name][-1]:.2f}" for name in NAMES))


if __name__ == "__main__":
    main()
