"""Several tries one after the other, of which every image keeps the first success: restarts, and targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Key

from adversarial.attacks.base import AttackResult, Images, Labels, Logits, evaluate_logits, fold_in, select, split_keys
from adversarial.attacks.losses import order_of_others
from latentlab.arrays import AnyArray

TARGETS = 9
"""Most classes aimed at, from the most likely on."""


def try_in_turn(
    attack: Callable[[Int[Array, ""], Key[Array, " n"]], AttackResult],
    keys: Key[Array, " n"],
    images: Images,
    count: int | Int[Array, ""],
) -> AttackResult:
    """Attack `count` times, and keep the first success of every image, or the last try; zero gradients are averaged.

    Args:
        attack: The number of the try, from 0, and keys, to a result that counts zero gradients.
        keys: A key of every image.
        images: What is attacked.
        count: Number of tries, 1 or more.
    """

    def attack_again(index: Int[Array, ""], before: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        found = attack(index, keys)
        images, success = select(before[1], before[:2], found[:2])
        return images, success, before[2] + jnp.asarray(found.zero_gradients)

    rows = len(images)
    start = (images, jnp.zeros(rows, bool), jnp.zeros(rows))
    images, success, zeros = jax.lax.fori_loop(0, count, attack_again, start)
    return AttackResult(images, success, zeros / count)


def aim_at_others(
    attack: Callable[[Key[Array, " n"], Labels], AttackResult],
    key: Key[Array, "*n"],
    logits: Logits,
    images: Images,
    labels: Labels,
    rank: int | Int[AnyArray, ""],
    targeted: bool | Bool[AnyArray, ""],
) -> AttackResult:
    """Attack towards the most likely other classes in turn, or one of them; with `targeted`, towards the labels."""
    others = order_of_others(evaluate_logits(logits, images), labels)
    count = min(TARGETS, others.shape[1])
    targeted, rank, keys = jnp.asarray(targeted), jnp.asarray(rank), split_keys(key, len(images))

    def attack_in_turn(index: Int[Array, ""], keys: Key[Array, " n"]) -> AttackResult:
        place = jnp.where(rank > 0, rank - 1, index)
        targets = jnp.where(targeted, labels, others[:, place])
        return attack(fold_in(keys, place), targets)

    return try_in_turn(attack_in_turn, keys, images, jnp.where(targeted | (rank > 0), 1, count))
