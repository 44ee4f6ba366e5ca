"""Pictures on the 8-bit grid: never farther than ε from the original, and the same after PNG."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adversarial import pixels
from adversarial.pixels import RANGES, Epsilon
from latentlab.errors import UserError


@given(value=st.floats(0, 0.3), seed=st.integers(0, 1000), unit=st.sampled_from(list(RANGES)))
@example(value=0.01, seed=0, unit="zero-one")
def test_rounding_stays_within_epsilon(value: float, seed: int, unit: str) -> None:
    draw, epsilon = np.random.default_rng(seed), Epsilon(value, RANGES[unit])
    original = draw.integers(0, 256, (4, 5, 3), np.uint8)
    floats = original.astype(np.float32) / 255
    signs = draw.choice([-1, 0, 1], floats.shape)
    moved = np.clip(floats + np.float32(epsilon.fraction) * signs, 0, 1).astype(np.float32)
    rounded = pixels.round_inward(moved, original, epsilon.whole_grey_levels)
    assert pixels.linf_grey_levels(rounded, original) <= epsilon.grey_levels * (1 + 1e-6)
    levels = moved.astype(np.float64) * 255
    assert np.all(np.abs(rounded - levels) < 1 + 1e-3)
    assert np.all((rounded - original.astype(int)) * (levels - original) >= 0)


def test_nearest_rounding_would_leave_the_ball() -> None:
    original = np.full((1, 1, 3), 100, np.uint8)
    moved = original / np.float32(255) + np.float32(0.01)
    assert np.all(np.round(moved * 255) == 103)
    assert np.all(pixels.round_inward(moved, original, Epsilon(0.01, RANGES["zero-one"]).whole_grey_levels) == 102)


@pytest.mark.parametrize("levels", range(1, 20))
@pytest.mark.parametrize("unit", RANGES)
def test_whole_grey_levels_are_kept(levels: int, unit: str) -> None:
    original = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    low, high = RANGES[unit]
    epsilon = Epsilon(levels * (high - low) / 255, RANGES[unit])
    moved = original.astype(np.float32) / 255 + np.float32(epsilon.fraction)
    rounded = pixels.round_inward(moved, original, epsilon.whole_grey_levels)
    np.testing.assert_array_equal(rounded, np.minimum(original.astype(int) + levels, 255))


def test_epsilon_tells_its_range_and_its_grey_levels() -> None:
    unit, network = (Epsilon(0.01, RANGES[name]) for name in ("zero-one", "minus-one-one"))
    assert (unit.grey_levels, network.grey_levels) == (pytest.approx(2.55), pytest.approx(1.275))
    assert (str(unit), str(network)) == ("0.01 of [0, 1] (2.55 grey levels)", "0.01 of [-1, 1] (1.275 grey levels)")
    assert (unit.whole_grey_levels, network.whole_grey_levels) == (2, 1)
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"epsilon is .*, expected a number from 0"):
            Epsilon(value, RANGES["zero-one"])


def test_every_radius_bounds_its_own_images() -> None:
    original, radii = np.full((2, 2, 3), 100, np.uint8), [Epsilon(value, RANGES["zero-one"]) for value in (0, 0.01, 1)]
    moved = np.broadcast_to(np.float32(110 / 255), (4, 3, *original.shape))
    rounded = pixels.round_inward(moved, original, pixels.most_grey_levels(radii)[:, None, None, None])
    np.testing.assert_array_equal(rounded[2, :, 0, 0, 0], [100, 102, 110])
    in_l2 = pixels.round_inward(moved, original, pixels.most_grey_levels(radii, in_linf=False)[:, None, None, None])
    np.testing.assert_array_equal(in_l2, 110)


def test_a_png_gives_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    packed, read = pixels.encode_png(image)
    assert packed.startswith(b"\x89PNG")
    np.testing.assert_array_equal(read, image)


@pytest.mark.unchecked
def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(2, 2, 3\)"):
        pixels.round_inward(np.zeros((1, 2, 3), np.float32), np.zeros((2, 2, 3), np.uint8))
