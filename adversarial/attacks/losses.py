"""Losses that attacks climb, of logits z and labels y; each is larger the less a network believes in y.

| loss | formula |
| --- | --- |
| cross-entropy | -log p_y, p = softmax(z) |
| log odds | log((1 - p_y) / p_y) |
| margin | max over i ≠ y of z_i, minus z_y |
| DLR | margin / (z_π1 - z_π3) |
| targeted DLR | (z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2) |

π sorts the logits, the largest first, and t is a target. The difference of logits ratio (DLR) of Croce and Hein 2020
(arXiv 2003.01690) does not change when logits are shifted or scaled.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Bool, Float, Int

from adversarial.attacks.base import Images, Labels, Logits, differentiate, evaluate_logits
from latentlab.arrays import AnyArray

TINY = 1e-12
DLR_CLASSES, TARGETED_DLR_CLASSES = 3, 4

ModelLogits = Float[AnyArray, "n classes"]

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def is_label(logits: ModelLogits, labels: Labels) -> Bool[Array, "n classes"]:
    """Return which classes are the labels."""
    return jnp.arange(logits.shape[1])[None] == labels[:, None]


def log_odds(logits: ModelLogits, labels: Labels) -> Float[Array, " n"]:
    """Return log((1 - p_y) / p_y) = log Σ over the other classes of exp(logits) - logits_y, the odds against the label.

    The cross-entropy is log(1 + the odds), so it grows with them.
    """
    return jax.nn.logsumexp(_without_label(logits, labels), axis=1) - _at(logits, labels)


def margin(logits: ModelLogits, labels: Labels) -> Float[Array, " n"]:
    """Return by how much the strongest other class exceeds the label; above 0 another class is on top."""
    return strongest_other(logits, labels) - _at(logits, labels)


def aim(logits: ModelLogits, labels: Labels, targeted: bool | Bool[AnyArray, ""]) -> Float[Array, " n"]:
    """Return what is above 0 where an attack succeeds: the margin, or, with `targeted`, its negative."""
    return jnp.where(jnp.asarray(targeted), -1, 1) * margin(logits, labels)


def dlr(logits: ModelLogits, labels: Labels) -> Float[Array, " n"]:
    """Return the margin over the difference between the first and the third logit.

    Raises:
        ValueError: There are fewer than three classes.
    """
    check_classes(logits.shape[1], DLR_CLASSES, "the DLR loss")
    (first, _, third) = jax.lax.top_k(logits, 3)[0].T
    return margin(logits, labels) / (first - third + TINY)


def targeted_dlr(
    logits: ModelLogits, labels: Labels, targets: Labels, targeted: bool | Bool[AnyArray, ""] = False
) -> Float[Array, " n"]:
    """Return (z_t - z_y) over the difference between the first logit and the mean of the third and fourth.

    Args:
        logits: Of the images.
        labels: True classes y.
        targets: Other classes t.
        targeted: The label is not known, and the strongest class other than t stands for it.

    Raises:
        ValueError: There are fewer than four classes.
    """
    check_classes(logits.shape[1], TARGETED_DLR_CLASSES, "the targeted DLR loss")
    first, _, third, fourth = jax.lax.top_k(logits, 4)[0].T
    return difference_to_target(logits, labels, targets, targeted) / (first - (third + fourth) / 2 + TINY)


def difference_to_target(
    logits: ModelLogits, labels: Labels, targets: Labels, targeted: bool | Bool[AnyArray, ""] = False
) -> Float[Array, " n"]:
    """Return z_t - z_y; with `targeted` the strongest class other than t stands for y."""
    rival = jnp.where(jnp.asarray(targeted), strongest_other(logits, targets), _at(logits, labels))
    return _at(logits, targets) - rival


def strongest_other(logits: ModelLogits, labels: Labels) -> Float[Array, " n"]:
    """Return the largest logit of another class than the label."""
    return jnp.max(_without_label(logits, labels), axis=1)


def class_of_strongest_other(logits: ModelLogits, labels: Labels) -> Int[Array, " n"]:
    """Return the class other than the label that has the largest logit."""
    return jnp.argmax(_without_label(logits, labels), axis=1)


def order_of_others(logits: ModelLogits, labels: Labels) -> Int[Array, "n classes-1"]:
    """Return for every image the classes other than the label, the one of the largest logit first."""
    return jnp.argsort(_without_label(logits, labels), axis=1, descending=True, stable=True)[:, :-1]


def check_classes(count: int, expected: int, what: str) -> None:
    """Check that a loss is defined.

    Raises:
        ValueError: There are too few classes.
    """
    if count < expected:
        raise ValueError(f"{what} is not defined for {count} classes, expected at least {expected}")


def loss(logits: Logits, images: Images, labels: Labels) -> Float[Array, " n"]:
    """Return the cross-entropy of every image."""
    return cross_entropy(evaluate_logits(logits, images), labels)


def input_gradient(logits: Logits, images: Images, labels: Labels, targeted: bool | Bool[AnyArray, ""]) -> Images:
    """Return ∇ₓL of the cross-entropy L, negated if targeted."""
    gradient, _ = differentiate(cross_entropy, logits, images, labels)
    return jnp.where(jnp.asarray(targeted), -gradient, gradient)


def odds_gradient(logits: Logits, images: Images, labels: Labels, targeted: bool | Bool[AnyArray, ""]) -> Images:
    """Return the gradient of the log odds, negated if targeted: ∇ₓL in direction, and not 0 where p_y rounds to 1."""
    gradient, _ = differentiate(log_odds, logits, images, labels)
    return jnp.where(jnp.asarray(targeted), -gradient, gradient)


def _at(logits: ModelLogits, labels: Labels) -> Float[Array, " n"]:
    return jnp.sum(jnp.where(is_label(logits, labels), logits, 0), axis=1)


def _without_label(logits: ModelLogits, labels: Labels) -> ModelLogits:
    return jnp.where(is_label(logits, labels), -jnp.inf, logits)
