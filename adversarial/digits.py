"""A classifier of digits and three ways to train it: on digits, on attacked digits, and for smooth predictions.

| training | loss | source |
| --- | --- | --- |
| standard | L(x, y), the cross-entropy | |
| pgd | L(x', y), x' from projected steps up L, from a random start | Madry et al. 2018, 1706.06083 |
| trades | L(x, y) + β KL(p(x) ‖ p(x')), x' from such steps on the divergence | Zhang et al. 2019, 1901.08573 |
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Key

from adversarial.attacks.base import random_in_ball, random_start, split_keys
from adversarial.attacks.iterative import REACH, walk
from adversarial.attacks.losses import cross_entropy, odds_gradient
from adversarial.config import Training
from latentlab.arrays import AnyArray
from latentlab.kernels.convolution import conv_general_dilated
from latentlab.model import Loss, Variables

IMAGE_SHAPE = (28, 28, 1)
TRADES_NOISE = 1e-3
"""Standard deviation of the start of TRADES's steps, where the gradient of the divergence is not 0 as at x itself."""


class DigitsNetwork(nn.Module):
    """Images in [0, 1] to logits: convolutions of 4×4 with stride 2, and two Dense layers (Wong and Kolter 2018).

    Attributes:
        classes: Number of logits.
        filters: Channels of the convolutions.
        hidden: Units of the first Dense layer.
    """

    classes: int = 10
    filters: tuple[int, ...] = (16, 32)
    hidden: int = 100

    @nn.compact
    def __call__(self, images: Float[AnyArray, "n h w c"]) -> Float[Array, "n classes"]:
        hidden = images
        for features in self.filters:
            convolution = nn.Conv(features, (4, 4), (2, 2), conv_general_dilated=conv_general_dilated)
            hidden = nn.relu(convolution(hidden))
        hidden = nn.relu(nn.Dense(self.hidden)(hidden.reshape(len(hidden), -1)))
        return nn.Dense(self.classes)(hidden)


@dataclass(frozen=True)
class AdversarialTraining:
    """A training with its settings; equal ones share what was compiled.

    Attributes:
        network: What is trained.
        kind: Which of the three.
        epsilon: Radius in L∞, of [0, 1].
        steps: Steps of the attack.
        reach: Length of all its steps together, in radii.
        warmup_steps: Training steps in which the radius grows from 0 to ε; with the whole one from the start, a network
            learns nothing where that is large.
        beta: Weight of TRADES's divergence.
    """

    network: DigitsNetwork
    kind: Training = "standard"
    epsilon: float = 0.3
    steps: int = 10
    reach: float = REACH
    warmup_steps: int = 0
    beta: float = 6.0

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return variables before training."""
        variables: Any = self.network.init(key, jnp.zeros((1, *IMAGE_SHAPE)))
        return {"params": variables["params"], "batch_stats": {}}

    def loss(self, variables: Variables, batch: Any, key: Key[Array, ""], step: Array) -> Loss:
        """Return the loss of every digit of a batch of images in [0, 1] and labels."""
        images, labels = batch
        epsilon = self.epsilon * jnp.minimum(1, (step + 1) / max(1, self.warmup_steps))
        logits = partial(_apply, self.network, variables["params"])
        if self.kind == "standard":
            return Loss(cross_entropy(logits(images), labels), {}, {})
        fixed = partial(_apply, self.network, jax.lax.stop_gradient(variables["params"]))
        keys = split_keys(key, len(images))
        if self.kind == "pgd":
            start = random_start(random_in_ball, keys, images, epsilon, "linf", (0.0, 1.0))
            moved = self._walk(lambda x, _: odds_gradient(fixed, x, labels, False), images, start, epsilon)
            return Loss(cross_entropy(logits(moved), labels), {}, {})
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        clean = fixed(images)
        away_from_clean = jax.grad(lambda x: jnp.sum(divergence(clean, fixed(x))))
        moved = self._walk(lambda x, _: away_from_clean(x), images, images + TRADES_NOISE * noise, epsilon)
        found = logits(images)
        divergences = divergence(found, logits(moved))
        natural = cross_entropy(found, labels)
        return Loss(natural + self.beta * divergences, {"natural": natural, "divergence": divergences}, {})

    def _walk(self, gradient: Callable[[Array, Array], Array], images: Array, start: Array, epsilon: Array) -> Array:
        moved, _ = walk(
            gradient,
            images,
            start,
            epsilon=epsilon,
            steps=self.steps,
            step_size=self.reach * epsilon / self.steps,
            norm="linf",
            bounds=(0.0, 1.0),
        )
        return jax.lax.stop_gradient(moved)


def divergence(logits: Float[AnyArray, "n classes"], others: Float[AnyArray, "n classes"]) -> Float[Array, " n"]:
    """Return KL(p ‖ q) of the classes' probabilities, p by the first logits."""
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(others), jax.nn.log_softmax(logits))


def _apply(network: DigitsNetwork, params: Any, images: Float[AnyArray, "n h w c"]) -> Float[Array, "n classes"]:
    logits: Any = network.apply({"params": params}, images)
    return jnp.asarray(logits)
