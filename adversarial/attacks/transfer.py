"""Iterative attacks whose images fool other networks too: their gradients do not depend on the details of one image.

Momentum g ← μ · g + ∇L / ‖∇L‖₁ as in `momentum_iterative`, with ∇L taken at images that are shrunk and moved at random
(diverse inputs, DI), or smoothed, which stands for the mean gradient at moved images (translation-invariant, TI).
"""

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
    differentiate,
    fold_in,
    split_keys,
)
from adversarial.attacks.iterative import climb_odds
from adversarial.attacks.losses import log_odds
from adversarial.attacks.transformations import resize_and_pad, smooth
from latentlab.arrays import AnyArray


def transfer_iterative(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 10,
    step_size: Radius | None = None,
    momentum: float = 1.0,
    diversity: float = 0.0,
    least_side: float = 0.9,
    kernel_size: int = 1,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Take steps with momentum along gradients of diverse inputs, smoothed.

    Sources: diverse inputs, Xie et al. 2019, arXiv 1803.06978; smoothing, Dong et al. 2019, arXiv 1904.02884.

    Args:
        key: A key of every image, or one.
        logits: Images to logits.
        images: Square images.
        labels: True classes, or targets.
        epsilon: Radius.
        steps: Number of steps.
        step_size: Their length, 2.5 · ε / `steps` where it is None.
        momentum: Share μ of past gradients that goes on.
        diversity: Probability that a step sees the image shrunk and moved (`resize_and_pad`).
        least_side: Its smallest side then, as a share of the image's.
        kernel_size: Pixels of a side of the Gaussian kernel that smooths gradients; 1 to leave them.
        targeted: Labels are targets.
        norm: L∞ or L2.
        bounds: Of the pixels.
    """
    keys, sign = split_keys(key, len(images)), jnp.where(jnp.asarray(targeted), -1.0, 1.0)

    def diversify(key: Key[Array, ""], image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        is_diverse_key, shape_key = jax.random.split(key)
        changed = resize_and_pad(shape_key, image, least_side, bounds[0])
        return jnp.where(jax.random.bernoulli(is_diverse_key, diversity), changed, image)

    def gradient(moved: Images, step: Int[Array, ""]) -> Images:
        change = jax.vmap(diversify) if diversity else lambda _, images: images
        seen, pull_back = jax.vjp(partial(change, fold_in(keys, step)), moved)
        slope, _ = differentiate(log_odds, logits, seen, labels)
        (slope,) = pull_back(sign * slope)
        return smooth(slope, kernel_size) if kernel_size > 1 else slope

    how: dict[str, Any] = {"epsilon": epsilon, "steps": steps, "step_size": step_size, "norm": norm, "bounds": bounds}
    return climb_odds(logits, images, labels, images, gradient, targeted=targeted, momentum=momentum, **how)
