"""Estimators of directions on Gaussian latents, whose best directions are known, and against scikit-learn's LDA."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from latent_arith import estimators
from latent_arith.comparison import cost_at
from latent_arith.directions import inverse_propensity_weights

N, DIM = 4000, 12
SHIFT = np.eye(DIM)[0] * 1.5


@pytest.fixture(scope="module")
def gaussians():
    """Two Gaussians of one covariance that is far from round, their covariance, and who belongs to the second."""
    generator = np.random.default_rng(0)
    root = np.eye(DIM) + 0.9 * np.eye(DIM, k=1)
    has = generator.random(N) < 0.3
    latents = generator.normal(size=(N, DIM)) @ root + has[:, None] * SHIFT
    return latents.astype(np.float32), has, root.T @ root


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_means_point_along_the_shift_and_boundaries_along_the_inverse_covariance_times_it(gaussians):
    latents, has, covariance = gaussians
    normal = np.linalg.solve(covariance, SHIFT)
    assert cosine(normal, SHIFT) < 0.8  # the two answers differ
    found = {name: fit(latents, has, np.ones(N)) for name, fit in estimators.FITS.items()}
    assert cosine(found.pop("means"), SHIFT) > 0.99
    for name, vector in found.items():
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert cosine(vector, normal) > 0.99, name


def test_lda_is_scikit_learns_with_the_same_shrinkage(gaussians):
    latents, has, _ = gaussians
    centred = latents - np.stack([latents[~has].mean(axis=0), latents[has].mean(axis=0)])[has.astype(int)]
    _, shrinkage = ledoit_wolf(centred, assume_centered=True)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(latents, has).coef_[0]
    assert cosine(estimators.fit_lda(latents, has, np.ones(N)), theirs) > 1 - 1e-6


@pytest.mark.parametrize("name", estimators.FITS)
def test_a_weight_of_two_is_the_image_twice(gaussians, name):
    latents, has, _ = gaussians
    latents, has = latents[:600], has[:600]
    twice = np.arange(600) < 200
    weighted = estimators.FITS[name](latents, has, 1.0 + twice)
    rows = np.concatenate([np.arange(600), np.flatnonzero(twice)])
    repeated = estimators.FITS[name](latents[rows], has[rows], np.ones(800))
    assert cosine(weighted, repeated) > (
        0.99 if name == "lda" else 0.99999
    )  # LDA shrinks more where there are fewer rows


def test_balanced_weights_turn_every_estimator_away_from_a_correlated_attribute():
    generator = np.random.default_rng(1)
    other = generator.random(N) < 0.5
    has = np.where(generator.random(N) < 0.8, other, generator.random(N) < 0.5)
    latents = generator.normal(size=(N, DIM)).astype(np.float32) * 0.7
    latents[:, 0] += has
    latents[:, 1] += other
    weights = inverse_propensity_weights(np.where(np.stack([has, other], axis=1), 1, -1).astype(np.int8))[:, 0]
    for name, fit in estimators.FITS.items():
        raw, balanced = fit(latents, has, np.ones(N)), fit(latents, has, weights)
        assert balanced[0] > 0.97, name
        assert abs(balanced[1]) < 0.12, name
        if name == "means":  # the others condition on the whole latent, so that the other attribute is not in them
            assert raw[1] > 0.5


def test_standard_error_by_bootstrap_is_that_of_theory(gaussians):
    latents, has, covariance = gaussians
    weights = np.ones(N)
    direction = estimators.fit_means(latents, has, weights)
    resampled = estimators.bootstrap(estimators.fit_means, latents, has, weights, 200)
    across = np.trace(covariance) - SHIFT @ covariance @ SHIFT / (SHIFT @ SHIFT)
    theory = np.degrees(np.sqrt(across * (1 / has.sum() + 1 / (~has).sum())) / np.linalg.norm(SHIFT))
    assert estimators.standard_error_degrees(direction, resampled) == pytest.approx(theory, rel=0.1)


def test_no_resamples_have_no_standard_error(gaussians):
    latents, has, _ = gaussians
    resampled = estimators.bootstrap(estimators.fit_means, latents, has, np.ones(N), 0)
    assert resampled.shape == (0, DIM)
    assert np.isnan(estimators.standard_error_degrees(SHIFT.astype(np.float32), resampled))


def test_resamples_that_lose_a_group_are_left_out():
    latents = np.eye(3, dtype=np.float32)
    has = np.asarray([True, False, False])
    resampled = estimators.bootstrap(estimators.fit_means, latents, has, np.ones(3), 50)
    lost = np.isnan(resampled).any(axis=1)
    assert 0 < lost.sum() < 50
    direction = estimators.fit_means(latents, has, np.ones(3))
    assert np.isfinite(estimators.standard_error_degrees(direction, resampled))


def test_cost_is_read_where_success_first_reaches_the_level():
    success = np.asarray([[0.0, 0.4, 0.8, 1.0], [0.9, 1.0, 1.0, 1.0], [0.0, 0.1, 0.2, 0.3], [0.2, 0.9, 0.5, 1.0]])
    cost = np.asarray([0.0, 1.0, 3.0, 7.0])
    np.testing.assert_allclose(cost_at(success, np.broadcast_to(cost, success.shape), 0.6), [2, 0, np.nan, 4 / 7])
