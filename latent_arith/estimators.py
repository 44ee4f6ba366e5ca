"""Ways to find the direction of an attribute in latent space: difference of means, logistic regression, SVM and LDA.

All of them take posterior means, who has the attribute, and a weight of every image, and return a unit vector that
points from those without to those with it. The difference of means is the pattern that the attribute leaves in the
latents; the others are normals of a boundary between both groups, as InterFaceGAN takes them (Shen et al. 2020, arXiv
2005.09635). If Σ is the covariance within the groups, LDA's normal is Σ⁻¹ (μ₊ - μ₋): it turns away from where latents
vary for other reasons, which separates the groups better and is not where members of the other group lie (Haufe et al.
2014, doi 10.1016/j.neuroimage.2013.10.067). Which of them edits better is measured in `comparison`.

Latents are not standardised: dimensions that the encoder does not use have a tiny variance, by which standardised
normals would be divided, so that they would point along what the decoder does not see. Weights of 1 give raw
directions, those of `directions.inverse_propensity_weights` balanced ones. Scikit-learn fits the boundaries.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from latentlab.statistics import with_one_thread

Latents = Float[np.ndarray, "n latent"]
Mask = Bool[np.ndarray, " n"]
Weights = Float[np.ndarray, " n"]
Vector = Float[np.ndarray, " latent"]
Fit = Callable[[Latents, Mask, Weights], Vector]


def fit_means(latents: Latents, has: Mask, weights: Weights) -> Vector:
    """Return the direction of μ₊ - μ₋, the difference between the weighted means of both groups."""
    with_it, without = (np.average(latents[group], axis=0, weights=weights[group]) for group in (has, ~has))
    return _normalize(with_it - without)


@with_one_thread
def fit_logistic(latents: Latents, has: Mask, weights: Weights) -> Vector:
    """Return the normal of logistic regression's boundary, with an L2 penalty of ½ ‖w‖²."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="newton-cholesky").fit(latents, has, sample_weight=weights)
    return _normalize(model.coef_[0])


@with_one_thread
def fit_svm(latents: Latents, has: Mask, weights: Weights) -> Vector:
    """Return the normal of a linear support vector machine's boundary, with squared hinge loss and C = 1."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(dual=False, max_iter=5000).fit(latents, has, sample_weight=weights)
    return _normalize(model.coef_[0])


@with_one_thread
def fit_lda(latents: Latents, has: Mask, weights: Weights) -> Vector:
    """Return the normal Σ⁻¹ (μ₊ - μ₋) of linear discriminant analysis, Σ shrunk after Ledoit & Wolf (2004).

    Scikit-learn shrinks; its own LDA has no weights of images.
    """
    from sklearn.covariance import ledoit_wolf

    latents = latents.astype(np.float64)
    means = [np.average(latents[group], axis=0, weights=weights[group]) for group in (~has, has)]
    centred = (latents - np.where(has[:, None], means[1], means[0])) * np.sqrt(weights / weights.mean())[:, None]
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    return _normalize(np.linalg.solve(covariance, means[1] - means[0]))


FITS: dict[str, Fit] = {"means": fit_means, "logistic": fit_logistic, "svm": fit_svm, "lda": fit_lda}
"""Estimators by name."""


def bootstrap(
    fit: Fit, latents: Latents, has: Mask, weights: Weights, resamples: int, seed: int = 0
) -> Float[np.ndarray, "resamples latent"]:
    """Return the directions of resamples of the images, drawn with replacement; the weights stay as they are.

    A resample that has lost either group is NaN.
    """
    found = np.full((resamples, latents.shape[1]), np.nan, np.float32)
    generator = np.random.default_rng(seed)
    for row in found:
        counts = np.bincount(generator.integers(len(latents), size=len(latents)), minlength=len(latents))
        drawn = counts > 0
        if has[drawn].any() and not has[drawn].all():
            row[:] = fit(latents[drawn], has[drawn], weights[drawn] * counts[drawn])
    return found


def standard_error_degrees(direction: Vector, resampled: Float[np.ndarray, "resamples latent"]) -> float:
    """Return the root of the mean squared angle between a direction and those of resamples, NaN for none."""
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    if not len(resampled):
        return float("nan")
    angles = np.arccos(np.clip(resampled.astype(np.float64) @ direction.astype(np.float64), -1, 1))
    return float(np.degrees(np.sqrt(np.mean(angles**2))))


def _normalize(vector: np.ndarray) -> Vector:
    vector = np.asarray(vector, np.float64)
    return (vector / np.linalg.norm(vector)).astype(np.float32)
