"""What attacks that minimize the change share: the nearest image found so far, and what that says about a radius."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from adversarial.attacks.base import (
    Attack,
    AttackResult,
    Bounds,
    Images,
    Labels,
    Logits,
    Norm,
    Radius,
    lengths,
    select,
    split_keys,
)
from latentlab.arrays import AnyArray


class Nearest(NamedTuple):
    """The nearest images found on which an attack succeeds.

    Attributes:
        images: Those images; where there is none, the originals.
        distance: Their distances from the originals, infinite where there is none.
    """

    images: Images
    distance: Float[Array, " n"]


def start_nearest(images: Images, succeeded: Bool[Array, " n"]) -> Nearest:
    """Return the originals, at distance 0 where an attack succeeds without any change."""
    return Nearest(images, jnp.where(succeeded, 0.0, jnp.inf))


def keep_nearer(nearest: Nearest, moved: Images, success: Bool[Array, " n"], images: Images, norm: Norm) -> Nearest:
    """Replace what is farther from the images than others that succeed."""
    distance = lengths(moved - images, norm)[:, 0, 0, 0]
    kept: Nearest = select(success & (distance < nearest.distance), Nearest(moved, distance), nearest)
    return kept


def restrict_to_ball(nearest: Nearest, zeros: Float[Array, " n"], images: Images, epsilon: Radius) -> AttackResult:
    """Return what a search says about a radius: success within it, and elsewhere the originals."""
    is_near = (nearest.distance <= epsilon) & jnp.isfinite(nearest.distance)
    return AttackResult(select(is_near, nearest.images, images), is_near, zeros, nearest.distance)


def sweep_nearest(
    attack: Attack,
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Int[AnyArray, "objectives n"],
    targeted: Bool[AnyArray, " objectives"],
    epsilons: Float[AnyArray, " epsilons"],
    *,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    **settings: Any,
) -> AttackResult:
    """Return what an attack finds for every row of labels, by one search for all ε of a row."""
    keys = jax.vmap(lambda key: jax.random.split(key, len(labels)), out_axes=1)(split_keys(key, len(images)))

    def search(row: tuple[Array, Labels, Array]) -> AttackResult:
        keys, labels, targeted = row
        how: dict[str, Any] = {"epsilon": jnp.inf, "norm": norm, "bounds": bounds}
        found = attack(keys, logits, images, labels, targeted=targeted, **how, **settings)
        nearest = Nearest(found.images, jnp.asarray(found.distance))
        zeros = jnp.asarray(found.zero_gradients)
        return jax.lax.map(lambda epsilon: restrict_to_ball(nearest, zeros, images, epsilon), epsilons)

    found: AttackResult = jax.lax.map(search, (keys, labels, targeted))
    return found
