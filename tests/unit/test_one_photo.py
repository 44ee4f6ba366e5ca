"""One photo under attack, with a network that is two lines long: objectives, sweeps, and what results tell of them."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from adversarial import attacks, one_photo
from adversarial.attacks import ATTACKS, SweptAttack
from adversarial.classifier import Class
from adversarial.one_photo import Objective
from adversarial.pixels import RANGES, Epsilon
from latentlab.errors import UserError

CLASSES = tuple(Class("", name) for name in ("red", "green", "blue", "dark", "bright"))
EPSILONS = [Epsilon(value, RANGES["zero-one"]) for value in (0, 0.001, 0.01, 0.1)]


def logits(images: Array) -> Array:
    """What colour a picture is."""
    means = images.mean(axis=(1, 2))
    grey = means.mean(axis=1, keepdims=True)
    return 40 * jnp.concatenate([means, 0.5 - grey, grey - 0.1], axis=1)


def predict(images: np.ndarray) -> np.ndarray:
    unit = images / np.float32(255) if images.dtype == np.uint8 else images
    flat = jnp.asarray(unit.reshape(-1, *unit.shape[-3:]), jnp.float32)
    return np.asarray(jax.nn.softmax(logits(flat))).reshape(*images.shape[:-3], -1)


def attack(pixels: np.ndarray, labels: np.ndarray, targeted: np.ndarray, epsilons: np.ndarray) -> Any:
    unit = jnp.asarray(pixels, jnp.float32) / 255
    arrays = map(jnp.asarray, (labels, targeted, epsilons))
    found = SweptAttack(attacks.fgsm)(jax.random.key(0), logits, unit, *arrays)
    return one_photo.SweptImages(np.asarray(found.images), np.asarray(found.zero_gradients))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A picture that is a little redder than green, and a little greener than blue."""
    noise = np.random.default_rng(0).integers(0, 20, (8, 8, 3))
    return (np.asarray([125, 122, 119]) + noise - noise.mean(axis=(0, 1)).round()).astype(np.uint8)


@pytest.fixture(scope="module")
def objectives() -> list[Objective]:
    return one_photo.make_objectives(np.asarray([0, 1, 2, 4, 3]), 0, (2, 3, -1), [4], CLASSES)


@pytest.fixture(scope="module")
def found(photo: np.ndarray, objectives: list[Objective]) -> one_photo.Sweep:
    return one_photo.run_sweep(predict, attack, photo, objectives, EPSILONS)


@pytest.fixture(scope="module")
def rows(found: one_photo.Sweep, photo: np.ndarray, objectives: list[Objective]) -> list[list[dict[str, Any]]]:
    return one_photo.describe_sweep(found, photo, objectives, EPSILONS, CLASSES, "fgsm")


def test_objectives_are_ranks_and_classes(objectives: list[Objective]) -> None:
    assert objectives == [
        ("untargeted", 0, False),
        ("rank 2", 1, True),
        ("rank 3", 2, True),
        ("least likely", 3, True),
        ("class bright", 4, True),
    ]


@pytest.mark.parametrize(
    ("true", "ranks", "chosen", "message"),
    [
        (0, (1,), [], "target rank 1 is red, the true class"),
        (2, (2, 3), [], "target rank 3 is blue, the true class"),
        (0, (), [0], "target class red is red, the true class"),
        (0, (6,), [], "there is no class of rank 6, the network has 5"),
        (0, (-6,), [], "there is no class of rank -6"),
    ],
)
def test_a_target_must_be_there_and_not_be_the_true_class(
    true: int, ranks: tuple[int, ...], chosen: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        one_photo.make_objectives(np.asarray([0, 1, 2, 4, 3]), true, ranks, chosen, CLASSES)


def test_saved_pictures_are_within_epsilon_and_classified_anew(found: one_photo.Sweep, photo: np.ndarray) -> None:
    difference = np.abs(found.pictures.astype(int) - photo).max(axis=(0, 2, 3, 4))
    np.testing.assert_array_equal(difference, [0, 0, 2, 25])
    np.testing.assert_array_equal(found.after_png, predict(found.pictures))
    np.testing.assert_array_equal(found.pictures[:, 0], np.broadcast_to(photo, found.pictures[:, 0].shape))


def test_results_tell_what_happened(rows: list[list[dict[str, Any]]], found: one_photo.Sweep) -> None:
    untouched, far = rows[0][0], rows[1][3]
    assert untouched["top1_name"] == "red" and not untouched["success"] and untouched["target_index"] is None
    assert untouched["linf_grey_levels"] == 0
    assert (far["objective"], far["target_name"], far["top1_name"]) == ("rank 2", "green", "green")
    assert far["success"] and far["success_after_png"] and far["linf_grey_levels"] == 25
    assert (far["epsilon"], far["epsilon_range"], far["epsilon_grey_levels"]) == (0.1, "[0, 1]", pytest.approx(25.5))
    for row, entries in enumerate(rows):
        for column, entry in enumerate(entries):
            assert entry["confidence"] == pytest.approx(found.probabilities[row, column].max())
            assert entry["confidence_after_png"] == pytest.approx(found.after_png[row, column].max())
            assert type(entry["success"]) is type(entry["success_after_png"]) is bool


def test_below_a_grey_level_nothing_survives_being_saved(rows: list[list[dict[str, Any]]]) -> None:
    for row in rows:
        assert row[1]["linf_grey_levels"] == 0
        assert row[1]["confidence_after_png"] == row[0]["confidence_after_png"]
    assert rows[0][1]["true_class_probability"] < rows[0][0]["true_class_probability"]


def test_by_small_epsilons_targets_become_likelier_and_the_true_class_less_likely(
    rows: list[list[dict[str, Any]]],
) -> None:
    for row in rows:
        if row[0]["target_name"] not in ("dark", "bright"):  # to these all colours move alike
            true = [entry["true_class_probability"] for entry in row]
            assert true[0] > true[1] > true[2]
        if row[0]["target_name"]:
            aimed = [entry["target_probability"] for entry in row]
            assert aimed[0] < aimed[1] < aimed[2]


def test_the_summary_says_what_survives() -> None:
    entry = {
        "attack": "fgsm", "objective": "rank 2", "target_name": "pug", "top1_name": "pug", "confidence": 0.9,
        "success": True,
        "success_after_png": False, "top1_name_after_png": "cat", "confidence_after_png": 0.5, "linf_grey_levels": 2,
        "epsilon": 0.01, "epsilon_range": "[0, 1]", "epsilon_grey_levels": 2.55,
    }  # fmt: skip
    told = one_photo.summarize({"top4": [{"name": "cat", "probability": 0.8}], "attack": "fgsm", "attacks": [entry]})
    assert "taken for cat 80.0%" in told and "fgsm, epsilon 0.01 of [0, 1] (2.55 grey levels):" in told
    assert told.splitlines()[-1].split(" | ") == [
        "| rank 2   ", "   pug", "           pug 90.0%", "cat 50.0%", "floats only |",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["bim", "mi-fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_of_several_steps_sweep_as_one_by_one(photo: np.ndarray, name: Any, norm: Any) -> None:
    settings = attacks.select_settings(ATTACKS[name], {"steps": 3, "restarts": 2})
    attack = SweptAttack(ATTACKS[name], norm, tuple(settings.items()))
    unit = jnp.asarray(photo, jnp.float32)[None] / 255
    labels, targeted = jnp.asarray([[0], [1]]), jnp.asarray([False, True])
    epsilons = jnp.asarray([0.01, 0.2])
    key = jax.random.key(1)
    swept = jax.jit(lambda x: attack(key[None], logits, x, labels, targeted, epsilons))(unit)
    assert swept.images.shape == (2, 2, 1, 8, 8, 3)
    for (row, column), one in zip(np.ndindex(2, 2), jax.random.split(key, 4), strict=True):
        label, aimed, epsilon = labels[row], bool(targeted[row]), epsilons[column]
        options: Any = {"epsilon": epsilon, "step_size": 2.5 * epsilon / 3, "targeted": aimed, "norm": norm}
        alone = ATTACKS[name](one[None], logits, unit, label, **options, **settings)
        np.testing.assert_allclose(swept.images[row, column], alone.images, atol=1e-6)
        assert swept.success[row, column] == alone.success


def test_several_attacks_are_one_sweep(found: one_photo.Sweep) -> None:
    joined = one_photo.join_sweeps([found, found])
    np.testing.assert_array_equal(joined.pictures[len(found.pictures) :], found.pictures)
    assert len(joined.zero_gradients) == len(joined.distance) == len(joined.after_png)
    unknown = np.full_like(found.zero_gradients, np.nan)
    without = one_photo.join_sweeps([found, replace(found, zero_gradients=unknown)])
    np.testing.assert_array_equal(without.zero_gradients, np.concatenate([found.zero_gradients, unknown]))


def test_a_distance_stands_where_it_was_looked_for(
    found: one_photo.Sweep, photo: np.ndarray, objectives: list[Objective]
) -> None:
    distance = np.full_like(found.distance, np.inf)
    distance[0] = 0.25
    searched = replace(found, distance=distance)
    rows = one_photo.describe_sweep(searched, photo, objectives, EPSILONS, CLASSES, "fmn")
    assert [row[1]["distance"] for row in rows] == [0.25, None, None, None, None]
    assert not any("distance" in row[1] for row in one_photo.describe_sweep(
        found, photo, objectives, EPSILONS, CLASSES, "fgsm"
    ))  # fmt: skip
    summary = one_photo.summarize({"attacks": [row[1] for row in rows], "top4": []})
    column = [line.split("|")[-2].strip() for line in summary.splitlines() if line.startswith("|")]
    assert column[:1] + column[2:] == ["distance", "0.25", *["none found"] * 4]
