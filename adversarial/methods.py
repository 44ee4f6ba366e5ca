"""Attacks by the name that the command line gives them, for any number of objectives and radii."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Key

from adversarial import attacks
from adversarial.attacks import Attacked, Images, Labels, Logits, Norm

Name = Literal["fgsm", "bim", "pgd", "mi-fgsm"]
REACH = 2.5  # all steps together, in radii, where their length is not told (Madry et al. 2018)


@dataclass(frozen=True)
class Method:
    """An attack with all its settings but the radius.

    Attributes:
        name: fgsm takes one step, bim several, mi-fgsm several with momentum, pgd several from random starts.
        norm: L∞ or L2.
        steps: How many, of those that take several.
        step_size: Their length, in [0, 1]; 0 means 2.5 · ε / steps.
        restarts: Random starts of pgd.
        momentum: Share of past gradients that mi-fgsm keeps.
    """

    name: Name = "fgsm"
    norm: Norm = "linf"
    steps: int = 10
    step_size: float = 0.0
    restarts: int = 1
    momentum: float = 1.0

    def sweep(
        self,
        keys: Key[Array, " n"],
        logits: Logits,
        images: Images,
        labels: Int[Array, "objectives n"],
        targeted: Bool[Array, " objectives"],
        epsilons: Float[Array, " epsilons"],
    ) -> Attacked:
        """The attack for every row of labels and every ε: images in [0, 1] (T, E, n, h, w, c), success (T, E, n).

        There is a key for every image, from which pgd's starts derive.
        """
        if self.name == "fgsm":
            return attacks.sweep(logits, images, labels, targeted, epsilons, norm=self.norm)
        rows, count = len(labels), len(epsilons)
        pairs = (jnp.repeat(labels, count, axis=0), jnp.repeat(targeted, count), jnp.tile(epsilons, rows))
        every = jax.vmap(lambda key: jax.random.split(key, rows * count), out_axes=1)(keys)
        swept = jax.lax.map(lambda pair: self._one(pair[0], logits, images, *pair[1:]), (every, *pairs))
        return jax.tree.map(lambda part: part.reshape(rows, count, *part.shape[1:]), swept)

    def _one(
        self,
        keys: Key[Array, " n"],
        logits: Logits,
        images: Images,
        labels: Labels,
        targeted: Bool[Array, ""],
        epsilon: Float[Array, ""],
    ) -> Attacked:
        length = self.step_size or REACH * epsilon / self.steps
        if self.name == "pgd":
            return attacks.pgd(
                keys, logits, images, labels, epsilon,
                step_size=length, steps=self.steps, restarts=self.restarts, targeted=targeted, norm=self.norm,
            )  # fmt: skip
        momentum = self.momentum if self.name == "mi-fgsm" else None
        return attacks.iterated(
            logits, images, labels, epsilon,
            step_size=length, steps=self.steps, targeted=targeted, norm=self.norm, momentum=momentum,
        )  # fmt: skip
