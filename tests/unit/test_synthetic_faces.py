"""Synthetic faces: what an image depends on, how often attributes occur and together, and where a factor shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from latent_arith.datasets import synthetic_faces as faces

KEY = jax.random.key(0)
MANY = np.arange(2000)
NEUTRAL = faces.Factors(*(jnp.float32(0.0 if name in faces.SIGNED else 0.5) for name in faces.Factors._fields))

label = jax.jit(jax.vmap(faces.attributes_of))
paint = jax.jit(faces.render)


def column(table: Array, name: str) -> np.ndarray:
    return np.asarray(table)[:, faces.ATTRIBUTES.index(name)]


def changed(**factors: float) -> np.ndarray:
    """Where the neutral face changes with some of its factors, (128, 128)."""
    other = NEUTRAL._replace(**{name: jnp.float32(value) for name, value in factors.items()})
    return np.any(np.asarray(paint(other)) != np.asarray(paint(NEUTRAL)), axis=-1)


def phi(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def stacked(drawn: tuple[Array, Array, faces.Factors]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.asarray(drawn[0]), np.asarray(drawn[1]), np.stack(drawn[2], axis=-1)


def test_an_image_is_the_same_alone_and_in_any_batch_and_order() -> None:
    whole = stacked(faces.paint_faces(KEY, np.arange(80)))
    order = np.random.default_rng(0).permutation(80)
    for indices in (order, order[:50], np.arange(30, 33), *order[:20, None]):
        for got, want in zip(stacked(faces.paint_faces(KEY, np.asarray(indices))), whole, strict=True):
            np.testing.assert_array_equal(got, want[indices])


def test_parts_for_one_face_give_what_is_given_for_many() -> None:
    images, attributes, factors = stacked(faces.paint_faces(KEY, np.arange(12)))
    for index in range(12):
        alone = faces.Factors(*(values[0] for values in faces.draw_factors(KEY, np.asarray([index]))))
        np.testing.assert_array_equal(np.stack(alone), factors[index])
        np.testing.assert_array_equal(faces.attributes_of(alone), attributes[index])
        difference = np.asarray(paint(alone)).astype(int) - images[index]
        assert np.max(np.abs(difference)) <= 1 and np.mean(difference != 0) < 1e-3  # another program rounds otherwise


def test_no_faces_are_an_empty_batch() -> None:
    images, attributes, factors = faces.paint_faces(KEY, np.arange(0))
    assert images.shape == (0, 128, 128, 3) and attributes.shape == (0, len(faces.ATTRIBUTES))
    assert factors.smile.shape == (0,)


def test_images_of_other_indices_and_other_keys_differ() -> None:
    images = np.asarray(faces.paint_faces(KEY, np.arange(12))[0])
    others = np.asarray(faces.paint_faces(jax.random.key(1), np.arange(12))[0])
    together = np.concatenate([images, others]).reshape(24, -1).astype(np.int32)
    distances = np.abs(together[:, None] - together[None]).mean(axis=-1)
    assert np.min(distances[~np.eye(24, dtype=bool)]) > 5


def test_shapes_and_types() -> None:
    images, attributes, factors = faces.paint_faces(KEY, np.arange(12))
    assert images.shape == (12, 128, 128, 3) and images.dtype == jnp.uint8
    assert attributes.shape == (12, len(faces.ATTRIBUTES)) and attributes.dtype == jnp.int8
    assert all(factor.shape == (12,) and factor.dtype == jnp.float32 for factor in factors)
    assert len(set(faces.ATTRIBUTES)) == len(faces.ATTRIBUTES) >= 16


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_both_classes_of_every_attribute_are_common(correlation: float) -> None:
    shares = np.mean(np.asarray(label(faces.draw_factors(KEY, MANY, correlation))) == 1, axis=0)
    assert np.all((shares > 0.15) & (shares < 0.6)), dict(zip(faces.ATTRIBUTES, shares, strict=True))


def test_factors_stay_in_their_ranges_and_are_uniform() -> None:
    for name, values in faces.draw_factors(KEY, MANY, 0.6)._asdict().items():
        low = -1 if name in faces.SIGNED else 0
        assert low <= np.min(values) and np.max(values) <= 1
        deciles = np.quantile(np.asarray(values), np.linspace(0.1, 0.9, 9))
        five_standard_errors = 5 * (1 - low) * np.sqrt(0.25 / len(MANY))
        np.testing.assert_allclose(deciles, low + (1 - low) * np.linspace(0.1, 0.9, 9), atol=five_standard_errors)


@pytest.mark.parametrize(
    ("first", "second", "sign"),
    [
        ("Smiling", "High_Cheekbones", 1),
        ("Smiling", "Mouth_Slightly_Open", 1),
        ("Smiling", "Narrow_Eyes", 1),
        ("Wearing_Lipstick", "Rosy_Cheeks", 1),
        ("Wearing_Lipstick", "Bushy_Eyebrows", -1),
        ("Pale_Skin", "Black_Hair", -1),
    ],
)
def test_correlation_is_the_parameter_and_leaves_marginals(first: str, second: str, sign: int) -> None:
    indices = np.arange(4000)
    independent, correlated = (label(faces.draw_factors(KEY, indices, correlation)) for correlation in (0.0, 0.6))
    assert abs(phi(column(independent, first), column(independent, second))) < 0.08
    assert sign * phi(column(correlated, first), column(correlated, second)) > 0.1
    for name in (first, second):
        assert abs(np.mean(column(independent, name) == 1) - np.mean(column(correlated, name) == 1)) < 0.05


def test_smile_and_cheekbones_correlate_clearly_by_default() -> None:
    attributes = label(faces.draw_factors(KEY, np.arange(4000), 0.6))
    # Of normals that correlate by r, the signs do by 2 asin(r) / π.
    assert phi(column(attributes, "Smiling"), column(attributes, "High_Cheekbones")) == pytest.approx(0.41, abs=0.06)


def test_a_correlation_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"correlation is 1\.5, expected .* -1…1"):
        faces.paint_faces(KEY, np.arange(2), 1.5)


def test_attributes_are_thresholds_of_factors() -> None:
    factors = faces.draw_factors(KEY, MANY, 0.6)
    attributes = label(factors)
    assert np.all(np.abs(np.asarray(attributes)) == 1)
    for name, has in {
        "Smiling": factors.smile >= 0,
        "Wearing_Hat": factors.hat >= faces.HAT_FROM,
        "Eyeglasses": factors.glasses >= faces.GLASSES_FROM,
        "Narrow_Eyes": factors.eye_openness < 0.35,
    }.items():
        np.testing.assert_array_equal(column(attributes, name) == 1, has)
    colours = [column(attributes, f"{colour}_Hair") for colour in ("Black", "Brown", "Blond", "Gray")]
    np.testing.assert_array_equal(np.sum(np.asarray(colours) == 1, axis=0), 1)


@pytest.mark.parametrize("smile", [-1.0, 1.0])
def test_a_smile_changes_mouth_cheeks_and_lids_alone(smile: float) -> None:
    difference = changed(smile=smile)
    assert difference[84:102, 45:83].any() and not difference[:54].any() and not difference[119:].any()
    assert not difference[:, :23].any() and not difference[:, 105:].any()
    assert difference[54:68, 35:59].any() == (smile > 0)


@pytest.mark.parametrize(
    ("factor", "rows"), [("glasses", slice(53, 84)), ("hat", slice(0, 52)), ("mouth_opening", slice(80, 122))]
)
def test_what_is_worn_or_opened_shows_in_its_place_alone(factor: str, rows: slice) -> None:
    difference = changed(**{factor: 1.0})
    assert np.mean(difference[rows, 23:105]) > 0.1
    difference[rows] = False
    assert not difference.any()


@pytest.mark.parametrize("factor", ["glasses", "hat"])
def test_what_is_worn_is_drawn_or_not(factor: str) -> None:
    least = faces.GLASSES_FROM if factor == "glasses" else faces.HAT_FROM
    assert not changed(**{factor: 0.0}).any() and not changed(**{factor: least - 0.01}).any()
    np.testing.assert_array_equal(changed(**{factor: least}), changed(**{factor: 1.0}))


def test_faces_of_extreme_factors_are_pictures() -> None:
    ranges = [(-1.0 if name in faces.SIGNED else 0.0, 1.0) for name in faces.Factors._fields]
    corners = np.random.default_rng(0).integers(0, 2, (16, len(ranges)))
    for corner in corners:
        image = np.asarray(paint(faces.Factors(*(jnp.float32(r[c]) for r, c in zip(ranges, corner, strict=True)))))
        assert np.all(image.max(axis=-1) > 5)  # NaN would be cast to 0, and no colour is so dark
        assert np.std(image) > 20


def test_the_painter_is_traced_once_however_many_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []

    def counted(size: int, *factors: Array) -> tuple[Array, Array]:
        traces.append(factors)
        return jnp.zeros((len(factors[0]), size, size, 3), jnp.uint8), jnp.zeros((len(factors[0]), 1), jnp.int8)

    monkeypatch.setattr(faces, "_render_rows", counted)
    for n, correlation in ((3, 0.6), (3, 0.6), (100, 0.0)):
        assert len(faces.paint_faces(jax.random.key(n), np.arange(n), correlation)[0]) == n
    assert len(traces) == 1
