"""Auto-PGD: projected gradient steps with momentum, whose length halves where the loss does not grow.

A step goes from x to z = P(x + η · direction(∇f)) and on to P(x + α (z - x) + (1 - α) (x - previous x)), α = 0.75,
where P projects into ball and bounds. η begins at 2 ε. The first checkpoint comes after 22 % of the steps, the others
at distances that shrink. There η is halved, and x is set back to the best point so far, if at most ρ = 3/4 of the steps
since the last checkpoint raised the loss f, or if η was not halved there and the best loss has not grown since.

Source: Croce and Hein 2020, arXiv 2003.01690. f is the cross-entropy, the difference of logits ratio, or the targeted
one (`losses`). In the place of the cross-entropy stand the log odds, which rise and fall with it and do not saturate.
Where the authors' code compares the first loss of all with 0, this compares it with that of the start, as their paper.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from adversarial.attacks.base import (
    AttackResult,
    Bounds,
    Images,
    Labels,
    Logits,
    Norm,
    Objective,
    Radius,
    check_inputs,
    differentiate,
    direction,
    fold_in,
    has_succeeded,
    is_zero,
    project_to_ball,
    random_on_sphere,
    random_start,
    select,
    split_keys,
)
from adversarial.attacks.losses import dlr, log_odds, targeted_dlr
from adversarial.attacks.turns import aim_at_others, try_in_turn
from latentlab.arrays import AnyArray

RHO = 0.75
MOMENTUM = 0.75
MORE_STEPS = 10
"""Steps that an image takes after its first success, so that it survives being rounded; then it rests."""


class Climb(NamedTuple):
    """State of a climb; arrays have a row an image.

    Attributes:
        step: Steps taken.
        images: Where it stands.
        previous: Where it stood before.
        gradient: Of the objective.
        value: Of the objective.
        step_size: Length of the next step.
        best: Images, gradient and value where the value was largest.
        fooling: Images and value where it was largest of those that succeeded.
        best_before: Largest value at the last checkpoint.
        halved: Whether the step size was halved there.
        rises: Steps since then that raised the value.
        successes: Steps since the first success, with it.
        taken: Gradients taken until it rests.
        zeros: Those of them that were 0.
    """

    step: Int[Array, ""]
    images: Images
    previous: Images
    gradient: Images
    value: Float[Array, " n"]
    step_size: Float[Array, " n"]
    best: tuple[Images, Images, Float[Array, " n"]]
    fooling: tuple[Images, Float[Array, " n"]]
    best_before: Float[Array, " n"]
    halved: Bool[Array, " n"]
    rises: Float[Array, " n"]
    successes: Int[Array, " n"]
    taken: Float[Array, " n"]
    zeros: Float[Array, " n"]


def climb(
    objective: Objective,
    succeeded: Callable[..., Bool[Array, " n"]],
    logits: Logits,
    images: Images,
    start: Images,
    *rows: Array,
    epsilon: Radius,
    steps: int,
    norm: Norm,
    bounds: Bounds,
) -> AttackResult:
    """Climb an objective from `start` within the ball about the images.

    Args:
        objective: Logits and `rows` to what is raised.
        succeeded: Logits and `rows` to whether the attack has succeeded.
        logits: Images to logits.
        images: Pixels within the bounds.
        start: Where to begin.
        rows: Arrays with a row an image.
        epsilon: Radius.
        steps: Most steps; it ends sooner where all images are done.
        norm: Of the ball.
        bounds: Of the pixels.

    Returns:
        Images of the largest objective of those that succeeded, or of all where none did.
    """
    distances = checkpoint_distances(steps)

    def evaluate(images: Images) -> tuple[Images, Float[Array, " n"], Bool[Array, " n"]]:
        gradient, found = differentiate(objective, logits, images, *rows)
        return gradient, objective(found, *rows), succeeded(found, *rows)

    def is_running(state: Climb) -> Bool[Array, ""]:
        return (state.step < steps) & jnp.any(state.successes <= MORE_STEPS)

    def take_step(state: Climb) -> Climb:
        share = jnp.where(state.step > 0, MOMENTUM, 1.0)
        length = state.step_size[:, None, None, None]
        ahead = state.images + length * direction(state.gradient, norm)
        ahead = project_to_ball(ahead, images, epsilon, norm, bounds)
        moved = state.images + share * (ahead - state.images) + (1 - share) * (state.images - state.previous)
        moved = project_to_ball(moved, images, epsilon, norm, bounds)
        gradient, value, success = evaluate(moved)
        best = select(value > state.best[2], (moved, gradient, value), state.best)
        is_done = state.successes > MORE_STEPS
        is_better = success & ~is_done & (value > state.fooling[1])
        rises = state.rises + (value > state.value)
        distance = distances[state.step]
        is_stuck = ~state.halved & (state.best_before >= best[2])
        halves = (distance > 0) & ((rises <= RHO * distance) | is_stuck)
        here, slope = select(halves, best[:2], (moved, gradient))
        at_checkpoint = distance > 0
        return Climb(
            step=state.step + 1,
            images=here,
            previous=state.images,
            gradient=slope,
            value=value,
            step_size=jnp.where(halves, state.step_size / 2, state.step_size),
            best=best,
            fooling=select(is_better, (moved, value), state.fooling),
            best_before=jnp.where(at_checkpoint, best[2], state.best_before),
            halved=jnp.where(at_checkpoint, halves, state.halved),
            rises=jnp.where(at_checkpoint, 0, rises),
            successes=state.successes + (success | (state.successes > 0)),
            taken=state.taken + ~is_done,
            zeros=state.zeros + jnp.where(is_done, 0, is_zero(gradient)),
        )

    gradient, value, success = evaluate(start)
    count = len(images)
    state = jax.lax.while_loop(
        is_running,
        take_step,
        Climb(
            step=jnp.zeros((), jnp.int32),
            images=start,
            previous=start,
            gradient=gradient,
            value=value,
            step_size=jnp.full(count, 2.0 * epsilon, start.dtype),
            best=(start, gradient, value),
            fooling=(start, jnp.where(success, value, -jnp.inf)),
            best_before=value,
            halved=jnp.ones(count, bool),
            rises=jnp.zeros(count),
            successes=success.astype(jnp.int32),
            taken=jnp.ones(count),
            zeros=is_zero(gradient),
        ),
    )
    fell = state.successes > 0
    return AttackResult(select(fell, state.fooling[0], state.best[0]), fell, state.zeros / state.taken)


def checkpoint_distances(steps: int) -> Int[Array, " steps"]:
    """Return for every step how many steps lie between the last checkpoint and it, 0 where it is none itself."""
    distances = np.zeros(max(steps, 1), np.int32)
    distance, at = max(int(0.22 * steps), 1), -1
    while (at := at + distance) < steps:
        distances[at] = distance
        distance = max(distance - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return jnp.asarray(distances)


def apgd(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    loss: Literal["ce", "dlr"] = "ce",
    steps: int = 100,
    restarts: int = 1,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Run Auto-PGD on the cross-entropy or DLR from random points of the sphere; with `targeted`, on its negative.

    Raises:
        ValueError: The loss is DLR, and there are fewer than three classes.
    """
    check_inputs(images, labels, bounds)
    function = {"ce": log_odds, "dlr": dlr}[loss]
    sign = jnp.where(jnp.asarray(targeted), -1.0, 1.0)

    def attack(index: Int[Array, ""], keys: Key[Array, " n"]) -> AttackResult:
        return climb(
            lambda found, labels: sign * function(found, labels),
            lambda found, labels: has_succeeded(found, labels, targeted),
            logits,
            images,
            random_start(random_on_sphere, fold_in(keys, index), images, epsilon, norm, bounds),
            labels,
            epsilon=epsilon,
            steps=steps,
            norm=norm,
            bounds=bounds,
        )

    return try_in_turn(attack, split_keys(key, len(images)), images, restarts)


def apgd_t(
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
    """Run Auto-PGD on the targeted DLR towards the nine most likely other classes, one after the other.

    Args:
        key: A key of every image, or one from which those are split.
        logits: Images to logits.
        images: Pixels.
        labels: True classes, or targets.
        epsilon: Radius.
        steps: Steps towards each class.
        rank: Aim at one of them alone, 1 for the most likely; 0 for all.
        targeted: Aim at the labels alone.
        norm: L∞ or L2.
        bounds: Of the pixels.

    Raises:
        ValueError: There are fewer than four classes.
    """
    check_inputs(images, labels, bounds)

    def attack(keys: Key[Array, " n"], targets: Labels) -> AttackResult:
        return climb(
            lambda found, labels, targets: targeted_dlr(found, labels, targets, targeted),
            lambda found, labels, targets: has_succeeded(found, labels, targeted),
            logits,
            images,
            random_start(random_on_sphere, keys, images, epsilon, norm, bounds),
            labels,
            targets,
            epsilon=epsilon,
            steps=steps,
            norm=norm,
            bounds=bounds,
        )

    return aim_at_others(attack, key, logits, images, labels, rank, targeted)
