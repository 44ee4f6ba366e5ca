"""MobileNetV2 in every form in which Keras 3 and tf-keras save it, and what they make of two images.

    python -m tests.oracles.keras_files keras|tf_keras DIRECTORY

Models: `plain` (with its top), `nested` (a base within a functional model), `mine` (the same as a subclass),
`tutorial` (TensorFlow's tutorial of transfer learning: augmentation, `preprocess_input`, one unit with sigmoid). For
each there is NAME.npz with `images`, as the model is fed, and `outputs`.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np

SIZE = 32
CLASSES = 5
GAIN, HEAD_GAIN = 1.5, 0.2  # so that images differ, and probabilities are neither 0 nor 1


def randomize(model):
    """Weights and statistics that are not those of a fresh network."""
    draw = np.random.default_rng(0)
    for variable in model.variables:
        name = getattr(variable, "path", variable.name).rpartition("/")[2].removesuffix(":0")
        if name in ("moving_variance", "gamma"):
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))
        elif name in ("moving_mean", "beta", "bias"):
            variable.assign(draw.normal(0, 0.3, variable.shape))
        elif name in ("kernel", "depthwise_kernel"):
            shape = tuple(variable.shape)
            inputs = np.prod(shape[:2] if shape[-1] == 1 and len(shape) == 4 else shape[:-1])  # depthwise ones have 1
            variable.assign(draw.normal(0, (HEAD_GAIN if len(shape) == 2 else GAIN) / np.sqrt(inputs), shape))


def models(keras):
    """Yield the name of every model, and the model."""
    layers = keras.layers
    options = {"input_shape": (SIZE, SIZE, 3), "alpha": 0.35, "weights": None}
    yield "plain", keras.applications.MobileNetV2(classes=CLASSES, **options)

    base = keras.applications.MobileNetV2(include_top=False, **options)
    images = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(base(images, training=False))
    yield "nested", keras.Model(images, layers.Dense(CLASSES, activation="softmax")(pooled))

    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone = keras.applications.MobileNetV2(include_top=False, **options)
            self.pool = layers.GlobalAveragePooling2D()
            self.head = layers.Dense(CLASSES, activation="softmax")

        def call(self, images):
            return self.head(self.pool(self.backbone(images, training=False)))

    mine = Mine()
    mine(np.zeros((1, SIZE, SIZE, 3), np.float32))
    yield "mine", mine

    base = keras.applications.MobileNetV2(include_top=False, **options)
    images = keras.Input((SIZE, SIZE, 3))
    hidden = keras.applications.mobilenet_v2.preprocess_input(layers.RandomFlip()(images))
    pooled = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(base(hidden, training=False)))
    yield "tutorial", keras.Model(images, layers.Dense(1, activation="sigmoid")(pooled))


def save(keras, name, model, folder):
    """Save a model in all forms of its Keras."""
    import tensorflow as tf

    model.save_weights(folder / f"{name}.weights.h5")
    if name != "mine":
        model.save(folder / f"{name}.h5")
    model.save(folder / f"{name}.keras")
    tf.train.Checkpoint(model=model).save(folder / f"{name}_checkpoint" / "ckpt")
    if keras.__name__ == "tf_keras":
        model.save_weights(folder / f"{name}_weights.h5", save_format="h5")
        model.save_weights(folder / f"{name}_tf" / "weights", save_format="tf")
        model.save(folder / f"{name}_saved_model", save_format="tf")
        return
    model.export(folder / f"{name}_export", verbose=False)
    if name == "plain":
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        tf.train.Checkpoint(model=model, optimizer=optimizer).save(folder / f"{name}_and_optimizer" / "ckpt")


def main(module, folder):
    """Save all models."""
    keras = importlib.import_module(module)
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models(keras):
        randomize(model)
        images = np.random.default_rng(1).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
        images[1] /= 5
        images = images if name == "tutorial" else images / np.float32(127.5) - 1
        np.savez(folder / f"{name}.npz", images=images, outputs=model(images, training=False))
        save(keras, name, model, folder)


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    main(sys.argv[1], Path(sys.argv[2]))
