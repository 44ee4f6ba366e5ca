"""Robust accuracy: who is still recognised, by how many, and how sure that is."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from PIL import Image

from adversarial import attacks, experiment, robustness
from adversarial.attacks import SweptAttack
from adversarial.classifier import wrap_classifier
from adversarial.config import AdversarialConfig, describe_attack
from adversarial.pixels import RANGES, Epsilon, most_grey_levels, round_inward
from latentlab.parallel import LocalRows

EPSILONS = [Epsilon(value, RANGES["zero-one"]) for value in (0, 0.001, 0.01, 0.1)]


def test_a_photo_that_a_smaller_epsilon_has_fooled_stays_fooled() -> None:
    rows = [
        {"correct": [True, True, True, False], "correct_8_bit": [True, True, True, True]},
        {"correct": [True, False, True, True], "correct_8_bit": [True, True, False, True]},
        {"correct": [False, False, True, False], "correct_8_bit": [False, False, False, True]},
        {"correct": [True, True, True, True], "correct_8_bit": [True, True, True, True]},
    ]
    found = robustness.estimate_accuracy(rows, EPSILONS)
    np.testing.assert_allclose(found["accuracy"], [0.75, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(found["accuracy_8_bit"], [0.75, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(found["grey_levels"], [0, 0.255, 2.55, 25.5])


def test_intervals_are_those_of_wilson() -> None:
    found = robustness.estimate_accuracy(
        [{"correct": [k < 15], "correct_8_bit": [True]} for k in range(20)], EPSILONS[:1]
    )
    p, n, z = 0.75, 20, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose([found["accuracy_low"][0], found["accuracy_high"][0]], [middle - half, middle + half])
    np.testing.assert_allclose(found["accuracy_8_bit_high"], [1], atol=1e-12)
    assert set(found) == set(robustness.STORED_ARRAYS)
    assert all(robustness.STORED_ARRAYS[name].complaint(array) is None for name, array in found.items())


def logits(images: Array) -> Array:
    """Tell what colour a picture is: red, green, blue, dark or bright."""
    means = images.mean(axis=(1, 2))
    grey = means.mean(axis=1, keepdims=True)
    return 40 * jnp.concatenate([means, 0.5 - grey, grey - 0.1], axis=1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_recognised_as_floats_and_on_the_grid(batch_size: int) -> None:
    noise = np.random.default_rng(0).integers(-9, 9, (8, 8, 3))
    pictures = np.stack([np.asarray(colour) + noise for colour in ([125, 122, 119], [120, 170, 119], [119, 125, 119])])
    labels, pictures = np.asarray([0, 1, 0]), pictures.astype(np.uint8)
    classifier, attack, keys = (
        wrap_classifier(logits, 8),
        SweptAttack(attacks.fgsm),
        jax.random.split(jax.random.key(0), 3),
    )
    correct, on_grid, zero_gradients, is_finite, distance = robustness.attack_and_classify(
        classifier, attack, keys, pictures, labels, EPSILONS, batch_size
    )
    np.testing.assert_array_equal(correct[:, 0], [True, True, False])
    np.testing.assert_array_equal(on_grid[:, 0], correct[:, 0])
    np.testing.assert_array_equal(on_grid[:, 1], correct[:, 0])  # 0.255 grey levels round to none
    np.testing.assert_array_equal(correct[:, 2], [False, True, False])
    assert correct.shape == on_grid.shape == zero_gradients.shape == (3, 4)
    assert is_finite.all() and not zero_gradients.any() and np.isnan(distance).all()
    if batch_size == 5:
        again = robustness.attack_and_classify(
            classifier, attack, keys, LocalRows(pictures, 3), labels, EPSILONS, batch_size
        )
        np.testing.assert_array_equal(again.on_grid, on_grid)


def test_rounding_on_the_device_is_that_of_saved_pictures() -> None:
    """In float64 on the host: trunc(x' - x) grey levels, at most as many whole ones as ε has."""
    pictures = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    classifier, keys = wrap_classifier(logits, 8), jax.random.split(jax.random.key(0), 6)
    labels = np.asarray(logits(jnp.asarray(pictures, jnp.float32) / 255).argmax(axis=1))
    radii = np.asarray([epsilon.fraction for epsilon in EPSILONS], np.float32)
    attack = SweptAttack(attacks.fgsm)
    images = attack(keys, logits, jnp.asarray(pictures, jnp.float32) / 255, labels[None], jnp.asarray([False]), radii)
    most = most_grey_levels(EPSILONS)[:, None, None, None, None]
    rounded = round_inward(np.asarray(images.images[0]), pictures, most)
    want = np.stack(
        [np.asarray(logits(jnp.asarray(row, jnp.float32) / 255)).argmax(axis=1) == labels for row in rounded]
    )
    found = robustness.attack_and_classify(classifier, attack, keys, pictures, labels, EPSILONS, 6)
    np.testing.assert_array_equal(found.on_grid, want.T)


def test_a_search_for_the_nearest_image_tells_its_distance(tmp_path: Path) -> None:
    """Of these colours (80 to 190 grey levels) the nearest that is called otherwise is half a difference away in L∞."""
    colours = ([150, 130, 110], [110, 150, 120], [150, 130, 110])
    for index, colour in enumerate(colours):
        Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(tmp_path / f"{index}_{index % 2}.png")
    # An epsilon in [-1, 1] counts twice.
    config = AdversarialConfig(
        images=str(tmp_path), labels="numbers", report="robust-accuracy", attack="deepfool", size=32,
        range="minus-one-one", epsilons=(0.0, 0.1, 0.2), epsilon=0.2,
    )  # fmt: skip
    results: Any = experiment.run(config, classifier=logits, log=lambda line: None)
    exact = 2 * np.asarray([10, 15, 10]) / 255
    distances = np.asarray([row["distance"] for row in results.rows])
    assert ((distances >= exact * (1 - 1e-4)) & (distances <= 1.05 * exact)).all()
    assert results.accuracy["accuracy"].tolist() == [1, pytest.approx(1 / 3), 0]
    described = results.measures["distance"]
    assert described["photos"] == described["found"] == 3 and described["range"] == "[-1, 1]"
    assert described["median"] == sorted(distances)[1]
    assert f"median {sorted(distances)[1]:.3g} of [-1, 1]" in results.summary()


def test_photos_without_a_nearest_image_are_the_farthest() -> None:
    rows = [{"correct": [True], "distance": value} for value in (0.1, None, 0.3, None)] + [
        {"correct": [False], "distance": 0.0}
    ]
    found = robustness.describe_distances(rows, RANGES["zero-one"])["distance"]
    assert found == {"photos": 4, "found": 2, "median": 0.3, "quartiles": [0.1, None], "range": "[0, 1]"}
    assert robustness.describe_distances([{"correct": [True]}], RANGES["zero-one"]) == {}


def test_results_and_summary_carry_epsilon_with_its_range() -> None:
    found = robustness.estimate_accuracy([{"correct": [True] * 4, "correct_8_bit": [True] * 4}], EPSILONS)
    entries: list[dict[str, Any]] = robustness.describe_accuracy(found, np.full(4, np.nan), EPSILONS)
    assert entries[2]["epsilon_range"] == "[0, 1]" and entries[2]["epsilon_grey_levels"] == pytest.approx(2.55)
    assert entries[2]["zero_gradients"] is None
    results: dict[str, Any] = {"photos": 1, "clean_accuracy": 1.0, "robust_accuracy": entries, "attack": "pgd"}
    results |= {"norm": "linf", "attack_settings": {"steps": 10, "restarts": 2, "step_size": 0.01}}
    told = robustness.summarize(results)
    assert "robust accuracy against PGD in L∞, steps 10, restarts 2, step size 0.01, an upper bound:" in told
    assert describe_attack({"attack": "fgsm", "norm": "l2"}) == "FGSM in L2", "as runs of before have it"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    assert rows[0] == ["ε of [0, 1]", "grey levels", "recognised", "95 % interval", "as PNG"]
    assert rows[4] == ["0.01", "2.55", "100.0%", "20.7% to 100.0%", "100.0%"]
