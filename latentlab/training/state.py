"""The state of a training run and one step of it, as mathematics: neither knows of devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Float, Int, Key

from latentlab.model import Loss, Variables, normalize

Batch = Any
"""A tree of arrays with one row an example; its uint8 leaves are images."""


TrainingLoss = Callable[[Variables, Any, Key[Array, ""], Int[Array, ""]], Loss]
"""Variables, a batch whose images are floats in [0, 1], key and step to the loss of each example."""


class TrainState(NamedTuple):
    """All that training needs to go on, and what a checkpoint holds."""

    params: dict[str, Any]
    batch_stats: dict[str, Any]
    optimizer_state: optax.OptState
    order_key: Key[Array, ""]
    noise_key: Key[Array, ""]
    step: Int[Array, ""]

    @property
    def variables(self) -> Variables:
        """Params and running statistics, as models take them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    key: Key[Array, ""], init: Callable[[Key[Array, ""]], Variables], optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step; `init` makes variables from a key."""
    init_key, train_key = jax.random.split(key)
    order_key, noise_key = jax.random.split(train_key)
    variables = init(init_key)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(params, batch_stats, optimizer.init(params), order_key, noise_key, jnp.zeros((), jnp.int32))


def train_step(
    state: TrainState,
    batch: Batch,
    mask: Float[Array, " batch"],
    *,
    loss: TrainingLoss,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Take one optimiser step on the mean loss of the examples in the mask; the noise derives from (key, step).

    Args:
        state: State before the step.
        batch: Examples; pixels are 0…255.
        mask: 1 for an example, 0 for padding.
        loss: Loss of each example.
        optimizer: Optax transformation.

    Returns:
        The state after the step, and the means of the loss and its parts over the examples in the mask.
    """
    step_key = jax.random.fold_in(state.noise_key, state.step)
    count = jnp.sum(mask)

    def mean_loss(params: dict[str, Any]) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        found = loss(variables, _normalize_images(batch), step_key, state.step)
        values = {"loss": found.per_example, **found.parts}
        means = {name: jnp.vdot(value, mask) / count for name, value in values.items()}
        return means["loss"], (means, found.batch_stats)

    gradients, (metrics, batch_stats) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(params=params, batch_stats=batch_stats, optimizer_state=optimizer_state, step=state.step + 1)
    return state, metrics


def _normalize_images(batch: Batch) -> Batch:
    return jax.tree.map(lambda leaf: normalize(leaf) if leaf.dtype == jnp.uint8 else leaf, batch)
