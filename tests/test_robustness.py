"""Robust accuracy: who is still recognised, by how many, and how sure that is."""

from typing import Any

import numpy as np
import pytest

from adversarial import robustness
from adversarial.pixels import RANGES, Epsilon
from tests.test_one_photo import attack, predict

RADII = [Epsilon(value, RANGES["zero-one"]) for value in (0, 0.001, 0.01, 0.1)]


def test_a_photo_that_a_smaller_epsilon_has_fooled_stays_fooled() -> None:
    rows = [
        {"correct": [True, True, True, False], "correct_8_bit": [True, True, True, True]},
        {"correct": [True, False, True, True], "correct_8_bit": [True, True, False, True]},
        {"correct": [False, False, True, False], "correct_8_bit": [False, False, False, True]},
        {"correct": [True, True, True, True], "correct_8_bit": [True, True, True, True]},
    ]
    found = robustness.estimate(rows, RADII)
    np.testing.assert_allclose(found["accuracy"], [0.75, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(found["accuracy_8_bit"], [0.75, 0.75, 0.5, 0.5])
    np.testing.assert_allclose(found["grey_levels"], [0, 0.255, 2.55, 25.5])


def test_intervals_are_those_of_wilson() -> None:
    found = robustness.estimate([{"correct": [k < 15], "correct_8_bit": [True]} for k in range(20)], RADII[:1])
    p, n, z = 0.75, 20, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose([found["accuracy_low"][0], found["accuracy_high"][0]], [middle - half, middle + half])
    np.testing.assert_allclose(found["accuracy_8_bit_high"], [1], atol=1e-12)
    assert set(found) == set(robustness.FORM)
    assert all(robustness.FORM[name].complaint(array) is None for name, array in found.items())


def test_recognised_as_floats_and_on_the_grid() -> None:
    noise = np.random.default_rng(0).integers(-9, 9, (8, 8, 3))
    pictures = np.stack([np.asarray(colour) + noise for colour in ([125, 122, 119], [120, 170, 119], [119, 125, 119])])
    labels = np.asarray([0, 1, 0])
    correct, correct_8_bit = robustness.recognised(predict, attack, pictures.astype(np.uint8), labels, RADII)
    np.testing.assert_array_equal(correct[0], [True, True, False])
    np.testing.assert_array_equal(correct_8_bit[0], correct[0])
    np.testing.assert_array_equal(correct_8_bit[1], correct[0])  # 0.255 grey levels round to none
    np.testing.assert_array_equal(correct[2], [False, True, False])
    assert correct.shape == correct_8_bit.shape == (4, 3)


def test_results_and_summary_carry_epsilon_with_its_range() -> None:
    found = robustness.estimate([{"correct": [True] * 4, "correct_8_bit": [True] * 4}], RADII)
    entries: list[dict[str, Any]] = robustness.described(found, RADII)
    assert entries[2]["epsilon_range"] == "[0, 1]" and entries[2]["epsilon_grey_levels"] == pytest.approx(2.55)
    told = robustness.summary({"photos": 1, "clean_accuracy": 1.0, "robust_accuracy": entries})
    assert "epsilon 0.01 of [0, 1] (2.55 grey levels): 100.0% (20.7% to 100.0%)" in told
