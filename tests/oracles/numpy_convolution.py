"""A convolution and its two adjoints in NumPy and float64, tap by tap: an oracle for `kernels.convolution`.

XLA's own CPU convolution is no oracle for gradients: with more padding than the kernel reaches, jax 0.10.2's reads
outside its buffers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Pads = Sequence[tuple[int, int]]


class Convolution(NamedTuple):
    """Output of a convolution, and what a cotangent of the output gives for images and kernel."""

    output: np.ndarray
    images_gradient: np.ndarray
    kernel_gradient: np.ndarray


def pads_of(padding: str | Pads, size: Sequence[int], kernel: Sequence[int], stride: int) -> Pads:
    """Padding in pixels; "SAME" as TensorFlow defines it."""
    if padding == "VALID":
        return ((0, 0), (0, 0))
    if padding != "SAME":
        assert not isinstance(padding, str)
        return padding
    totals = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(size, kernel, strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def output_size(size: Sequence[int], kernel: Sequence[int], stride: int, pads: Pads) -> tuple[int, ...]:
    return tuple((n + sum(p) - k) // stride + 1 for n, k, p in zip(size, kernel, pads, strict=True))


def convolve(images: np.ndarray, kernel: np.ndarray, stride: int, pads: Pads, cotangent: np.ndarray) -> Convolution:
    """y[q] = Σ_d x[stride · q + d - low] w[d] and its adjoints in x and w, applied to a cotangent shaped as y."""
    images, kernel, cotangent = (array.astype(np.float64) for array in (images, kernel, cotangent))
    padded = np.pad(images, ((0, 0), *pads, (0, 0)))
    height, width = output_size(images.shape[1:3], kernel.shape[:2], stride, pads)
    output = np.zeros((len(images), height, width, kernel.shape[3]))
    padded_gradient, kernel_gradient = np.zeros_like(padded), np.zeros_like(kernel)
    for row, column in np.ndindex(kernel.shape[:2]):
        window = (
            slice(None),
            slice(row, row + stride * (height - 1) + 1, stride),
            slice(column, column + stride * (width - 1) + 1, stride),
        )
        output += padded[window] @ kernel[row, column]
        padded_gradient[window] += cotangent @ kernel[row, column].T
        kernel_gradient[row, column] = np.einsum("nhwc,nhwf->cf", padded[window], cotangent)
    (top, _), (left, _) = pads
    inside = padded_gradient[:, top : top + images.shape[1], left : left + images.shape[2]]
    return Convolution(output, inside, kernel_gradient)
