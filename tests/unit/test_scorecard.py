"""The scorecard against worlds in which the truth is known, and its classifier on faces that it has not seen."""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from latent_arith import scorecard
from latent_arith.attribute_classifier import AttributeClassifier, AttributeNetwork, train_attribute_classifier
from latent_arith.datasets import synthetic_faces as faces

STRENGTHS = np.arange(-2, 3).astype(np.float32)
TARGETS = np.array([0, 1])
LATENTS = np.random.default_rng(0).normal(0, 0.02, (40, 5)).astype(np.float32)
VECTORS = np.array([[1, 0.5, 0, 0, 0], [-0.25, 1, 0, 0, 0]], np.float32)
HAIR = ("Black_Hair", "Brown_Hair", "Blond_Hair", "Gray_Hair")


def decode(latents: np.ndarray) -> np.ndarray:
    return latents


def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A world in which attribute a has probability ½ + 0.1 z_a, and factors are the latents."""
    return 0.5 + 0.1 * images[:, :3], images


@pytest.fixture(scope="module")
def world() -> tuple[np.ndarray, np.ndarray]:
    return scorecard.dose_response(predict, decode, LATENTS, VECTORS, STRENGTHS)


@pytest.fixture(scope="module")
def painted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, attributes, factors = faces.paint_faces(jax.random.key(1), np.arange(640), 0.0)
    return np.asarray(images), np.asarray(attributes), np.stack(factors, axis=-1)


@pytest.fixture(scope="module")
def classifier(painted: tuple[np.ndarray, np.ndarray, np.ndarray]) -> AttributeClassifier:
    """Trained on 512 faces for 192 steps, and on an attribute and a factor that do not vary."""
    images, attributes, factors = (part[:512] for part in painted)
    attributes = np.pad(attributes, ((0, 0), (0, 1)), constant_values=1)
    factors = np.pad(factors, ((0, 0), (0, 1)), constant_values=7)
    names = (*faces.ATTRIBUTES, "Constant")
    return train_attribute_classifier(jax.random.key(0), images, attributes, factors, names, epochs=6, batch_size=16)


def test_responses_are_what_is_seen_in_every_moved_face(world: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, predicted = world
    assert probabilities.shape == (2, 5, 40, 3) and predicted.shape == (2, 5, 40, 5)
    assert probabilities.dtype == predicted.dtype == np.float32
    for (row, vector), (step, factor) in ((a, b) for a in enumerate(VECTORS) for b in enumerate(STRENGTHS)):
        np.testing.assert_allclose(predicted[row, step], LATENTS + factor * vector, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_responses_do_not_depend_on_how_many_faces_are_in_memory(
    rows: int, world: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(len(images))
        return predict(images)

    monkeypatch.setattr(scorecard, "global_batch_size", lambda: rows)
    again = scorecard.dose_response(counted, decode, LATENTS, VECTORS, STRENGTHS)
    for one, other in zip(again, world, strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(seen) <= 10 * rows


def test_leakage_of_a_linear_world_is_known(world: tuple[np.ndarray, np.ndarray]) -> None:
    """A step of 2 along (1, ½, 0) changes the probabilities by 20, 10 and 0 points, in every face alike."""
    moved = scorecard.measure_changes(world[0], STRENGTHS, 2.0)
    expected = [[20, 10, 0], [-5, 20, 0]]
    for numbers in scorecard.measure_leakage(moved):
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=1e-4)
    nothing = scorecard.measure_changes(world[0], STRENGTHS, 0.0)
    assert not nothing.any()


def test_mean_leakage_is_told_with_and_without_exclusive_pairs(world: tuple[np.ndarray, np.ndarray]) -> None:
    moved = scorecard.measure_changes(world[0], STRENGTHS, 2.0)
    exclusive = np.array([[False, True, False], [False, False, False]])
    compatible, everything = scorecard.measure_mean_leakage(moved, TARGETS, exclusive)
    for numbers in compatible:
        np.testing.assert_allclose(numbers, [0, 2.5], rtol=0, atol=1e-4)
    for numbers in everything:
        np.testing.assert_allclose(numbers, [5, 2.5], rtol=0, atol=1e-4)


def test_mean_leakage_without_others_is_zero(world: tuple[np.ndarray, np.ndarray]) -> None:
    moved = scorecard.measure_changes(world[0], STRENGTHS, 2.0)
    compatible, everything = scorecard.measure_mean_leakage(moved, TARGETS, np.ones((2, 3), bool))
    assert not np.any(compatible) and np.all(everything.value > 0)


def test_reached_counts_faces(world: tuple[np.ndarray, np.ndarray]) -> None:
    found = scorecard.success_rate(world[0], TARGETS)
    share = np.mean(LATENTS[:, :2] >= 0, axis=0)
    expected = np.stack([[0, 0, of_target, 1, 1] for of_target in share])
    np.testing.assert_allclose(found.value, expected)
    assert np.all(found.low <= found.value) and np.all(found.value <= found.high)
    assert np.all(found.low[:, 2] < found.high[:, 2])


def test_identity_distance_leaves_out_what_defines_the_target(world: tuple[np.ndarray, np.ndarray]) -> None:
    """Along (1, ½, 0, 0, 0) the four latents other than the first move by (½, 0, 0, 0) · factor."""
    deviations = np.array([1, 0.5, 1, 1, 0], np.float32)  # the last factor is constant in the population
    distance = scorecard.measure_identity_distance(world[1], STRENGTHS, np.eye(2, 5, dtype=bool), deviations)
    for numbers in distance:
        np.testing.assert_allclose(numbers[0], np.abs(STRENGTHS) / 2, rtol=0, atol=1e-5)
        np.testing.assert_allclose(numbers[1], np.abs(STRENGTHS) / 8, rtol=0, atol=1e-5)
    alone = scorecard.measure_identity_distance(world[1], STRENGTHS, np.ones((2, 5), bool), deviations)
    assert not np.any(alone)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """300 samples of 60 faces that show an attribute with probability 0.3: about 95% of the intervals hold it."""
    found = np.random.default_rng(0).random((1, 300, 60, 1)) < 0.3
    estimate = scorecard.success_rate(found.astype(np.float32), np.array([0]))
    held = np.mean((estimate.low <= 0.3) & (estimate.high >= 0.3))
    assert 0.9 < held < 0.99
    np.testing.assert_allclose(np.mean(estimate.high - estimate.low), 2 * 1.96 * np.sqrt(0.3 * 0.7 / 60), rtol=0.05)


def test_a_share_of_none_or_all_has_an_interval() -> None:
    found = np.stack([np.zeros((60, 1)), np.ones((60, 1))])[None].astype(np.float32)
    estimate = scorecard.success_rate(found, np.array([0]))
    np.testing.assert_allclose(estimate.low, [[0, 1 - 0.0602]], atol=1e-4)  # 1.96² / (60 + 1.96²)
    np.testing.assert_allclose(estimate.high, [[0.0602, 1]], atol=1e-4)


def test_intervals_repeat_with_the_seed_and_differ_without() -> None:
    changes = np.random.default_rng(0).random((60, 1, 9))
    one, same, other = (scorecard.measure_leakage(changes, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one.low != other.low) and np.all(one.value == other.value)


def test_factors_that_were_not_tried_are_refused(world: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="strength 3 is not among -2, -1, 0, 1, 2"):
        scorecard.measure_changes(world[0], STRENGTHS, 3.0)


def test_hair_colours_and_nothing_else_exclude_one_another(painted: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    exclusive = np.argwhere(scorecard.find_exclusive_pairs(painted[1]))
    pairs = {(faces.ATTRIBUTES[one], faces.ATTRIBUTES[other]) for one, other in exclusive}
    assert pairs == set(permutations(HAIR, 2))


def test_an_attribute_that_never_occurs_excludes_none() -> None:
    table = np.array([[1, -1, -1], [-1, 1, -1]], np.int8)
    np.testing.assert_array_equal(scorecard.find_exclusive_pairs(table), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    """AUC = U / (n₁ n₀) of the Mann-Whitney statistic, of the probe's own order, which one latent alone determines."""
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((400, 1)).astype(np.float32)
    attributes = np.where(latents + generator.standard_normal((400, 1)) > 0.5, 1, -1).astype(np.int8)
    (area,) = scorecard.probe_auc(latents[:200], attributes[:200], latents[200:], attributes[200:])
    tested, has = latents[200:, 0], attributes[200:, 0] > 0
    statistic = mannwhitneyu(tested[has], tested[~has]).statistic
    assert area == pytest.approx(statistic / (has.sum() * (~has).sum()), abs=1e-9)


def test_attributes_of_one_class_have_no_area() -> None:
    latents = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    attributes = np.where(latents > 0, 1, -1).astype(np.int8)
    attributes[:50, 1], attributes[50:, 2], attributes[:, 3] = 1, -1, 1
    areas = scorecard.probe_auc(latents[:50], attributes[:50], latents[50:], attributes[50:])
    assert areas[1:] == [None, None, None] and areas[0] is not None and areas[0] > 0.95


def test_log_odds_are_finite_and_undo_the_sigmoid() -> None:
    values = scorecard.log_odds(np.array([0, 1 / (1 + np.exp(-2.0)), 0.5, 1], np.float32))
    assert np.isfinite(values).all() and values[0] == pytest.approx(-values[3], rel=1e-9)
    np.testing.assert_allclose(values[1:3], [2, 0], atol=1e-6)


@pytest.mark.lenient
def test_the_classifier_tells_hair_and_hats_of_faces_it_has_not_seen(
    classifier: AttributeClassifier, painted: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """On 128 faces; who always says no is right in 74%. What is small, such as brows, takes longer to learn.

    The worst of five seeds gave 0.953. A number below 0.9 means that the network learns more slowly than it did.
    """
    images, attributes, _ = (part[512:] for part in painted)
    probabilities, _ = classifier.predict(images)
    right = scorecard.measure_accuracy(probabilities[:, :-1], attributes)
    assert np.mean(right[[faces.ATTRIBUTES.index(name) for name in (*HAIR, "Wearing_Hat")]]) > 0.9
    assert np.mean(right) > np.mean(np.maximum(np.mean(attributes > 0, axis=0), np.mean(attributes < 0, axis=0)))


@pytest.mark.lenient
def test_what_does_not_vary_in_training_is_predicted_as_it_is(
    classifier: AttributeClassifier, painted: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    probabilities, factors = classifier.predict(painted[0][512:])
    assert np.isfinite(probabilities).all() and np.isfinite(factors).all()
    assert np.all(probabilities[:, -1] > 0.9)
    assert np.all(factors[:, -1] == 7)


@pytest.mark.lenient
def test_a_prediction_does_not_depend_on_the_images_beside_it(
    classifier: AttributeClassifier, painted: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    images = painted[0][:70]
    together = classifier.predict(images)
    for rows in (np.arange(70)[::-1], np.array([3]), np.arange(40, 65)):
        for one, other in zip(classifier.predict(images[rows]), together, strict=True):
            np.testing.assert_allclose(one, other[rows], rtol=0, atol=2e-6)


def test_a_classifier_without_factors_predicts_none() -> None:
    shapes = jax.eval_shape(AttributeNetwork(2).init, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    empty = np.zeros(0, np.float32)
    probabilities, factors = AttributeClassifier(("one", "other"), AttributeNetwork(2), params, empty, empty).predict(
        np.zeros((3, 128, 128, 3), np.uint8)
    )
    assert probabilities.shape == (3, 2) and factors.shape == (3, 0)


def test_examples_that_do_not_fit_together_are_told() -> None:
    images, attributes = np.zeros((4, 128, 128, 3), np.uint8), np.ones((4, 2), np.int8)
    with pytest.raises(ValueError, match=r"4 images and 1 names, but attributes \(4, 2\) and factors \(4, 0\)"):
        train_attribute_classifier(jax.random.key(0), images, attributes, np.zeros((4, 0)), ("one",))
