"""Attribute directions against NumPy in float64, and what they must not depend on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from sklearn.decomposition import PCA

from latent_arith import directions
from latent_arith.config import PRESETS
from latent_arith.datasets.face_data import FaceData
from latent_arith.datasets.tables import Table
from latent_arith.directions import Batch, Directions

LATENT = 12
NAMES = ("first", "second", "third")


def population(n: int, seed: int = 0, coupling: float = 0.0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Images that are latents in disguise: attribute a moves them by 2 along axis a; the second follows the first."""
    generator = np.random.default_rng(seed)
    attributes = np.where(generator.random((n, len(NAMES))) < 0.4, 1, -1).astype(np.int8)
    copied = generator.random(n) < coupling
    attributes[copied, 1] = attributes[copied, 0]
    latents = spread * generator.standard_normal((n, LATENT))
    latents[:, : len(NAMES)] += attributes
    return (latents + 5).astype(np.float32), attributes


def batches(
    images: np.ndarray, attributes: np.ndarray, size: int, weights: np.ndarray | None = None
) -> Iterator[Batch]:
    weights = np.ones(attributes.shape, np.float32) if weights is None else weights
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        yield images[rows], attributes[rows], weights[None, rows]


def find(images: np.ndarray, attributes: np.ndarray, size: int = 500, **options: Any) -> Any:
    weights = options.pop("weights", None)
    read = batches(images, attributes, size, weights)
    return Single(directions.find_directions(jnp.asarray, read, NAMES, ("raw",), **options))


class Single:
    """Directions of the only estimator, without its axis."""

    def __init__(self, found: Directions) -> None:
        self.names, self.left_out, self.arrays = found.names, found.left_out, found.arrays
        for name in ("vectors", "distances", "n_positive", "n_negative", "standard_error_degrees"):
            (values,) = getattr(found, name)
            setattr(self, name, values)
        self.vector = lambda name: found.vector(name, "raw")


def by_hand(images: np.ndarray, has: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones(len(images)) if weights is None else weights.astype(np.float64)
    one, other = (np.average(images[g].astype(np.float64), axis=0, weights=weights[g]) for g in (has, ~has))
    return one - other


@pytest.mark.parametrize("size", [1, 7, 500, 2000])
@pytest.mark.parametrize("weighted", [False, True])
def test_directions_are_scaled_mean_differences_whatever_the_batch(size: int, weighted: bool) -> None:
    images, attributes = population(1203)
    weights = np.random.default_rng(1).uniform(0.5, 2, attributes.shape).astype(np.float32) if weighted else None
    found = find(images, attributes, size, weights=weights)
    assert found.names == NAMES and found.vectors.dtype == np.float32
    for index in range(len(NAMES)):
        has = attributes[:, index] > 0
        difference = by_hand(images, has, None if weights is None else weights[:, index])
        assert found.distances[index] == pytest.approx(np.linalg.norm(difference), rel=1e-5)
        np.testing.assert_allclose(found.vectors[index], difference / np.linalg.norm(difference), rtol=0, atol=1e-5)
        assert (found.n_positive[index], found.n_negative[index]) == (has.sum(), (~has).sum())
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-6)


def test_float32_loses_nothing_far_from_the_origin_over_many_images() -> None:
    """Sums of 60,000 numbers around 1,000 would be off by 0.01 if they were added up one by one in float32."""
    images, attributes = population(60_000)
    images += np.float32(1000)
    found = find(images, attributes)
    difference = by_hand(images, attributes[:, 0] > 0)
    np.testing.assert_allclose(found.vectors[0] * found.distances[0], difference, rtol=0, atol=2e-4)


def test_an_attribute_without_positives_or_negatives_is_left_out() -> None:
    images, attributes = population(100)
    attributes[:, 0], attributes[:, 2] = -1, 1
    found = find(images, attributes)
    assert found.names == ("second",) and found.left_out == ("first", "third")
    assert all(np.isfinite(array).all() for name, array in found.arrays().items() if name != "names")
    with pytest.raises(KeyError, match="no direction 'first'; there are second"):
        found.vector("first")


def test_unknown_attributes_count_for_neither_side() -> None:
    images, attributes = population(300)
    attributes[::3, 1] = 0
    found, known = find(images, attributes), find(images[attributes[:, 1] != 0], attributes[attributes[:, 1] != 0])
    np.testing.assert_allclose(found.vector("second"), known.vector("second"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_standard_error_is_the_angle_by_which_directions_scatter(weighted: bool) -> None:
    """Root mean square over 150 samples of the angle to the true axis, against the error that each sample claims."""
    angles, claimed = [], []
    for seed in range(150):
        images, attributes = population(200, seed)
        weights = np.random.default_rng(seed).choice([0.2, 2.0], attributes.shape).astype(np.float32)
        found = find(images, attributes, weights=weights if weighted else None)
        angles.append(np.degrees(np.arccos(np.clip(found.vectors[0, 0], -1, 1))))
        claimed.append(found.standard_error_degrees[0])
    assert np.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.sqrt(np.mean(np.square(angles))), rel=0.1)


def test_stderr_reads_until_every_direction_is_known_well_enough() -> None:
    images, attributes = population(20_000)
    attributes[(attributes[:, 2] > 0) & (np.random.default_rng(3).random(20_000) < 0.8), 2] = 0  # few known positives
    found = find(images, attributes, rule="stderr", stderr_degrees=4.0)
    read = found.n_positive + found.n_negative
    assert read[0] == read[1] > read[2] and 500 < read[0] < 20_000
    assert found.standard_error_degrees.max() < 4.0
    sooner = find(images[: read[0] - 500], attributes[: read[0] - 500])
    assert sooner.standard_error_degrees.max() >= 4.0


def test_classic_stops_every_attribute_of_its_own_at_unit_length_whatever_the_batch() -> None:
    images, attributes = population(20_000, spread=0.5)
    attributes[:600, 0] = -1  # no positive in the first block
    attributes[:, 2] = np.where(np.random.default_rng(3).random(20_000) < 0.05, 1, -1)
    found = find(images, attributes, rule="classic")
    read = found.n_positive + found.n_negative
    assert len(set(read)) > 1 and read.max() < 20_000 and (read % 500 == 0).all()
    for size in (1, 7):
        np.testing.assert_array_equal(find(images, attributes, size, rule="classic").vectors, found.vectors)


def classic_positives(latents: np.ndarray, has: np.ndarray) -> int:
    """How many positives the original's loop reads, as it is written in it, of posterior means in blocks of 500."""
    sums, counts, means, moved = np.zeros((2, LATENT)), [0, 0], np.zeros((2, LATENT)), [0.0, 0.0]
    for start in range(0, len(latents), 500):
        block, members = latents[start : start + 500], has[start : start + 500]
        for group, chosen in enumerate((~members, members)):
            if chosen.any():
                sums[group] += block[chosen].sum(axis=0)
                counts[group] += int(chosen.sum())
                moved[group] = float(np.linalg.norm(sums[group] / counts[group] - means[group]))
                means[group] = sums[group] / counts[group]
        if counts[1] and sum(moved) < 0.08:
            break
    return counts[1]


@pytest.mark.parametrize("shares", [(0.0005, 0.001, 0.003), (0.01, 0.05, 0.5)])
def test_classic_stops_where_the_original_does_however_rare_the_attribute(shares: tuple[float, ...]) -> None:
    """Where a block has no positive, the movement of the last one that had some stands."""
    images, _ = population(60_000, spread=0.3)
    images[:, 0] += 20  # far from 0, where the original's means begin
    has = np.random.default_rng(5).random((len(images), 3)) < shares
    found = find(images, np.where(has, 1, -1).astype(np.int8), rule="classic")
    assert found.n_positive.tolist() == [classic_positives(images, column) for column in has.T]


def test_classic_normalises_at_its_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "CLASSIC_MOVEMENT", 0.0)
    monkeypatch.setattr(directions, "CLASSIC_POSITIVES", 1000)
    found = find(*population(20_000), rule="classic")
    assert ((found.n_positive >= 1000) & (found.n_positive < 1500)).all()
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, rtol=1e-6)


def test_balanced_directions_are_clean_where_raw_ones_are_entangled() -> None:
    images, attributes = population(20_000, coupling=0.6)
    raw = find(images, attributes)
    balanced = find(images, attributes, weights=directions.inverse_propensity_weights(attributes))
    assert raw.vectors[0, 1] > 0.4
    assert abs(balanced.vectors[0, 1]) < 0.05
    assert abs(balanced.vectors[0] @ balanced.vectors[1]) < 0.1 < 0.7 < raw.vectors[0] @ raw.vectors[1]


def test_attributes_that_exclude_one_another_do_not_hide_the_others() -> None:
    """Blond and black hair exclude one another, and blond goes with pale skin: its direction must not point to pale."""
    generator = np.random.default_rng(0)
    tone, own = generator.standard_normal((2, 40_000))
    skin = 0.7 * tone + 0.714 * own
    attributes = np.where(np.stack([tone > 0.5, tone < -0.5, skin > 0], axis=1), 1, -1).astype(np.int8)
    images = generator.standard_normal((len(tone), LATENT)).astype(np.float32)
    images[:, 0] += attributes[:, 0]
    images[:, 2] += attributes[:, 2]
    raw, balanced = (
        find(images, attributes, weights=weights).vector("first")
        for weights in (None, directions.inverse_propensity_weights(attributes))
    )
    assert raw[2] > 0.3
    assert abs(balanced[2]) < 0.03


def test_estimators_are_an_axis_of_one_pass() -> None:
    """Raw, balanced, and each half of the images, found at once, are those found one by one."""
    images, attributes = population(2000, coupling=0.5)
    balanced = directions.inverse_propensity_weights(attributes)
    even = np.broadcast_to((np.arange(2000) % 2 == 0)[:, None], attributes.shape).astype(np.float32)
    weights = {"raw": np.ones_like(balanced), "balanced": balanced, "raw half 0": even, "raw half 1": 1 - even}
    rows = [slice(start, start + 300) for start in range(0, 2000, 300)]
    stacked = np.stack(list(weights.values()))
    read = ((images[row], attributes[row], stacked[:, row]) for row in rows)
    found = directions.find_directions(jnp.asarray, read, NAMES, tuple(weights))
    assert found.vectors.shape == (4, 3, LATENT)
    for estimator in ("raw", "balanced"):
        alone = find(images, attributes, weights=weights[estimator])
        np.testing.assert_allclose(found.of(estimator), alone.vectors, rtol=0, atol=1e-6)
    for half in (0, 1):
        alone = find(images[half::2], attributes[half::2])
        np.testing.assert_allclose(found.of(f"raw half {half}"), alone.vectors, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.n_positive[2 + half], alone.n_positive)
    with pytest.raises(KeyError, match="no estimator 'orthogonal'; there are raw, balanced"):
        found.of("orthogonal")
    clean = found.with_orthogonal(np.zeros((3, 3), bool))
    gram = clean.of("orthogonal") @ clean.of("balanced").T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)


def test_weights_of_independent_or_constant_attributes_are_one() -> None:
    _, attributes = population(20_000)
    np.testing.assert_allclose(directions.inverse_propensity_weights(attributes), 1, atol=0.05)
    attributes[:, 1] = 1
    assert (directions.inverse_propensity_weights(attributes)[:, 1] == 1).all()


def test_orthogonal_directions() -> None:
    generator = np.random.default_rng(0)
    one, others = generator.standard_normal(LATENT), generator.standard_normal((4, LATENT))
    clean = directions.orthogonalize(one, others)
    np.testing.assert_allclose(others @ clean, 0, atol=1e-6)
    assert np.linalg.norm(clean) == pytest.approx(1, rel=1e-6) and clean @ one > 0
    with pytest.raises(ValueError, match="span"):
        directions.orthogonalize(others[0] - 2 * others[3], others)


@pytest.mark.parametrize("dependent", ["opposite", "twice", "sum", "nearly"])
def test_a_direction_is_made_orthogonal_to_dependent_others_and_to_nothing_else(dependent: str) -> None:
    """The others of complementary attributes are v and -v; the span they share is cut once, as float64's SVD says."""
    generator = np.random.default_rng(0)
    one, others = generator.standard_normal(LATENT), generator.standard_normal((3, LATENT))
    independent = others.copy()
    extra = {
        "opposite": -others[0],
        "twice": others[1],
        "sum": others[0] + others[2],
        "nearly": -others[0] * (1 + 1e-7),
    }
    others = np.concatenate([others, extra[dependent][None]]).astype(np.float32)
    wanted = one - independent.T @ np.linalg.lstsq(independent.T, one, rcond=None)[0]
    clean = directions.orthogonalize(one, others)
    np.testing.assert_allclose(clean, wanted / np.linalg.norm(wanted), atol=1e-5)


def test_where_the_others_span_all_dimensions_the_balanced_direction_stands() -> None:
    """As with 19 attributes in 8 dimensions."""
    angles = np.asarray([0.1, 1.0, 2.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    counts = np.ones((1, 3))
    found = directions.Directions(("a", "b", "c"), ("balanced",), vectors[None], 2 * counts, counts, counts, counts)
    exclusive = np.zeros((3, 3), bool)
    everything = found.with_orthogonal(exclusive)
    assert everything.without_orthogonal == ("a", "b", "c")
    np.testing.assert_array_equal(everything.of("orthogonal"), vectors)
    exclusive[0, 1] = exclusive[1, 0] = True
    some = found.with_orthogonal(exclusive)
    assert some.without_orthogonal == ("c",)
    np.testing.assert_allclose(some.of("orthogonal")[:2] @ vectors[2], 0, atol=1e-6)


def test_one_pass_and_one_compilation_serve_all_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    images, attributes = population(1700)
    calls = 0
    traces = directions.update_moments._cache_size()

    def encode(images: np.ndarray) -> Array:
        nonlocal calls
        calls += 1
        return jax.device_put(images)

    directions.find_directions(encode, batches(images, attributes, 100), NAMES)
    assert calls == 17
    assert directions.update_moments._cache_size() <= traces + 1


def test_shapes_that_do_not_fit_are_told() -> None:
    images, attributes = population(10)
    with pytest.raises(ValueError, match=r"10 images, 3 names and 1 estimators, but attributes \(10, 2\)"):
        find(images, attributes[:, :2])
    with pytest.raises(ValueError, match="no images"):
        directions.find_directions(jnp.asarray, [], NAMES)


def test_directions_without_attributes_are_principal_components() -> None:
    """Of Gaussian latents, by scikit-learn."""
    draw = np.random.default_rng(0)
    mixed = draw.normal(size=(4, 4)) * np.asarray([[9.0, 4, 2, 1]])
    latents = (draw.normal(size=(6000, 4)) @ mixed.T).astype(np.float32)
    images = np.zeros((6000, 1, 1, 3), np.uint8)
    rows = np.arange(6000)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = rows % 256, rows // 256

    def encode(pixels: Any) -> np.ndarray:
        pixels = np.asarray(pixels)
        return latents[pixels[:, 0, 0, :2].astype(int) @ [1, 256]]

    config = replace(PRESETS["quick"], held_out_images=500, classifier_images=500)
    table = Table(tuple(map(str, rows)), (), np.zeros((6000, 0), np.int8))
    data = FaceData.split(images, table, config, {"source": "noise"}).label_by_components(encode)
    assert data.table.names == ("component_1", "component_2", "component_3", "component_4")
    expected = PCA(4).fit(latents[data.train])
    sides = np.where(expected.transform(latents[data.held_out]) > 0, 1, -1)
    np.testing.assert_array_equal(data.table.values[data.held_out], sides)
    assert data.classifier.attributes.shape == (500, 4)
    np.testing.assert_allclose(data.description["explained_variance"], expected.explained_variance_ratio_)
    batch = (data.source[data.train], data.table.values[data.train], np.ones((1, 5000, 4), np.float32))
    found = directions.find_directions(encode, [batch], data.table.names)
    cosines = np.sum(found.of("raw") * expected.components_, axis=1)
    assert (cosines[:3] > 0.99).all()
