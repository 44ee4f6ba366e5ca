"""Digits deformed by known factors: against Pillow, and the same to the byte everywhere."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from latentlab import deformed_digits
from latentlab.labeled_images import open_dataset


@pytest.fixture(scope="module")
def digits():
    return open_dataset("packaged").test.images[:40]


def test_factors_are_uniform_independent_and_keep_their_values():
    factors = deformed_digits.draw_factors(20_000, 0)
    low, high = np.asarray(deformed_digits.LEAST), np.asarray(deformed_digits.MOST)
    assert np.all(factors >= low) and np.all(factors < high)
    uniform = (factors - low) / (high - low)
    np.testing.assert_allclose(uniform.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(uniform.var(axis=0), 1 / 12, atol=0.002)
    np.testing.assert_allclose(np.corrcoef(uniform.T), np.eye(4), atol=0.03)
    np.testing.assert_array_equal(deformed_digits.draw_factors(5, 0), factors[:5])
    assert np.all(deformed_digits.draw_factors(5, 1) != factors[:5])


def test_nothing_to_do_is_the_identity(digits):
    np.testing.assert_array_equal(deformed_digits.deform(digits, np.tile([0.0, 1.0, 0.0, 0.0], (40, 1))), digits)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, -2), (-1, 2)])
def test_a_shift_is_to_the_right_and_down(digits, right, down):
    shifted = deformed_digits.deform(digits, np.tile([0.0, 1.0, right, down], (40, 1)))
    rolled = np.roll(digits, (down, right), axis=(1, 2))
    inner = np.s_[:, 4:24, 4:24]
    np.testing.assert_array_equal(shifted[inner], rolled[inner])


@pytest.mark.parametrize("degrees", [-40, 25])
def test_a_rotation_is_pillows(digits, degrees):
    turned = deformed_digits.deform(digits, np.tile([degrees, 1.0, 0.0, 0.0], (40, 1)))
    for image, found in zip(digits, turned, strict=True):
        theirs = Image.fromarray(image[..., 0]).rotate(degrees, Image.Resampling.BILINEAR)
        apart = np.abs(found[..., 0].astype(int) - np.asarray(theirs).astype(int)) > 2
        assert apart.sum() <= 1  # Pillow has a stray pixel at the edge of what comes in


def test_a_digit_becomes_smaller_about_its_middle(digits):
    small = deformed_digits.deform(digits, np.tile([0.0, 0.7, 0.0, 0.0], (40, 1)))
    rows = np.arange(28) - 13.5
    weights = [part.astype(float).sum(axis=(0, 2, 3)) for part in (digits, small)]
    spreads = [np.sqrt((rows**2 * weight).sum() / weight.sum()) for weight in weights]
    assert spreads[1] / spreads[0] == pytest.approx(0.7, abs=0.02)


def test_the_data_set_has_ten_of_every_training_digit_and_factors_of_the_test_digits():
    data, packaged = open_dataset("deformed"), open_dataset("packaged")
    assert data.train.images.shape == (10_000, 28, 28, 1) and data.test.images.shape == (4000, 28, 28, 1)
    assert data.factors == deformed_digits.FACTORS and data.test_factors.shape == (4000, 4)
    np.testing.assert_array_equal(data.train.labels, np.tile(packaged.train.labels, 10))
    np.testing.assert_array_equal(data.test.labels, packaged.test.labels)
    digest = hashlib.sha256(data.test.images.tobytes()).hexdigest()
    assert digest == "161d831155e0a2166e9797cadc44239e7108efa79bfb6daaca4661582b61456b"
