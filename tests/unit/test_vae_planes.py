"""Two-dimensional views of a latent space."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from vae.planes import fit_plane

GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize("dimensions", [3, 10])
def test_plane_of_largest_variance_is_scikit_learns(dimensions: int) -> None:
    codes = GENERATOR.normal(2, 1, (400, dimensions)) * np.linspace(3, 0.5, dimensions)
    plane, oracle = fit_plane(codes.astype(np.float32)), PCA(2).fit(codes)
    for axis, component in zip(plane.axes, oracle.components_, strict=True):
        assert abs(axis @ component) == pytest.approx(1, abs=1e-5)
    rebuilt = plane.embed(plane.project(codes))
    best = oracle.inverse_transform(oracle.transform(codes))
    np.testing.assert_allclose(rebuilt, best, atol=1e-4)


def test_two_dimensions_are_shown_as_they_are() -> None:
    codes = GENERATOR.normal(size=(20, 2)).astype(np.float32)
    plane = fit_plane(codes)
    np.testing.assert_array_equal(plane.project(codes), codes)
    np.testing.assert_array_equal(plane.embed(codes), codes)


def test_one_dimension_lies_on_a_line() -> None:
    codes = GENERATOR.normal(size=(20, 1)).astype(np.float32)
    plane = fit_plane(codes)
    np.testing.assert_array_equal(plane.project(codes), np.hstack([codes, np.zeros((20, 1))]))
    assert plane.embed(plane.project(codes)).shape == codes.shape
