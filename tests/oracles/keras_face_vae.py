"""The face VAE in Keras, written from the specification's table: an oracle for `latent_arith.model`.

Layers have the names of our variables, so weights and moving statistics are copied by path.
With the JAX backend Keras's BatchNormalization computes in float32 even where its dtype is
float64; `forward` has it keep float64.
"""

from typing import Any
from unittest import mock

import jax
import keras
import numpy as np
from jax import Array
from keras.src.backend.common.dtypes import BIT64_TO_BIT32_DTYPE

from tests.oracles.keras_vae import Models, Weights, lenient, weights

OURS = {
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


@lenient()
def build(dropout: float = 0.25, dtype: str = "float32") -> Models:
    """Encoder and decoder with kernels of zero, to be copied over; call under `jax.enable_x64` for float64."""
    layers = keras.layers
    weighted = {"kernel_initializer": "zeros", "dtype": dtype}
    convolution = {"kernel_size": 3, "strides": 2, "padding": "same", **weighted}

    def normalized(hidden: Any, name: str) -> Any:
        hidden = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, dtype=dtype, name=name)(hidden)
        return layers.LeakyReLU(0.3, dtype=dtype)(hidden)

    images = hidden = keras.Input((128, 128, 3), dtype=dtype)
    for index, filters in enumerate((32, 64, 64, 64)):
        hidden = layers.Conv2D(filters, **convolution, name=f"encoder_conv_{index}")(hidden)
        hidden = normalized(hidden, f"encoder_norm_{index}")
        if index > 0:
            hidden = layers.Dropout(dropout, dtype=dtype)(hidden)
    hidden = layers.Flatten(dtype=dtype)(hidden)
    heads = [layers.Dense(200, **weighted, name=name)(hidden) for name in ("mu", "log_var")]

    latents = keras.Input((200,), dtype=dtype)
    hidden = layers.Dense(4096, **weighted, name="decoder_dense")(latents)
    hidden = layers.Reshape((8, 8, 64), dtype=dtype)(hidden)
    for index, filters in enumerate((64, 64, 32)):
        hidden = layers.Conv2DTranspose(filters, **convolution, name=f"decoder_conv_t{index}")(hidden)
        hidden = layers.Dropout(dropout, dtype=dtype)(normalized(hidden, f"decoder_norm_t{index}"))
    pixels = layers.Conv2DTranspose(3, **convolution, name="decoder_conv_t3")(hidden)
    return {"encoder": keras.Model(images, heads), "decoder": keras.Model(latents, keras.ops.sigmoid(pixels))}


def to_keras(variables: Any, models: Models) -> None:
    """Copies our variables into Keras's models.

    Raises:
        ValueError: The two do not have the same weights; the message has their paths and shapes.
    """
    for theirs, value in zip(_in_our_order(models, variables), jax.tree.leaves(variables), strict=True):
        theirs.assign(value)


def to_ours(models: Models, like: Any) -> Any:
    """Variables like ours with Keras's values; raises as `to_keras` does."""
    return jax.tree.unflatten(jax.tree.structure(like), [theirs.value for theirs in _in_our_order(models, like)])


def others(models: Models) -> Weights:
    """What is not trained: moving statistics, and the seeds of Dropout."""
    return {part: [variable.value for variable in model.non_trainable_variables] for part, model in models.items()}


@lenient()
@mock.patch.dict(BIT64_TO_BIT32_DTYPE, float64="float64")
def forward(
    models: Models, weights: Weights, others: Weights, images: Array, noise: Array, *, training: bool
) -> tuple[dict[str, Array], Weights]:
    """Mean, log variance, reconstruction in [0, 1] and the loss of each image; and the `others` after it."""
    ops = keras.ops
    (mean, log_variance), encoder_others = models["encoder"].stateless_call(
        weights["encoder"], others["encoder"], images, training=training
    )
    z = mean + ops.exp(log_variance / 2) * noise
    reconstruction, decoder_others = models["decoder"].stateless_call(
        weights["decoder"], others["decoder"], z, training=training
    )
    cross_entropy = ops.mean(ops.binary_crossentropy(images, reconstruction), axis=(1, 2, 3))
    kl = -0.5 * ops.sum(1 + log_variance - mean**2 - ops.exp(log_variance), axis=1)
    values = {"mean": mean, "log_variance": log_variance, "reconstruction": reconstruction}
    return values | {"loss": 10_000 * cross_entropy + kl}, {"encoder": encoder_others, "decoder": decoder_others}


@lenient()
def train(models: Models, images: Array, noise: Array) -> Array:
    """One Adam step on the mean loss, weights and moving statistics in place; returns the loss before it."""
    trained = [variable for model in models.values() for variable in model.trainable_variables]
    untrained = [variable for model in models.values() for variable in model.non_trainable_variables]
    optimizer = keras.optimizers.Adam(5e-4, epsilon=1e-7)
    optimizer.build(trained)

    @jax.jit
    def step(weights: Weights, statistics: Weights, state: list[Array]) -> tuple[list[Array], Weights, Array]:
        def mean_loss(weights: Weights) -> tuple[Array, Weights]:
            values, after = forward(models, weights, statistics, images, noise, training=True)
            return values["loss"].mean(), after

        (loss, after), gradients = jax.value_and_grad(mean_loss, has_aux=True)(weights)
        flat = [[one for part in models for one in tree[part]] for tree in (gradients, weights)]
        values, _ = optimizer.stateless_apply(state, *flat)
        return values, after, loss

    values, after, loss = step(weights(models), others(models), [variable.value for variable in optimizer.variables])
    after_flat = [one for part in models for one in after[part]]
    for variable, value in zip(trained + untrained, values + after_flat, strict=True):
        variable.assign(value)
    return loss


def _in_our_order(models: Models, ours: Any) -> list[keras.Variable]:
    """Keras's variables in the order of the leaves of our tree."""
    theirs = {}
    for part, model in models.items():
        for variable in model.weights:
            layer, weight = variable.path.split("/")
            collection, name = OURS.get(weight, ("params", weight))
            theirs[f"{part}/{collection}/{layer}/{name}"] = variable
    paths = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(ours)
    }
    shapes = {path: np.shape(variable) for path, variable in theirs.items()}
    if paths != shapes:
        raise ValueError(f"only ours: {paths.items() - shapes.items()}; only Keras's: {shapes.items() - paths.items()}")
    return [theirs[path] for path in paths]
