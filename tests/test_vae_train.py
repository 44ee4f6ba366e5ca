"""Training mechanics, on a model small enough to see through: what an epoch is, resuming, divergence, interruption."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from runtime.checkpoints import Checkpoints, digest
from runtime.errors import UserError
from runtime.interrupts import Interrupted
from runtime.run_directory import Metrics
from vae import train
from vae.train import TrainState

IMAGES = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 1), dtype=np.uint8)
BATCH = 8
STEPS = 3
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


def noisy_loss(params: dict, images: Array, key: Array, step: Array) -> tuple[Array, dict[str, Array], dict]:
    """A linear autoencoder with noise, so that the result depends on batches, keys and their order."""
    flat = images.reshape(len(images), -1)
    code = flat @ params["weights"] + 0.1 * jax.random.normal(key, (len(images), 3))
    per_example = jnp.mean((code @ params["weights"].T - flat) ** 2, axis=1)
    return per_example, {"first_pixel": flat[:, 0]}, {}


def initial(seeds: int = 2) -> TrainState:
    def init(key: Array) -> dict[str, Array]:
        return {"weights": 0.1 * jax.random.normal(key, (16, 3))}

    return jax.vmap(lambda seed: train.init_state(jax.random.key(seed), init, OPTIMIZER))(jnp.arange(seeds))


def fit(
    directory: Path, epochs: int, state: TrainState | None = None, loss: Callable = noisy_loss, **changes
) -> TrainState:
    run = train.steps_on_images(jnp.asarray(IMAGES), batch_size=BATCH, loss=loss, optimizer=OPTIMIZER)
    settings = {
        "examples": len(IMAGES),
        "batch_size": BATCH,
        "steps_per_dispatch": STEPS,
        "epochs_per_checkpoint": 2,
        "validate": lambda params: {"loss": jnp.zeros(len(params["weights"]))},
        "checkpoints": Checkpoints(directory / "checkpoints"),
        "metrics": Metrics(directory / "metrics.jsonl"),
        "label": "model",
        **changes,
    }
    return train.fit(initial() if state is None else state, run, epochs=epochs, **settings)


def test_an_epoch_sees_every_image_once_and_means_are_over_examples(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    rows = [row for row in Metrics(tmp_path / "metrics.jsonl").rows() if "loss" in row]
    assert [(row["epoch"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    np.testing.assert_allclose([row["first_pixel"] for row in rows], IMAGES[:, 0, 0, 0].mean() / 255, rtol=1e-6)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order_of(state: TrainState) -> Array:
        def loss(params: dict, images: Array, key: Array, step: Array) -> tuple[Array, dict[str, Array], dict]:
            return jnp.zeros(len(images)) + 0 * params["weights"].sum(), {"first": images[:, 0, 0, 0]}, {}

        _, metrics = train.train_epoch(state, jnp.asarray(IMAGES), batch_size=1, loss=loss, optimizer=OPTIMIZER)
        return metrics["first"]

    one, other = (jax.tree.map(lambda leaf, i=i: leaf[i], initial()) for i in range(2))
    orders = [order_of(one), order_of(one._replace(epoch=one.epoch + 1)), order_of(other), order_of(one)]
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    np.testing.assert_array_equal(orders[0], orders[3])
    for order in orders:
        np.testing.assert_array_equal(np.sort(np.rint(order * 255)), np.sort(IMAGES[:, 0, 0, 0]))


def test_a_seed_trains_the_same_beside_others_and_alone(tmp_path: Path) -> None:
    together = fit(tmp_path / "together", 3)
    for seed in range(2):
        alone = fit(tmp_path / str(seed), 3, jax.tree.map(lambda leaf, seed=seed: leaf[seed : seed + 1], initial()))
        np.testing.assert_allclose(alone.params["weights"][0], together.params["weights"][seed], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dispatch", [1, 2, STEPS, 2 * STEPS + 1])
def test_resuming_is_bit_equal(tmp_path: Path, dispatch: int) -> None:
    whole = fit(tmp_path / "whole", 6)
    fit(tmp_path / "halves", 2, steps_per_dispatch=dispatch)
    restored = Checkpoints(tmp_path / "halves" / "checkpoints").restore(initial(), pytest.fail)
    assert restored is not None and restored.step == 2 * STEPS
    resumed = fit(tmp_path / "halves", 6, restored.state, steps_per_dispatch=dispatch)
    assert digest(resumed) == digest(whole)
    assert [int(epoch) for epoch in resumed.epoch] == [6, 6]
    assert [int(step) for step in resumed.step] == [6 * STEPS, 6 * STEPS]
    losses = [
        [row["loss"] for row in Metrics(tmp_path / run / "metrics.jsonl").rows() if "loss" in row]
        for run in ("whole", "halves")
    ]
    assert losses[0] == losses[1]


def test_the_step_is_traced_once_however_long_the_training(tmp_path: Path) -> None:
    traces = 0

    def counted(*arguments: Array) -> tuple[Array, dict[str, Array], dict]:
        nonlocal traces
        traces += 1
        return noisy_loss(*arguments)

    fit(tmp_path, 6, loss=counted)
    assert traces == 1


class Batches:
    """Endless batches of a fixed order that know where they stand."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> np.ndarray:
        self.next += 1
        return (np.arange(BATCH) + 5 * self.next) % len(IMAGES)

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def counting_loss(params: dict, images: Array, key: Array, step: Array) -> tuple[Array, dict[str, Array], dict]:
    """`noisy_loss` of a network with a running mean that moves by a tenth of the way, as BatchNorm's does."""
    per_example, parts, _ = noisy_loss(params["network"]["params"], images, key, step)
    moved = 0.9 * params["network"]["batch_stats"] + 0.1 * jnp.mean(images)
    return per_example, parts, {"network": {"batch_stats": moved}}


def initial_with_statistics() -> TrainState:
    def init(key: Array) -> dict:
        return {"network": {"params": {"weights": 0.1 * jax.random.normal(key, (16, 3))}, "batch_stats": jnp.zeros(())}}

    return jax.vmap(lambda seed: train.init_state(jax.random.key(seed), init, OPTIMIZER))(jnp.arange(2))


def fit_batches(directory: Path, epochs: int, batches: Batches, state: TrainState, resident: bool) -> TrainState:
    images = jnp.asarray(IMAGES) if resident else None
    read = batches if resident else PixelsOf(batches)
    run = train.steps_on_batches(read, STEPS, batch_size=BATCH, loss=counting_loss, optimizer=OPTIMIZER, images=images)
    return train.fit(
        state,
        run,
        examples=STEPS * BATCH,
        epochs=epochs,
        batch_size=BATCH,
        steps_per_dispatch=STEPS,
        epochs_per_checkpoint=2,
        validate=lambda params: {"loss": jnp.zeros(2)},
        checkpoints=Checkpoints(directory / "checkpoints"),
        metrics=Metrics(directory / "metrics.jsonl"),
        label="model",
        position=batches,
    )


class PixelsOf:
    """The images of batches of indices."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> "PixelsOf":
        return self

    def __next__(self) -> np.ndarray:
        return IMAGES[next(self.batches)]


def test_running_statistics_move_with_every_step(tmp_path: Path) -> None:
    """By hand in float64: mean ← 0.9 mean + 0.1 mean of the batch, once a step, untouched by the optimiser."""
    trained = fit_batches(tmp_path, 3, Batches(), initial_with_statistics(), resident=True)
    batches, mean = Batches(), 0.0
    for _ in range(3 * STEPS):
        mean = 0.9 * mean + 0.1 * (IMAGES[next(batches)] / 255).mean()
    np.testing.assert_allclose(trained.params["network"]["batch_stats"], [mean, mean], rtol=1e-5)


def test_streamed_batches_train_as_resident_images_do(tmp_path: Path) -> None:
    streamed, resident = (
        fit_batches(tmp_path / str(resident), 2, Batches(), initial_with_statistics(), resident)
        for resident in (False, True)
    )
    assert digest(streamed) == digest(resident)


def test_resuming_goes_on_where_the_batches_stood(tmp_path: Path) -> None:
    whole = fit_batches(tmp_path / "whole", 6, Batches(), initial_with_statistics(), resident=False)
    fit_batches(tmp_path / "halves", 2, Batches(), initial_with_statistics(), resident=False)
    batches = Batches()
    checkpoints = Checkpoints(tmp_path / "halves" / "checkpoints")
    restored = checkpoints.restore(initial_with_statistics(), pytest.fail, batches)
    assert restored is not None and batches.next == 2 * STEPS
    resumed = fit_batches(tmp_path / "halves", 6, batches, restored.state, resident=False)
    assert digest(resumed) == digest(whole)
    assert [int(step) for step in resumed.step] == [6 * STEPS, 6 * STEPS]


def poisoned(at: int, value: float) -> Callable:
    def loss(params: dict, images: Array, key: Array, step: Array) -> tuple[Array, dict[str, Array], dict]:
        per_example, parts, _ = noisy_loss(params, images, key, step)
        return jnp.where(step == at, value, per_example), parts, {}

    return loss


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_divergence_names_the_step_and_leaves_the_last_good_checkpoint(tmp_path: Path, value: float) -> None:
    good = fit(tmp_path / "good", 2)
    with pytest.raises(UserError, match=r"model: the loss became (nan|inf) at seed 0, epoch 3, step 2; .*step 6 is"):
        fit(tmp_path / "bad", 6, loss=poisoned(2 * STEPS + 1, value))
    step, state, _ = Checkpoints(tmp_path / "bad" / "checkpoints").restore(initial(), pytest.fail)
    assert step == 2 * STEPS
    assert digest(state) == digest(good)


def test_weights_that_become_nan_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    """The loss of the step is finite, its gradient of 6e38 is not."""
    last = 4 * STEPS - 1

    def loss(params: dict, images: Array, key: Array, step: Array) -> tuple[Array, dict[str, Array], dict]:
        per_example, parts, _ = noisy_loss(params, images, key, step)
        total = params["weights"].sum()
        return per_example + (total - jax.lax.stop_gradient(total)) * jnp.where(step == last, 3e38, 0.0) * 2, parts, {}

    with pytest.raises(UserError, match="weights became infinite or NaN at seed 0, epoch 4"):
        fit(tmp_path, 4, loss=loss)
    step, *_ = Checkpoints(tmp_path / "checkpoints").restore(initial(), pytest.fail)
    assert step == 2 * STEPS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_obeyed_once_the_state_is_written(tmp_path: Path, number: int, code: int) -> None:
    def validate(params: dict) -> dict[str, Array]:
        os.kill(os.getpid(), number)
        return {"loss": jnp.zeros(2)}

    with pytest.raises(Interrupted) as caught:
        fit(tmp_path, 6, validate=validate)
    assert caught.value.exit_code == code
    step, *_ = Checkpoints(tmp_path / "checkpoints").restore(initial(), pytest.fail)
    assert step == 2 * STEPS


@pytest.mark.parametrize(("at", "dispatch"), [(1, 1), (2, 2), (4, 1), (4, 2), (6, 1), (8, 2)])
def test_a_signal_in_the_middle_of_an_epoch_costs_nothing(tmp_path: Path, at: int, dispatch: int) -> None:
    """Obeyed after the step that runs; losses of the epoch so far are kept, so that its mean is the same to the bit."""
    awaited = -1

    def interrupted(*arguments: Array) -> tuple[Array, dict[str, Array], dict]:
        def kill(step: Array) -> None:
            if step == awaited:
                os.kill(os.getpid(), signal.SIGTERM)

        jax.debug.callback(kill, arguments[3])
        return noisy_loss(*arguments)

    whole = fit(tmp_path / "whole", 4, loss=interrupted, steps_per_dispatch=dispatch)
    awaited = at

    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fit(stopped, 4, loss=interrupted, steps_per_dispatch=dispatch)
    restored = Checkpoints(stopped / "checkpoints").restore(initial(), pytest.fail)
    assert restored is not None and at < restored.step <= at + 2 * dispatch + 1
    awaited = -1
    metrics = Metrics(stopped / "metrics.jsonl")
    metrics.rewind("model", restored.step // STEPS)

    resumed = fit(stopped, 4, restored.state, loss=interrupted, steps_per_dispatch=dispatch, unfinished=restored.kept)
    assert digest(resumed) == digest(whole)
    rows = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in Metrics(path).rows()]
        for path in (tmp_path / "whole" / "metrics.jsonl", metrics.path)
    ]
    assert rows[0] == rows[1]


def test_a_run_that_was_killed_before_its_held_out_loss_finds_it_when_it_resumes(tmp_path: Path) -> None:
    def killed(params: dict) -> dict[str, Array]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 4, validate=killed)
    restored = Checkpoints(tmp_path / "checkpoints").restore(initial(), pytest.fail)
    assert restored is not None and restored.step == 2 * STEPS
    fit(tmp_path, 4, restored.state)
    rows = Metrics(tmp_path / "metrics.jsonl").rows()
    assert [(row["epoch"], row["seed"]) for row in rows if "test_loss" in row] == [(2, 0), (2, 1), (4, 0), (4, 1)]


@pytest.mark.parametrize(
    ("steps", "epochs", "seeds", "expected"), [(32, 1, 1, 32), (32, 3, 8, 96), (1875, 1, 1, 375), (1875, 5, 4, 99)]
)
def test_long_epochs_are_divided_into_dispatches_of_seconds(steps: int, epochs: int, seeds: int, expected: int) -> None:
    assert train.many_steps(steps, epochs, seeds) == expected


def test_few_steps_divide_an_epoch() -> None:
    assert [train.few_steps(steps) for steps in (100, 50, 7, 97, 1)] == [10, 10, 7, 1, 1]
