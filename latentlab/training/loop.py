"""Training loops: many steps in one compiled call, and the loop on the host around the calls.

Small data stay on the device as uint8, and whole epochs are one compiled scan: the order of an epoch derives from
(key, epoch). Large data come in batches from an iterator, a few in one call. In both, the noise of a step derives from
(key, step). A state, together with the position of the iterator, therefore determines all that follows, and a resumed
run repeats the uninterrupted one bit for bit on the same devices.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jaxtyping import Float, Key, UInt8

from latentlab import parallel
from latentlab.model import Variables
from latentlab.parallel import LocalRows, map_seeds
from latentlab.training.interrupts import Interrupted
from latentlab.training.state import Batch, TrainingLoss, TrainState, init_state, train_step

if TYPE_CHECKING:
    from latentlab.training.callbacks import Callback

STREAMED_STEPS = 10
"""Most steps in one call on batches from the host."""
RESIDENT_STEPS = 400
"""Most steps of all seeds together in one call on data on the device, unless an epoch or several fit in: a signal is
obeyed between calls, so a call must end within seconds."""


@dataclass(frozen=True)
class LoopSchedule:
    """How long to train, and what happens when.

    Attributes:
        examples: Examples in an epoch.
        batch_size: Examples in a step, on all devices together.
        epochs: Epoch at which training ends.
        steps_per_dispatch: Most steps in one compiled call; where that is an epoch or more, whole epochs.
        epochs_per_checkpoint: Epochs between checkpoints and evaluations.
        drop_remainder: Leave out the examples that do not fill the last batch of an epoch.
    """

    examples: int
    batch_size: int
    epochs: int
    steps_per_dispatch: int
    epochs_per_checkpoint: int
    drop_remainder: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.examples // self.batch_size if self.drop_remainder else -(-self.examples // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def steps_in_next_call(self, done: int) -> int:
        """Return how many steps to take next: at most up to the end of an epoch, or several whole epochs."""
        steps, most = self.steps_per_epoch, self.steps_per_dispatch
        if done % steps or most < steps:
            return min(most, steps - done % steps)
        return min(most // steps * steps, self.total_steps - done)

    def is_checkpoint(self, done: int) -> bool:
        """Return whether a checkpoint and an evaluation are due after so many steps."""
        epoch, rest = divmod(done, self.steps_per_epoch)
        return done > 0 and not rest and (epoch % self.epochs_per_checkpoint == 0 or done == self.total_steps)

    def epoch_means(self, per_step: Float[np.ndarray, "seeds steps"]) -> Float[np.ndarray, "seeds epochs"]:
        """Return means over the examples of whole epochs, from means over batches."""
        values = per_step.reshape(len(per_step), -1, self.steps_per_epoch).astype(np.float64)
        sizes = np.full(self.steps_per_epoch, self.batch_size)
        if not self.drop_remainder:
            sizes[-1] = self.examples - self.batch_size * (len(sizes) - 1)
        return np.average(values, axis=-1, weights=sizes)

    def format_step(self, step: int) -> str:
        """Return a step as a person counts it, `epoch 3 and 2 of 32 steps`."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return f"epoch {epoch}" + (f" and {rest} of {self.steps_per_epoch} steps" if rest else "")


TrainSteps = Callable[[TrainState, int], tuple[TrainState, Mapping[str, Float[Array, "*seeds steps"]]]]
"""A state and a number of steps to the state after them and their metrics, in one call.

With several seeds, states and metrics have a leading axis of seeds. The state that comes in is donated and must not be
used again.
"""

Step = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]
"""A state, a batch and its mask to the state after one training step and its metrics."""


def fit(
    state: TrainState, train_steps: TrainSteps, schedule: LoopSchedule, callbacks: "Sequence[Callback]" = ()
) -> TrainState:
    """Train until the schedule ends, from wherever the state stands.

    While one call runs, the callbacks get the numbers of the call before. At every checkpoint the device is waited for.

    Args:
        state: State, with a leading axis where several seeds are trained at once.
        train_steps: `resident_train_steps` or `streaming_train_steps`.
        schedule: How long to train.
        callbacks: What happens beside it, in their order.

    Raises:
        UserError: A callback found the loss or the weights not finite; the message has the step.
        Interrupted: A callback asked to stop; the state had been handed to `on_checkpoint` first.
    """
    done, seeds = int(np.ravel(state.step)[0]), state.step.ndim
    waiting: Mapping[str, Any] | None = None

    def deliver(metrics: Mapping[str, Any]) -> None:
        rows = {name: value if seeds else value[None] for name, value in parallel.gather_to_host(metrics).items()}
        for callback in callbacks:
            callback.on_metrics(rows)

    def stop_signal() -> int:
        return max((callback.stop_signal() for callback in callbacks), default=0)

    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.enter_context(callback)
            callback.on_start(done, state)
        while done < schedule.total_steps:
            count = schedule.steps_in_next_call(done)
            state, metrics = train_steps(state, count)
            if waiting:
                deliver(waiting)
            done, waiting = done + count, metrics
            stop, due = stop_signal(), schedule.is_checkpoint(done)
            if due or stop:
                deliver(waiting)
                waiting = None
                for callback in callbacks:
                    callback.on_checkpoint(done, state)
            if due and not stop:
                for callback in callbacks:
                    callback.on_evaluation(done, state)
                stop = stop_signal()
            if stop:
                raise Interrupted(stop)
    return state


def init_states(
    key_of_seed: Callable[[Array], Key[Array, ""]],
    seeds: Sequence[int],
    init: Callable[[Key[Array, ""]], Variables],
    optimizer: optax.GradientTransformation,
    shard_optimizer: bool = False,
) -> TrainState:
    """Return the states of all seeds before training; a seed gives the same state however many train beside it."""

    def init_seed(seed: Array) -> TrainState:
        return _place(init_state(key_of_seed(seed), init, optimizer), shard_optimizer)

    numbers = jnp.asarray(seeds)
    return jax.jit(map_seeds(init_seed, len(seeds)))(numbers if len(seeds) > 1 else numbers[0])


def resident_train_steps(
    data: Batch,
    schedule: LoopSchedule,
    *,
    loss: TrainingLoss,
    optimizer: optax.GradientTransformation,
    seeds: int = 1,
    shard_optimizer: bool = False,
) -> TrainSteps:
    """Return steps on data on the device, which all seeds share: whole epochs, or some steps of one, in a call."""
    steps, step = schedule.steps_per_epoch, _placed_step(loss, optimizer, shard_optimizer)

    def train(state: TrainState, data: Batch, count: int) -> tuple[TrainState, dict[str, Array]]:
        if count % steps:
            return train_epoch(state, data, schedule, step, count)
        state, metrics = lax.scan(
            lambda state, _: train_epoch(state, data, schedule, step), state, None, length=count // steps
        )
        return state, {name: values.reshape(-1) for name, values in metrics.items()}

    @partial(jax.jit, static_argnums=2, donate_argnums=0)
    def train_seeds(state: TrainState, data: Batch, count: int) -> tuple[TrainState, dict[str, Array]]:
        return map_seeds(partial(train, count=count), seeds, (0, None))(state, data)

    return lambda state, count: train_seeds(state, data, count)


def streaming_train_steps(
    batches: Iterator[np.ndarray],
    schedule: LoopSchedule,
    *,
    loss: TrainingLoss,
    optimizer: optax.GradientTransformation,
    resident: UInt8[Array, "n height width channels"] | None = None,
    seeds: int = 1,
    shard_optimizer: bool = False,
) -> TrainSteps:
    """Return steps on batches from an iterator, which all seeds share, in one compiled call for all steps of a call.

    Args:
        batches: Endless batches of one size: pixels 0…255, of which a process gives its `parallel.local_rows`, or
            indices into `resident`.
        schedule: Number of examples in a batch.
        loss: Loss of each example.
        optimizer: Optax transformation.
        resident: All images, on the device, where batches are indices.
        seeds: Seeds that are trained at once.
        shard_optimizer: Divide the optimiser's state over the devices.
    """
    step, mask = _placed_step(loss, optimizer, shard_optimizer), jnp.ones(schedule.batch_size)

    @partial(jax.jit, donate_argnums=0)
    def train(state: TrainState, batches: Array, resident: Array | None) -> tuple[TrainState, dict[str, Array]]:
        def body(state: TrainState, batch: Array) -> tuple[TrainState, dict[str, Array]]:
            pixels = batch[: schedule.batch_size] if resident is None else resident[batch]
            return map_seeds(step, seeds, (0, None, None))(state, pixels, mask)

        state, metrics = lax.scan(body, state, batches)
        return state, {name: jnp.moveaxis(values, 0, -1) for name, values in metrics.items()}

    def train_steps(state: TrainState, count: int) -> tuple[TrainState, dict[str, Array]]:
        read = np.stack([next(batches) for _ in range(count)])
        if resident is None:
            return train(state, parallel.put_batch(LocalRows(read, schedule.batch_size), axis=1), None)
        return train(state, read, resident)

    return train_steps


def train_epoch(
    state: TrainState, data: Batch, schedule: LoopSchedule, step: Step, count: int | None = None
) -> tuple[TrainState, dict[str, Float[Array, " steps"]]]:
    """Pass once over the data in a new order, as one scan; a partial last batch is padded and masked.

    With `count`, take only so many steps of the epoch, from where the state stands. Returns the state after them and
    the metrics of every step.
    """
    steps, size = schedule.steps_per_epoch, schedule.batch_size
    epoch = state.step // steps
    order = jax.random.permutation(jax.random.fold_in(state.order_key, epoch), schedule.examples)
    padding = max(0, steps * size - schedule.examples)
    indices = jnp.pad(order, (0, padding))[: steps * size].reshape(steps, size)
    mask = jnp.pad(jnp.ones(schedule.examples), (0, padding))[: steps * size].reshape(steps, size)

    def body(state: TrainState, batch: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        rows, mask = batch
        return step(state, jax.tree.map(lambda leaf: leaf[rows], data), mask)

    batches = indices, mask
    if count is not None:
        batches = jax.tree.map(lambda rows: lax.dynamic_slice_in_dim(rows, state.step - epoch * steps, count), batches)
    return lax.scan(body, state, batches)


def resident_steps_per_dispatch(steps: int, epochs: int, seeds: int) -> int:
    """Return the most steps in a call on resident data: `epochs` of `steps`, or equal parts of a long epoch."""
    parts = -(-steps * seeds // RESIDENT_STEPS)
    return epochs * steps if parts == 1 else -(-steps // parts)


def streaming_steps_per_dispatch(steps: int) -> int:
    """Return the most steps in a call on streamed batches: the largest divisor of an epoch up to `STREAMED_STEPS`.

    Several, because a call hands out the memory for a step's temporaries anew, which on CPU takes a third of a step of
    the face VAE.
    """
    return max(divisor for divisor in range(1, STREAMED_STEPS + 1) if steps % divisor == 0)


def _placed_step(loss: TrainingLoss, optimizer: optax.GradientTransformation, shard_optimizer: bool) -> Step:
    """Return `train_step` with the shardings of its batch and of the state after it."""

    def step(state: TrainState, batch: Batch, mask: Array) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = train_step(state, parallel.shard_batch(batch), mask, loss=loss, optimizer=optimizer)
        return _place(state, shard_optimizer), parallel.replicate(metrics)

    return step


def _place(state: TrainState, shard_optimizer: bool) -> TrainState:
    place = parallel.shard_largest_axis if shard_optimizer else parallel.replicate
    return state._replace(
        params=parallel.replicate(state.params),
        batch_stats=parallel.replicate(state.batch_stats),
        optimizer_state=place(state.optimizer_state),
    )
