"""Training mechanics, on a model small enough to see through: what an epoch is, resuming, divergence, interruption."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from latentlab.errors import UserError
from latentlab.model import Loss, Variables
from latentlab.storage.checkpoints import Checkpoints, Restored, digest
from latentlab.storage.metrics import MetricsLog
from latentlab.training import loop
from latentlab.training.interrupts import Interrupted, handle_signals
from latentlab.training.loop import LoopSchedule, init_states, resident_train_steps, streaming_train_steps, train_epoch
from latentlab.training.resume import train_with_checkpoints
from latentlab.training.state import TrainState, train_step

pytestmark = pytest.mark.unoptimized

IMAGES = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 1), dtype=np.uint8)
BATCH = 8
STEPS = 3
SEEDS = 2
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
SCHEDULE = LoopSchedule(len(IMAGES), BATCH, epochs=6, steps_per_dispatch=STEPS, epochs_per_checkpoint=2)


def noisy_loss(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
    """A linear autoencoder with noise, so that the result depends on batches, keys and their order."""
    weights = variables["params"]["weights"]
    flat = images.reshape(len(images), -1)
    code = flat @ weights + 0.1 * jax.random.normal(key, (len(images), 3))
    per_example = jnp.mean((code @ weights.T - flat) ** 2, axis=1)
    return Loss(per_example, {"first_pixel": flat[:, 0]}, {})


def init(key: Array) -> Variables:
    return {"params": {"weights": 0.1 * jax.random.normal(key, (16, 3))}}


def initial(seeds: int = SEEDS) -> TrainState:
    return init_states(jax.random.key, range(seeds), init, OPTIMIZER)


def zero(variables: Variables) -> dict[str, np.ndarray]:
    return {"loss": np.zeros(SEEDS)}


def train(
    directory: Path,
    epochs: int,
    loss: Callable = noisy_loss,
    *,
    seeds: int = SEEDS,
    steps_per_dispatch: int = STEPS,
    evaluate: Callable = zero,
) -> TrainState:
    """Train from the newest checkpoint in a directory, or else from the beginning."""
    schedule = replace(SCHEDULE, epochs=epochs, steps_per_dispatch=steps_per_dispatch)
    return train_with_checkpoints(
        initial(seeds),
        resident_train_steps(jnp.asarray(IMAGES), schedule, loss=loss, optimizer=OPTIMIZER, seeds=seeds),
        schedule,
        label="model",
        metrics=MetricsLog(directory / "metrics.jsonl"),
        evaluate=evaluate,
        checkpoint_dir=directory / "checkpoints",
    )


def newest(directory: Path, like: TrainState | None = None) -> Restored:
    restored = Checkpoints(directory / "checkpoints").restore(like or initial(), pytest.fail)
    assert restored is not None
    return restored


def rows_of(directory: Path) -> list[dict[str, Any]]:
    rows = MetricsLog(directory / "metrics.jsonl").rows()
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def test_an_epoch_sees_every_image_once_and_means_are_over_examples(tmp_path: Path) -> None:
    train(tmp_path, 2)
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    assert [(row["epoch"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    np.testing.assert_allclose([row["first_pixel"] for row in rows], IMAGES[:, 0, 0, 0].mean() / 255, rtol=1e-6)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    schedule = replace(SCHEDULE, batch_size=1)

    def first_pixels(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
        return Loss(
            0 * variables["params"]["weights"].sum() + jnp.zeros(len(images)), {"first": images[:, 0, 0, 0]}, {}
        )

    def order_of(state: TrainState) -> Array:
        step = partial(train_step, loss=first_pixels, optimizer=OPTIMIZER)
        return train_epoch(state, jnp.asarray(IMAGES), schedule, step)[1]["first"]

    one, other = (jax.tree.map(lambda leaf, i=i: leaf[i], initial()) for i in range(2))
    orders = [order_of(one), order_of(one._replace(step=one.step + len(IMAGES))), order_of(other), order_of(one)]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    np.testing.assert_array_equal(orders[0], orders[3])
    for order in orders:
        np.testing.assert_array_equal(np.sort(np.rint(order * 255)), np.sort(IMAGES[:, 0, 0, 0]))


def test_a_seed_trains_the_same_beside_others_and_alone() -> None:
    schedule = replace(SCHEDULE, epochs=1)
    settings = {"loss": noisy_loss, "optimizer": OPTIMIZER}
    together, _ = resident_train_steps(jnp.asarray(IMAGES), schedule, seeds=SEEDS, **settings)(initial(), STEPS)
    for seed in range(SEEDS):
        state = init_states(jax.random.key, [seed], init, OPTIMIZER)
        assert state.step.ndim == 0
        alone, metrics = resident_train_steps(jnp.asarray(IMAGES), schedule, **settings)(state, STEPS)
        assert metrics["loss"].shape == (STEPS,)
        weights = together.params["weights"][seed]
        np.testing.assert_allclose(alone.params["weights"], weights, rtol=1e-5, atol=1e-7)


def test_one_seed_compiles_to_a_program_without_an_axis_of_seeds() -> None:
    state = init_states(jax.random.key, [0], init, OPTIMIZER)
    steps = resident_train_steps(jnp.asarray(IMAGES), SCHEDULE, loss=noisy_loss, optimizer=OPTIMIZER)
    text = str(jax.make_jaxpr(lambda state: steps(state, STEPS))(state))
    assert "f32[16,3]" in text and "[1,16,3]" not in text


@pytest.mark.parametrize("dispatch", [1, 2, STEPS, 2 * STEPS + 1])
@pytest.mark.parametrize("seeds", [1, SEEDS])
def test_resuming_is_bit_equal(tmp_path: Path, dispatch: int, seeds: int) -> None:
    def evaluate(variables: Variables) -> dict[str, np.ndarray]:
        return {"loss": np.zeros(seeds)}

    whole = train(tmp_path / "whole", 6, seeds=seeds, evaluate=evaluate)
    train(tmp_path / "halves", 2, seeds=seeds, steps_per_dispatch=dispatch, evaluate=evaluate)
    assert newest(tmp_path / "halves", initial(seeds)).step == 2 * STEPS
    resumed = train(tmp_path / "halves", 6, seeds=seeds, steps_per_dispatch=dispatch, evaluate=evaluate)
    assert digest(resumed) == digest(whole)
    assert np.ravel(resumed.step).tolist() == [6 * STEPS] * seeds
    losses = [[row["loss"] for row in rows_of(tmp_path / run) if "loss" in row] for run in ("whole", "halves")]
    assert losses[0] == losses[1]


def test_the_step_is_traced_once_however_long_the_training(tmp_path: Path) -> None:
    traces = 0

    def counted(*arguments: Any) -> Loss:
        nonlocal traces
        traces += 1
        return noisy_loss(*arguments)

    train(tmp_path, 6, counted)
    assert traces == 1


class Batches:
    """Endless batches of a fixed order that know where they stand: indices, or the pixels at them."""

    def __init__(self, pixels: bool) -> None:
        self.next, self.pixels = 0, pixels

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> np.ndarray:
        self.next += 1
        rows = (np.arange(BATCH) + 5 * self.next) % len(IMAGES)
        return IMAGES[rows] if self.pixels else rows

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def counting_loss(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
    """`noisy_loss` of a network with a running mean that moves by a tenth of the way, as BatchNorm's does."""
    loss = noisy_loss(variables, images, key, step)
    return loss._replace(batch_stats={"mean": 0.9 * variables["batch_stats"]["mean"] + 0.1 * jnp.mean(images)})


def train_on_batches(directory: Path, epochs: int, batches: Batches, seeds: int = SEEDS) -> TrainState:
    schedule = replace(SCHEDULE, examples=STEPS * BATCH, epochs=epochs)
    resident = None if batches.pixels else jnp.asarray(IMAGES)
    settings = {"loss": counting_loss, "optimizer": OPTIMIZER, "resident": resident, "seeds": seeds}
    state = init_states(
        jax.random.key, range(seeds), lambda key: init(key) | {"batch_stats": {"mean": jnp.zeros(())}}, OPTIMIZER
    )
    return train_with_checkpoints(
        state,
        streaming_train_steps(batches, schedule, **settings),
        schedule,
        label="model",
        metrics=MetricsLog(directory / "metrics.jsonl"),
        evaluate=zero,
        checkpoint_dir=directory / "checkpoints",
        batches=batches,
    )


@pytest.mark.parametrize("seeds", [1, SEEDS])
def test_running_statistics_move_with_every_step(tmp_path: Path, seeds: int) -> None:
    """By hand in float64: mean ← 0.9 mean + 0.1 mean of the batch, once a step, untouched by the optimiser."""
    trained = train_on_batches(tmp_path, 3, Batches(pixels=False), seeds)
    batches, mean = Batches(pixels=True), 0.0
    for _ in range(3 * STEPS):
        mean = 0.9 * mean + 0.1 * (next(batches) / 255).mean()
    np.testing.assert_allclose(np.ravel(trained.batch_stats["mean"]), [mean] * seeds, rtol=1e-5)
    assert {leaf.size for leaf in jax.tree.leaves(trained.optimizer_state)} == {48 * seeds}  # moments of params alone


def test_streamed_batches_train_as_resident_images_do(tmp_path: Path) -> None:
    streamed, resident = (train_on_batches(tmp_path / str(pixels), 2, Batches(pixels)) for pixels in (True, False))
    assert digest(streamed) == digest(resident)


def test_resuming_goes_on_where_the_batches_stood(tmp_path: Path) -> None:
    whole = train_on_batches(tmp_path / "whole", 6, Batches(pixels=True))
    train_on_batches(tmp_path / "halves", 2, Batches(pixels=True))
    batches = Batches(pixels=True)
    resumed = train_on_batches(tmp_path / "halves", 6, batches)
    assert batches.next == 6 * STEPS
    assert digest(resumed) == digest(whole)
    assert [int(step) for step in resumed.step] == [6 * STEPS, 6 * STEPS]


def test_a_remainder_that_is_dropped_waits_for_the_next_epoch() -> None:
    """Two full batches an epoch, of data that are a tree: 16 of the 22 images, others in every epoch."""
    schedule = replace(SCHEDULE, drop_remainder=True)
    data = {"images": jnp.asarray(IMAGES), "number": jnp.arange(len(IMAGES), dtype=jnp.float32)}

    def loss(variables: Variables, batch: dict[str, Array], key: Array, step: Array) -> Loss:
        return noisy_loss(variables, batch["images"], key, step)._replace(parts={"number": batch["number"]})

    state = init_states(jax.random.key, [0], init, OPTIMIZER)
    assert schedule.steps_per_epoch == 2
    _, metrics = resident_train_steps(data, schedule, loss=loss, optimizer=OPTIMIZER)(state, schedule.total_steps)
    sums = BATCH * np.asarray(metrics["number"]).reshape(6, 2).sum(axis=1)
    assert (sums == np.rint(sums)).all() and (sums >= sum(range(16))).all() and (sums <= sum(range(6, 22))).all()
    assert len(set(sums)) > 3


def poisoned(at: int, value: float) -> Callable:
    def loss(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
        good = noisy_loss(variables, images, key, step)
        return good._replace(per_example=jnp.where(step == at, value, good.per_example))

    return loss


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_divergence_names_the_step_and_leaves_the_last_good_checkpoint(tmp_path: Path, value: float) -> None:
    good = train(tmp_path / "good", 2)
    with pytest.raises(UserError, match=r"model: the loss became (nan|inf) at seed 0, epoch 3, step 2; .*step 6 is"):
        train(tmp_path / "bad", 6, poisoned(2 * STEPS + 1, value))
    restored = newest(tmp_path / "bad")
    assert restored.step == 2 * STEPS
    assert digest(restored.state) == digest(good)


def test_weights_that_become_nan_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    """The loss of the step is finite, its gradient of 6e38 is not."""
    last = 4 * STEPS - 1

    def loss(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
        good = noisy_loss(variables, images, key, step)
        total = variables["params"]["weights"].sum()
        steep = (total - jax.lax.stop_gradient(total)) * jnp.where(step == last, 3e38, 0.0) * 2
        return good._replace(per_example=good.per_example + steep)

    with pytest.raises(UserError, match="weights became infinite or NaN at seed 0, epoch 4"):
        train(tmp_path, 4, loss)
    assert newest(tmp_path).step == 2 * STEPS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_obeyed_once_the_state_is_written(tmp_path: Path, number: int, code: int) -> None:
    def evaluate(variables: Variables) -> dict[str, np.ndarray]:
        os.kill(os.getpid(), number)
        return zero(variables)

    with pytest.raises(Interrupted) as caught, handle_signals():
        train(tmp_path, 6, evaluate=evaluate)
    assert caught.value.exit_code == code
    assert newest(tmp_path).step == 2 * STEPS


def test_without_the_command_line_signals_act_as_python_lets_them(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def evaluate(variables: Variables) -> dict[str, np.ndarray]:
        os.kill(os.getpid(), signal.SIGINT)
        return zero(variables)

    try:
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, 6, evaluate=evaluate)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("at", "dispatch"), [(1, 1), (2, 2), (4, 1), (4, 2), (6, 1), (8, 2)])
def test_a_signal_in_the_middle_of_an_epoch_costs_nothing(tmp_path: Path, at: int, dispatch: int) -> None:
    """Obeyed after the step that runs; losses of the epoch so far are kept, so that its mean is the same to the bit."""
    awaited = -1

    def interrupted(*arguments: Any) -> Loss:
        def kill(step: Array) -> None:
            nonlocal awaited
            if step == awaited:
                awaited = -1  # once, though there are two seeds: a second signal would stop the run at once
                os.kill(os.getpid(), signal.SIGTERM)

        jax.debug.callback(kill, arguments[3])
        return noisy_loss(*arguments)

    whole = train(tmp_path / "whole", 4, interrupted, steps_per_dispatch=dispatch)
    awaited = at
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted), handle_signals():
        train(stopped, 4, interrupted, steps_per_dispatch=dispatch)
    assert at < newest(stopped).step <= at + 2 * dispatch + 1
    awaited = -1
    resumed = train(stopped, 4, interrupted, steps_per_dispatch=dispatch)
    assert digest(resumed) == digest(whole)
    assert rows_of(tmp_path / "whole") == rows_of(stopped)


def test_a_run_that_was_killed_before_its_evaluation_makes_it_when_it_resumes(tmp_path: Path) -> None:
    def killed(variables: Variables) -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 4, evaluate=killed)
    assert newest(tmp_path).step == 2 * STEPS
    train(tmp_path, 4)
    rows = [(row["epoch"], row["seed"]) for row in rows_of(tmp_path) if "test_loss" in row]
    assert rows == [(2, 0), (2, 1), (4, 0), (4, 1)]


@pytest.mark.parametrize(
    ("steps", "epochs", "seeds", "expected"), [(32, 1, 1, 32), (32, 3, 8, 96), (1875, 1, 1, 375), (1875, 5, 4, 99)]
)
def test_long_epochs_are_divided_into_dispatches_of_seconds(steps: int, epochs: int, seeds: int, expected: int) -> None:
    assert loop.resident_steps_per_dispatch(steps, epochs, seeds) == expected


def test_streamed_steps_of_a_dispatch_divide_an_epoch() -> None:
    assert [loop.streaming_steps_per_dispatch(steps) for steps in (100, 50, 7, 97, 1)] == [10, 10, 7, 1, 1]
