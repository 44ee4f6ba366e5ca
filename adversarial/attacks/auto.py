"""Auto-Attack: several attacks one after the other, and for every image the first that succeeds.

«standard» is APGD on the cross-entropy, APGD-T, FAB-T and Square, with the iterations of the paper and one start each;
«fast» is the first two. Where it fails too, a network has withstood gradients of two losses, a search for the nearest
boundary, and an attack that sees no gradient. Source: Croce and Hein 2020, arXiv 2003.01690.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Key

from adversarial.attacks.apgd import apgd, apgd_t
from adversarial.attacks.base import (
    Attack,
    AttackResult,
    Bounds,
    Images,
    Labels,
    Logits,
    Norm,
    Radius,
    check_inputs,
    fold_in,
    select,
    split_keys,
)
from adversarial.attacks.fab import fab_t
from adversarial.attacks.square import square
from adversarial.attacks.turns import TARGETS
from latentlab.arrays import AnyArray


class Stage(NamedTuple):
    """One attack of an ensemble, towards one class where it aims at several.

    Attributes:
        name: Of the attack.
        attack: The attack.
        member: Its place in the ensemble, which is folded into the keys.
        rank: Of the class that it aims at, 1 for the most likely other; None for attacks that do not aim.
    """

    name: str
    attack: Attack
    member: int
    rank: int | None


@dataclass(frozen=True)
class Ensemble:
    """Attacks in the order in which they are tried, itself an attack; equal ones share what was compiled.

    Attributes:
        members: Names and attacks; those in `aiming` take a `rank`.
        aiming: Names of the attacks that aim at other classes in turn.
    """

    members: tuple[tuple[str, Attack], ...]
    aiming: tuple[str, ...] = ("apgd-t", "fab-t")

    def __call__(
        self,
        key: Key[Array, "*n"],
        logits: Logits,
        images: Images,
        labels: Labels,
        *,
        epsilon: Radius,
        steps: int = 100,
        queries: int = 5000,
        targeted: bool | Bool[AnyArray, ""] = False,
        norm: Norm = "linf",
        bounds: Bounds = (0.0, 1.0),
    ) -> AttackResult:
        """Attack with every member, on all images, and keep the first success of each."""
        check_inputs(images, labels, bounds)
        keys, count = split_keys(key, len(images)), 0
        kept, zeros = (images, jnp.zeros(len(images), bool)), jnp.zeros(len(images))
        for place, (_, attack) in enumerate(self.members):
            settings: dict[str, Any] = {"queries": queries} if attack is square else {"steps": steps}
            settings |= {"epsilon": epsilon, "targeted": targeted, "norm": norm, "bounds": bounds}
            found = attack(fold_in(keys, place), logits, images, labels, **settings)
            kept = select(kept[1], kept, found[:2])
            if found.zero_gradients is not None:
                zeros, count = zeros + found.zero_gradients, count + 1
        return AttackResult(*kept, zeros / count if count else None)

    def stages(self, classes: int) -> list[Stage]:
        """Return the attacks for so many classes, those that aim once for each class that they aim at."""
        return [
            Stage(name, attack, place, rank)
            for place, (name, attack) in enumerate(self.members)
            for rank in (range(1, min(TARGETS, classes - 1) + 1) if name in self.aiming else [None])
        ]


FAST: tuple[tuple[str, Callable[..., AttackResult]], ...] = (("apgd-ce", apgd), ("apgd-t", apgd_t))
auto = Ensemble((*FAST, ("fab-t", fab_t), ("square", square)))
auto_fast = Ensemble(FAST)
