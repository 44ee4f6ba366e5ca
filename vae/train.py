"""Training: a pure step, epochs of it, and the loop around them.

Small data stay on the device as uint8, and whole epochs are one compiled scan: the permutation of
an epoch derives from (key, epoch). Large data come in batches from an iterator, a few in one
dispatch. In both, the noise of a step derives from (key, step). A state, together with the
position of the iterator, therefore determines all that follows it, and a resumed run repeats the
uninterrupted one bit for bit on the same device.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from kernels.materialized import materialized
from runtime import mesh, processes
from runtime.checkpoints import Checkpoints, Position
from runtime.errors import UserError
from runtime.interrupts import deferred
from runtime.progress import Progress
from runtime.run_directory import Metrics

Parameters = dict[str, Any]
PerExample = Float[Array, " batch"]

STEPS_PER_DISPATCH = 10
"""Steps in one compiled call of `epochs_of_batches`, at most."""


class Loss(Protocol):
    """Loss of each example and its parts; images are floats in [0, 1]."""

    def __call__(
        self, params: Parameters, images: Float[Array, "batch h w c"], key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample], Parameters]:
        """Returns the loss of each example, its parts by name, and the running statistics after it.

        Statistics are branches of `params`, at most two levels deep, which the step puts in the place of the old
        ones; networks without any give {}.
        """


class TrainState(NamedTuple):
    """All that training needs to go on: what a checkpoint holds."""

    params: Parameters
    optimizer_state: optax.OptState
    key: Key[Array, ""]
    step: Int[Array, ""]
    epoch: Int[Array, ""]


def adam(learning_rate: optax.ScalarOrSchedule, epsilon: float, divided: bool = False) -> optax.GradientTransformation:
    """Adam in the form that Keras uses, m / (√v + ε) · learning_rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ).

    The epsilon is added before the bias correction ("ε̂" in Kingma & Ba 2015, section 2), so
    it weighs 30 times more in the first step than Optax's own, which is added after it. The moments
    are whole on every device, or `divided` over all of them.
    """
    decay = 0.999
    placed = mesh.divided_along_longest if divided else mesh.whole

    def update(
        gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        steps = state.count.astype(jnp.float32) + 1
        corrected = epsilon / jnp.sqrt(1 - jnp.asarray(decay) ** steps)
        updates, state = optax.scale_by_adam(b2=decay, eps=corrected).update(gradients, state, params)
        return updates, placed(state)

    scale = optax.GradientTransformation(lambda params: placed(optax.scale_by_adam(b2=decay).init(params)), update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


def init_state(
    key: Key[Array, ""], init: Callable[[Array], Parameters], optimizer: optax.GradientTransformation
) -> TrainState:
    """State before the first step; `init` makes parameters from a key."""
    init_key, train_key = jax.random.split(key)
    params = mesh.whole(init(init_key))
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

    def mean_loss(params: Parameters) -> tuple[Array, tuple[dict[str, Array], Parameters]]:
        per_example, parts, statistics = loss(params, normalize(mesh.divided(images)), step_key, state.step)
        means = {name: jnp.vdot(part, present) / count for name, part in {"loss": per_example, **parts}.items()}
        return means["loss"], (means, statistics)

    gradients, (metrics, statistics) = jax.grad(mean_loss, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(materialized(gradients), state.optimizer_state, state.params)
    params = optax.apply_updates(state.params, updates)
    params |= {part: params[part] | moved for part, moved in statistics.items()}
    params, metrics = mesh.whole((params, metrics))
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


class TrainEpochs(Protocol):
    """Stacked states of all seeds and a number of epochs to the states after them and `train_step`'s metrics."""

    def __call__(
        self, state: TrainState, count: int
    ) -> tuple[TrainState, Mapping[str, Float[Array | np.ndarray, "seeds epochs steps"]]]:
        """Trains; the states that come in are donated and must not be used again."""


def fit(
    state: TrainState,
    run: TrainEpochs,
    *,
    examples: int,
    epochs: int,
    batch_size: int,
    epochs_per_dispatch: int,
    epochs_per_checkpoint: int,
    validate: Callable[[Parameters], Mapping[str, Float[Array | np.ndarray, " seeds"]]],
    checkpoints: Checkpoints,
    metrics: Metrics,
    label: str,
    position: Position | None = None,
) -> TrainState:
    """Trains all seeds of a stacked state at once until `epochs`, from wherever the state stands.

    Several epochs run in one dispatch; while they run, the host handles the numbers of the
    dispatch before. At every checkpoint the device is waited for, the held-out loss computed,
    and the state written.

    Args:
        state: States of all seeds, each leaf with a leading axis of seeds.
        run: What trains some epochs: `epochs_of_images` or `epochs_of_batches`.
        examples: Examples an epoch.
        epochs: Epoch at which training ends.
        batch_size: Examples a step.
        epochs_per_dispatch: Epochs in one compiled call.
        epochs_per_checkpoint: Epochs between checkpoints and held-out losses; a multiple of the former.
        validate: Stacked parameters to held-out metrics, one number a seed.
        checkpoints: Where states are written.
        metrics: Where a row an epoch and seed is written.
        label: Name of the model in metrics and messages.
        position: The iterator that `run` takes batches from, where there is one: its position is part of checkpoints.

    Raises:
        UserError: The loss became NaN or infinite; the message has the step and the last good checkpoint.
        Interrupted: SIGINT or SIGTERM came; the state had been written first.
    """
    epoch = int(state.epoch[0])
    saved = epoch
    seeds = len(state.epoch)
    waiting: tuple[int, Mapping[str, Any]] | None = None
    with deferred() as pending, Progress(label, epochs, epoch, examples * seeds) as progress:

        def arrive(last: int, dispatched: Mapping[str, Any]) -> None:
            values = mesh.fetched(dispatched)
            _raise_if_not_finite(values["loss"], last, label, saved)
            means = {name: _epoch_means(value, examples, batch_size) for name, value in values.items()}
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
            state, dispatched = run(state, count)
            if waiting:
                arrive(*waiting)
            epoch, waiting = epoch + count, (epoch + count, dispatched)
            if isinstance(dispatched["loss"], np.ndarray):  # they have arrived already
                arrive(*waiting)
                waiting = None
            pending.number = max(processes.exchanged(pending.number or 0)) or None  # all stop, or none
            if epoch % epochs_per_checkpoint == 0 or epoch == epochs or pending.number is not None:
                if waiting:
                    arrive(*waiting)
                waiting = None
                _raise_if_params_not_finite(state.params, epoch, label, saved)
                for name, value in validate(state.params).items():
                    for seed, number in enumerate(mesh.fetched(value)):
                        metrics.append({"model": label, "epoch": epoch, "seed": seed, f"test_{name}": float(number)})
                checkpoints.save(epoch, state, position)
                saved = epoch
            pending.raise_if_set()
    return state


def epochs_of_images(
    images: UInt8[Array, "n h w c"], *, batch_size: int, loss: Loss, optimizer: optax.GradientTransformation
) -> TrainEpochs:
    """Epochs over images that are on the device and shared by all seeds: one dispatch for all of a call's epochs."""

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, None, None), spmd_axis_name=mesh.SEED)
    def train_epochs(state: TrainState, images: Array, count: int) -> tuple[TrainState, dict[str, Array]]:
        def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
            return train_epoch(state, images, batch_size=batch_size, loss=loss, optimizer=optimizer)

        return jax.lax.scan(body, state, None, length=count)

    return lambda state, count: train_epochs(state, images, count)


def epochs_of_batches(
    batches: Iterator[np.ndarray],
    steps: int,
    *,
    batch_size: int,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    images: UInt8[Array, "n h w c"] | None = None,
) -> TrainEpochs:
    """Epochs of `steps` batches each, shared by all seeds: one dispatch for a few steps.

    A few, because memory for the step's temporaries is handed out anew with every dispatch, which on CPU takes a third
    of a step of the face VAE.

    Args:
        batches: Endless, all of one size: pixels 0…255, or indices into `images`. Of pixels, a process gives those of
            its own devices, `mesh.share(batch_size)`.
        steps: Batches that count as an epoch.
        batch_size: Examples in a batch, on all devices together.
        loss: Loss of each example.
        optimizer: Optax transformation.
        images: All images, on the device, where batches are indices.
    """
    together = max(divisor for divisor in range(1, STEPS_PER_DISPATCH + 1) if steps % divisor == 0)

    @partial(jax.vmap, spmd_axis_name=mesh.SEED)
    def step(state: TrainState, pixels: Array) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, pixels, jnp.ones(len(pixels)), loss=loss, optimizer=optimizer)

    @partial(jax.jit, donate_argnums=0)
    def train_steps(state: TrainState, batches: Array, images: Array | None) -> tuple[TrainState, dict[str, Array]]:
        def body(state: TrainState, batch: Array) -> tuple[TrainState, dict[str, Array]]:
            pixels = batch[:batch_size] if images is None else images[batch]
            # Without an axis of seeds of their own, XLA transposes them for the gradient of the first kernel.
            return step(state, jnp.broadcast_to(pixels, (len(state.epoch), *pixels.shape)))

        return jax.lax.scan(body, state, batches)

    def run(state: TrainState, count: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        dispatched: list[Any] = []
        for index in range(count * steps // together):
            some = np.stack([next(batches) for _ in range(together)])
            on_device = mesh.put(mesh.Portion(some, batch_size), axis=1) if images is None else some
            state, metrics = train_steps(state, on_device, images)
            dispatched.append(metrics)
            if index:  # the host is one dispatch ahead, and no more batches wait on the device
                dispatched[index - 1] = mesh.fetched(dispatched[index - 1])
        rows = jax.tree.map(lambda *parts: np.concatenate(parts), *mesh.fetched(dispatched))
        metrics = {name: row.T.reshape(row.shape[1], count, steps) for name, row in rows.items()}
        return state._replace(epoch=state.epoch + count), metrics

    return run


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
    for leaf in jax.tree.leaves(mesh.fetched(params)):
        finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            _diverged(label, "the weights became infinite or NaN", int(finite.argmin()), epoch, None, saved)


def _diverged(label: str, what: str, seed: int, epoch: int, step: int | None, saved: int) -> None:
    where = f"seed {seed}, epoch {epoch}" + (f", step {step}" if step else "")
    good = f"the checkpoint of epoch {saved} is the last good one" if saved else "there is no checkpoint yet"
    raise UserError(f"{label}: {what} at {where}; {good}; a smaller --learning-rate may help")
