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
from latentlab import disentanglement
from latentlab.disentanglement import Part

COMPONENTS = 10
"""Principal components that are shown."""
CLASSES = 4
"""Classes of equal width that a continuous factor is divided into for metrics that count or classify."""
GROUPS, GROUP = 3000, 16
"""Groups that train the scores of FactorVAE and β-VAE (half as many judge), and images or pairs in each."""
UNUSED = 0.05
"""Variance of the posterior means up to which a latent dimension counts as one that the encoder does not use."""

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


def measure_disentanglement(known: Part, is_continuous: bool, seed: int = 0) -> dict[str, float]:
    """Return the scores of `latentlab.disentanglement`, factors in 4 classes where a metric wants classes.

    Factors that do not vary are left out, and so are scores that one code or one factor does not have.

    Args:
        known: From `known_factors`; the last third of it is the test set.
        is_continuous: Whether factors are continuous, and not attributes.
        seed: Of the groups of FactorVAE's and β-VAE's scores, which are matched among the images.
    """
    end = len(known.codes) - len(known.codes) // 3
    classes = disentanglement.discretize(known.factors, CLASSES) if is_continuous else known.factors.astype(np.int64)
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
    alone, pairs = (
        tuple(
            disentanglement.match_groups(part, count, GROUP, is_pairs, seed + row)
            for row, (part, count) in enumerate(((train, GROUPS), (test, GROUPS // 2)))
        )
        for is_pairs in (False, True)
    )
    variances = train.codes.var(axis=0)
    scores["factor_vae_score"] = disentanglement.factor_vae_score(alone[0], alone[1], variances, UNUSED)
    scores["beta_vae_score"] = disentanglement.beta_vae_score(pairs[0], pairs[1])
    return scores
