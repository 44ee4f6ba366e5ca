"""Training: a pure step, whole epochs of it in one compiled scan, and the loop around them.

The data stay on the device as uint8. Everything random derives from the state's key: the
permutation of an epoch from (key, epoch), the noise of a step from (key, step). A state
therefore determines all that follows it, and a resumed run repeats the uninterrupted one bit
for bit on the same device.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from runtime.checkpoints import Checkpoints
from runtime.errors import UserError
from runtime.interrupts import deferred
from runtime.progress import Progress
from runtime.run_directory import Metrics

Parameters = dict[str, Any]
PerExample = Float[Array, " batch"]


class Loss(Protocol):
    """Loss of each example and its parts; images are floats in [0, 1]."""

    def __call__(
        self, params: Parameters, images: Float[Array, "batch h w c"], key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        """Returns the loss of each example, and its parts by name."""


class TrainState(NamedTuple):
    """All that training needs to go on: what a checkpoint holds."""

    params: Parameters
    optimizer_state: optax.OptState
    key: Key[Array, ""]
    step: Int[Array, ""]
    epoch: Int[Array, ""]


def adam(learning_rate: float, epsilon: float) -> optax.GradientTransformation:
    """Adam in the form that Keras uses, m / (√v + ε) · learning_rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ).

    The epsilon is added before the bias correction ("ε̂" in Kingma & Ba 2015, section 2), so
    it weighs 30 times more in the first step than Optax's own, which is added after it.
    """
    decay = 0.999

    def update(
        gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        steps = state.count.astype(jnp.float32) + 1
        corrected = epsilon / jnp.sqrt(1 - jnp.asarray(decay) ** steps)
        return optax.scale_by_adam(b2=decay, eps=corrected).update(gradients, state, params)

    scale = optax.GradientTransformation(optax.scale_by_adam(b2=decay).init, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def init_state(
    key: Key[Array, ""], init: Callable[[Array], Parameters], optimizer: optax.GradientTransformation
) -> TrainState:
    """State before the first step; `init` makes parameters from a key."""
    init_key, train_key = jax.random.split(key)
    params = init(init_key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(params, optimizer.init(params), train_key, zero, zero)


def train_step(
    state: TrainState,
    images: UInt8[Array, "batch h w c"],
    present: Float[Array, " batch"],
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One optimiser step on the mean loss of the examples that are present.

    Args:
        state: State before the step.
        images: Pixels 0…255.
        present: 1 for an example, 0 for padding.
        loss: Loss of each example.
        optimizer: Optax transformation.

    Returns:
        The state after the step, and the means of the loss and its parts over present examples.
    """
    _, noise_key = jax.random.split(state.key)
    step_key = jax.random.fold_in(noise_key, state.step)
    count = jnp.sum(present)

    def mean_loss(params: Parameters) -> tuple[Array, dict[str, Array]]:
        per_example, parts = loss(params, normalize(images), step_key, state.step)
        means = {name: jnp.vdot(part, present) / count for name, part in {"loss": per_example, **parts}.items()}
        return means["loss"], means

    gradients, metrics = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, optimizer_state=optimizer_state, step=state.step + 1), metrics


def train_epoch(
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    *,
    batch_size: int,
    loss: Loss,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    """One pass over the images in a fresh order, as one scan; a partial last batch is padded and masked.

    Returns:
        The state after the epoch, and `train_step`'s metrics of every step.
    """
    order_key, _ = jax.random.split(state.key)
    order = jax.random.permutation(jax.random.fold_in(order_key, state.epoch), len(images))
    steps = steps_per_epoch(len(images), batch_size)
    padding = steps * batch_size - len(images)
    indices = jnp.pad(order, (0, padding)).reshape(steps, batch_size)
    present = jnp.pad(jnp.ones(len(images)), (0, padding)).reshape(steps, batch_size)

    def body(state: TrainState, batch: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, images[batch[0]], batch[1], loss=loss, optimizer=optimizer)

    state, metrics = jax.lax.scan(body, state, (indices, present))
    return state._replace(epoch=state.epoch + 1), metrics


def fit(
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    *,
    epochs: int,
    batch_size: int,
    epochs_per_dispatch: int,
    epochs_per_checkpoint: int,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    validate: Callable[[Parameters], Mapping[str, Float[Array, " seeds"]]],
    checkpoints: Checkpoints,
    metrics: Metrics,
    label: str,
) -> TrainState:
    """Trains all seeds of a stacked state at once until `epochs`, from wherever the state stands.

    Several epochs run in one dispatch; while they run, the host handles the numbers of the
    dispatch before. At every checkpoint the device is waited for, the held-out loss computed,
    and the state written.

    Args:
        state: States of all seeds, each leaf with a leading axis of seeds.
        images: Pixels 0…255, on the device, shared by all seeds.
        epochs: Epoch at which training ends.
        batch_size: Examples a step.
        epochs_per_dispatch: Epochs in one compiled call.
        epochs_per_checkpoint: Epochs between checkpoints and held-out losses; a multiple of the former.
        loss: Loss of each example.
        optimizer: Optax transformation.
        validate: Stacked parameters to held-out metrics, one number a seed.
        checkpoints: Where states are written.
        metrics: Where a row an epoch and seed is written.
        label: Name of the model in metrics and messages.

    Raises:
        UserError: The loss became NaN or infinite; the message has the step and the last good checkpoint.
        Interrupted: SIGINT or SIGTERM came; the state had been written first.
    """
    run = epochs_of_all_seeds(batch_size=batch_size, loss=loss, optimizer=optimizer)
    epoch = int(state.epoch[0])
    saved = epoch
    seeds = len(state.epoch)
    waiting: tuple[int, dict[str, Array]] | None = None
    with deferred() as pending, Progress(label, epochs, epoch, len(images) * seeds) as progress:

        def arrive(last: int, fetched: Mapping[str, Array]) -> None:
            values = jax.device_get(fetched)
            _raise_if_not_finite(values["loss"], last, label, saved)
            means = {name: _epoch_means(value, len(images), batch_size) for name, value in values.items()}
            rate = progress.update(last, float(means["loss"][:, -1].mean()))
            first = last - means["loss"].shape[1] + 1
            for offset in range(means["loss"].shape[1]):
                for seed in range(seeds):
                    row = {name: float(mean[seed, offset]) for name, mean in means.items()}
                    metrics.append(
                        {"model": label, "epoch": first + offset, "seed": seed, **row, "images_per_second": rate}
                    )

        while epoch < epochs:
            count = min(epochs_per_dispatch, epochs - epoch)
            state, dispatched = run(state, images, count)
            if waiting:
                arrive(*waiting)
            epoch, waiting = epoch + count, (epoch + count, dispatched)
            if epoch % epochs_per_checkpoint == 0 or epoch == epochs or pending.number is not None:
                arrive(*waiting)
                waiting = None
                _raise_if_params_not_finite(state.params, epoch, label, saved)
                for name, value in validate(state.params).items():
                    for seed, number in enumerate(np.asarray(value)):
                        metrics.append({"model": label, "epoch": epoch, "seed": seed, f"test_{name}": float(number)})
                checkpoints.save(epoch, state)
                saved = epoch
            pending.raise_if_set()
    return state


def epochs_of_all_seeds(
    *, batch_size: int, loss: Loss, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Array, int], tuple[TrainState, dict[str, Float[Array, "seeds epochs steps"]]]]:
    """What `fit` dispatches: stacked states, images and a number of epochs to states and metrics, compiled.

    The states are donated: their memory is reused, and they must not be used again.
    """

    def train_epochs(state: TrainState, images: Array, count: int) -> tuple[TrainState, dict[str, Array]]:
        def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
            return train_epoch(state, images, batch_size=batch_size, loss=loss, optimizer=optimizer)

        return jax.lax.scan(body, state, None, length=count)

    return jax.jit(jax.vmap(train_epochs, in_axes=(0, None, None)), static_argnums=2, donate_argnums=0)


def normalize(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0…255 to floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Number of batches of an epoch, the partial last one included."""
    return -(-examples // batch_size)


def _epoch_means(per_step: np.ndarray, examples: int, batch_size: int) -> np.ndarray:
    """Means over examples, (seeds, epochs), of means over batches, (seeds, epochs, steps)."""
    sizes = np.full(per_step.shape[-1], batch_size)
    sizes[-1] = examples - batch_size * (len(sizes) - 1)
    return np.average(per_step.astype(np.float64), axis=-1, weights=sizes)


def _raise_if_not_finite(loss: np.ndarray, last: int, label: str, saved: int) -> None:
    bad = np.argwhere(~np.isfinite(loss))
    if len(bad):
        seed, epoch, step = min(map(tuple, bad), key=lambda index: index[1:])
        first = last - loss.shape[1]
        _diverged(label, f"the loss became {loss[seed, epoch, step]}", seed, first + epoch + 1, step + 1, saved)


def _raise_if_params_not_finite(params: Parameters, epoch: int, label: str, saved: int) -> None:
    for leaf in jax.tree.leaves(params):
        finite = np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            _diverged(label, "the weights became infinite or NaN", int(finite.argmin()), epoch, None, saved)


def _diverged(label: str, what: str, seed: int, epoch: int, step: int | None, saved: int) -> None:
    where = f"seed {seed}, epoch {epoch}" + (f", step {step}" if step else "")
    good = f"the checkpoint of epoch {saved} is the last good one" if saved else "there is no checkpoint yet"
    raise UserError(f"{label}: {what} at {where}; {good}; a smaller --learning-rate may help")
