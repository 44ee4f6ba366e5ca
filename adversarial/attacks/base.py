"""What attacks share: their types, balls and bounds, keys, gradients, and what counts as success."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from latentlab.arrays import AnyArray
from latentlab.kernels.microbatch import apply_in_cache

Images = Float[AnyArray, "n h w c"]
Labels = Int[AnyArray, " n"]
Logits = Callable[[Images], Float[Array, "n classes"]]
Bounds = tuple[float, float]
Norm = Literal["linf", "l2"]
Radius = float | Float[AnyArray, ""]
Objective = Callable[..., Float[Array, " n"]]
"""Logits, and arrays with a row an image such as labels, to a number of every image that an attack raises."""


class AttackResult(NamedTuple):
    """What an attack made of every image.

    Attributes:
        images: The images after it.
        success: Whether the attack succeeded.
        zero_gradients: Of the gradients that it followed, the share that was 0 at every pixel («masked gradients»), so
            that there was no direction to go. None, if it does not count them.
        distance: Of the nearest image found on which it succeeds, infinite where there is none; None, if it does not
            look for it.
    """

    images: Images
    success: Bool[Array, " n"]
    zero_gradients: Float[Array, " n"] | None = None
    distance: Float[Array, " n"] | None = None


Attack = Callable[..., AttackResult]
"""`attack(key, logits, images, labels, *, epsilon, targeted, norm, bounds, …)`.

    key: A key of every image, or one from which those are split; ignored by attacks without randomness.
    logits: Images to logits.
    images: Pixels within the bounds; outside `jit` others are an error (`check_inputs`).
    labels: The true classes, or the targets.
    epsilon: Radius of the ball, in the unit of the pixels.
    targeted: Make the label likelier, not less likely.
    norm: L∞ or L2.
    bounds: Range of the pixels.
    …: Settings of the attack.
"""


def check_inputs(images: Images, labels: Labels, bounds: Bounds) -> None:
    """Refuse images and labels that an attack would take for others: it would clip pixels and so move them beyond ε.

    Within `jit` values are not known, and shapes alone are checked.

    Raises:
        ValueError: Images are not floats of shape (n, h, w, c), a pixel is out of the bounds or not a number, or labels
            are not n integers.
    """
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype} of shape {images.shape}, expected floats of shape (n, h, w, c)")
    if labels.shape != images.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}, expected an integer for each of {len(images)} images"
        )
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    pixels = np.asarray(images)  # in NumPy, for JAX would trace it within a loop
    low, high = float(pixels.min()), float(pixels.max())
    if not bounds[0] <= low <= high <= bounds[1]:
        raise ValueError(f"images reach from {low:g} to {high:g}, expected them within the bounds, {bounds}")


def check_logits(found: Any, count: int) -> Float[Array, "n classes"]:
    """Return what a network gives for so many images.

    Raises:
        ValueError: It is not logits.
    """
    if not hasattr(found, "shape") or found.ndim != 2 or len(found) != count:
        shape = found.shape if hasattr(found, "shape") else type(found).__name__
        raise ValueError(f"the network gives {shape} for {count} images, expected logits of shape ({count}, classes)")
    logits: Float[Array, "n classes"] = found
    return logits


def evaluate_logits(logits: Logits, images: Images) -> Float[Array, "n classes"]:
    """Return the logits of all images."""
    return apply_in_cache(lambda some: check_logits(logits(some), len(some)), images)


def differentiate(
    objective: Objective, logits: Logits, images: Images, *rows: Array
) -> tuple[Images, Float[Array, "n classes"]]:
    """Return the gradient of an objective in the images, and their logits.

    The objective is summed over the batch, so no image's gradient depends on the others.

    Args:
        objective: Logits and `rows` to a number of every image.
        logits: Images to logits.
        images: Pixels.
        rows: What the objective takes beside logits, a row an image.
    """

    def differentiate_rows(images: Images, *rows: Array) -> tuple[Images, Float[Array, "n classes"]]:
        def total(images: Images) -> tuple[Array, Array]:
            found = check_logits(logits(images), len(images))
            return jnp.sum(objective(found, *rows)), found

        return jax.grad(total, has_aux=True)(images)

    found: tuple[Images, Float[Array, "n classes"]] = apply_in_cache(differentiate_rows, images, *rows)
    return found


def class_at_rank(logits: Logits, images: Images, rank: int = 1) -> Labels:
    """Return the class of a rank for every image: 1 is the top one, 2 the next; -1 is the least likely one."""
    order = jnp.argsort(evaluate_logits(logits, images), axis=1, descending=True, stable=True)
    return order[:, rank - 1 if rank > 0 else rank]


def has_succeeded(
    logits: Float[AnyArray, "*shape classes"], labels: Int[AnyArray, "*shape"], targeted: bool | Bool[AnyArray, "..."]
) -> Bool[Array, "*shape"]:
    """Return whether the top class is the target, or, untargeted, no longer the true one."""
    hit = jnp.argmax(logits, axis=-1) == labels
    return hit == jnp.asarray(targeted)


def project(difference: Images, epsilon: Radius | Float[AnyArray, "n 1 1 1"], norm: Norm) -> Images:
    """Return the nearest point of the ball of radius ε, or of one of each image, about 0."""
    if norm == "linf":
        return jnp.clip(difference, -epsilon, epsilon)
    return difference * jnp.minimum(1, epsilon / positive(lengths(difference)))


def project_to_ball(moved: Images, images: Images, epsilon: Radius, norm: Norm, bounds: Bounds) -> Images:
    """Return points within the ball of radius ε about the images and within the bounds."""
    return jnp.clip(images + project(moved - images, epsilon, norm), *bounds)


def random_in_ball(key: Key[Array, ""], shape: tuple[int, ...], norm: Norm) -> Float[Array, "h w c"]:
    """Draw a uniform point of the unit ball of one image: of L2, a Gaussian direction of length u^(1/d)."""
    if norm == "linf":
        return jax.random.uniform(key, shape, minval=-1)
    direction_key, length_key = jax.random.split(key)
    (drawn,) = direction(jax.random.normal(direction_key, (1, *shape)), norm)
    return drawn * jax.random.uniform(length_key) ** (1 / math.prod(shape))


def random_on_sphere(key: Key[Array, ""], shape: tuple[int, ...], norm: Norm) -> Float[Array, "h w c"]:
    """Draw a point of the unit sphere of one image: uniform noise over its maximum, or of L2 a Gaussian direction."""
    if norm == "linf":
        drawn = jax.random.uniform(key, shape, minval=-1)
        return drawn / positive(jnp.max(jnp.abs(drawn)))
    return direction(jax.random.normal(key, (1, *shape)), norm)[0]


def random_start(
    draw: Callable[[Key[Array, ""], tuple[int, ...], Norm], Float[Array, "h w c"]],
    keys: Key[Array, " n"],
    images: Images,
    epsilon: Radius,
    norm: Norm,
    bounds: Bounds,
) -> Images:
    """Return a point about every image that is drawn from the unit ball or sphere, times ε, clipped to the bounds."""
    drawn = jax.vmap(lambda key: draw(key, images.shape[1:], norm))(keys)
    return jnp.clip(images + epsilon * drawn, *bounds)


def split_keys(key: Key[Array, "*n"], count: int) -> Key[Array, " n"]:
    """Return a key of every image: those that are given, or as many from a single one.

    Raises:
        ValueError: It is no key.
    """
    if not isinstance(key, Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"key is of type {type(key).__name__}, expected a key such as jax.random.key(0)")
    return key if key.ndim else jax.random.split(key, count)


def fold_in(keys: Key[Array, " n"], data: int | Int[Array, ""]) -> Key[Array, " n"]:
    """Return the keys with a number folded into each."""
    folded: Key[Array, " n"] = jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
    return folded


def direction(gradient: Images, norm: Norm) -> Images:
    """Return the step of length 1 along which a linear function grows most: the sign in L∞, ∇ / ‖∇‖ in L2."""
    return jnp.sign(gradient) if norm == "linf" else gradient / positive(lengths(gradient))


def is_zero(gradient: Images) -> Float[Array, " n"]:
    """Return 1 for every image whose gradient is 0 at every pixel, and 0 for the others."""
    return jnp.all(gradient == 0, axis=(1, 2, 3)).astype(jnp.float32)


def lengths(images: Images, norm: Norm = "l2") -> Float[Array, "n 1 1 1"]:
    """Return the norm of every image."""
    if norm == "linf":
        return jnp.max(jnp.abs(images), axis=(1, 2, 3), keepdims=True)
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))


def dual_lengths(gradient: Images, norm: Norm) -> Float[Array, " n"]:
    """Return the dual norm of every gradient, by which a step of length 1 changes a linear function: L1 in L∞."""
    if norm == "linf":
        return jnp.sum(jnp.abs(gradient), axis=(1, 2, 3))
    return lengths(gradient)[:, 0, 0, 0]


def select(condition: Bool[Array, " n"], one: Any, other: Any) -> Any:
    """Return the rows of one tree of arrays where a condition holds, and those of another where not."""

    def select_leaf(one: Array, other: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    return jax.tree.map(select_leaf, one, other)


positive = partial(jnp.maximum, 1e-12)
