"""Adversarial attacks on any differentiable `logits(images)`, in L∞ and L2, as pure functions.

All attacks have one argument order, `(key, logits, images, labels, *, epsilon, …) -> AttackResult` (`base.Attack`). An
own attack is such a function and a line of `ATTACKS`; it gets those of the settings `steps`, `step_size`, `restarts`,
`momentum` and `norm` that it has as arguments. An image that did not fall is returned like all others; `success` says
so. No attack changes its input. docs/attacks.md explains them.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from adversarial.attacks.apgd import apgd, apgd_t
from adversarial.attacks.auto import Ensemble, auto, auto_fast
from adversarial.attacks.base import (
    Attack,
    AttackResult,
    Images,
    Labels,
    Logits,
    Norm,
    check_inputs,
    class_at_rank,
    evaluate_logits,
    has_succeeded,
    project,
    random_in_ball,
    split_keys,
)
from adversarial.attacks.carlini_wagner import carlini_wagner
from adversarial.attacks.deepfool import deepfool
from adversarial.attacks.fab import fab_t
from adversarial.attacks.iterative import basic_iterative, fgsm, momentum_iterative, pgd, sweep_fgsm
from adversarial.attacks.losses import DLR_CLASSES, TARGETED_DLR_CLASSES, input_gradient, log_odds, loss
from adversarial.attacks.minimum_norm import fmn
from adversarial.attacks.nearest import sweep_nearest
from adversarial.attacks.square import square
from adversarial.attacks.transfer import transfer_iterative
from adversarial.attacks.transformations import expect_logits, resize_and_pad
from latentlab.arrays import AnyArray

__all__ = [
    "ATTACKS",
    "LEAST_CLASSES",
    "MINIMIZING",
    "REQUIRED_NORM",
    "Attack",
    "AttackResult",
    "Ensemble",
    "Images",
    "Labels",
    "Logits",
    "Norm",
    "SweptAttack",
    "apgd",
    "apgd_t",
    "auto",
    "auto_fast",
    "basic_iterative",
    "carlini_wagner",
    "check_inputs",
    "class_at_rank",
    "deepfool",
    "evaluate_logits",
    "expect_logits",
    "fab_t",
    "fgsm",
    "fmn",
    "has_succeeded",
    "input_gradient",
    "log_odds",
    "loss",
    "momentum_iterative",
    "pgd",
    "project",
    "random_in_ball",
    "resize_and_pad",
    "select_settings",
    "split_keys",
    "square",
    "sweep",
    "transfer_iterative",
]

ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "bim": basic_iterative,
    "pgd": pgd,
    "mi-fgsm": momentum_iterative,
    "di-fgsm": partial(transfer_iterative, diversity=0.5),
    "ti-fgsm": partial(transfer_iterative, kernel_size=15),
    "apgd-ce": apgd,
    "apgd-dlr": partial(apgd, loss="dlr"),
    "apgd-t": apgd_t,
    "fab-t": fab_t,
    "square": square,
    "auto": auto,
    "auto-fast": auto_fast,
    "deepfool": deepfool,
    "cw": carlini_wagner,
    "fmn": fmn,
}
"""Attacks by the name that the command line gives them."""

MINIMIZING = frozenset({deepfool, carlini_wagner, fmn})
"""Attacks that look for the nearest image, whatever ε is, and tell its distance."""

REQUIRED_NORM: dict[str, Norm] = {"cw": "l2"}
"""The norm of attacks that have only one."""

LEAST_CLASSES = {"apgd-dlr": DLR_CLASSES} | dict.fromkeys(("apgd-t", "auto", "auto-fast"), TARGETED_DLR_CLASSES)
"""Fewest classes for which the loss of an attack is defined, where that is not two."""


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
    FGSM takes one gradient for all ε of a row, and attacks that look for the nearest image search once.
    """
    if attack is fgsm:
        return sweep_fgsm(logits, images, labels, targeted, epsilons, **settings)
    if attack in MINIMIZING:
        return sweep_nearest(attack, key, logits, images, labels, targeted, epsilons, **settings)
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
