"""Pixel ranges, ε with its range, and adversarial images that survive being saved.

Rounding an adversarial image to the nearest grey level can leave the ball: with ε = 0.01 of [0, 1], 2.55 grey levels
become 3. Here the difference from the picture is rounded towards 0, so that no pixel is farther than ε from it.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from latentlab.errors import UserError

GREY_LEVELS = 255
SLACK = 1e-3  # of a grey level: what float32 arithmetic may have lost on the way from an exact level

Pixels = UInt8[np.ndarray, "*batch h w c"]


class PixelRange(NamedTuple):
    """What black and white are."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Distance from black to white."""
        return self.high - self.low

    def feed(self, images: Any) -> Any:
        """Return what a network is fed of images in [0, 1]."""
        return self.low + self.width * images

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


class Normalization(NamedTuple):
    """Mean and standard deviation of every channel, of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def feed(self, images: Any) -> Any:
        """Return what a network is fed of images in [0, 1]: (image - mean) / std."""
        mean, std = (np.asarray(part, np.float32).reshape((1,) * (images.ndim - 1) + (-1,)) for part in self)
        return (images - mean) / std

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:g}" for value in part) for part in self)
        return f"([0, 1] - ({mean})) / ({std})"


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's photos, as torchvision has it."""
RANGES = {
    "zero-one": PixelRange(0.0, 1.0),
    "minus-one-one": PixelRange(-1.0, 1.0),
    "zero-255": PixelRange(0.0, 255.0),
}


@dataclass(frozen=True)
class Epsilon:
    """Radius of an attack, in the unit of a range of pixels.

    Attributes:
        value: The radius, 0 or more.
        range: What it is counted in.

    Raises:
        UserError: It is negative, infinite or not a number.
    """

    value: float
    range: PixelRange

    def __post_init__(self) -> None:
        if not 0 <= self.value < math.inf:
            raise UserError(f"epsilon is {self.value}, expected a number from 0, in the unit of {self.range}")

    @property
    def fraction(self) -> float:
        """Share of the whole range, which is the radius in [0, 1]: ε / (high - low)."""
        return self.value / self.range.width

    @property
    def grey_levels(self) -> float:
        """In grey levels: 255 · ε / (high - low)."""
        return GREY_LEVELS * self.fraction

    @property
    def whole_grey_levels(self) -> int:
        """How many whole grey levels a pixel may move: the largest integer that does not exceed ε, but for rounding."""
        return min(math.floor(self.grey_levels * (1 + 1e-6)), GREY_LEVELS)

    def __str__(self) -> str:
        return f"{self.value:g} of {self.range} ({self.grey_levels:.4g} grey levels)"


def most_grey_levels(epsilons: Sequence[Epsilon], in_linf: bool = True) -> Int[np.ndarray, " epsilons"]:
    """Return how far a pixel may move at every ε, for `round_inward`; a radius in L2 bounds no single pixel."""
    return np.asarray([epsilon.whole_grey_levels if in_linf else GREY_LEVELS for epsilon in epsilons])


def round_inward(
    adversarial: Float[np.ndarray, "*more h w c"],
    original: UInt8[np.ndarray, "*batch h w c"],
    most: int | np.ndarray = GREY_LEVELS,
) -> UInt8[np.ndarray, "*more h w c"]:
    """Return adversarial pixels in [0, 1] as grey levels, rounded towards the original and at most `most` away from it.

    Raises:
        ValueError: The shapes do not go together.
    """
    if adversarial.shape[-original.ndim :] != original.shape:
        raise ValueError(f"adversarial images have shape {adversarial.shape}, the originals {original.shape}")
    difference = adversarial.astype(np.float64) * GREY_LEVELS - original
    inward = np.trunc(difference + SLACK * np.sign(difference))
    return np.clip(original + np.clip(inward, -most, most), 0, GREY_LEVELS).astype(np.uint8)


def linf_grey_levels(one: Pixels, other: Pixels) -> int:
    """Return the largest difference between two pictures at any pixel, in grey levels."""
    return int(np.max(np.abs(one.astype(np.int16) - other), initial=0))


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> tuple[bytes, UInt8[np.ndarray, "h w 3"]]:
    """Encode a picture as a PNG, and return its bytes and what is read back from them."""
    packed = io.BytesIO()
    Image.fromarray(image).save(packed, "PNG")
    with Image.open(io.BytesIO(packed.getvalue())) as read:
        return packed.getvalue(), np.asarray(read.convert("RGB"))
