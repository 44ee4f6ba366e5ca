"""Adversarial attacks on any differentiable `logits(images)`, in L∞ and L2, as pure functions.

With the cross-entropy L(x, y) = Σ over the batch of -log softmax(logits(x))_y, an untargeted attack
climbs L at the true class, a targeted one descends it at the class it wants. Steps go along
sign ∇L in L∞ and along ∇L / ‖∇L‖ of every image in L2, then back into the ball of radius ε about
the image and into the range of pixels.

An image that did not fall is returned like all others; `success` tells. No attack changes its input.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from kernels.few_at_a_time import few_at_a_time

Images = Float[Array, "n h w c"]
Labels = Int[Array, " n"]
Logits = Callable[[Images], Float[Array, "n classes"]]
Bounds = tuple[float, float]
Norm = Literal["linf", "l2"]

AT_A_TIME = 2 * 224 * 224 * 3
"""Pixels, times channels, that go through a network at a time on CPU: more leave its cache (`benchmarks/README.md`)."""


class Attacked(NamedTuple):
    """Images after an attack, and for each whether the attack did what it was to do."""

    images: Images
    success: Bool[Array, " n"]


def evaluated(logits: Logits, images: Images) -> Float[Array, "n classes"]:
    """Logits of all images, a few at a time where that is faster."""
    return few_at_a_time(logits, images, few=_few(images))


def loss(logits: Logits, images: Images, labels: Labels) -> Float[Array, " n"]:
    """Cross-entropy of every image, from its logits."""
    return _cross_entropy(evaluated(logits, images), labels)


def input_gradient(logits: Logits, images: Images, labels: Labels, targeted: Bool[Array, ""]) -> Images:
    """∇ₓL, negated if targeted; L is a sum over the batch, so that no image's gradient depends on the others."""

    def of_some(images: Images, labels: Labels) -> Images:
        return jax.grad(lambda x: jnp.sum(_cross_entropy(logits(x), labels)))(images)

    gradient = few_at_a_time(of_some, images, labels, few=_few(images))
    return jnp.where(targeted, -gradient, gradient)


def likeliest(logits: Logits, images: Images, rank: int = 1) -> Labels:
    """The class of a rank for every image: 1 is the top one, 2 the next; -1 is the least likely one."""
    order = jnp.argsort(evaluated(logits, images), axis=1, descending=True, stable=True)
    return order[:, rank - 1 if rank > 0 else rank]


def fgsm(
    logits: Logits,
    images: Images,
    labels: Labels,
    epsilon: float | Float[Array, ""],
    *,
    targeted: bool = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> Attacked:
    """One step: x + ε · sign ∇ₓL(x, y), clipped to the bounds; with `targeted`, x - ε · sign ∇ₓL(x, target).

    Source: Goodfellow et al. 2015, arXiv 1412.6572; the step towards a class, Kurakin et al. 2017, arXiv 1607.02533.

    Args:
        logits: Images to logits.
        images: Pixels within the bounds.
        labels: The true class, or the target.
        epsilon: Radius, in the unit of the pixels.
        targeted: Make the label likelier, not less likely.
        norm: L∞ or, along the normalised gradient, L2.
        bounds: Range of the pixels.
    """
    swept = sweep(
        logits, images, labels[None], jnp.asarray([targeted]), jnp.asarray([epsilon]), norm=norm, bounds=bounds
    )
    return Attacked(swept.images[0, 0], swept.success[0, 0])


def sweep(
    logits: Logits,
    images: Images,
    labels: Int[Array, "targets n"],
    targeted: Bool[Array, " targets"],
    epsilons: Float[Array, " epsilons"],
    *,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> Attacked:
    """FGSM for every row of labels and every ε, with one gradient a row: images (T, E, n, h, w, c), success (T, E, n).

    A row of labels is the true classes or a target for each image, as `targeted` says. Jit it for one compiled call.
    """

    def of_row(labels: Labels, targeted: Bool[Array, ""]) -> Images:
        return _direction(input_gradient(logits, images, labels, targeted), norm)

    steps = jax.vmap(of_row)(labels, targeted)

    def of_epsilon(epsilon: Float[Array, ""]) -> Attacked:
        moved = jnp.clip(images[None] + epsilon * steps, *bounds)
        found = evaluated(logits, moved.reshape(-1, *images.shape[1:]))
        return Attacked(moved, succeeded(found.reshape(*labels.shape, -1), labels, targeted[:, None]))

    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), jax.lax.map(of_epsilon, epsilons))


def iterated(
    logits: Logits,
    images: Images,
    labels: Labels,
    epsilon: float | Float[Array, ""],
    *,
    step_size: float | Float[Array, ""],
    steps: int,
    targeted: bool | Bool[Array, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    momentum: float | None = None,
    start: Images | None = None,
) -> Attacked:
    """`steps` steps of `step_size`, after each back into the ball about the images and into the bounds.

    Without momentum and start this is the basic iterative method (Kurakin et al. 2017). With momentum μ, steps go along
    g ← μ · g + ∇L / ‖∇L‖₁ (Dong et al. 2018, arXiv 1710.06081).

    Args:
        logits: Images to logits.
        images: Pixels within the bounds.
        labels: The true class, or the target.
        epsilon: Radius of the ball, in the unit of the pixels.
        step_size: Length of a step, in the same unit.
        steps: How many.
        targeted: Make the label likelier, not less likely.
        norm: L∞ or L2.
        bounds: Range of the pixels.
        momentum: Share of the past gradients that is kept.
        start: Where to begin, within the ball; the images themselves if not told.
    """
    aimed = jnp.asarray(targeted)

    def step(_: Array, state: tuple[Images, Images]) -> tuple[Images, Images]:
        moved, kept = state
        gradient = input_gradient(logits, moved, labels, aimed)
        if momentum is not None:
            gradient = kept = momentum * kept + gradient / _positive(
                jnp.sum(jnp.abs(gradient), (1, 2, 3), keepdims=True)
            )
        moved = moved + step_size * _direction(gradient, norm)
        return jnp.clip(images + project(moved - images, epsilon, norm), *bounds), kept

    begun = images if start is None else start
    moved, _ = jax.lax.fori_loop(0, steps, step, (begun, jnp.zeros_like(images)))
    return Attacked(moved, succeeded(evaluated(logits, moved), labels, aimed))


def pgd(
    keys: Key[Array, " n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    epsilon: float | Float[Array, ""],
    *,
    step_size: float | Float[Array, ""],
    steps: int,
    restarts: int = 1,
    targeted: bool | Bool[Array, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> Attacked:
    """Projected gradient descent from random starts in the ball; of the restarts the best for every image.

    The best is one that succeeded, and among those the one that moved the loss farthest. Source: Madry et al. 2018,
    arXiv 1706.06083.

    Args:
        keys: Of the starts of every image, which therefore do not depend on what it is attacked together with.
        logits: Images to logits.
        images: Pixels within the bounds.
        labels: The true class, or the target.
        epsilon: Radius of the ball, in the unit of the pixels.
        step_size: Length of a step, in the same unit.
        steps: How many.
        restarts: Random starts of every image.
        targeted: Make the label likelier, not less likely.
        norm: L∞ or L2.
        bounds: Range of the pixels.
    """

    def from_start(keys: Key[Array, " n"]) -> tuple[Attacked, Float[Array, " n"]]:
        moved = jax.vmap(lambda key: random_in_ball(key, images.shape[1:], norm))(keys)
        start = jnp.clip(images + epsilon * moved, *bounds)
        attacked = iterated(
            logits,
            images,
            labels,
            epsilon,
            step_size=step_size,
            steps=steps,
            targeted=targeted,
            norm=norm,
            bounds=bounds,
            start=start,
        )
        gain = loss(logits, attacked.images, labels)
        return attacked, jnp.where(jnp.asarray(targeted), -gain, gain)

    attacked, gain = jax.lax.map(from_start, jax.vmap(lambda key: jax.random.split(key, restarts), out_axes=1)(keys))
    best = jnp.lexsort((gain, attacked.success), axis=0)[-1]
    return Attacked(*(part[best, jnp.arange(len(images))] for part in attacked))


def in_chunks(attack: Callable[..., Attacked], *rows: Array, chunk: int) -> Attacked:
    """An attack on `chunk` images at a time, whose memory is that of a chunk.

    The last chunk is filled up with its own first image, so that all have one shape, and cut again.

    Args:
        attack: What is given of a chunk to what comes of it.
        rows: Images, labels, and whatever else there is one of for every image, such as keys.
        chunk: Images at a time.
    """
    compiled, parts = jax.jit(attack), []
    for first in range(0, len(rows[0]), chunk):
        some = [part[first : first + chunk] for part in rows]
        missing = chunk - len(some[0]) if first else 0
        filled = (jnp.concatenate([part, jnp.repeat(part[:1], missing, axis=0)]) for part in some)
        parts.append(jax.device_get(compiled(*filled)))
    return jax.tree.map(lambda *together: jnp.concatenate(together)[: len(rows[0])], *parts)


def succeeded(logits: Float[Array, "n classes"], labels: Labels, targeted: bool | Bool[Array, ""]) -> Bool[Array, " n"]:
    """Whether the top class is the target, or, untargeted, no longer the true one."""
    hit = jnp.argmax(logits, axis=-1) == labels
    return hit == jnp.asarray(targeted)


def project(difference: Images, epsilon: float | Float[Array, ""], norm: Norm) -> Images:
    """The nearest point of the ball of radius ε about 0, for every image."""
    if norm == "linf":
        return jnp.clip(difference, -epsilon, epsilon)
    return difference * jnp.minimum(1, epsilon / _positive(_length(difference)))


def random_in_ball(key: Key[Array, ""], shape: tuple[int, ...], norm: Norm) -> Float[Array, "h w c"]:
    """A uniform point of the unit ball of one image: a direction of Gaussians and, for L2, u^(1/d) as its length."""
    if norm == "linf":
        return jax.random.uniform(key, shape, minval=-1)
    direction_key, length_key = jax.random.split(key)
    (direction,) = _direction(jax.random.normal(direction_key, (1, *shape)), norm)
    return direction * jax.random.uniform(length_key) ** (1 / math.prod(shape))


def _direction(gradient: Images, norm: Norm) -> Images:
    return jnp.sign(gradient) if norm == "linf" else gradient / _positive(_length(gradient))


def _length(images: Images) -> Float[Array, "n 1 1 1"]:
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))


def _few(images: Images) -> int:
    return max(1, AT_A_TIME // math.prod(images.shape[1:]))


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
_positive = partial(jnp.maximum, 1e-12)
