"""How ordinary a face is for a model: its distance from the training latents and how badly it is reconstructed.

Any picture is encoded to something, so a latent alone may look ordinary where the model has never seen anything like
the picture; then the decoding looks like no part of it. Both are told as percentiles among held-out faces: 50 is a
typical face, and 100 means that no held-out face was as far away.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

Latents = Float[np.ndarray, "n latent"]
Pixels = UInt8[np.ndarray, "n height width 3"]
UNSEEN = 99.0
"""Percentile of the reconstruction error from which on a model is said not to know such pictures."""


@dataclass(frozen=True, eq=False)
class Population:
    """Training latents in two moments, and how far held-out faces are from them.

    Attributes:
        mean: Mean of the training latents.
        precision: Inverse of their covariance, shrunk after Ledoit & Wolf (2004).
        distances: Mahalanobis distance of every held-out face.
        errors: Root of the mean squared error of their reconstructions, in grey levels.
    """

    mean: Float[np.ndarray, " latent"]
    precision: Float[np.ndarray, "latent latent"]
    distances: Float[np.ndarray, " held_out"]
    errors: Float[np.ndarray, " held_out"]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `population.npz` holds."""
        return {name: getattr(self, name).astype(np.float32) for name in ("mean", "precision", "distances", "errors")}

    def describe(self, latent: Float[np.ndarray, " latent"], image: np.ndarray, decoded: np.ndarray) -> dict[str, Any]:
        """Return distance and error of one face, pixels 0…255, with their percentiles among held-out faces."""
        distance = float(measure_distances(latent[None], self.mean, self.precision)[0])
        error = float(measure_errors(image[None], decoded[None])[0])
        return {
            "latent_distance": distance,
            "latent_percentile": _percentile(distance, self.distances),
            "reconstruction_error": error,
            "reconstruction_percentile": _percentile(error, self.errors),
            "held_out_faces": len(self.errors),
        }


def measure_population(
    train: Latents,
    held_out: Float[np.ndarray, "m latent"],
    images: UInt8[np.ndarray, "m height width 3"],
    decode: Callable[[Latents], Pixels],
) -> Population:
    """Measure how far held-out faces, latents and images in the same order, lie from training latents."""
    from sklearn.covariance import ledoit_wolf

    mean = train.mean(axis=0, dtype=np.float64)
    covariance, _ = ledoit_wolf(train - mean, assume_centered=True)
    precision = np.linalg.inv(covariance)
    errors = measure_errors(images, decode(held_out))
    return Population(mean, precision, measure_distances(held_out, mean, precision), errors)


def measure_distances(latents: Latents, mean: np.ndarray, precision: np.ndarray) -> Float[np.ndarray, " n"]:
    """Return Mahalanobis distances √((z - μ)ᵀ Σ⁻¹ (z - μ))."""
    centred = latents.astype(np.float64) - mean
    return np.sqrt(np.maximum(np.einsum("nd,de,ne->n", centred, precision, centred, optimize=True), 0))


def measure_errors(images: Pixels, decoded: Pixels) -> Float[np.ndarray, " n"]:
    """Return the root of the mean squared error of every image, in grey levels."""
    difference = images.astype(np.float32) - decoded
    return np.sqrt(np.mean(difference**2, axis=(1, 2, 3), dtype=np.float64))


def _percentile(value: float, of: np.ndarray) -> float:
    return 100 * float(np.mean(of < value))
