"""The L2 attack of Carlini and Wagner: Adam on the squared change plus a weight times the margin.

The image is (high - low) / 2 · tanh(w) + (high + low) / 2, which cannot leave the bounds. For a weight c, Adam descends

    ‖(x' - x) / (high - low)‖² + c · max(0, κ - m(x')),

where m = max over i ≠ y of z_i - z_y, or z_t less the strongest other logit. A search over c of every image keeps the
smallest change that reaches m ≥ κ. Source: Carlini and Wagner 2017, arXiv 1608.04644.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from adversarial.attacks.base import (
    AttackResult,
    Bounds,
    Images,
    Labels,
    Logits,
    Norm,
    Radius,
    check_inputs,
    differentiate,
    evaluate_logits,
    has_succeeded,
    is_zero,
)
from adversarial.attacks.losses import aim
from adversarial.attacks.nearest import Nearest, keep_nearer, restrict_to_ball, start_nearest
from latentlab.arrays import AnyArray

SEARCHES = 9
"""Weights that are tried for every image."""
FIRST_WEIGHT = 1e-3
CHECKS = 10
"""Times in a descent that the losses of images are compared with those before."""
LEAST_GAIN = 1e-4
"""An image rests where its loss has not fallen by this share of it."""
INSIDE = 0.999999
"""Where the bounds lie between -1 and 1 before the inverse of tanh, which is infinite there."""


class Descent(NamedTuple):
    """State of the descent for one weight; arrays have a row an image.

    Attributes:
        step: Steps taken.
        variables: Inverse of tanh of the images.
        moments: Adam's state.
        nearest: The nearest images that succeeded, for this weight and those before.
        success: Whether any did for this weight.
        loss: At the last check.
        is_running: Whether the loss still fell there.
        taken: Gradients taken before success, for this weight and those before.
        zeros: Those of them that were 0.
    """

    step: Int[Array, ""]
    variables: Images
    moments: Any
    nearest: Nearest
    success: Bool[Array, " n"]
    loss: Float[Array, " n"]
    is_running: Bool[Array, " n"]
    taken: Float[Array, " n"]
    zeros: Float[Array, " n"]


class Weights(NamedTuple):
    """The weights of every image, and between which ones the least that succeeds lies."""

    now: Float[Array, " n"]
    low: Float[Array, " n"]
    high: Float[Array, " n"]


def carlini_wagner(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 1000,
    learning_rate: float = 0.01,
    confidence: float = 0.0,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "l2",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Search for the nearest images in L2; succeed where they are within ε.

    Nothing in it is random.

    Args:
        key: Not used.
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        epsilon: Radius; infinite for the nearest images found, however far.
        steps: Most steps of Adam for each of nine weights.
        learning_rate: Of Adam, in the argument of tanh.
        confidence: κ, the least margin of an image that counts as success.
        targeted: Labels are targets.
        norm: L2.
        bounds: Of the pixels.

    Raises:
        ValueError: The norm is not L2, or images leave the bounds.
    """
    del key
    if norm != "l2":
        raise ValueError(f"norm is {norm!r}, but the attack of Carlini and Wagner is in L2; expected 'l2'")
    check_inputs(images, labels, bounds)
    middle, width = sum(bounds) / 2, bounds[1] - bounds[0]
    origin = jnp.arctanh((images - middle) * 2 / width * INSIDE)
    adam, check_every = optax.adam(learning_rate), -(-steps // CHECKS)

    def to_pixels(variables: Images) -> Images:
        return jnp.tanh(variables) * width / 2 + middle

    def objective(found: Array, labels: Labels, weight: Array) -> Array:
        return -weight * jnp.maximum(0, confidence - aim(found, labels, targeted))

    def is_sure(found: Array) -> Bool[Array, " n"]:
        return has_succeeded(found, labels, targeted) & (aim(found, labels, targeted) >= confidence)

    def descend(weight: Float[Array, " n"], nearest: Nearest, taken: Array, zeros: Array) -> Descent:
        def take_step(state: Descent) -> Descent:
            pixels, pull_back = jax.vjp(to_pixels, state.variables)
            gradient, found = differentiate(objective, logits, pixels, labels, weight)
            change = pixels - to_pixels(origin)
            loss = jnp.sum((change / width) ** 2, axis=(1, 2, 3)) - objective(found, labels, weight)
            (slope,) = pull_back(2 * change / width**2 - gradient)
            updates, moments = adam.update(slope, state.moments)
            is_checked = state.step % check_every == 0
            is_running = state.is_running & (~is_checked | (loss < (1 - LEAST_GAIN) * state.loss))
            checked = jnp.where(is_checked & is_running, loss, state.loss)
            success = is_sure(found) & is_running
            kept = keep_nearer(state.nearest, pixels, success, images, norm)
            is_counted = (is_running & ~success).astype(jnp.float32)
            return Descent(
                state.step + 1,
                optax.apply_updates(state.variables, updates),
                moments,
                kept,
                state.success | success,
                checked,
                is_running,
                state.taken + is_counted,
                state.zeros + is_counted * is_zero(gradient),
            )

        def goes_on(state: Descent) -> Bool[Array, ""]:
            return (state.step < steps) & jnp.any(state.is_running)

        none = jnp.zeros(len(images), bool)
        first = (jnp.zeros((), jnp.int32), origin, adam.init(origin), nearest, none, jnp.full(len(images), jnp.inf))
        return jax.lax.while_loop(goes_on, take_step, Descent(*first, ~none, taken, zeros))

    def search(_: Array, state: tuple[Weights, Nearest, Array, Array]) -> tuple[Weights, Nearest, Array, Array]:
        weights, nearest, *counts = state
        found = descend(weights.now, nearest, *counts)
        low = jnp.where(found.success, weights.low, weights.now)
        high = jnp.where(found.success, weights.now, weights.high)
        weight = jnp.where(jnp.isinf(high), 10 * weights.now, (low + high) / 2)
        return Weights(weight, low, high), found.nearest, found.taken, found.zeros

    none = jnp.zeros(len(images))
    weights = Weights(none + FIRST_WEIGHT, none, none + jnp.inf)
    nearest = start_nearest(images, is_sure(evaluate_logits(logits, images)))
    _, nearest, taken, zeros = jax.lax.fori_loop(0, SEARCHES, search, (weights, nearest, none, none))
    return restrict_to_ball(nearest, zeros / jnp.maximum(taken, 1), images, epsilon)
