"""Attacks that minimize the change against foolbox, those for transfer against torchattacks, and expected logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from adversarial import attacks, experiment
from adversarial.attacks import ATTACKS, MINIMIZING, REQUIRED_NORM, AttackResult, Norm, losses
from adversarial.attacks.transformations import expect_logits, gaussian_kernel, resize_and_pad, shrink_to, smooth
from adversarial.config import AdversarialConfig
from latentlab.errors import UserError
from latentlab.labeled_images import LabeledImages, open_dataset
from tests.unit.test_auto_attack import MADE, NAMES, network_of, unit

pytestmark = [pytest.mark.lenient, pytest.mark.unoptimized]

KEY = jax.random.key(0)
SEARCHES = [("deepfool", "l2"), ("deepfool", "linf"), ("fmn", "l2"), ("fmn", "linf"), ("cw", "l2")]
NAMES_OF_SEARCHES = [name for name, attack in ATTACKS.items() if attack in MINIMIZING]


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    return dict(np.load(MADE / "other_attacks.npz"))


@pytest.fixture(scope="module")
def digits() -> LabeledImages:
    return open_dataset("packaged").test


@functools.partial(jax.jit, static_argnames=("name", "norm", "network", "steps"))
def search(
    images: Array, labels: Array, *, name: str, norm: Norm, network: str, steps: int | None = None
) -> AttackResult:
    settings = {} if steps is None else {"steps": steps}
    return ATTACKS[name](KEY, network_of(network), images, labels, epsilon=jnp.inf, norm=norm, **settings)


def check_distances(found: AttackResult, images: Array, labels: Array, network: str, norm: Norm) -> np.ndarray:
    """Return the distances of the digits that are recognised, after they are measured again in float64."""
    moved, before = (np.asarray(part, np.float64) for part in (found.images, images))
    change = (moved - before).reshape(len(before), -1)
    far = np.abs(change).max(axis=1) if norm == "linf" else np.linalg.norm(change, axis=1)
    is_found = np.asarray(found.success)
    np.testing.assert_allclose(found.distance, np.where(is_found, far, np.inf), rtol=1e-5, atol=1e-6)
    assert moved.min() >= 0 and moved.max() <= 1
    tops = jnp.argmax(network_of(network)(found.images), axis=1)
    np.testing.assert_array_equal(tops != labels, is_found)
    assert is_found.mean() > 0.97
    recognised = jnp.argmax(network_of(network)(images), axis=1) == labels
    np.testing.assert_array_equal(np.asarray(found.distance) > 0, recognised)
    return np.asarray(found.distance)[recognised]


@pytest.mark.parametrize("network", NAMES)
@pytest.mark.parametrize(("name", "norm"), SEARCHES[:4])
def test_searches_find_images_as_near_as_foolbox(
    name: str, norm: Norm, network: str, theirs: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    expected = theirs[f"{network}/{name}/{norm}"]
    count = len(expected)
    images, labels = unit(digits.images, count), jnp.asarray(digits.labels[:count])
    found = search(images, labels, name=name, norm=norm, network=network)
    distances = check_distances(found, images, labels, network, norm)
    recognised = np.asarray(found.distance) > 0
    assert np.median(distances) <= 1.02 * np.median(expected[recognised])
    if name == "deepfool":
        assert np.isclose(distances, expected[recognised], rtol=1e-3).mean() >= 0.97, (
            "rounding may choose another class"
        )


@pytest.mark.parametrize(
    ("network", "steps"),
    [("standard", 200), *(pytest.param(name, 1000, marks=pytest.mark.slow) for name in NAMES)],
)
def test_carlini_and_wagner_find_images_as_near_as_foolbox(
    network: str, steps: int, theirs: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    expected = theirs[f"{network}/cw/{steps}"]
    count = len(expected) if steps == 1000 else 40
    images, labels = unit(digits.images, count), jnp.asarray(digits.labels[:count])
    found = search(images, labels, name="cw", norm="l2", network=network, steps=steps)
    distances = check_distances(found, images, labels, network, "l2")
    recognised = np.asarray(found.distance) > 0
    assert np.median(distances) <= 1.02 * np.median(expected[:count][recognised])


@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_of_a_linear_network_the_distance_is_known(name: str, norm: Norm) -> None:
    """|(w_k - w_y) · x| / ‖w_k - w_y‖_q, as long as no pixel reaches its bound."""
    weights = jax.random.normal(jax.random.key(3), (48, 3))
    images = 0.5 + 0.1 * jax.random.normal(jax.random.key(4), (8, 4, 4, 3))

    def logits(images: Array) -> Array:
        return (images.reshape(len(images), -1) - 0.5) @ weights

    labels = jnp.argmax(logits(images), axis=1)
    exact = np.full((8, 3), np.inf)
    for row, own in enumerate(labels):
        for other in {0, 1, 2} - {int(own)}:
            normal = np.asarray(weights[:, other] - weights[:, own], np.float64)
            gap = -normal @ (np.asarray(images[row], np.float64).reshape(-1) - 0.5)
            exact[row, other] = gap / np.linalg.norm(normal, 1 if norm == "linf" else 2)
    settings = {"steps": 300} if name == "cw" else {}
    found = ATTACKS[name](KEY, logits, images, labels, epsilon=jnp.inf, norm=norm, **settings)
    nearest = exact.min(axis=1)
    assert (found.distance >= nearest * (1 - 1e-3)).all()
    # DeepFool goes 1.02 times as far and 1e-4 more.
    assert np.median(found.distance / nearest) <= 1.05
    target = (labels + 1) % 3
    aimed = ATTACKS[name](KEY, logits, images, target, epsilon=jnp.inf, targeted=True, norm=norm, **settings)
    assert (jnp.argmax(logits(aimed.images), axis=1) == target).all()
    # The boundary between two classes may lie where the third is on top, so this bounds the distance from below alone.
    between = exact[jnp.arange(8), target]
    assert (aimed.distance >= between * (1 - 1e-3)).all()
    assert np.median(aimed.distance / between) <= 1.5


@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_distances_scale_with_the_range_of_pixels(name: str, norm: Norm) -> None:
    weights = jax.random.normal(jax.random.key(3), (48, 3))
    images = 0.5 + 0.05 * jax.random.normal(jax.random.key(4), (6, 4, 4, 3))

    def logits(images: Array) -> Array:
        return (images.reshape(len(images), -1) - 0.5) @ weights

    labels = jnp.argmax(logits(images), axis=1)
    settings = {"steps": 100} if name == "cw" else {}
    how: dict[str, Any] = {"epsilon": jnp.inf, "norm": norm, **settings}
    unit = ATTACKS[name](KEY, logits, images, labels, **how)
    wide = ATTACKS[name](KEY, lambda x: logits(x / 255), 255 * images, labels, bounds=(0.0, 255.0), **how)
    assert unit.success.all()
    np.testing.assert_allclose(wide.distance, 255 * np.asarray(unit.distance), rtol=0.02)


def test_carlini_and_wagner_reach_the_margin_that_is_asked_for() -> None:
    weights = jax.random.normal(jax.random.key(3), (48, 3))
    images = 0.5 + 0.05 * jax.random.normal(jax.random.key(4), (6, 4, 4, 3))

    def logits(images: Array) -> Array:
        return (images.reshape(len(images), -1) - 0.5) @ weights

    labels = jnp.argmax(logits(images), axis=1).at[0].set(0)
    for confidence in (0.0, 0.5):
        found = attacks.carlini_wagner(KEY, logits, images, labels, epsilon=jnp.inf, steps=200, confidence=confidence)
        margins = losses.margin(logits(found.images), labels)
        assert found.success.all() and (margins >= confidence).all()
        assert (margins <= confidence + 0.2).mean() > 0.7


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "linf"), ("fmn", "l2")])
def test_one_search_serves_all_radii(name: str, norm: Norm, digits: LabeledImages) -> None:
    images, labels = unit(digits.images, 6), jnp.asarray(digits.labels[:6])
    network, calls = network_of("standard"), []

    def counted(images: Array) -> Array:
        jax.debug.callback(lambda: calls.append(1))
        return network(images)

    radii = jnp.asarray([0.0, 0.05, 1.0, 30.0])

    def sweep(count: int) -> tuple[AttackResult, int]:
        calls.clear()
        arguments = (KEY, counted, images, labels[None], jnp.asarray([False]), radii[:count])
        found = attacks.sweep(ATTACKS[name], *arguments, steps=20, norm=norm)
        jax.effects_barrier()
        return found, len(calls)

    (swept, many), (_, few) = sweep(4), sweep(1)
    assert many == few
    assert swept.images.shape == (1, 4, 6, 28, 28, 1)
    for column, radius in enumerate(radii):
        one = ATTACKS[name](KEY, network, images, labels, epsilon=radius, steps=20, norm=norm)
        np.testing.assert_allclose(swept.images[0, column], one.images, atol=1e-6)
        np.testing.assert_array_equal(swept.success[0, column], np.asarray(swept.distance[0, column]) <= radius)


def test_an_attack_of_one_norm_says_so() -> None:
    assert {name: REQUIRED_NORM.get(name) for name in NAMES_OF_SEARCHES} == {"deepfool": None, "cw": "l2", "fmn": None}
    with pytest.raises(UserError, match="cw measures the distance in L2 alone; expected --norm l2"):
        experiment.make_attack(AdversarialConfig(attack="cw"))
    images = jnp.full((1, 4, 4, 1), 0.5)
    with pytest.raises(ValueError, match=r"norm is 'linf'.* expected 'l2'"):
        attacks.carlini_wagner(KEY, lambda x: x.mean(axis=(1, 2)), images, jnp.asarray([0]), epsilon=1.0, norm="linf")


def of_channels(images: Array) -> Array:
    """A network of one channel that is shown three."""
    return network_of("standard")(images.mean(axis=3, keepdims=True))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("di", {"diversity": 1.0, "least_side": 27.5 / 28}),
        ("ti", {"kernel_size": 15}),
        ("ti-7", {"kernel_size": 7}),
    ],
)
def test_attacks_for_transfer_are_those_of_torchattacks(
    name: str, settings: dict[str, Any], theirs: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    images = jnp.asarray(theirs["images"])
    labels = jnp.asarray(digits.labels[: len(images)])
    how: dict[str, Any] = {"epsilon": 0.1, "step_size": 0.03, "steps": 5, "momentum": 0.7}
    found = attacks.transfer_iterative(KEY, of_channels, images, labels, **how, **settings)
    # Where a gradient is 0 but for rounding, its sign is chance: at pixels whose surroundings are black.
    same = np.abs(np.asarray(found.images) - theirs[name]) < 1e-4
    assert same.mean() > 0.99
    plain = attacks.momentum_iterative(KEY, of_channels, images, labels, **how)
    assert (np.abs(np.asarray(plain.images) - theirs[name]) < 1e-4).mean() < 0.97


def test_without_diversity_and_smoothing_it_is_momentum(digits: LabeledImages) -> None:
    images, labels = unit(digits.images, 4), jnp.asarray(digits.labels[:4])
    how: dict[str, Any] = {"epsilon": 0.1, "steps": 3, "momentum": 0.7}
    plain = attacks.momentum_iterative(KEY, network_of("standard"), images, labels, **how)
    found = attacks.transfer_iterative(KEY, network_of("standard"), images, labels, **how)
    np.testing.assert_array_equal(found.images, plain.images)


def test_images_are_shrunk_as_torch_does(theirs: dict[str, np.ndarray]) -> None:
    names = [name for name in theirs if name.startswith("shrunk/")]
    assert names
    for name in names:
        side, row, column = map(int, name.split("/")[1:])
        shrunk = jax.vmap(functools.partial(shrink_to, side=side, row=row, column=column))(theirs["images"][:2])
        np.testing.assert_allclose(shrunk, theirs[name], atol=1e-5)


def test_sides_and_places_fill_their_ranges() -> None:
    """Of a white image of 10 pixels a square of 5 to 9 is left, anywhere but at the lower and right edge."""
    keys = jax.random.split(KEY, 400)
    made = np.asarray(jax.vmap(lambda key: resize_and_pad(key, jnp.ones((10, 10, 1)), 0.5))(keys))[..., 0] > 0.5
    sides = made.any(axis=2).sum(axis=1)
    np.testing.assert_array_equal(sides, made.any(axis=1).sum(axis=1))
    assert {*sides} == {5, 6, 7, 8, 9}
    rows, columns = (made.any(axis=axis).argmax(axis=1) for axis in (2, 1))
    assert {*zip(rows[sides == 5], columns[sides == 5], strict=True)} == {(i, j) for i in range(5) for j in range(5)}
    assert (rows + sides < 10).all() and (columns + sides < 10).all()


def test_smoothing_is_a_convolution_with_a_normal_density() -> None:
    kernel = gaussian_kernel(5)
    np.testing.assert_allclose(kernel / kernel[2], np.exp(-(np.asarray([3, 1.5, 0, 1.5, 3]) ** 2) / 2))
    point = jnp.zeros((1, 9, 9, 2)).at[0, 4, 1, 1].set(1.0)
    smoothed = np.asarray(smooth(point, 5))[0, :, :, 1]
    np.testing.assert_allclose(smoothed[2:7, :4], np.outer(kernel, kernel)[:, 1:], atol=1e-6)
    with pytest.raises(ValueError, match="kernel size is 4, expected an odd number"):
        smooth(point, 4)
    assert smooth(point[:, :3, :3], 15).shape == (1, 3, 3, 2)
    assert smoothed.sum() == pytest.approx(1 - kernel[0], abs=1e-5) and not smooth(point, 5)[..., 0].any()


def test_expected_logits_are_the_mean_over_the_samples(digits: LabeledImages) -> None:
    images, network = unit(digits.images, 3), network_of("standard")

    def darken(key: Array, image: Array) -> Array:
        return image * jax.random.uniform(key)

    expected = np.mean(
        [network(images * jax.random.uniform(key)) for key in jax.random.split(jax.random.key(7), 5)], axis=0
    )
    mean = expect_logits(network, darken, jax.random.key(7), samples=5)
    np.testing.assert_allclose(mean(images), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean(images[1:2]), expected[1:2], rtol=1e-4, atol=1e-4)


def test_an_attack_on_expected_logits_beats_a_random_defence(digits: LabeledImages) -> None:
    """A digit is shrunk and moved before the network sees it; PGD on the plain network does not know that."""
    images, labels = unit(digits.images, 60), jnp.asarray(digits.labels[:60])
    network = network_of("standard")

    def recognised(images: Array) -> float:
        defended = expect_logits(network, functools.partial(resize_and_pad, least=0.8), jax.random.key(99), samples=8)
        return float(jnp.mean(jnp.argmax(defended(images), axis=1) == labels))

    seen = expect_logits(network, functools.partial(resize_and_pad, least=0.8), jax.random.key(1), samples=16)
    how: dict[str, Any] = {"epsilon": 0.1, "steps": 10}
    plain, expected = (attacks.pgd(KEY, function, images, labels, **how) for function in (network, seen))
    assert recognised(images) > 0.7
    assert recognised(expected.images) < recognised(plain.images) - 0.1
