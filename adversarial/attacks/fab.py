"""Fast Adaptive Boundary attack (FAB): the least change that makes another class the top one.

At a point x the difference of two logits is replaced by its tangent, whose zeros are a plane. x and the original image
are both projected onto the plane within the bounds, and the next point lies between, a little beyond the plane. A point
that succeeds is drawn back to the original. The source is Croce and Hein 2020, arXiv 1907.02044; FAB-T, which aims at
the most likely other classes one after the other, is part of Auto-Attack (arXiv 2003.01690).
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
    evaluate_logits,
    has_succeeded,
    is_zero,
    lengths,
    positive,
    select,
)
from adversarial.attacks.losses import difference_to_target
from adversarial.attacks.nearest import Nearest, keep_nearer, restrict_to_ball, start_nearest
from adversarial.attacks.turns import aim_at_others
from latentlab.arrays import AnyArray

OVERSHOOT = 1.05
BIAS = 0.1
"""Largest weight of the projection of the original image."""
BACKWARD = 0.9
NEWTON_STEPS = 100
"""Most steps of the projection, which is exact after as many as pixels reach their bounds; about ten are usual."""


class Search(NamedTuple):
    """State of a search for the least change; arrays have a row an image.

    Attributes:
        step: Steps taken.
        images: Where it stands.
        nearest: The nearest images that succeeded.
        taken: Gradients taken until it was near enough.
        zeros: Those of them that were 0.
    """

    step: Int[Array, ""]
    images: Images
    nearest: Nearest
    taken: Float[Array, " n"]
    zeros: Float[Array, " n"]


def fab_t(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 100,
    rank: int | Int[AnyArray, ""] = 0,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Search for the least change towards the nine most likely other classes, one after the other.

    It succeeds where that is at most ε, and other images stay as they are. Nothing in it is random.

    Args:
        key: Not used.
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        epsilon: Radius.
        steps: Steps towards each class.
        rank: Aim at one of them alone, 1 for the most likely; 0 for all.
        targeted: Aim at the labels alone.
        norm: L∞ or L2.
        bounds: Of the pixels.
    """
    check_inputs(images, labels, bounds)

    def attack(keys: Key[Array, " n"], targets: Labels) -> AttackResult:
        del keys
        found = find_least_change(
            logits, images, labels, targets, epsilon=epsilon, steps=steps, targeted=targeted, norm=norm, bounds=bounds
        )
        zeros = found.zeros / jnp.maximum(found.taken, 1)
        return restrict_to_ball(found.nearest, zeros, images, epsilon)

    return aim_at_others(attack, key, logits, images, labels, rank, targeted)


def find_least_change(
    logits: Logits,
    images: Images,
    labels: Labels,
    targets: Labels,
    *,
    epsilon: Radius = 0.0,
    steps: int,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm,
    bounds: Bounds,
) -> Search:
    """Search for the nearest images whose top class is no longer the label, with `targeted` is the label.

    Args:
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        targets: Classes whose boundary to the label is followed.
        epsilon: Distance that is near enough; the search ends where all images have come so near.
        steps: Most steps.
        targeted: Labels are targets.
        norm: That distances are measured in.
        bounds: Of the pixels.
    """
    low, high = bounds

    def is_running(state: Search) -> Bool[Array, ""]:
        return (state.step < steps) & jnp.any(state.nearest.distance > epsilon)

    def objective(found: Array, labels: Labels, targets: Labels) -> Array:
        return difference_to_target(found, labels, targets, targeted)

    def take_step(state: Search) -> Search:
        gradient, found = differentiate(objective, logits, state.images, labels, targets)
        difference = objective(found, labels, targets)
        along = jnp.sum(gradient * (images - state.images), axis=(1, 2, 3))
        # The tangent is difference + ⟨gradient, x - state.images⟩; both points go where it is 0.
        own = project_to_plane(state.images, gradient, difference, norm, bounds)
        original = project_to_plane(images, gradient, difference + along, norm, bounds)
        length, of_original = (jnp.maximum(lengths(change, norm), 1e-8) for change in (own, original))
        weight = jnp.minimum(length / (length + of_original), BIAS)
        moved = (state.images + OVERSHOOT * own) * (1 - weight) + (images + OVERSHOOT * original) * weight
        moved = jnp.clip(moved, low, high)
        success = has_succeeded(evaluate_logits(logits, moved), labels, targeted)
        is_searching = state.nearest.distance > epsilon
        nearest = keep_nearer(state.nearest, moved, success & is_searching, images, norm)
        back = images + (moved - images) * BACKWARD
        is_counted = is_searching.astype(jnp.float32)
        taken, zeros = state.taken + is_counted, state.zeros + is_counted * is_zero(gradient)
        return Search(state.step + 1, select(success, back, moved), nearest, taken, zeros)

    succeeded = has_succeeded(evaluate_logits(logits, images), labels, targeted)
    none = jnp.zeros(len(images))
    start = Search(jnp.zeros((), jnp.int32), images, start_nearest(images, succeeded), none, none)
    return jax.lax.while_loop(is_running, take_step, start)


def project_to_plane(points: Images, normal: Images, value: Float[Array, " n"], norm: Norm, bounds: Bounds) -> Images:
    """Return the least changes δ with value + ⟨normal, δ⟩ = 0 and points + δ within the bounds.

    Every pixel moves by min(λ v, room) against the sign of value · normal: v is 1 in L∞ and |normal| in L2, and room is
    how far the pixel is from its bound. What that takes off |value| is concave and piecewise linear in λ, so Newton's
    steps from λ = 0 never go too far and end at the solution. Where all pixels together do not reach the plane, all go
    to their bounds.
    """
    sign = -jnp.sign(normal) * jnp.where(value >= 0, 1, -1)[:, None, None, None]
    room = jnp.where(sign > 0, bounds[1] - points, jnp.where(sign < 0, points - bounds[0], 0))
    weight = jnp.abs(normal)
    speed = jnp.where(weight > 0, 1.0, 0.0) if norm == "linf" else weight
    wanted = jnp.abs(value)

    def take_step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, multiplier, _ = state
        reached = multiplier[:, None, None, None] * speed
        taken_off = jnp.sum(weight * jnp.minimum(reached, room), axis=(1, 2, 3))
        slope = jnp.sum(jnp.where(reached < room, weight * speed, 0), axis=(1, 2, 3))
        grown = multiplier + jnp.maximum(wanted - taken_off, 0) / positive(slope)
        return step + 1, jnp.where(slope > 0, grown, multiplier), multiplier

    def is_running(state: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        step, multiplier, before = state
        return (step < NEWTON_STEPS) & jnp.any(multiplier > before * (1 + 1e-6))

    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(wanted), jnp.full_like(wanted, -1))
    _, multiplier, _ = jax.lax.while_loop(is_running, take_step, start)
    return sign * jnp.minimum(multiplier[:, None, None, None] * speed, room)
