"""MobileNetV2 and face VAEs in every form in which Keras 3 and tf-keras save them, and what they make of two images.

    python -m tests.oracles.keras_files keras|tf_keras DIRECTORY
    python -m tests.oracles.keras_files keras|tf_keras DIRECTORY faces

Models: `plain` (with its top), `nested` (a base within a functional model), `mine` (the same as a subclass),
`tutorial` (TensorFlow's tutorial of transfer learning: augmentation, `preprocess_input`, one unit with sigmoid). For
each there is NAME.npz with `images`, as the model is fed, and `outputs`.

Faces: `foster` is the VAE of Foster's «Generative Deep Learning», whose encoder's layers are in the model itself, with
its names; `plain` has neither BatchNorm nor Dropout and other filters; `unnamed` has encoder and decoder as attributes,
and no names of layers. NAME.npz has `images`, `mean`, `log_var`, `latents` and `decoded`.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np

SIZE, FACE = 32, 32
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


def face_vae(keras, filters, z_dim, use_batch_norm, is_named):
    """Encoder, decoder and both in one, as the book builds them."""
    layers = keras.layers

    def named(name):
        return {"name": name} if is_named else {}

    def regularized(hidden):
        hidden = layers.BatchNormalization()(hidden) if use_batch_norm else hidden
        hidden = layers.LeakyReLU()(hidden)
        return layers.Dropout(0.25)(hidden) if use_batch_norm else hidden

    images = hidden = keras.Input((FACE, FACE, 3))
    for index, count in enumerate(filters):
        hidden = layers.Conv2D(count, 3, 2, padding="same", **named(f"encoder_conv_{index}"))(hidden)
        hidden = regularized(hidden)
    shape = tuple(hidden.shape[1:])
    hidden = layers.Flatten()(hidden)
    heads = [layers.Dense(z_dim, **named(name))(hidden) for name in ("mu", "log_var")]

    latents = keras.Input((z_dim,))
    hidden = layers.Reshape(shape)(layers.Dense(int(np.prod(shape)))(latents))
    counts = (*filters[-2::-1], 3)
    for index, count in enumerate(counts):
        hidden = layers.Conv2DTranspose(count, 3, 2, padding="same", **named(f"decoder_conv_t_{index}"))(hidden)
        hidden = regularized(hidden) if index < len(counts) - 1 else layers.Activation("sigmoid")(hidden)
    encoder, decoder = keras.Model(images, heads), keras.Model(latents, hidden)
    sampled = layers.Lambda(lambda both: both[0] + both[1] * 0)(heads)
    return encoder, decoder, keras.Model(images, decoder(sampled))


def save_faces(keras, folder):
    """Save all face VAEs."""
    import tensorflow as tf

    class Unnamed(keras.Model):
        def __init__(self, encoder, decoder):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder

        def call(self, images):
            return self.decoder(self.encoder(images)[0])

    for name, filters, z_dim, use_batch_norm in (
        ("foster", (32, 64, 64, 64), 200, True),
        ("plain", (8, 16, 24), 10, False),
        ("unnamed", (8, 16, 16, 24), 12, True),
    ):
        encoder, decoder, model = face_vae(keras, filters, z_dim, use_batch_norm, name != "unnamed")
        model = Unnamed(encoder, decoder) if name == "unnamed" else model
        images = np.random.default_rng(1).uniform(0, 1, (2, FACE, FACE, 3)).astype(np.float32)
        latents = np.random.default_rng(2).normal(size=(2, z_dim)).astype(np.float32)
        model(images)
        randomize(model)
        mean, log_var = encoder(images, training=False)
        decoded = decoder(latents, training=False)
        np.savez(folder / f"{name}.npz", images=images, mean=mean, log_var=log_var, latents=latents, decoded=decoded)
        model.save_weights(folder / f"{name}.weights.h5")
        tf.train.Checkpoint(model=model).save(folder / f"{name}_checkpoint" / "ckpt")
        if name != "unnamed":
            model.save(folder / f"{name}.keras")
            model.save(folder / f"{name}.h5")
        if keras.__name__ == "tf_keras":
            model.save_weights(folder / f"{name}_weights.h5", save_format="h5")
            model.save_weights(folder / f"{name}_tf" / "weights", save_format="tf")


def main(module, folder, faces=""):
    """Save all models."""
    keras = importlib.import_module(module)
    folder.mkdir(parents=True, exist_ok=True)
    if faces:
        save_faces(keras, folder)
        return
    for name, model in models(keras):
        randomize(model)
        images = np.random.default_rng(1).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
        images[1] /= 5
        images = images if name == "tutorial" else images / np.float32(127.5) - 1
        np.savez(folder / f"{name}.npz", images=images, outputs=model(images, training=False))
        save(keras, name, model, folder)


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
