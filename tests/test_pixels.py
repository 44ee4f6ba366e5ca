"""Pictures on the 8-bit grid: never farther than ε from the original, and the same after PNG."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adversarial import pixels

RANGES = [(0.0, 1.0), (-1.0, 1.0)]


@given(epsilon=st.floats(0, 0.3), seed=st.integers(0, 1000), bounds=st.sampled_from(RANGES))
@example(epsilon=0.01, seed=0, bounds=(0.0, 1.0))
@settings(deadline=None)
def test_rounding_stays_within_epsilon(epsilon: float, seed: int, bounds: tuple[float, float]) -> None:
    draw = np.random.default_rng(seed)
    original = draw.integers(0, 256, (4, 5, 3), np.uint8)
    low, high = bounds
    floats = (low + (high - low) * original.astype(np.float32) / 255).astype(np.float32)
    moved = np.clip(floats + np.float32(epsilon) * draw.choice([-1, 0, 1], floats.shape), low, high).astype(np.float32)
    rounded = pixels.round_inward(moved, original, epsilon, bounds)
    farthest = pixels.linf_grey_levels(rounded, original)
    assert farthest <= pixels.grey_levels(epsilon, bounds) * (1 + 1e-6)
    levels = (moved.astype(np.float64) - low) * 255 / (high - low)
    assert np.all(np.abs(rounded - levels) < 1 + 1e-3)
    assert np.all((rounded - original.astype(int)) * (levels - original) >= 0)


def test_nearest_rounding_would_leave_the_ball() -> None:
    original = np.full((1, 1, 3), 100, np.uint8)
    moved = original / np.float32(255) + np.float32(0.01)
    assert np.all(np.round(moved * 255) == 103)
    assert np.all(pixels.round_inward(moved, original, 0.01, (0.0, 1.0)) == 102)


@pytest.mark.parametrize("levels", range(1, 20))
@pytest.mark.parametrize("bounds", RANGES)
def test_whole_grey_levels_are_kept(levels: int, bounds: tuple[float, float]) -> None:
    original = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    low, high = bounds
    epsilon = levels * (high - low) / 255
    floats = (low + (high - low) * original.astype(np.float32) / 255).astype(np.float32)
    rounded = pixels.round_inward(floats + np.float32(epsilon), original, epsilon, bounds)
    np.testing.assert_array_equal(rounded, np.minimum(original.astype(int) + levels, 255))


def test_a_png_gives_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    packed, read = pixels.through_png(image)
    assert packed.startswith(b"\x89PNG")
    np.testing.assert_array_equal(read, image)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(2, 2, 3\)"):
        pixels.round_inward(np.zeros((1, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8), 0.1, (0.0, 1.0))
