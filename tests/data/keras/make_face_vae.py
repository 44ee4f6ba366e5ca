"""Makes `face_vae.tar.gz`, the face VAE as TensorFlow 2's Keras saves it, and `face_vae_expected.npz`, what it gives.

    python make_face_vae.py  # with tf-keras==2.21.0 and tensorflow-cpu==2.21.0

A subclassed model with the attributes `encoder` and `decoder` is saved with `save_weights("weights/weights")`, as an
object checkpoint: `weights/checkpoint`, `.index` and `.data-00000-of-00001`. BatchNormalization and the decoder's
dense layer keep the names that Keras gives them. Every weight repeats 997 random numbers, so that the archive is small.
"""

import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tf_keras as keras

FOLDER = Path(__file__).parent


def normalized(x):
    return keras.layers.LeakyReLU(0.3)(keras.layers.BatchNormalization()(x))


def encoder():
    images = x = keras.Input((128, 128, 3))
    for index, filters in enumerate((32, 64, 64, 64)):
        x = normalized(keras.layers.Conv2D(filters, 3, 2, "same", name=f"encoder_conv_{index}")(x))
        if index:
            x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(images, [keras.layers.Dense(200, name="mu")(x), keras.layers.Dense(200, name="log_var")(x)])


def decoder():
    latents = keras.Input((200,))
    x = keras.layers.Reshape((8, 8, 64))(keras.layers.Dense(4096)(latents))
    for index, filters in enumerate((64, 64, 32)):
        x = normalized(keras.layers.Conv2DTranspose(filters, 3, 2, "same", name=f"decoder_conv_t{index}")(x))
        x = keras.layers.Dropout(0.25)(x)
    x = keras.layers.Conv2DTranspose(3, 3, 2, "same", activation="sigmoid", name="decoder_conv_t3")(x)
    return keras.Model(latents, x)


class VariationalAutoencoder(keras.Model):
    """Encoder and decoder as attributes, so that a checkpoint names them."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()

    def call(self, images):
        mean, _ = self.encoder(images)
        return self.decoder(mean)


def main() -> None:
    random = np.random.default_rng(0)
    model = VariationalAutoencoder()
    images = random.integers(0, 256, (2, 128, 128, 3)).astype(np.float32) / 255
    model(images)
    for variable in model.variables:
        shape = tuple(variable.shape)
        scale = (2 / np.prod(shape[:-1])) ** 0.5 if len(shape) > 1 else 0.1
        values = scale * np.resize(random.standard_normal(997), shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.name else values)
    latents = random.standard_normal((2, 200), dtype=np.float32)
    mean, log_variance = model.encoder(images, training=False)
    np.savez_compressed(
        FOLDER / "face_vae_expected.npz",
        latents=latents,
        decoded=np.asarray(model.decoder(latents, training=False))[:, 3::8, 5::8],
        mean=np.asarray(mean),
        log_variance=np.asarray(log_variance),
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_weights(f"{folder}/weights/weights")
        with tarfile.open(FOLDER / "face_vae.tar.gz", "w:gz") as archive:
            archive.add(f"{folder}/weights", "weights")


if __name__ == "__main__":
    main()
