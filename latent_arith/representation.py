"""What the latent space is like without labels: its principal components, and how disentangled its dimensions are.

Both are measured against the true factors, on faces painted without correlation that the VAE has not seen. Where none
are known (photos), attributes of held-out images stand for factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from latent_arith.datasets.face_data import FaceData
from latent_arith.model import Encode
from latentlab.disentanglement import Part

COMPONENTS = 10
"""Principal components that are shown."""
KNOWN = 3000
"""Images with known factors that are encoded, at most."""

Latents = Float[np.ndarray, "n latent"]


@dataclass(frozen=True, eq=False)
class Components:
    """The largest principal components of the latents, as GANSpace takes them (Härkönen et al. 2020, 2004.02546).

    Attributes:
        vectors: Unit vectors, the largest component first; the sign is that of the correlation with its own factor.
        deviations: Standard deviations of the latents along them.
        explained: Shares of the variance of the latents.
        factors: Names of what they are correlated with.
        correlations: Pearson's, of every component with every factor.
    """

    vectors: Float[np.ndarray, "components latent"]
    deviations: Float[np.ndarray, " components"]
    explained: Float[np.ndarray, " components"]
    factors: tuple[str, ...]
    correlations: Float[np.ndarray, "components factors"]

    def strongest(self) -> list[tuple[str, float]]:
        """Return which factor every component is correlated with most, and that correlation."""
        rows = np.argmax(np.abs(self.correlations), axis=1)
        return [(self.factors[row], float(found[row])) for row, found in zip(rows, self.correlations, strict=True)]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `components.npz` holds."""
        return {
            "vectors": self.vectors,
            "deviations": self.deviations,
            "explained": self.explained,
            "factors": np.asarray(self.factors),
            "correlations": self.correlations,
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return what `results.json` says of every component."""
        return [
            {"explained_variance": float(share), "factor": name, "correlation": correlation}
            for share, (name, correlation) in zip(self.explained, self.strongest(), strict=True)
        ]


def find_components(train: Latents, known: Part, factors: Sequence[str]) -> Components:
    """Return the principal components of training latents and their correlation with factors that are known.

    Args:
        train: Latents of training images.
        known: Latents of other images and the F factors these were made from.
        factors: Names of the factors.
    """
    from sklearn.decomposition import PCA

    found = PCA(min(COMPONENTS, *train.shape), random_state=0).fit(train)
    scores = (known.codes - found.mean_) @ found.components_.T
    both = [part - part.mean(axis=0) for part in (scores.astype(np.float64), known.factors.astype(np.float64))]
    lengths = [np.sqrt((part**2).sum(axis=0)) for part in both]
    product = np.outer(*lengths)
    correlations = np.where(product > 0, both[0].T @ both[1] / np.where(product > 0, product, 1), 0)
    strongest = np.argmax(np.abs(correlations), axis=1)
    signs = np.where(correlations[np.arange(len(strongest)), strongest] < 0, -1, 1)[:, None]
    return Components(
        (signs * found.components_).astype(np.float32),
        np.sqrt(found.explained_variance_).astype(np.float32),
        found.explained_variance_ratio_.astype(np.float32),
        tuple(factors),
        (signs * correlations).astype(np.float32),
    )


def known_factors(data: FaceData, encode: Encode) -> tuple[Part, tuple[str, ...]]:
    """Return latents and factors of images that the VAE has not seen, and the names of the factors.

    Faces that were painted without correlation and their factors, or held-out photos and their attributes.
    """
    if data.factors:
        images, _, factors = (part[:KNOWN] for part in data.classifier)
        return Part(encode(images), factors), data.factors
    rows = data.held_out[:KNOWN]
    return Part(encode(data.source[rows]), data.table.values[rows]), data.table.names
