"""Fast minimum-norm attack (FMN): the radius of the ball follows the boundary while the attack walks in it.

The change δ grows by α ∇m / ‖∇m‖₂, m = max over i ≠ y of z_i - z_y, and is projected into a ball of radius r. r shrinks
by a share γ where the attack succeeds and grows by it where it does not. Until it first succeeds, r grows to the
distance to the boundary of the tangent too. α and γ fall along a cosine. Source: Pintor et al. 2021, arXiv 2102.12827.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
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
    direction,
    dual_lengths,
    has_succeeded,
    is_zero,
    lengths,
    positive,
    project,
)
from adversarial.attacks.losses import aim
from adversarial.attacks.nearest import Nearest, keep_nearer, restrict_to_ball, start_nearest
from latentlab.arrays import AnyArray

FIRST_STEP, LAST_STEP = 1.0, 0.01
"""Length of a step in L2 at the beginning, as a multiple of the range of pixels, and at the end as a share of that."""
FIRST_CHANGE, LAST_CHANGE = 0.05, 0.001
"""Share by which the radius changes."""


class Search(NamedTuple):
    """State of the attack; arrays have a row an image.

    Attributes:
        change: From the originals to where it stands.
        radius: Of the ball.
        nearest: The nearest images that succeeded.
        zeros: Gradients that were 0.
    """

    change: Images
    radius: Float[Array, " n"]
    nearest: Nearest
    zeros: Float[Array, " n"]


def fmn(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 100,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Search for the nearest images of another class, or of the target; succeed where they are within ε.

    Nothing in it is random.

    Args:
        key: Not used.
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        epsilon: Radius; infinite for the nearest images found, however far.
        steps: Steps, each one gradient.
        targeted: Labels are targets.
        norm: L∞ or L2.
        bounds: Of the pixels.
    """
    del key
    check_inputs(images, labels, bounds)
    low, high = bounds
    farthest = lengths(jnp.maximum(images - low, high - images), norm)[:, 0, 0, 0]

    def objective(found: Array, labels: Labels) -> Array:
        return aim(found, labels, targeted)

    def take_step(step: Int[Array, ""], state: Search) -> Search:
        fall = (1 + jnp.cos(jnp.pi * step / steps)) / 2
        length = FIRST_STEP * (high - low) * (LAST_STEP + (1 - LAST_STEP) * fall)
        share = LAST_CHANGE + (FIRST_CHANGE - LAST_CHANGE) * fall
        moved = images + state.change
        gradient, found = differentiate(objective, logits, moved, labels)
        success = has_succeeded(found, labels, targeted)
        nearest = keep_nearer(state.nearest, moved, success, images, norm)
        to_boundary = jnp.abs(objective(found, labels)) / positive(dual_lengths(gradient, norm))
        reached = lengths(state.change, norm)[:, 0, 0, 0] + to_boundary
        grown = jnp.where(jnp.isfinite(state.nearest.distance), state.radius, jnp.maximum(state.radius, reached))
        radius = jnp.where(success, jnp.minimum(state.radius * (1 - share), nearest.distance), grown * (1 + share))
        radius = jnp.minimum(radius, farthest)
        change = project(state.change + length * direction(gradient, "l2"), radius[:, None, None, None], norm)
        change = jnp.clip(images + change, low, high) - images
        return Search(change, radius, nearest, state.zeros + is_zero(gradient))

    none = jnp.zeros(len(images))
    start = Search(jnp.zeros_like(images), none, start_nearest(images, none > 0), none)
    found = jax.lax.fori_loop(0, steps, take_step, start)
    return restrict_to_ball(found.nearest, found.zeros / steps, images, epsilon)
