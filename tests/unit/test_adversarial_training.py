"""Networks of digits and their trainings, against SciPy, Optax and the attacks themselves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.stats import entropy, ttest_1samp

from adversarial import defense, experiment
from adversarial.attacks import AttackResult, pgd
from adversarial.attacks.base import random_in_ball, random_start
from adversarial.attacks.iterative import walk
from adversarial.attacks.losses import cross_entropy, odds_gradient
from adversarial.config import AdversarialConfig
from adversarial.digits import TRADES_NOISE, AdversarialTraining, DigitsNetwork, divergence
from adversarial.results import DefenseResults
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset, LabeledImages, open_dataset
from latentlab.model import Variables

pytestmark = pytest.mark.lenient

KEY = jax.random.key(3)
NETWORK = DigitsNetwork(filters=(4, 8), hidden=12)


@pytest.fixture(scope="module")
def batch() -> tuple[Array, Array]:
    test = open_dataset("packaged").test
    return jnp.asarray(test.images[:6], jnp.float32) / 255, jnp.asarray(test.labels[:6])


@pytest.fixture(scope="module")
def variables() -> Variables:
    return AdversarialTraining(NETWORK).init(jax.random.key(1))


def loss_of(training: AdversarialTraining, variables: Variables, batch: Any, step: int = 0) -> Any:
    return jax.jit(training.loss)(variables, batch, KEY, jnp.asarray(step))


def logits_of(variables: Variables, images: Array) -> Array:
    return NETWORK.apply({"params": variables["params"]}, images)  # type: ignore[return-value]


def test_the_standard_loss_is_the_cross_entropy(batch: tuple[Array, Array], variables: Variables) -> None:
    images, labels = batch
    probabilities = np.asarray(jax.nn.softmax(logits_of(variables, images)), np.float64)
    found = loss_of(AdversarialTraining(NETWORK), variables, batch).per_example
    np.testing.assert_allclose(found, -np.log(probabilities[np.arange(6), labels]), rtol=1e-5)


def test_the_loss_of_pgd_is_that_of_attacked_digits(batch: tuple[Array, Array], variables: Variables) -> None:
    images, labels = batch
    training = AdversarialTraining(NETWORK, "pgd", epsilon=0.2, steps=4)
    keys = jax.random.split(KEY, 6)

    def attacked(keys: Array) -> AttackResult:
        return pgd(keys, lambda x: logits_of(variables, x), images, labels, epsilon=0.2, steps=4)

    def losses_from(start: Array) -> Array:
        begun = random_start(random_in_ball, start, images, 0.2, "linf", (0.0, 1.0))
        moved, _ = walk(
            lambda x, _: odds_gradient(lambda x: logits_of(variables, x), x, labels, False),
            images, begun, epsilon=0.2, steps=4, step_size=None, norm="linf", bounds=(0.0, 1.0),
        )  # fmt: skip
        return cross_entropy(logits_of(variables, moved), labels)

    found = loss_of(training, variables, batch).per_example
    np.testing.assert_allclose(found, losses_from(keys), rtol=1e-4)
    clean = loss_of(AdversarialTraining(NETWORK), variables, batch).per_example
    assert (np.asarray(found) > np.asarray(clean)).all()
    of_attack = cross_entropy(logits_of(variables, attacked(keys).images), labels)
    assert abs(float(found.mean() - of_attack.mean())) < 0.2 * float(found.mean() - clean.mean())


def test_the_radius_grows_in_the_warmup(batch: tuple[Array, Array], variables: Variables) -> None:
    warmed = AdversarialTraining(NETWORK, "pgd", epsilon=0.2, steps=4, warmup_steps=10)
    for step, epsilon in ((0, 0.02), (4, 0.1), (9, 0.2), (50, 0.2)):
        plain = dataclasses.replace(warmed, epsilon=epsilon, warmup_steps=0)
        found, expected = (loss_of(one, variables, batch, step).per_example for one in (warmed, plain))
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_divergence_is_that_of_scipy(batch: tuple[Array, Array], variables: Variables) -> None:
    logits = logits_of(variables, batch[0]) * 20
    p, q = (np.asarray(jax.nn.softmax(some), np.float64) for some in (logits[:3], logits[3:]))
    np.testing.assert_allclose(divergence(logits[:3], logits[3:]), entropy(p, q, axis=1), rtol=1e-4)


def test_trades_is_the_natural_loss_and_six_times_a_divergence_that_was_raised(
    batch: tuple[Array, Array], variables: Variables
) -> None:
    found = loss_of(AdversarialTraining(NETWORK, "trades", epsilon=0.2, steps=5), variables, batch)
    natural = loss_of(AdversarialTraining(NETWORK), variables, batch).per_example
    np.testing.assert_allclose(found.parts["natural"], natural, rtol=1e-5)
    np.testing.assert_allclose(found.per_example, natural + 6 * found.parts["divergence"], rtol=1e-5)
    images = batch[0]
    noise = TRADES_NOISE * jax.random.normal(KEY, images.shape)
    signs = 0.2 * jax.random.rademacher(KEY, images.shape, jnp.float32)
    for change in (noise, signs):
        moved = logits_of(variables, jnp.clip(images + change, 0, 1))
        assert (found.parts["divergence"] > divergence(logits_of(variables, images), moved)).all()


def test_gradients_do_not_run_through_the_attack(batch: tuple[Array, Array], variables: Variables) -> None:
    training = AdversarialTraining(NETWORK, "pgd", epsilon=0.2, steps=3)

    def mean_loss(params: Any) -> Array:
        return training.loss({"params": params}, batch, KEY, jnp.asarray(0)).per_example.mean()

    gradient = jax.jit(jax.grad(mean_loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert "while" not in str(jax.make_jaxpr(jax.vjp(mean_loss, variables["params"])[1])(jnp.ones(())))


CONFIG = AdversarialConfig(
    classifier="digits",
    attack="auto-fast",
    steps=4,
    epsilons=(0.05, 0.2),
    training=("standard", "pgd"),
    train_images=60,
    test_images=24,
    train_steps=2,
    epochs=4,
    seeds=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DefenseResults]:
    run_dir = tmp_path_factory.mktemp("digits")
    results = experiment.run(CONFIG, run_dir, log=lambda line: None)
    assert isinstance(results, DefenseResults)
    return run_dir, results


def test_results_are_what_the_networks_withstand(made: tuple[Path, DefenseResults]) -> None:
    run_dir, results = made
    test = open_dataset("packaged").test
    for training in CONFIG.training:
        found = results.measures["trainings"][training]
        entries = found["robust_accuracy"]
        assert [entry["epsilon"] for entry in entries] == [0, 0.05, 0.2]
        for seed in range(2):
            tops = np.argmax(results.classifier(training, seed)(test.images[:24]), axis=1)
            clean = np.mean(tops == test.labels[:24])
            assert clean == entries[0]["accuracy_per_seed"][seed]
        values = entries[1]["accuracy_per_seed"]
        interval = ttest_1samp(values, 0).confidence_interval() if np.std(values) else (values[0], values[0])
        low, high = np.clip(interval, 0, 1)
        np.testing.assert_allclose((entries[1]["accuracy_low"], entries[1]["accuracy_high"]), (low, high), atol=1e-9)
        assert sum(entries[2]["felled_by"].values()) == 48
    assert results.measures["attack_settings"] == {"steps": 4}, "no square, so no queries"
    assert "auto-fast" in results.measures["attack"] and "2 seeds" in results.summary()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert {(row["model"], row["seed"]) for row in rows if "loss" in row} == {
        (kind, seed) for kind in CONFIG.training for seed in range(2)
    }


def test_a_run_that_is_over_is_loaded_and_goes_on_without_work(made: tuple[Path, DefenseResults]) -> None:
    run_dir, results = made
    again = experiment.run(CONFIG, run_dir, log=lambda line: None)
    assert again.measures == results.measures
    loaded = DefenseResults.load(run_dir, CONFIG)
    assert loaded.measures == json.loads(json.dumps(results.measures))
    digit = open_dataset("packaged").test.images[:1]
    np.testing.assert_array_equal(loaded.classifier("pgd", 1)(digit), results.classifier("pgd", 1)(digit))


def test_one_seed_is_the_same_whatever_trains_beside_it(made: tuple[Path, DefenseResults]) -> None:
    _, results = made
    config = dataclasses.replace(CONFIG, seeds=1, seed=1, training=("standard",))
    alone = experiment.run(config, log=lambda line: None)
    for one, other in zip(
        jax.tree.leaves(alone.variables["standard"]), jax.tree.leaves(results.variables["standard"]), strict=True
    ):
        np.testing.assert_allclose(one[0], other[1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_images": 1001}, "train_images is 1001, but packaged has 1000; expected at most as many, or 0 for all"),
        ({"test_images": 4001}, "test_images is 4001, but packaged has 4000"),
        (
            {"classifier": "digit"},
            "there is no 'digit'; expected one of dogs, imagenet, resnet18, ",
        ),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        experiment.run(dataclasses.replace(CONFIG, **settings), log=lambda line: None)


def test_digits_without_classes_are_refused() -> None:
    images = np.zeros((60, 28, 28, 1), np.uint8)
    part = LabeledImages(images, np.zeros(60, np.int32))
    with pytest.raises(UserError, match="mine has 0 classes, expected two or more to tell apart"):
        experiment.run(CONFIG, data=Dataset("mine", part, part, ()), log=lambda line: None)
    with pytest.raises(UserError, match=r"training is .*, expected one or more of standard, pgd and trades, each once"):
        dataclasses.replace(CONFIG, training=("pgd", "pgd"))
    assert [epsilon.value for epsilon in defense.epsilons(AdversarialConfig())] == list(defense.EPSILONS)
