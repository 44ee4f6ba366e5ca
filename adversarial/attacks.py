"""Adversarial attacks on any differentiable `logits(images)`, in L∞ and L2, as pure functions.

With the cross-entropy L(x, y) = Σ over the batch of -log p_y, p = softmax(logits(x)), an untargeted attack climbs L at
the true class, a targeted one descends it at the class it wants. Steps go along sign ∇L in L∞ and along ∇L / ‖∇L‖ of
every image in L2, then back into the ball of radius ε about the image and into the range of pixels.

The length of ∇L does not matter, so it is taken of the log odds log((1 - p_y) / p_y), which has the same direction:
∇L = (1 - p_y) ∇(log odds). Where p_y rounds to 1, ∇L is 0 and hides the way («masked gradients»), the other is not.

All attacks have one argument order, `(key, logits, images, labels, *, epsilon, …) -> AttackResult`. An own attack is
such a function and a line of `ATTACKS`; it gets those of the settings `steps`, `step_size`, `restarts`, `momentum` and
`norm` that it has as arguments. An image that did not fall is returned like all others; `success` says so. No attack
changes its input.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
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

REACH = 2.5
"""Length of all steps together, in radii, where the length of a step is not given (Madry et al. 2018)."""


class AttackResult(NamedTuple):
    """What an attack made of every image.

    Attributes:
        images: The images after it.
        success: Whether the attack succeeded.
        zero_gradients: Of the gradients that it followed, the share that was 0 at every pixel («masked gradients»), so
            that there was no direction to go. None, if it does not count them.
    """

    images: Images
    success: Bool[Array, " n"]
    zero_gradients: Float[Array, " n"] | None = None


Attack = Callable[..., AttackResult]
"""`attack(key, logits, images, labels, *, epsilon, targeted, norm, bounds, …)`.

    key: A key of every image, or one from which those are split; ignored by attacks without randomness.
    logits: Images to logits.
    images: Pixels within the bounds; outside `jit` others are an error (`check_bounds`).
    labels: The true classes, or the targets.
    epsilon: Radius of the ball, in the unit of the pixels.
    targeted: Make the label likelier, not less likely.
    norm: L∞ or L2.
    bounds: Range of the pixels.
    …: Settings of the attack.
"""


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
    check_bounds(images, bounds)
    gradient = _gradient(log_odds, logits, images, labels, targeted)
    moved = jnp.clip(images + epsilon * _direction(gradient, norm), *bounds)
    return AttackResult(moved, has_succeeded(evaluate_logits(logits, moved), labels, targeted), _is_zero(gradient))


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
    walk = partial(_walk, logits, images, labels, epsilon=epsilon, steps=steps, step_size=step_size)
    return walk(images, targeted=targeted, norm=norm, bounds=bounds)


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
    walk = partial(_walk, logits, images, labels, epsilon=epsilon, steps=steps, step_size=step_size)
    return walk(images, targeted=targeted, norm=norm, bounds=bounds, momentum=momentum)


def pgd(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    steps: int = 10,
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
    """
    walk = partial(_walk, logits, images, labels, epsilon=epsilon, steps=steps, step_size=step_size)

    def attack_from_start(keys: Key[Array, " n"]) -> tuple[AttackResult, Float[Array, " n"]]:
        moved = jax.vmap(lambda key: random_in_ball(key, images.shape[1:], norm))(keys)
        result = walk(jnp.clip(images + epsilon * moved, *bounds), targeted=targeted, norm=norm, bounds=bounds)
        gain = log_odds(evaluate_logits(logits, result.images), labels)
        return result, jnp.where(jnp.asarray(targeted), -gain, gain)

    keys = jax.vmap(lambda key: jax.random.split(key, restarts), out_axes=1)(split_keys(key, len(images)))
    results, gain = jax.lax.map(attack_from_start, keys)
    best = jnp.lexsort((gain, results.success), axis=0)[-1]
    moved, success = (part[best, jnp.arange(len(images))] for part in (results.images, results.success))
    return AttackResult(moved, success, jnp.mean(results.zero_gradients, axis=0))


ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "bim": basic_iterative,
    "pgd": pgd,
    "mi-fgsm": momentum_iterative,
}
"""Attacks by the name that the command line gives them."""


def select_settings(attack: Attack, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that an attack has as arguments."""
    return {name: value for name, value in settings.items() if name in inspect.signature(attack).parameters}


def sweep(
    attack: Attack,
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Int[AnyArray, "objectives n"],
    targeted: Bool[AnyArray, " objectives"],
    epsilons: Float[AnyArray, " epsilons"],
    **settings: Any,
) -> AttackResult:
    """Attack with every row of labels and every ε: images (objectives, ε, n, h, w, c), success (objectives, ε, n).

    A row of labels is the true classes or a target for each image, as `targeted` says. Jit it for one compiled call.
    FGSM takes one gradient for all ε of a row.
    """
    if attack is fgsm:
        return _sweep_fgsm(logits, images, labels, targeted, epsilons, **settings)
    rows, count = len(labels), len(epsilons)
    pairs = (jnp.repeat(labels, count, axis=0), jnp.repeat(targeted, count), jnp.tile(epsilons, rows))
    keys = jax.vmap(lambda key: jax.random.split(key, rows * count), out_axes=1)(split_keys(key, len(images)))

    def attack_pair(pair: tuple[Array, Labels, Array, Array]) -> AttackResult:
        keys, labels, targeted, epsilon = pair
        return attack(keys, logits, images, labels, epsilon=epsilon, targeted=targeted, **settings)

    results = jax.lax.map(attack_pair, (keys, *pairs))
    return jax.tree.map(lambda part: part.reshape(rows, count, *part.shape[1:]), results)


@dataclass(frozen=True)
class SweptAttack:
    """An attack with its settings, for any number of objectives and radii; equal ones share what was compiled.

    Attributes:
        attack: The attack.
        norm: L∞ or L2.
        settings: Further keyword arguments of the attack.
    """

    attack: Attack
    norm: Norm = "linf"
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(
        self,
        key: Key[Array, "*n"],
        logits: Logits,
        images: Images,
        labels: Int[AnyArray, "objectives n"],
        targeted: Bool[AnyArray, " objectives"],
        epsilons: Float[AnyArray, " epsilons"],
    ) -> AttackResult:
        """Return `sweep` with the settings."""
        settings = dict(self.settings)
        return sweep(self.attack, key, logits, images, labels, targeted, epsilons, norm=self.norm, **settings)


def check_bounds(images: Images, bounds: Bounds) -> None:
    """Refuse images that leave the bounds, which an attack would clip and so move farther than ε.

    Within `jit` their values are not known, and nothing is checked.

    Raises:
        ValueError: A pixel is out of the bounds or not a number.
    """
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    pixels = np.asarray(images)  # in NumPy, for JAX would trace it within a loop
    low, high = float(pixels.min()), float(pixels.max())
    if not bounds[0] <= low <= high <= bounds[1]:
        raise ValueError(f"images reach from {low:g} to {high:g}, expected them within the bounds, {bounds}")


def evaluate_logits(logits: Logits, images: Images) -> Float[Array, "n classes"]:
    """Return the logits of all images."""
    return apply_in_cache(logits, images)


def loss(logits: Logits, images: Images, labels: Labels) -> Float[Array, " n"]:
    """Return the cross-entropy of every image."""
    return _cross_entropy(evaluate_logits(logits, images), labels)


def log_odds(logits: Float[AnyArray, "n classes"], labels: Labels) -> Float[Array, " n"]:
    """Return log((1 - p_y) / p_y) = log Σ over the other classes of exp(logits) - logits_y, the odds against the label.

    The cross-entropy is log(1 + the odds), so it grows with them.
    """
    own = jnp.arange(logits.shape[1])[None] == labels[:, None]
    others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)
    return others - jnp.sum(jnp.where(own, logits, 0), axis=1)


def input_gradient(logits: Logits, images: Images, labels: Labels, targeted: bool | Bool[AnyArray, ""]) -> Images:
    """Return ∇ₓL, negated if targeted; L is a sum over the batch, so no image's gradient depends on the others."""
    return _gradient(_cross_entropy, logits, images, labels, targeted)


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


def project(difference: Images, epsilon: Radius, norm: Norm) -> Images:
    """Return the nearest point of the ball of radius ε about 0, for every image."""
    if norm == "linf":
        return jnp.clip(difference, -epsilon, epsilon)
    return difference * jnp.minimum(1, epsilon / _positive(_length(difference)))


def random_in_ball(key: Key[Array, ""], shape: tuple[int, ...], norm: Norm) -> Float[Array, "h w c"]:
    """Draw a uniform point of the unit ball of one image: of L2, a Gaussian direction of length u^(1/d)."""
    if norm == "linf":
        return jax.random.uniform(key, shape, minval=-1)
    direction_key, length_key = jax.random.split(key)
    (direction,) = _direction(jax.random.normal(direction_key, (1, *shape)), norm)
    return direction * jax.random.uniform(length_key) ** (1 / math.prod(shape))


def split_keys(key: Key[Array, "*n"], count: int) -> Key[Array, " n"]:
    """Return a key of every image: those that are given, or as many from a single one."""
    return key if key.ndim else jax.random.split(key, count)


def _gradient(
    objective: Callable[[Array, Labels], Float[Array, " n"]],
    logits: Logits,
    images: Images,
    labels: Labels,
    targeted: bool | Bool[AnyArray, ""],
) -> Images:
    """Return the gradient of a function of logits and labels in the images, negated if targeted."""

    def differentiate(images: Images, labels: Labels) -> Images:
        return jax.grad(lambda x: jnp.sum(objective(logits(x), labels)))(images)

    gradient = apply_in_cache(differentiate, images, labels)
    return jnp.where(jnp.asarray(targeted), -gradient, gradient)


def _walk(
    logits: Logits,
    images: Images,
    labels: Labels,
    start: Images,
    *,
    epsilon: Radius,
    steps: int,
    step_size: Radius | None,
    targeted: bool | Bool[AnyArray, ""],
    norm: Norm,
    bounds: Bounds,
    momentum: float | None = None,
) -> AttackResult:
    """Take steps from `start`, within the ball about the images."""
    check_bounds(images, bounds)
    length = REACH * epsilon / steps if step_size is None else step_size

    def step(_: Array, state: tuple[Images, Images, Array]) -> tuple[Images, Images, Array]:
        moved, velocity, zeros = state
        gradient = _gradient(log_odds, logits, moved, labels, targeted)
        zeros = zeros + _is_zero(gradient)
        if momentum is not None:
            norm_1 = jnp.sum(jnp.abs(gradient), (1, 2, 3), keepdims=True)
            gradient = velocity = momentum * velocity + gradient / _positive(norm_1)
        moved = moved + length * _direction(gradient, norm)
        return jnp.clip(images + project(moved - images, epsilon, norm), *bounds), velocity, zeros

    zeros = jnp.zeros(len(images))
    moved, _, zeros = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros_like(images), zeros))
    return AttackResult(moved, has_succeeded(evaluate_logits(logits, moved), labels, targeted), zeros / steps)


def _sweep_fgsm(
    logits: Logits,
    images: Images,
    labels: Int[AnyArray, "objectives n"],
    targeted: Bool[AnyArray, " objectives"],
    epsilons: Float[AnyArray, " epsilons"],
    *,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    check_bounds(images, bounds)
    gradients = jax.vmap(lambda row, aimed: _gradient(log_odds, logits, images, row, aimed))(labels, targeted)
    directions, zeros = jax.vmap(partial(_direction, norm=norm))(gradients), jax.vmap(_is_zero)(gradients)

    def move(epsilon: Float[Array, ""]) -> AttackResult:
        moved = jnp.clip(images[None] + epsilon * directions, *bounds)
        found = evaluate_logits(logits, moved.reshape(-1, *images.shape[1:])).reshape(*labels.shape, -1)
        return AttackResult(moved, has_succeeded(found, labels, targeted[:, None]), zeros)

    return jax.tree.map(lambda part: jnp.swapaxes(part, 0, 1), jax.lax.map(move, epsilons))


def _direction(gradient: Images, norm: Norm) -> Images:
    return jnp.sign(gradient) if norm == "linf" else gradient / _positive(_length(gradient))


def _is_zero(gradient: Images) -> Float[Array, " n"]:
    """Return 1 for every image whose gradient is 0 at every pixel, and 0 for the others."""
    return jnp.all(gradient == 0, axis=(1, 2, 3)).astype(jnp.float32)


def _length(images: Images) -> Float[Array, "n 1 1 1"]:
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True))


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
_positive = partial(jnp.maximum, 1e-12)
