"""Adversarial images that survive being saved: on the 8-bit grid, and still within ε of the picture.

Rounding to the nearest grey level can leave the ball: with ε = 0.01 of [0, 1], 2.55 grey levels become 3. Here the
difference is rounded towards 0, so that no pixel is farther than ε from the original.
"""

import io
import math

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

GREY_LEVELS = 255
SLACK = 1e-3  # of a grey level: what float32 arithmetic may have lost on the way from an exact level

Pixels = UInt8[np.ndarray, "*batch h w c"]


def grey_levels(epsilon: float, bounds: tuple[float, float]) -> float:
    """ε of a range of pixels, in grey levels: 255 · ε / (high - low)."""
    low, high = bounds
    return GREY_LEVELS * epsilon / (high - low)


def whole_grey_levels(epsilon: float, bounds: tuple[float, float]) -> int:
    """How many whole grey levels a pixel may move: the largest integer that does not exceed ε, but for rounding."""
    return math.floor(grey_levels(epsilon, bounds) * (1 + 1e-6))


def round_inward(
    adversarial: Float[np.ndarray, "*batch h w c"], original: Pixels, epsilon: float, bounds: tuple[float, float]
) -> Pixels:
    """Adversarial pixels in `bounds` as grey levels, none farther than ε from the original in L∞.

    Raises:
        ValueError: The shapes differ.
    """
    if adversarial.shape != original.shape:
        raise ValueError(f"adversarial images have shape {adversarial.shape}, the originals {original.shape}")
    low, high = bounds
    levels = (adversarial.astype(np.float64) - low) * (GREY_LEVELS / (high - low))
    difference = levels - original
    inward = np.trunc(difference + SLACK * np.sign(difference))
    most = whole_grey_levels(epsilon, bounds)
    return np.clip(original + np.clip(inward, -most, most), 0, GREY_LEVELS).astype(np.uint8)


def linf_grey_levels(one: Pixels, other: Pixels) -> int:
    """The largest difference between two pictures at any pixel, in grey levels."""
    return int(np.max(np.abs(one.astype(np.int16) - other), initial=0))


def through_png(image: UInt8[np.ndarray, "h w 3"]) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
    """A picture as the bytes of a PNG, and what is read back from them."""
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    with Image.open(io.BytesIO(packed.getvalue())) as read:
        return packed.getvalue(), np.asarray(read.convert("RGB"))
