"""Training: a pure step, epochs of it, and the loop around them.

Small data stay on the device as uint8, and whole epochs are one compiled scan: the permutation of
an epoch derives from (key, epoch). Large data come in batches from an iterator, a few in one
dispatch. In both, the noise of a step derives from (key, step). A state, together with the
position of the iterator, therefore determines all that follows it, and a resumed run repeats the
uninterrupted one bit for bit on the same device. Over several devices (`runtime.mesh`) batches are
divided, and the state is whole on each.
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
from runtime.interrupts import Interrupted, Pending, deferred
from runtime.progress import Progress
from runtime.run_directory import Metrics

Parameters = dict[str, Any]
PerExample = Float[Array, " batch"]

FEW_STEPS = 10
"""Steps on batches from the host in one dispatch, at most."""
MANY_STEPS = 400
"""Steps of all seeds together on images on the device in one dispatch, at most, unless an epoch or several fit in."""


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
    count: int | None = None,
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    """One pass over the images in a fresh order, as one scan; a partial last batch is padded and masked.

    With `count`, only so many steps of it, from where the state stands.

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

    batches = indices, present
    if count is not None:
        first = state.step - state.epoch * steps
        batches = jax.tree.map(lambda rows: jax.lax.dynamic_slice_in_dim(rows, first, count), batches)
    state, metrics = jax.lax.scan(body, state, batches)
    return state._replace(epoch=state.step // steps), metrics


class TrainSteps(Protocol):
    """Stacked states of all seeds and a number of steps to the states after them and `train_step`'s metrics."""

    def __call__(
        self, state: TrainState, count: int
    ) -> tuple[TrainState, Mapping[str, Float[Array | np.ndarray, "seeds steps"]]]:
        """Trains; the states that come in are donated and must not be used again."""


def fit(
    state: TrainState,
    run: TrainSteps,
    *,
    examples: int,
    epochs: int,
    batch_size: int,
    steps_per_dispatch: int,
    epochs_per_checkpoint: int,
    validate: Callable[[Parameters], Mapping[str, Float[Array | np.ndarray, " seeds"]]],
    checkpoints: Checkpoints,
    metrics: Metrics,
    label: str,
    position: Position | None = None,
    unfinished: Mapping[str, Any] | None = None,
) -> TrainState:
    """Trains all seeds of a stacked state at once until `epochs`, from wherever the state stands.

    While some steps run in one dispatch, the host handles the numbers of the dispatch before. At every checkpoint the
    device is waited for and the state written, then the held-out loss computed. A signal is obeyed at the end of a
    dispatch, in all processes of a run at the same one; the losses of the epoch so far are part of the checkpoint.

    Args:
        state: States of all seeds, each leaf with a leading axis of seeds.
        run: What trains some steps: `steps_on_images` or `steps_on_batches`.
        examples: Examples an epoch.
        epochs: Epoch at which training ends.
        batch_size: Examples a step.
        steps_per_dispatch: Steps in one compiled call, at most; of several epochs, the whole ones.
        epochs_per_checkpoint: Epochs between checkpoints and held-out losses, at whose ends a dispatch must end.
        validate: Stacked parameters to held-out metrics, one number a seed.
        checkpoints: Where states are written, by step.
        metrics: Where a row an epoch and seed is written.
        label: Name of the model in metrics and messages.
        position: The iterator that `run` takes batches from, where there is one: its position is part of checkpoints.
        unfinished: What the checkpoint that is resumed keeps of an epoch that it lies in.

    Raises:
        UserError: The loss became NaN or infinite; the message has the step and the last good checkpoint.
        Interrupted: SIGINT or SIGTERM came; the state had been written first.
    """
    steps, seeds = steps_per_epoch(examples, batch_size), len(state.step)
    done, last = int(state.step[0]), epochs * steps
    arrived, saved = done, done
    columns = {name: np.asarray(values) for name, values in (unfinished or {}).items()}
    waiting: Mapping[str, Any] | None = None

    def due(done: int) -> bool:
        return done > 0 and not done % steps and (done // steps % epochs_per_checkpoint == 0 or done == last)

    def test(epoch: int) -> None:
        for name, value in validate(state.params).items():
            for seed, number in enumerate(mesh.fetched(value)):
                metrics.append({"model": label, "epoch": epoch, "seed": seed, f"test_{name}": float(number)})

    with deferred() as pending, Progress(label, epochs, done // steps, examples * seeds) as progress:

        def arrive(dispatched: Mapping[str, Any]) -> None:
            nonlocal arrived
            values = mesh.fetched(dispatched)
            _raise_if_not_finite(values["loss"], arrived, steps, label, saved)
            arrived += values["loss"].shape[1]
            for name, value in values.items():
                columns[name] = np.concatenate([columns[name], value], axis=1) if name in columns else value
            complete = columns["loss"].shape[1] // steps
            if complete:
                report(arrived // steps, {name: value[:, : complete * steps] for name, value in columns.items()})
                columns.update({name: value[:, complete * steps :] for name, value in columns.items()})

        def report(epoch: int, values: Mapping[str, np.ndarray]) -> None:
            means = {
                name: _epoch_means(value.reshape(seeds, -1, steps), examples, batch_size)
                for name, value in values.items()
            }
            rate = progress.update(epoch, float(means["loss"][:, -1].mean()))
            first = epoch - means["loss"].shape[1] + 1
            for offset in range(means["loss"].shape[1]):
                for seed in range(seeds):
                    row = {name: float(mean[seed, offset]) for name, mean in means.items()}
                    metrics.append(
                        {"model": label, "epoch": first + offset, "seed": seed, **row, "images_per_second": rate}
                    )

        if due(done) and not _is_tested(metrics, label, done // steps):  # killed before it was
            test(done // steps)
        while done < last:
            count = _steps_of_dispatch(done, steps, steps_per_dispatch, last)
            state, dispatched = run(state, count)
            if waiting:
                arrive(waiting)
            done, waiting = done + count, dispatched
            stop = _asked_to_stop(pending)
            if due(done) or stop:
                arrive(waiting)
                waiting = None
                _raise_if_params_not_finite(state.params, done, steps, label, saved)
                kept = {name: value.tolist() for name, value in columns.items()} if done % steps else {}
                checkpoints.save(done, state, position, kept)
                saved = done
            if due(done) and not stop:
                test(done // steps)
                stop = _asked_to_stop(pending)
            if stop:
                raise Interrupted(stop)
    return state


def steps_on_images(
    images: UInt8[Array, "n h w c"], *, batch_size: int, loss: Loss, optimizer: optax.GradientTransformation
) -> TrainSteps:
    """Steps on images on the device, shared by all seeds: whole epochs, or some steps of one, in one dispatch."""
    epoch = partial(train_epoch, batch_size=batch_size, loss=loss, optimizer=optimizer)
    steps = steps_per_epoch(len(images), batch_size)

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, None, None), spmd_axis_name=mesh.SEED)
    def train_epochs(state: TrainState, images: Array, count: int) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = jax.lax.scan(lambda state, _: epoch(state, images), state, None, length=count)
        return state, {name: values.reshape(-1) for name, values in metrics.items()}

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    @partial(jax.vmap, in_axes=(0, None, None), spmd_axis_name=mesh.SEED)
    def train_some(state: TrainState, images: Array, count: int) -> tuple[TrainState, dict[str, Array]]:
        return epoch(state, images, count=count)

    def run(state: TrainState, count: int) -> tuple[TrainState, dict[str, Array]]:
        return train_some(state, images, count) if count % steps else train_epochs(state, images, count // steps)

    return run


def steps_on_batches(
    batches: Iterator[np.ndarray],
    steps: int,
    *,
    batch_size: int,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    images: UInt8[Array, "n h w c"] | None = None,
) -> TrainSteps:
    """Steps on batches that all seeds share, in one dispatch for all steps of a call.

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

    @partial(jax.vmap, spmd_axis_name=mesh.SEED)
    def step(state: TrainState, pixels: Array) -> tuple[TrainState, dict[str, Array]]:
        return train_step(state, pixels, jnp.ones(len(pixels)), loss=loss, optimizer=optimizer)

    @partial(jax.jit, donate_argnums=0)
    def train_steps(state: TrainState, batches: Array, images: Array | None) -> tuple[TrainState, dict[str, Array]]:
        def body(state: TrainState, batch: Array) -> tuple[TrainState, dict[str, Array]]:
            pixels = batch[:batch_size] if images is None else images[batch]
            # Without an axis of seeds of their own, XLA transposes them for the gradient of the first kernel.
            return step(state, jnp.broadcast_to(pixels, (len(state.epoch), *pixels.shape)))

        state, metrics = jax.lax.scan(body, state, batches)
        return state._replace(epoch=state.step // steps), {name: rows.T for name, rows in metrics.items()}

    def run(state: TrainState, count: int) -> tuple[TrainState, dict[str, Array]]:
        some = np.stack([next(batches) for _ in range(count)])
        return train_steps(state, mesh.put(mesh.Portion(some, batch_size), axis=1) if images is None else some, images)

    return run


def few_steps(steps: int) -> int:
    """Steps on batches in one dispatch: the most up to `FEW_STEPS` that divide an epoch of `steps`."""
    return max(divisor for divisor in range(1, FEW_STEPS + 1) if steps % divisor == 0)


def many_steps(steps: int, epochs: int, seeds: int) -> int:
    """Steps on images in one dispatch: `epochs` of `steps`, or equal parts of an epoch that is long.

    A signal is obeyed at the end of a dispatch, so a dispatch must end within seconds.
    """
    parts = -(-steps * seeds // MANY_STEPS)
    return epochs * steps if parts == 1 else -(-steps // parts)


def normalize(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0…255 to floats in [0, 1]."""
    return images.astype(jnp.float32) / 255


def told(step: int, steps: int) -> str:
    """A step as a person counts, with `steps` an epoch."""
    return f"epoch {step // steps}" + (f" and {step % steps} of {steps} steps" if step % steps else "")


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Number of batches of an epoch, the partial last one included."""
    return -(-examples // batch_size)


def _epoch_means(per_step: np.ndarray, examples: int, batch_size: int) -> np.ndarray:
    """Means over examples, (seeds, epochs), of means over batches, (seeds, epochs, steps)."""
    sizes = np.full(per_step.shape[-1], batch_size)
    sizes[-1] = examples - batch_size * (len(sizes) - 1)
    return np.average(per_step.astype(np.float64), axis=-1, weights=sizes)


def _steps_of_dispatch(done: int, steps: int, most: int, last: int) -> int:
    """As many as may be, up to the end of an epoch or of several whole ones."""
    if done % steps or most < steps:
        return min(most, steps - done % steps)
    return min(most // steps * steps, last - done)


def _asked_to_stop(pending: Pending) -> int:
    """The signal that any process of the run has got, or 0; the same for all of them, whenever another one comes."""
    return max(processes.exchanged(pending.number or 0))


def _is_tested(metrics: Metrics, label: str, epoch: int) -> bool:
    rows = [row for row in metrics.rows() if row["model"] == label and row["epoch"] == epoch]
    return any(name.startswith("test_") for row in rows for name in row)


def _raise_if_not_finite(loss: np.ndarray, before: int, steps: int, label: str, saved: int) -> None:
    bad = np.argwhere(~np.isfinite(loss))
    if len(bad):
        seed, place = min(map(tuple, bad), key=lambda index: index[1])
        epoch, step = divmod(before + place, steps)
        _diverged(
            label, f"the loss became {loss[seed, place]}", f"seed {seed}, epoch {epoch + 1}, step {step + 1}", saved
        )


def _raise_if_params_not_finite(params: Parameters, done: int, steps: int, label: str, saved: int) -> None:
    for leaf in jax.tree.leaves(mesh.fetched(params)):
        finite = np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            where = f"seed {int(finite.argmin())}, epoch {-(-done // steps)}"
            _diverged(label, "the weights became infinite or NaN", where, saved)


def _diverged(label: str, what: str, where: str, saved: int) -> None:
    good = f"the checkpoint of step {saved} is the last good one" if saved else "there is no checkpoint yet"
    raise UserError(f"{label}: {what} at {where}; {good}; a smaller --learning-rate may help")
