"""Two-dimensional views of a latent space: the plane of largest variance, its projections and grids over it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Float

Codes = Float[np.ndarray, "n latent"]
Points = Float[np.ndarray, "n 2"]


class Plane(NamedTuple):
    """A plane through latent space; of two latent dimensions, all of it, in its own coordinates.

    Attributes:
        origin: The point at coordinates (0, 0).
        axes: Two orthonormal directions; of one latent dimension the second is 0.
    """

    origin: Float[np.ndarray, " latent"]
    axes: Float[np.ndarray, "2 latent"]

    def project(self, codes: Codes) -> Points:
        """Return the coordinates of codes along the axes."""
        return (codes @ self.axes.T).astype(np.float32)

    def embed(self, points: Points) -> Codes:
        """Return the latents at coordinates of the plane."""
        return (self.origin + points @ self.axes).astype(np.float32)


def fit_plane(codes: Codes) -> Plane:
    """Return the plane through the mean of codes along their two directions of largest variance."""
    dimensions = codes.shape[1]
    if dimensions <= 2:
        return Plane(np.zeros(dimensions, np.float32), np.eye(2, dimensions, dtype=np.float32))
    mean = codes.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(np.cov(codes.astype(np.float64), rowvar=False))
    axes = vectors[:, :-3:-1].T
    axes *= np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])[:, None]
    return Plane((mean - mean @ axes.T @ axes).astype(np.float32), axes.astype(np.float32))


def quantile_grid(side: int) -> Points:
    """Return a grid of cell centres over the inverse normal CDF, from high to low second coordinate."""
    return _grid(np.asarray(norm.ppf((jnp.arange(side) + 0.5) / side)))


def even_grid(side: int, extent: float) -> Points:
    """Return an even grid of cell centres over ±extent, from high to low second coordinate."""
    return _grid(((np.arange(side) + 0.5) / side * 2 - 1) * extent)


def find_extent(points: Points) -> float:
    """Return half the side of the square around 0 that holds all points but one in 500, rounded up."""
    return float(max(1, np.ceil(np.quantile(np.abs(points).max(axis=1), 0.998))))


def _grid(along: np.ndarray) -> Points:
    first, second = np.meshgrid(along, along[::-1])
    return np.stack([first.ravel(), second.ravel()], axis=1).astype(np.float32)
