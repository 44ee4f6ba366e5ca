"""What the experiments ask of a latent-variable model: pure functions of its variables.

`variables` are `{"params": …, "batch_stats": …}`, trees of float32 arrays; models without BatchNorm have an empty
`batch_stats`. Optimisers see `params` alone. Images are NHWC floats in [0, 1], latents have shape (batch, latent).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from latentlab.arrays import AnyArray
from latentlab.errors import UserError, first_line

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


def check_model(model: Any, image_shape: tuple[int, int, int]) -> None:
    """Check, without computing anything, that a model is one and goes with images of a shape.

    Raises:
        UserError: A method is missing, fails, or returns arrays of another shape, or running statistics would stay.
    """
    needed = ("image_shape", "latent_dim", "init", "encode", "decode", "loss")
    missing = [name for name in needed if not hasattr(model, name)]
    if missing:
        raise UserError(
            f"model is of type {type(model).__name__}, which has no {', '.join(missing)}; expected a "
            "LatentVariableModel, such as vae.model.Vae(encoder=…) with an own network"
        )
    if tuple(model.image_shape) != image_shape:
        raise UserError(f"model is for images of {model.image_shape}, the data have {image_shape}; expected the same")
    count, latent = 2, model.latent_dim
    images: Any = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    latents = jax.ShapeDtypeStruct((count, latent), jnp.float32)
    if isinstance(model, ConditionalModel):
        images = Labeled(images, jax.ShapeDtypeStruct((count,), jnp.int32))
        latents = jax.ShapeDtypeStruct((count, latent + model.classes), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = _try("init(key)", model.init, key)
    posterior = _try("encode(variables, images)", model.encode, variables, images)
    _check_shapes("encode(variables, images)", posterior, [(count, latent)] * 2, "mean and log variance")
    logits = _try("decode(variables, latents)", model.decode, variables, latents)
    _check_shapes("decode(variables, latents)", logits, [(count, *image_shape)], "logits of the pixels")

    def loss(variables: Variables, images: Any, key: Key[Array, ""]) -> Loss:
        return model.loss(variables, images, key, 0, train=True)

    found = _try("loss(variables, images, key, step, train=True)", loss, variables, images, key)
    _check_shapes("loss(…).per_example", getattr(found, "per_example", found), [(count,)], "a loss of each image")
    if variables.get("batch_stats") and not found.batch_stats:
        raise UserError(
            "model has running statistics (BatchNorm), which its loss does not move; expected networks without them, "
            "or a model whose loss does, such as latent_arith.model.FaceVae(encoder=…)"
        )


def _try(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"model.{what} fails: {kind}{first_line(error)}") from error


def _check_shapes(what: str, found: Any, expected: list[tuple[int, ...]], meaning: str) -> None:
    shapes = [leaf.shape for leaf in jax.tree.leaves(found)]
    if shapes != expected:
        raise UserError(
            f"model.{what} returns {', '.join(map(str, shapes)) or 'nothing'} for two images, expected {meaning}, "
            f"{', '.join(map(str, expected))}"
        )
