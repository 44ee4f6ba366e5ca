"""Estimators compared, and representations measured, in a world whose latents are its factors."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from latent_arith import comparison, representation
from latent_arith.attribute_classifier import AttributeClassifier, AttributeNetwork
from latent_arith.comparison import Comparison, compare_estimators
from latent_arith.scoring import Judge
from latentlab.disentanglement import Part
from latentlab.errors import UserError

NAMES = ("One", "Other", "All")
DIM = 4
GENERATOR = np.random.default_rng(0)


@dataclass(frozen=True, eq=False)
class World(Judge):
    """A judge to whom pictures are latents: attributes are the signs of the first two, and all have the third."""

    def predict(self, images):
        images = np.asarray(images, np.float32)
        logits = np.concatenate([8 * images[:, :2], np.full((len(images), 1), 9.0)], axis=1)
        return (1 / (1 + np.exp(-logits))).astype(np.float32), images

    def identity_values(self, targets, seen, factors):
        defining = np.arange(DIM) == targets[:, None]
        return factors, defining, np.ones(DIM, np.float32)


@pytest.fixture(scope="module")
def judge() -> World:
    classifier = AttributeClassifier(NAMES, AttributeNetwork(3), {}, np.zeros(DIM), np.ones(DIM))
    nothing = np.zeros((3, 3), bool)
    return World(classifier, nothing, np.zeros((3, DIM), bool), np.ones(3), np.ones(3))


def draw_world(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of which the second follows the first, and who has which attribute."""
    latents = GENERATOR.normal(size=(n, DIM)).astype(np.float32)
    latents[:, 1] = 0.7 * latents[:, 0] + 0.7 * latents[:, 1]
    has = np.concatenate([latents[:, :2] > 0, np.ones((n, 1), bool)], axis=1)
    return latents, np.where(has, 1, -1).astype(np.int8)


@pytest.fixture(scope="module")
def compared(judge: World) -> Comparison:
    latents, attributes = draw_world(4000)
    held_out, _ = draw_world(100)
    return compare_estimators(judge, lambda rows: rows, latents, attributes, NAMES, held_out, resamples=3, seed=1)


def test_all_estimators_are_compared_on_targets_that_have_a_direction(compared: Comparison) -> None:
    assert compared.names == tuple(
        f"{kind} {variant}" for variant in ("raw", "balanced") for kind in ("means", "logistic", "svm", "lda")
    )
    assert compared.targets == ("One", "Other")  # all images have All
    assert compared.vectors.shape == (8, 2, DIM)
    assert np.all(compared.standard_error_degrees > 0)
    assert compared.images == 4000 and compared.faces == 100


def test_what_leaks_is_what_the_raw_difference_of_means_takes_along(compared: Comparison) -> None:
    own, first = compared.cost("leakage")
    costs = dict(zip(compared.names, own.value, strict=True))
    assert costs["means raw"] > 1.5 * costs["means balanced"]
    assert costs["logistic raw"] < 0.5 * costs["means raw"]  # a boundary conditions on the other latents
    assert np.all(own.low <= own.value) and np.all(own.value <= own.high)
    np.testing.assert_allclose(first.value, costs["means raw"])  # on the same two attributes for every estimator


def test_curves_begin_at_no_change_and_success_grows(compared: Comparison) -> None:
    for cost in ("leakage", "identity"):
        curve = compared.curve(cost)
        np.testing.assert_allclose(curve.value[:, 0], 0, atol=1e-6)
    success = compared.curve("success").value
    assert np.all(np.diff(success, axis=1) >= 0) and np.all(success[:, -1] > 0.99)
    assert compared.count_reached().tolist() == [2] * 8


def test_identity_distance_is_how_far_other_latents_move(compared: Comparison) -> None:
    balanced = compared.names.index("means balanced")
    moved = compared.scores[balanced].identity[0]
    strengths = comparison.STRENGTHS
    for row, vector in enumerate(compared.vectors[balanced]):
        latents_along = np.sqrt(vector @ np.cov(draw_world(20_000)[0].T) @ vector)
        others = np.delete(vector, row) * latents_along
        np.testing.assert_allclose(moved[row], strengths * np.sqrt(np.mean(others**2)), rtol=0.1, atol=1e-3)


def test_costs_are_compared_on_targets_that_both_reach(compared: Comparison) -> None:
    first, second, *others = compared.scores
    weak = second._replace(success=second.success * np.asarray([[[1], [0.1]]]))
    found = replace(compared, scores=(first, weak, *others))
    assert found.count_reached().tolist() == [2, 1, *[2] * 6]
    own, of_first = found.cost("leakage")
    assert own.value[1] == pytest.approx(comparison.cost_at(weak.success[0, 0], weak.leakage[0, 0], 0.8))
    assert of_first.value[1] == pytest.approx(comparison.cost_at(first.success[0, 0], first.leakage[0, 0], 0.8))
    nobody = replace(compared, scores=tuple(each._replace(success=0 * each.success) for each in compared.scores))
    assert np.isnan(nobody.cost("leakage")[0].value).all()
    assert nobody.describe()["estimators"]["svm raw"]["reached"] == 0


def test_what_is_stored_and_told(compared: Comparison) -> None:
    stored = compared.arrays()
    assert stored["success"].shape == (8, 2, len(comparison.STRENGTHS))
    assert stored["mean_cosines"].shape == (8, 8)
    np.testing.assert_allclose(np.diag(stored["mean_cosines"]), 1, atol=1e-5)
    told = compared.describe()["estimators"]["means raw"]
    assert told["angle_degrees"] == pytest.approx(0, abs=0.1)
    assert len(told["leakage_at_success"]) == 3


def test_images_that_are_all_alike_are_refused(judge: World) -> None:
    latents, attributes = draw_world(50)
    with pytest.raises(UserError, match="among the first 50 training images, compared_images, no attribute has"):
        compare_estimators(judge, lambda rows: rows, latents, attributes**2, NAMES, latents, resamples=0)


def test_components_are_named_by_the_factor_they_follow() -> None:
    factors = GENERATOR.normal(size=(3000, 3))
    latents = np.stack([-5 * factors[:, 1], 0.1 * GENERATOR.normal(size=3000), 2 * factors[:, 0]], axis=1)
    found = representation.find_components(
        latents.astype(np.float32), Part(latents.astype(np.float32), factors.astype(np.float32)), ("a", "b", "c")
    )
    assert [name for name, _ in found.strongest()][:2] == ["b", "a"]
    np.testing.assert_allclose([correlation for _, correlation in found.strongest()][:2], 1, atol=1e-3)
    np.testing.assert_allclose(found.vectors[0], [-1, 0, 0], atol=0.02)  # the sign makes the correlation positive
    np.testing.assert_allclose(found.deviations, [5, 2, 0.1], rtol=0.1)
    np.testing.assert_allclose(found.explained.sum(), 1, atol=1e-5)
    assert found.describe()[0]["factor"] == "b"
