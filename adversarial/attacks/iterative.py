"""Attacks along the gradient of the cross-entropy: one step, several, from random starts, and with momentum.

With L(x, y) = -log p_y, p = softmax(logits(x)), an untargeted attack climbs L at the true class, a targeted one
descends it at the class it wants. Steps go along sign ∇L in L∞ and along ∇L / ‖∇L‖ of every image in L2, then back into
the ball of radius ε about the image and into the range of pixels.

The length of ∇L does not matter, so it is taken of the log odds log((1 - p_y) / p_y), which has the same direction:
∇L = (1 - p_y) ∇(log odds). Where p_y rounds to 1, ∇L is 0 and hides the way («masked gradients»), the other is not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

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
    evaluate_logits,
    has_succeeded,
    is_zero,
    positive,
    project_to_ball,
    random_in_ball,
    random_start,
    split_keys,
)
from adversarial.attacks.losses import log_odds, odds_gradient
from latentlab.arrays import AnyArray

REACH = 2.5
"""Length of all steps together, in radii, where the length of a step is not given (Madry et al. 2018)."""


def fgsm(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Take one step, x + ε · sign ∇ₓL(x, y) in L∞; with `targeted`, x - ε · sign ∇ₓL(x, target).

    Source: Goodfellow et al. 2015, arXiv 1412.6572; the step towards a class, Kurakin et al. 2017, arXiv 1607.02533.
    """
    del key
    check_inputs(images, labels, bounds)
    gradient = odds_gradient(logits, images, labels, targeted)
    moved = jnp.clip(images + epsilon * direction(gradient, norm), *bounds)
    return AttackResult(moved, has_succeeded(evaluate_logits(logits, moved), labels, targeted), is_zero(gradient))


def basic_iterative(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 10,
    step_size: Radius | None = None,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Take `steps` steps, after each back into the ball about the images and into the bounds.

    A step has the length `step_size`, 2.5 · ε / `steps` where that is None. Source: Kurakin et al. 2017,
    arXiv 1607.02533.
    """
    del key
    how: dict[str, Any] = {"epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm, "bounds": bounds}
    return climb_odds(logits, images, labels, images, targeted=targeted, **how)


def momentum_iterative(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 10,
    step_size: Radius | None = None,
    momentum: float = 1.0,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Take steps along g ← momentum · g + ∇L / ‖∇L‖₁ (Dong et al. 2018, arXiv 1710.06081)."""
    del key
    how: dict[str, Any] = {"epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm, "bounds": bounds}
    return climb_odds(logits, images, labels, images, targeted=targeted, momentum=momentum, **how)


def pgd(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 20,
    step_size: Radius | None = None,
    restarts: int = 1,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Take projected steps from random starts in the ball, and keep the best of the restarts for every image.

    The best is one that succeeded, and among those the one that moved the loss farthest. The starts of an image derive
    from its own key, so they do not depend on what it is attacked together with. Source: Madry et al. 2018,
    arXiv 1706.06083.

    Args:
        key: A key of every image, or one from which those are split.
        logits: Images to logits.
        images: Pixels within the bounds.
        labels: True classes, or targets.
        epsilon: Radius of the ball, in the unit of the pixels.
        steps: Steps of a start, each one gradient.
        step_size: Their length, 2.5 · ε / `steps` where it is None.
        restarts: Starts.
        targeted: Labels are targets.
        norm: L∞ or L2.
        bounds: Of the pixels.
    """
    check_inputs(images, labels, bounds)
    how: dict[str, Any] = {"epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm, "bounds": bounds}

    def attack_from_start(keys: Key[Array, " n"]) -> tuple[AttackResult, Float[Array, " n"]]:
        start = random_start(random_in_ball, keys, images, epsilon, norm, bounds)
        result = climb_odds(logits, images, labels, start, targeted=targeted, **how)
        gain = log_odds(evaluate_logits(logits, result.images), labels)
        return result, jnp.where(jnp.asarray(targeted), -gain, gain)

    keys = jax.vmap(lambda key: jax.random.split(key, restarts), out_axes=1)(split_keys(key, len(images)))
    results, gain = jax.lax.map(attack_from_start, keys)
    best = jnp.lexsort((gain, results.success), axis=0)[-1]
    moved, success = (part[best, jnp.arange(len(images))] for part in (results.images, results.success))
    return AttackResult(moved, success, jnp.mean(results.zero_gradients, axis=0))


def walk(
    gradient: Callable[[Images, Int[Array, ""]], Images],
    images: Images,
    start: Images,
    *,
    epsilon: Radius,
    steps: int,
    step_size: Radius | None,
    norm: Norm,
    bounds: Bounds,
    momentum: float | None = None,
) -> tuple[Images, Float[Array, " n"]]:
    """Take steps along a gradient from `start`, within the ball about the images.

    Args:
        gradient: Images and the number of the step, from 0, to the gradient of what is to grow.
        images: Pixels within the bounds.
        start: Where to begin.
        epsilon: Radius.
        steps: Number of steps.
        step_size: Their length, 2.5 · ε / `steps` where it is None.
        norm: Of ball and steps.
        bounds: Of the pixels.
        momentum: Share of past gradients, each divided by its L1 norm, that goes on; None to follow each gradient.

    Returns:
        The images, and the share of gradients that were 0.
    """
    length = REACH * epsilon / steps if step_size is None else step_size

    def step(index: Array, state: tuple[Images, Images, Array]) -> tuple[Images, Images, Array]:
        moved, velocity, zeros = state
        slope = gradient(moved, index)
        zeros = zeros + is_zero(slope)
        if momentum is not None:
            norm_1 = jnp.sum(jnp.abs(slope), (1, 2, 3), keepdims=True)
            slope = velocity = momentum * velocity + slope / positive(norm_1)
        moved = moved + length * direction(slope, norm)
        return project_to_ball(moved, images, epsilon, norm, bounds), velocity, zeros

    zeros = jnp.zeros(len(images))
    moved, _, zeros = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros_like(images), zeros))
    return moved, zeros / steps


def climb_odds(
    logits: Logits,
    images: Images,
    labels: Labels,
    start: Images,
    gradient: Callable[[Images, Int[Array, ""]], Images] | None = None,
    *,
    targeted: bool | Bool[AnyArray, ""],
    bounds: Bounds,
    **how: Any,
) -> AttackResult:
    """Walk along the gradient of the log odds, or another one, and say which images fell."""
    check_inputs(images, labels, bounds)
    gradient = gradient or (lambda x, _: odds_gradient(logits, x, labels, targeted))
    moved, zeros = walk(gradient, images, start, bounds=bounds, **how)
    return AttackResult(moved, has_succeeded(evaluate_logits(logits, moved), labels, targeted), zeros)


def sweep_fgsm(
    logits: Logits,
    images: Images,
    labels: Int[AnyArray, "objectives n"],
    targeted: Bool[AnyArray, " objectives"],
    epsilons: Float[AnyArray, " epsilons"],
    *,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Return what `fgsm` makes of every row of labels and every ε, by one gradient for all ε of a row."""
    check_inputs(images, labels[0], bounds)
    gradients = jax.vmap(lambda row, aimed: odds_gradient(logits, images, row, aimed))(labels, targeted)
    directions, zeros = jax.vmap(partial(direction, norm=norm))(gradients), jax.vmap(is_zero)(gradients)

    def move(epsilon: Float[Array, ""]) -> AttackResult:
        moved = jnp.clip(images[None] + epsilon * directions, *bounds)
        found = evaluate_logits(logits, moved.reshape(-1, *images.shape[1:])).reshape(*labels.shape, -1)
        return AttackResult(moved, has_succeeded(found, labels, targeted[:, None]), zeros)

    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), jax.lax.map(move, epsilons))
