"""What the experiments ask of a latent-variable model: pure functions of its variables.

`variables` are `{"params": …, "batch_stats": …}`, trees of float32 arrays; models without BatchNorm have an empty
`batch_stats`. Optimisers see `params` alone. Images are NHWC floats in [0, 1], latents have shape (batch, latent).
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from latentlab.arrays import AnyArray

Variables = dict[str, Any]
Images = Float[AnyArray, "batch height width channels"]
Latents = Float[AnyArray, "batch latent"]
PerExample = Float[Array, " batch"]

EVALUATION_STEP = 2**31 - 1
"""The step whose loss has no warm-up left: that of evaluations."""


class Labeled(NamedTuple):
    """Images, or pixels 0…255, and their classes: what a conditional model takes where others take images."""

    images: Any
    labels: Any


class Loss(NamedTuple):
    """Loss of each example, its parts by name, and the running statistics after the batch (`{}` for none)."""

    per_example: PerExample
    parts: dict[str, PerExample]
    batch_stats: dict[str, Any]


@runtime_checkable
class LatentVariableModel(Protocol):
    """An encoder, a decoder and the loss that trains them.

    A model is immutable and hashable, because compiled functions take it as a static argument.
    """

    def __hash__(self) -> int:
        """Return a hash that equal models share."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of images."""

    @property
    def latent_dim(self) -> int:
        """Number of latent dimensions."""

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return the variables before training."""

    def encode(self, variables: Variables, images: Images) -> tuple[Latents, Latents]:
        """Return mean and log variance of the posterior; the log variance of a deterministic code is -∞."""

    def decode(self, variables: Variables, latents: Latents) -> Images:
        """Return the logits of the pixels: `jax.nn.sigmoid` of them are images."""

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return the loss with one posterior sample per image.

        With `train`, BatchNorm takes the statistics of the batch and moves the running ones, Dropout is active, and the
        model's own precision holds. Without, the loss of an example does not depend on the batch.
        """


@runtime_checkable
class ConditionalModel(LatentVariableModel, Protocol):
    """A model of images given their class.

    Its `encode` and `loss` take `Labeled` images, its `decode` takes latents with the class behind them, as
    `attach_labels` gives them; `latent_dim` counts the latents alone.
    """

    @property
    def classes(self) -> int:
        """Number of classes."""


def attach_labels(
    latents: Latents, labels: Int[AnyArray, " batch"], classes: int
) -> Float[Array, "batch latent_and_classes"]:
    """Return latents with the class of each behind them, one-hot."""
    return jnp.concatenate([latents, jax.nn.one_hot(labels, classes, dtype=latents.dtype)], axis=-1)


def normalize(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return pixels 0…255 as floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def merge_network_variables(**networks: Variables) -> Variables:
    """Return the variables of a model from those of its networks, each under its name in every collection."""
    params = {name: variables["params"] for name, variables in networks.items()}
    stats = {name: variables["batch_stats"] for name, variables in networks.items() if "batch_stats" in variables}
    return {"params": params, "batch_stats": stats}


def select_network_variables(variables: Variables, name: str) -> Variables:
    """Return the variables of one network of a model, as Flax's `apply` takes them."""
    return {collection: tree[name] for collection, tree in variables.items() if name in tree}
