"""Square Attack: random squares of one colour, kept where they lower the margin; it needs no gradient.

In L∞ every channel of a square moves by 2 ε up or down, back into the ball. In L2 the squares hold two concentric
pyramids of opposite signs, and the change of another square of the same size is given up for theirs. Squares shrink on
the authors' schedule. Every image has squares of its own. Source: Andriushchenko et al. 2020, arXiv 1912.00049.
"""

from typing import NamedTuple

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
    Radius,
    check_inputs,
    evaluate_logits,
    fold_in,
    has_succeeded,
    positive,
    project_to_ball,
    select,
    split_keys,
)
from adversarial.attacks.losses import aim
from latentlab.arrays import AnyArray

SHARE = 0.8
"""Of the pixels of an image, what a square covers at first."""
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which that share is halved."""
TILES = 5
"""Tiles on a side of an image that all have a pyramid at the start, in L2."""


class Squares(NamedTuple):
    """State of the search; arrays have a row an image.

    Attributes:
        step: Queries made.
        images: The best so far.
        value: How far the objective has come, larger is better.
        success: Whether they succeeded; then they stay.
    """

    step: Int[Array, ""]
    images: Images
    value: Float[Array, " n"]
    success: Bool[Array, " n"]


def square(
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    *,
    epsilon: Radius,
    queries: int = 5000,
    targeted: bool | Bool[AnyArray, ""] = False,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Try random squares, and keep those that raise the margin of another class, or of the target, until it is on top.

    The result has no `zero_gradients`, for there are none.
    """
    check_inputs(images, labels, bounds)
    keys = split_keys(key, len(images))
    sides = jnp.asarray(square_sides(queries, images.shape[1:3], odd=norm == "l2"))
    propose = {"linf": _propose_linf, "l2": _propose_l2}[norm]
    start = {"linf": _start_linf, "l2": _start_l2}[norm]

    def evaluate(images: Images) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
        found = evaluate_logits(logits, images)
        return aim(found, labels, targeted), has_succeeded(found, labels, targeted)

    def is_running(state: Squares) -> Bool[Array, ""]:
        return (state.step < queries) & ~jnp.all(state.success)

    def query(state: Squares) -> Squares:
        step_keys = fold_in(keys, state.step + 1)
        changes = jax.vmap(lambda key, change: propose(key, change, sides[state.step], epsilon))(
            step_keys, state.images - images
        )
        moved = project_to_ball(images + changes, images, epsilon, norm, bounds)
        value, success = evaluate(moved)
        is_better = ~state.success & ((value > state.value) | success)
        kept, best = select(is_better, (moved, value), (state.images, state.value))
        return Squares(state.step + 1, kept, best, state.success | success)

    first = jax.vmap(lambda key: start(key, images.shape[1:], epsilon))(fold_in(keys, 0))
    moved = project_to_ball(images + first, images, epsilon, norm, bounds)
    found = jax.lax.while_loop(is_running, query, Squares(jnp.zeros((), jnp.int32), moved, *evaluate(moved)))
    return AttackResult(found.images, found.success)


def square_sides(queries: int, size: tuple[int, ...], odd: bool) -> Int[np.ndarray, " queries"]:
    """Return the side of the square of every query; in L2 it is odd, and 3 or more."""
    height, width = size
    halvings = np.searchsorted(HALVINGS, np.arange(queries))
    sides = np.round(np.sqrt(SHARE / 2.0**halvings * height * width)).astype(np.int32)
    sides = np.maximum(sides, 3 if odd else 1)
    return np.minimum(sides + (odd & (sides % 2 == 0)), min(height, width))


def pyramids(
    shape: tuple[int, ...], side: Int[Array, ""], corner: tuple[Array | int, Array | int], turned: Bool[Array, "*tiles"]
) -> Float[Array, "*tiles h w"]:
    """Return two pyramids of opposite signs that fill a square one above the other, or, turned, side by side.

    At r pixels from its centre, along the axis where that is more, a pyramid is Σ 1/(j + 1)² for j from r to half the
    side. Both have the same length, and together 1.

    Args:
        shape: Height and width of the image.
        side: Of the square.
        corner: Upper left one of the square.
        turned: Side by side, not one above the other; of any number of tiles.
    """
    down, across = jnp.arange(shape[0])[:, None] - corner[0], jnp.arange(shape[1])[None] - corner[1]
    turned = turned[..., None, None]
    along, other = jnp.where(turned, across, down), jnp.where(turned, down, across)
    half, rings = side // 2, jnp.cumsum(1 / jnp.arange(1, max(shape) + 2, dtype=jnp.float32) ** 2)
    rings = jnp.pad(rings, (1, 0))
    is_first = along < half
    centre = jnp.where(is_first, half // 2, half + (side - half) // 2)
    ring = jnp.minimum(jnp.maximum(jnp.abs(along - centre), jnp.abs(other - half)), half + 1)
    is_within = (along >= 0) & (along < side) & (other >= 0) & (other < side)
    heights = jnp.where(is_within, rings[half + 1] - rings[ring], 0)

    def normalize(part: Array) -> Array:
        return part / positive(jnp.sqrt(jnp.sum(part**2, axis=(-2, -1), keepdims=True)))

    both = normalize(jnp.where(is_first, heights, 0)) - normalize(jnp.where(is_first, 0, heights))
    return normalize(both)


def _start_linf(key: Key[Array, ""], shape: tuple[int, ...], epsilon: Radius) -> Float[Array, "h w c"]:
    """Return vertical stripes of ±ε, in every channel for itself."""
    _, width, channels = shape
    return jnp.broadcast_to(epsilon * jax.random.rademacher(key, (1, width, channels), jnp.float32), shape)


def _propose_linf(
    key: Key[Array, ""], change: Float[Array, "h w c"], side: Int[Array, ""], epsilon: Radius
) -> Float[Array, "h w c"]:
    place_key, colour_key = jax.random.split(key)
    colour = jax.random.rademacher(colour_key, (1, 1, change.shape[2]), jnp.float32)
    return change + 2 * epsilon * colour * _random_square(place_key, change.shape, side)[0]


def _start_l2(key: Key[Array, ""], shape: tuple[int, ...], epsilon: Radius) -> Float[Array, "h w c"]:
    """Return tiles with a pyramid each, of length ε together."""
    height, width, channels = shape
    side = max(min(height, width) // TILES, 1)
    down, across = height // side, width // side
    turn_key, sign_key = jax.random.split(key)
    turned = jax.random.bernoulli(turn_key, shape=(down, across))
    tiles = pyramids((side, side), jnp.asarray(side), (0, 0), turned)
    signs = jax.random.rademacher(sign_key, (down, across, 1, 1, channels), jnp.float32)
    tiled = (tiles[..., None] * signs).transpose(0, 2, 1, 3, 4).reshape(down * side, across * side, channels)
    rest = height - down * side, width - across * side
    change = jnp.pad(tiled, [(part // 2, part - part // 2) for part in rest] + [(0, 0)])
    return epsilon * change / positive(jnp.sqrt(jnp.sum(change**2)))


def _propose_l2(
    key: Key[Array, ""], change: Float[Array, "h w c"], side: Int[Array, ""], epsilon: Radius
) -> Float[Array, "h w c"]:
    new_key, old_key, turn_key, sign_key = jax.random.split(key, 4)
    new, corner = _random_square(new_key, change.shape, side)
    given_up, _ = _random_square(old_key, change.shape, side)

    def length_in(mask: Array) -> Float[Array, "1 1 c"]:
        return jnp.sqrt(jnp.sum((change * mask) ** 2, axis=(0, 1), keepdims=True))

    pattern = pyramids(change.shape[:2], side, corner, jax.random.bernoulli(turn_key))
    signs = jax.random.rademacher(sign_key, (1, 1, change.shape[2]), jnp.float32)
    mixed = (pattern[..., None] * signs + change / positive(length_in(new))) * new
    budget = jnp.maximum(epsilon**2 - jnp.sum(change**2), 0) / change.shape[2]
    wanted = jnp.sqrt(budget + length_in(jnp.maximum(new, given_up)) ** 2)
    mixed = mixed / positive(jnp.sqrt(jnp.sum(mixed**2, axis=(0, 1), keepdims=True))) * wanted
    changed = jnp.where(new > 0, mixed, jnp.where(given_up > 0, 0, change))
    return epsilon * changed / positive(jnp.sqrt(jnp.sum(changed**2)))


def _random_square(
    key: Key[Array, ""], shape: tuple[int, ...], side: Int[Array, ""]
) -> tuple[Float[Array, "h w 1"], tuple[Array, Array]]:
    """Return 1 within a random square and 0 elsewhere, and its upper left corner."""
    keys = jax.random.split(key)
    within, corner = [], []
    for axis in range(2):
        low = jax.random.randint(keys[axis], (), 0, shape[axis] - side + 1)
        places = jnp.arange(shape[axis])
        within.append((places >= low) & (places < low + side))
        corner.append(low)
    return (within[0][:, None] & within[1][None]).astype(jnp.float32)[..., None], (corner[0], corner[1])
