"""Random changes of what a network sees, through which gradients pass, and logits expected over them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key

from adversarial.attacks.base import Images, Logits
from latentlab.arrays import AnyArray

Transformation = Callable[[Key[Array, ""], Float[Array, "h w c"]], Float[Array, "h w c"]]
"""A key and an image to a changed image of the same shape."""


def expect_logits(logits: Logits, transformation: Transformation, key: Key[Array, ""], samples: int = 16) -> Logits:
    """Return logits averaged over transformations of the image, for any attack (expectation over transformations).

    1/K Σ over k of logits(t(key_k, x)), with the same K keys in every step and for every image, so the result is a
    function of the image alone. Source: Athalye et al. 2018, arXiv 1707.07397.

    Args:
        logits: Images to logits.
        transformation: What a network sees in the place of an image.
        key: From which those of the samples are split.
        samples: K.
    """
    keys = jax.random.split(key, samples)

    def mean_logits(images: Images) -> Float[Array, "n classes"]:
        def evaluate_sample(key: Key[Array, ""]) -> Float[Array, "n classes"]:
            return logits(jax.vmap(lambda image: transformation(key, image))(images))

        return jnp.mean(jax.lax.map(evaluate_sample, keys), axis=0)

    return mean_logits


def resize_and_pad(
    key: Key[Array, ""], image: Float[Array, "h w c"], least: float = 0.9, fill: float = 0.0
) -> Float[Array, "h w c"]:
    """Shrink an image bilinearly to a random side and lay it at a random place on black.

    The side is drawn from ⌊least · h⌋ … h - 1 pixels, or is h where those are equal, and the place from those at which
    it does not touch the lower and right edge. Source: Xie et al. 2019, arXiv 1803.06978.

    Args:
        key: A key.
        image: A square image.
        least: Smallest side, as a share of the image's.
        fill: What black is.

    Raises:
        ValueError: The image is not square.
    """
    full = image.shape[0]
    if full != image.shape[1]:
        raise ValueError(f"image has {full}×{image.shape[1]} pixels, expected a square")
    side_key, *place_keys = jax.random.split(key, 3)
    side = jax.random.randint(side_key, (), int(full * least), full)
    row, column = (jax.random.randint(one, (), 0, full - side) for one in place_keys)
    return shrink_to(image - fill, side, row, column) + fill


def shrink_to(
    image: Float[AnyArray, "h w c"],
    side: int | Int[AnyArray, ""],
    row: int | Int[AnyArray, ""],
    column: int | Int[AnyArray, ""],
) -> Float[Array, "h w c"]:
    """Shrink a square image bilinearly, without antialiasing, and lay it on black with its first pixel at a place."""
    scale = jnp.broadcast_to(jnp.asarray(side, jnp.float32) / image.shape[0], (2,))
    place = jnp.asarray([row, column], jnp.float32)
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, place, method="linear", antialias=False)


def gaussian_kernel(size: int, deviations: float = 3.0) -> Float[np.ndarray, " size"]:
    """Return a normal density at so many points from -`deviations` to `deviations`, with sum 1."""
    density = np.exp(-(np.linspace(-deviations, deviations, size) ** 2) / 2)
    return density / density.sum()


def smooth(images: Images, size: int) -> Images:
    """Return images convolved with a Gaussian kernel of `size` × `size` pixels, zero beyond their edges.

    Raises:
        ValueError: The size is even, so that the kernel has no middle.
    """
    if size % 2 == 0:
        raise ValueError(f"kernel size is {size}, expected an odd number of pixels")
    kernel = gaussian_kernel(size)

    def convolution_matrix(count: int) -> Float[Array, "out in"]:
        place = np.arange(count)[None] - np.arange(count)[:, None] + size // 2
        inside = (place >= 0) & (place < size)
        return jnp.asarray(np.where(inside, kernel[np.clip(place, 0, size - 1)], 0), jnp.float32)

    rows, columns = map(convolution_matrix, images.shape[1:3])
    return jnp.einsum("ip,npqc,jq->nijc", rows, images, columns, precision="highest")
