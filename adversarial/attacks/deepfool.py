"""DeepFool: the nearest boundary of the network's tangent, reached again and again until the class changes.

At a point x the logits are replaced by their tangents. Of the most likely other classes k, the one with the nearest
boundary has the least |z_k - z_y| / ‖∇(z_k - z_y)‖_q, q = 2 in L2 and 1 in L∞, and x moves there. Source:
Moosavi-Dezfooli et al. 2016, arXiv 1511.04599.
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
    direction,
    dual_lengths,
    evaluate_logits,
    has_succeeded,
    is_zero,
    select,
)
from adversarial.attacks.losses import class_of_strongest_other, is_label, order_of_others
from adversarial.attacks.nearest import keep_nearer, restrict_to_ball, start_nearest
from adversarial.attacks.turns import TARGETS
from latentlab.arrays import AnyArray
from latentlab.kernels.microbatch import apply_in_cache

OVERSHOOT = 1.02
MARGIN = 1e-4
"""How much farther than to the boundary a step goes, as a share of the range of pixels; foolbox adds the same."""


class Walk(NamedTuple):
    """State of the attack; arrays have a row an image.

    Attributes:
        step: Steps taken.
        images: Where it stands.
        change: Sum of the steps, without overshoot.
        success: Whether it has succeeded.
        taken: Gradients taken until then.
        zeros: Those of them that were 0.
    """

    step: Int[Array, ""]
    images: Images
    change: Images
    success: Bool[Array, " n"]
    taken: Float[Array, " n"]
    zeros: Float[Array, " n"]


def deepfool(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 50,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Step to the nearest boundary of the tangents until the class changes; succeed where that is within ε.

    Nothing in it is random.

    Args:
        key: Not used.
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        epsilon: Radius; infinite for the nearest images found, however far.
        steps: Most steps.
        targeted: Step to the boundary between the label and the class on top.
        norm: L∞ or L2.
        bounds: Of the pixels.
    """
    del key
    check_inputs(images, labels, bounds)
    clean = evaluate_logits(logits, images)
    others = order_of_others(clean, labels)[:, : 1 if targeted is True else TARGETS]  # towards a label there is one

    def is_running(state: Walk) -> Bool[Array, ""]:
        return (state.step < steps) & jnp.any(~state.success)

    def take_step(state: Walk) -> Walk:
        differences, gradients = _linearize(logits, state.images, labels, others, targeted)
        distances = jnp.abs(differences) / (jax.vmap(lambda one: dual_lengths(one, norm))(gradients) + 1e-8)
        best = jnp.argmin(distances, axis=0)
        rows = jnp.arange(len(images))
        gradient, distance = gradients[best, rows], distances[best, rows] + MARGIN * (bounds[1] - bounds[0])
        change = state.change + distance[:, None, None, None] * direction(gradient, norm)
        moved = jnp.clip(images + OVERSHOOT * change, *bounds)
        moved = select(state.success, state.images, moved)
        success = state.success | has_succeeded(evaluate_logits(logits, moved), labels, targeted)
        is_counted = (~state.success).astype(jnp.float32)
        taken, zeros = state.taken + is_counted, state.zeros + is_counted * is_zero(gradient)
        return Walk(state.step + 1, moved, change, success, taken, zeros)

    none, succeeded = jnp.zeros(len(images)), has_succeeded(clean, labels, targeted)
    start = Walk(jnp.zeros((), jnp.int32), images, jnp.zeros_like(images), succeeded, none, none)
    found = jax.lax.while_loop(is_running, take_step, start)
    nearest = keep_nearer(start_nearest(images, succeeded), found.images, found.success, images, norm)
    return restrict_to_ball(nearest, found.zeros / jnp.maximum(found.taken, 1), images, epsilon)


def _linearize(
    logits: Logits,
    images: Images,
    labels: Labels,
    others: Int[Array, "n others"],
    targeted: bool | Bool[AnyArray, ""],
) -> tuple[Float[Array, "others n"], Float[Array, "others n h w c"]]:
    """Return z_k - z_y for other classes k, and the gradients; with `targeted`, z_y less the strongest other logit."""

    def linearize_rows(images: Images, labels: Labels, others: Array) -> tuple[Array, Array]:
        found, pull_back = jax.vjp(logits, images)
        own = is_label(found, labels).astype(found.dtype)
        wanted = jax.nn.one_hot(others, found.shape[1], dtype=found.dtype)
        rival = jax.nn.one_hot(class_of_strongest_other(found, labels), found.shape[1], dtype=found.dtype)
        along = jnp.where(jnp.asarray(targeted), (own - rival)[:, None], wanted - own[:, None])
        gradients = jax.lax.map(lambda one: pull_back(one)[0], jnp.swapaxes(along, 0, 1))
        return jnp.sum(along * found[:, None], axis=2), jnp.swapaxes(gradients, 0, 1)

    differences, gradients = apply_in_cache(linearize_rows, images, labels, others)
    return differences.T, jnp.swapaxes(gradients, 0, 1)
