"""The MNIST autoencoder and VAE in Keras, written from the specification's table: an oracle for `vae.model`.

Layers have the names of our parameter tree, so weights are copied by path. Keras broadcasts and
promotes freely, so it is let off the strict modes of the tests.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import keras
import numpy as np
from jax import Array

Models = Mapping[str, keras.Model]
Weights = Mapping[str, Sequence[Array]]


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@lenient()
def build(heads: Sequence[str], dtype: str = "float32") -> Models:
    """Encoder with these linear heads, and decoder; call under `jax.enable_x64` for float64."""
    layers = keras.layers
    images = hidden = keras.Input((28, 28, 1), dtype=dtype)
    for index, (filters, strides) in enumerate(((32, 1), (64, 2), (64, 2), (64, 1))):
        hidden = layers.Conv2D(filters, 3, strides, padding="same", dtype=dtype, name=f"conv_{index}")(hidden)
        hidden = layers.LeakyReLU(0.3, dtype=dtype)(hidden)
    hidden = layers.Flatten(dtype=dtype)(hidden)
    encoder = keras.Model(images, [layers.Dense(2, dtype=dtype, name=head)(hidden) for head in heads])

    latents = keras.Input((2,), dtype=dtype)
    hidden = layers.Reshape((7, 7, 64), dtype=dtype)(layers.Dense(3136, dtype=dtype, name="dense")(latents))
    for index, (filters, strides) in enumerate(((64, 1), (64, 2), (32, 2), (1, 1))):
        convolution = layers.Conv2DTranspose(filters, 3, strides, padding="same", dtype=dtype, name=f"conv_t_{index}")
        hidden = convolution(hidden)
        hidden = layers.LeakyReLU(0.3, dtype=dtype)(hidden) if index < 3 else keras.ops.sigmoid(hidden)
    return {"encoder": encoder, "decoder": keras.Model(latents, hidden)}


def to_keras(params: Any, models: Models) -> None:
    """Copies our parameters into Keras's models.

    Raises:
        ValueError: The two do not have the same weights; the message has their paths and shapes.
    """
    variables = _bijection(params, models)
    for name, value in _named(params).items():
        variables[name].assign(value)


def to_ours(models: Models, like: Any) -> Any:
    """Parameters like ours with Keras's values; raises as `to_keras` does."""
    variables = _bijection(like, models)
    return jax.tree.unflatten(jax.tree.structure(like), [variables[name].value for name in _named(like)])


def weights(models: Models) -> Weights:
    """All weights, in the order that `forward` and `loss` take them."""
    return {part: [variable.value for variable in model.trainable_variables] for part, model in models.items()}


@lenient()
def forward(models: Models, weights: Weights, images: Array, noise: Array) -> dict[str, Array]:
    """Mean, log variance (of a VAE), z, reconstruction in [0, 1], and the loss of each image."""
    ops = keras.ops
    heads, _ = models["encoder"].stateless_call(weights["encoder"], [], images)
    heads = list(heads) if isinstance(heads, list | tuple) else [heads]
    z = heads[0] + ops.exp(heads[1] / 2) * noise if len(heads) == 2 else heads[0]
    reconstruction, _ = models["decoder"].stateless_call(weights["decoder"], [], z)
    values = {"mean": heads[0], "z": z, "reconstruction": reconstruction}
    if len(heads) == 1:
        return values | {"loss": ops.mean((reconstruction - images) ** 2, axis=(1, 2, 3))}
    mean, log_variance = heads
    cross_entropy = ops.sum(ops.binary_crossentropy(images, reconstruction), axis=(1, 2, 3))
    kl = -0.5 * ops.sum(1 + log_variance - mean**2 - ops.exp(log_variance), axis=1)
    return values | {"log_variance": log_variance, "loss": cross_entropy + kl}


def train(models: Models, batches: Sequence[tuple[Array, Array]]) -> Iterator[None]:
    """Adam steps on the mean loss of batches of images and noise, in place, one at every `next`."""
    with lenient():
        variables = [variable for model in models.values() for variable in model.trainable_variables]
        optimizer = keras.optimizers.Adam(5e-4, epsilon=1e-7)
        optimizer.build(variables)

    @jax.jit
    @lenient()
    def step(weights: Weights, state: Sequence[Array], *batch: Array) -> tuple[Sequence[Array], Sequence[Array]]:
        gradients = jax.grad(lambda weights: forward(models, weights, *batch)["loss"].mean())(weights)
        flat_gradients, flat_weights = ([one for part in models for one in tree[part]] for tree in (gradients, weights))
        return optimizer.stateless_apply(state, flat_gradients, flat_weights)

    state = [variable.value for variable in optimizer.variables]
    for batch in batches:
        values, state = step(weights(models), state, *batch)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        yield


def _named(params: Any) -> dict[str, Any]:
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): value for path, value in jax.tree_util.tree_leaves_with_path(params)}


def _bijection(params: Any, models: Models) -> dict[str, keras.Variable]:
    """Keras's variables by the paths of our parameters."""
    variables = {f"params/{part}/{v.path}": v for part, model in models.items() for v in model.trainable_variables}
    ours, theirs = ({name: np.shape(v) for name, v in side.items()} for side in (_named(params), variables))
    if ours != theirs:
        raise ValueError(f"only ours: {ours.items() - theirs.items()}; only Keras's: {theirs.items() - ours.items()}")
    return variables
