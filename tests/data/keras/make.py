"""Makes the files of this folder: the weights of one tiny encoder and decoder, as Keras 3 and as Keras 2 save them.

    python make.py keras     # with keras==3.15.1: keras.tar.xz and expected.npz
    python make.py tf_keras  # with tf-keras==2.21.0 and tensorflow-cpu==2.21.0: tf_keras.tar.xz

Both set the same numbers, drawn by NumPy, so `expected.npz` comes from neither. The models are trained for a step
beforehand, so that optimizer slots, counters and metrics are in the files too. HDF5 files are mostly padding, hence
the archives.
"""

import importlib
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
BATCH_NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")
SHAPES = {
    "encoder/encoder_conv_0": {"kernel": (3, 3, 3, 4)},
    "encoder/encoder_norm_0": dict.fromkeys(BATCH_NORMALIZATION, (4,)),
    "encoder/encoder_conv_1": {"kernel": (3, 3, 4, 4), "bias": (4,)},
    "encoder/mu": {"kernel": (16, 2), "bias": (2,)},
    "encoder/log_var": {"kernel": (16, 2), "bias": (2,)},
    "decoder/decoder_dense": {"kernel": (2, 16), "bias": (16,)},
    "decoder/decoder_conv_t0": {"kernel": (3, 3, 3, 4), "bias": (3,)},
    "decoder/decoder_norm_0": dict.fromkeys(BATCH_NORMALIZATION, (3,)),
    "decoder/decoder_conv_t1": {"kernel": (3, 3, 3, 3), "bias": (3,)},
}


def expected() -> dict[str, np.ndarray]:
    """Random weights by name; variances are positive."""
    random = np.random.default_rng(0)
    return {
        f"{layer}/{name}": np.abs(random.standard_normal(shape, dtype=np.float32))
        for layer, shapes in SHAPES.items()
        for name, shape in shapes.items()
    }


def build(keras):
    """The functional encoder and decoder, a subclassed model of the two, and a functional one."""
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, 2, "same", use_bias=False, name="encoder_conv_0")(image)
    x = layers.BatchNormalization(name="encoder_norm_0")(x)
    x = layers.Conv2D(4, 3, 2, "same", name="encoder_conv_1")(x)
    x = layers.Flatten()(layers.Dropout(0.25)(x))
    encoder = keras.Model(image, [layers.Dense(2, name="mu")(x), layers.Dense(2, name="log_var")(x)], name="encoder")

    latent = keras.Input((2,))
    x = layers.Reshape((2, 2, 4))(layers.Dense(16, name="decoder_dense")(latent))
    x = layers.Conv2DTranspose(3, 3, 2, "same", name="decoder_conv_t0")(x)
    x = layers.BatchNormalization(name="decoder_norm_0")(x)
    x = layers.Conv2DTranspose(3, 3, 2, "same", name="decoder_conv_t1")(x)
    decoder = keras.Model(latent, x, name="decoder")

    class Autoencoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.loss_tracker = keras.metrics.Mean(name="loss_tracker")

        def call(self, images, training=False):
            mean, log_variance = self.encoder(images, training=training)
            return self.decoder(mean + log_variance, training=training)

    image = keras.Input((8, 8, 3))
    functional = keras.Model(image, decoder(layers.Add()(encoder(image))), name="functional_autoencoder")
    return encoder, decoder, Autoencoder(), functional


def main(package: str) -> None:
    """Writes the archive of one package, and what to expect."""
    os.environ["KERAS_BACKEND"] = "jax"
    keras = importlib.import_module(package)
    encoder, decoder, subclassed, functional = build(keras)
    images = np.zeros((2, 8, 8, 3), np.float32)
    arrays = expected()

    def train(model, optimizer):
        model.compile(optimizer, "mse")
        model.fit(images, images, verbose=0)
        for path, shapes in SHAPES.items():
            part = {"encoder": encoder, "decoder": decoder}[path.split("/")[0]]
            part.get_layer(path.split("/")[1]).set_weights([arrays[f"{path}/{name}"] for name in shapes])

    train(functional, "adam")
    train(subclassed, "adam")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if package == "keras":
            np.savez_compressed(FOLDER / "expected.npz", allow_pickle=False, **arrays)
            subclassed.save_weights(folder / "keras3_subclassed.weights.h5")
            subclassed.save(folder / "keras3_subclassed.keras")
            functional.save_weights(folder / "keras3_functional.weights.h5")
            functional.save(folder / "keras3_functional.keras")
            functional.save(folder / "keras3_whole.h5")
        else:
            functional.save(folder / "keras2_whole.h5")
            functional.save_weights(folder / "keras2_weights_only.h5")
            subclassed.save_weights(folder / "keras2_subclassed.h5")
            subclassed.save_weights(str(folder / "weights" / "checkpoint"))
            train(subclassed, keras.optimizers.legacy.Adam())  # keeps its state as slots of the variables
            subclassed.save_weights(str(folder / "packed" / "checkpoint"))
            with tarfile.open(folder / "weights.tar.gz", "w:gz") as archive:
                archive.add(folder / "packed", "weights", filter=anonymous)
            shutil.rmtree(folder / "packed")
        with tarfile.open(FOLDER / f"{package}.tar.xz", "w:xz") as archive:
            archive.add(folder, ".", filter=anonymous)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Says nothing of who made the file and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(sys.argv[1])
