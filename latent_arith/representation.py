"""What the latent space is like without labels: its principal components, and how disentangled its dimensions are.

Both are measured against the true factors, on faces painted without correlation that the VAE has not seen. Where none
are known (photos), attributes of held-out images stand for factors, and the two scores that need new images with one
factor held fixed, FactorVAE's and β-VAE's, are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from latent_arith.datasets import synthetic_faces
from latent_arith.datasets.face_data import FaceData
from latent_arith.model import Encode
from latentlab import disentanglement
from latentlab.disentanglement import Part

COMPONENTS = 10
"""Principal components that are shown."""
CLASSES = 4
"""Classes of equal width that a continuous factor is divided into for metrics that count or classify."""
GROUP = 16
"""Images that share a factor, in the scores of FactorVAE and β-VAE."""

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
        return Part(encode(data.classifier.images), data.classifier.factors), data.factors
    return Part(encode(data.source[data.held_out]), data.table.values[data.held_out]), data.table.names


def measure_disentanglement(data: FaceData, encode: Encode, known: Part, groups: int, seed: int) -> dict[str, float]:
    """Return the scores of `latentlab.disentanglement`, factors in 4 classes where a metric wants classes.

    Factors that do not vary are left out, and so are scores that one code or one factor does not have.

    Args:
        data: Images, of which those with known factors can be painted anew.
        encode: Pixels to posterior means.
        known: From `known_factors`; the last third of it is the test set.
        groups: Groups of 16 images that share a factor, for FactorVAE's and β-VAE's scores; half as many more judge.
        seed: Of their factors.
    """
    end = len(known.codes) - len(known.codes) // 3
    classes = disentanglement.discretize(known.factors, CLASSES) if data.factors else known.factors.astype(np.int64)
    varying = np.ptp(classes[:end], axis=0).astype(bool) & np.ptp(classes[end:], axis=0).astype(bool)
    rows = slice(end), slice(end, None)
    train, test = (Part(known.codes[part], known.factors[part][:, varying]) for part in rows)
    discrete = [Part(known.codes[part], classes[part][:, varying]) for part in rows]
    scores: dict[str, float] = {}
    if known.codes.shape[1] > 1:
        scores["mig"] = disentanglement.mutual_information_gap(*discrete[0])
        scores["sap"] = disentanglement.sap(train)
    dci = disentanglement.dci(train, test, disentanglement.fit_lasso)
    scores |= {f"dci_{name}": value for name, value in dci._asdict().items()}
    if varying.sum() > 1:
        scores["modularity"] = disentanglement.modularity(*discrete[0])
    scores["explicitness"] = disentanglement.explicitness(*discrete)
    if data.factors:
        encode_factors, test_groups = make_encode_factors(encode, data.classifier.images.shape[1]), -(-groups // 2)
        options: dict[str, Any] = {"seed": seed, "groups": groups, "test_groups": test_groups, "size": GROUP}
        score = disentanglement.factor_vae_score(encode_factors, draw_factors, variance_images=2 * groups, **options)
        scores["factor_vae_score"] = score
        scores["beta_vae_score"] = disentanglement.beta_vae_score(encode_factors, draw_factors, **options)
    return scores


def make_encode_factors(encode: Encode, size: int) -> Callable[[np.ndarray], Latents]:
    """Return a function from factors (n, F) to latents of the faces that are painted from them."""

    def encode_factors(factors: np.ndarray) -> Latents:
        parts = np.array_split(factors.astype(np.float32), max(1, len(factors) // 1000))
        return np.concatenate([encode(synthetic_faces.render_faces(part, size)) for part in parts])

    return encode_factors


def draw_factors(generator: np.random.Generator, n: int) -> Float[np.ndarray, "n factors"]:
    """Draw factors of faces without correlation."""
    key = jax.random.key(int(generator.integers(2**31)))
    return np.stack(synthetic_faces.draw_factors(key, np.arange(n), 0.0), axis=1)
