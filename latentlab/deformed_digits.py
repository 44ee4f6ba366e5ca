"""The packaged digits turned, scaled and shifted by factors that are known, to measure how disentangled a code is.

Factors are uniform and independent of one another and of the digit. The same factors and pixels come out everywhere:
draws are the raw output of PCG64, which NumPy promises to keep (NEP 19).
"""

import numpy as np
from jaxtyping import Float, UInt8

FACTORS = ("rotation", "scale", "shift_x", "shift_y")
LEAST, MOST = (-40.0, 0.7, -3.0, -3.0), (40.0, 1.1, 3.0, 3.0)
"""Degrees against the clock, size, and pixels to the right and down."""
COPIES = 10
"""Deformations of every training digit; the first of all digits come first."""
SEED = 20180212  # with it, the images are part of every published number: never change it


def draw_factors(n: int, stream: int) -> Float[np.ndarray, "n factors"]:
    """Return n rows of factors; a stream gives the same rows however many are drawn."""
    raw = np.random.PCG64(SEED + stream).random_raw(n * len(FACTORS)).reshape(n, len(FACTORS))
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    return np.asarray(LEAST) + (np.asarray(MOST) - LEAST) * uniform


def deform(
    images: UInt8[np.ndarray, "n h w 1"], factors: Float[np.ndarray, "n factors"]
) -> UInt8[np.ndarray, "n h w 1"]:
    """Return every image turned and scaled about its middle and shifted, interpolated bilinearly; black comes in."""
    from scipy.ndimage import affine_transform

    deformed = np.empty_like(images)
    middle = (np.asarray(images.shape[1:3]) - 1) / 2
    for image, out, (degrees, scale, right, down) in zip(images, deformed, factors, strict=True):
        cosine, sine = np.cos(np.radians(degrees)) / scale, np.sin(np.radians(degrees)) / scale
        back = np.asarray([[cosine, sine], [-sine, cosine]])  # row and column of the result to those of the image
        offset = middle - back @ (middle + np.asarray([down, right]))
        out[..., 0] = np.rint(affine_transform(image[..., 0].astype(np.float64), back, offset, order=1))
    return deformed
