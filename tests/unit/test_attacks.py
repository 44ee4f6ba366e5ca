"""Attacks against foolbox on the same callable, in NumPy, and by their properties."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from adversarial import attacks
from adversarial.attacks import ATTACKS, REQUIRED_NORM, Attack, AttackResult, SweptAttack
from adversarial.attacks.iterative import climb_odds
from latentlab.kernels import microbatch

with warnings.catch_warnings():  # it imports parts of SciPy by their old names
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

pytestmark = [pytest.mark.lenient, pytest.mark.unoptimized]

CLASSES = 5
KEY = jax.random.key(0)
FGSM = SweptAttack(attacks.fgsm)


@functools.cache
def weights() -> tuple[np.ndarray, np.ndarray]:
    """Random weights, as constants: drawn within a program, they would be most of what is compiled."""
    with jax.ensure_compile_time_eval():
        first, second = (
            jax.random.normal(jax.random.key(seed), shape, jnp.float32) for seed, shape in ((1, (48, 16)), (2, (16, 5)))
        )
        return np.asarray(first), np.asarray(second)


def network(images: Array) -> Array:
    """A small network that no attack knows: two layers with fixed random weights."""
    first, second = weights()
    return jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first) @ second


@pytest.fixture(scope="module")
def images() -> Array:
    return jax.random.uniform(jax.random.key(0), (12, 4, 4, 3))


@pytest.fixture(scope="module")
def labels(images: Array) -> Array:
    return attacks.class_at_rank(network, images)


def foolboxed(attack: Any, images: Array, labels: Array, epsilon: float, targeted: bool = False) -> tuple[Any, Any]:
    criterion = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    _, moved, success = attack(foolbox.JAXModel(network, bounds=(0, 1)), images, criterion(labels), epsilons=epsilon)
    return moved, success


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_fgsm_is_that_of_foolbox(images: Array, labels: Array, epsilon: float) -> None:
    ours = attacks.fgsm(KEY, network, images, labels, epsilon=epsilon)
    theirs, success = foolboxed(foolbox.attacks.LinfFastGradientAttack(random_start=False), images, labels, epsilon)
    np.testing.assert_allclose(ours.images, theirs, atol=1e-6)
    assert int(ours.success.sum()) >= int(success.sum())
    with jax.enable_x64(True):  # in float32 a gradient is known to about 2e-6 of its length
        doubles = jnp.asarray(np.asarray(images, np.float64))
        ours = attacks.fgsm(KEY, network, doubles, labels, epsilon=epsilon, norm="l2")
        theirs, _ = foolboxed(foolbox.attacks.L2FastGradientAttack(random_start=False), doubles, labels, epsilon)
    np.testing.assert_allclose(ours.images, theirs, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_projected_gradient_descent_is_that_of_foolbox(
    images: Array, labels: Array, norm: attacks.Norm, targeted: bool
) -> None:
    aims = attacks.class_at_rank(network, images, 2) if targeted else labels
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    theirs, success = foolboxed(kind(steps=7, abs_stepsize=0.05, random_start=False), images, aims, 0.2, targeted)
    ours = attacks.basic_iterative(
        KEY, network, images, aims, epsilon=0.2, step_size=0.05, steps=7, targeted=targeted, norm=norm
    )
    np.testing.assert_allclose(ours.images, theirs, atol=1e-6)
    assert int(ours.success.sum()) >= int(success.sum())


def test_where_the_probability_rounds_to_one_the_gradient_is_that_of_float64() -> None:
    """The cross-entropy's is wrong or 0 there in float32; in float64 it is small, and its direction is known."""

    def certain(images: Array) -> Array:
        return 6 * network(images)

    images = jax.random.uniform(jax.random.key(3), (100, 4, 4, 3))
    labels = jnp.argmax(certain(images), axis=1)
    odds = np.asarray(attacks.log_odds(certain(images), labels))
    chosen = np.flatnonzero((odds < -17) & (odds > -25))  # 1 - p from 4e-8 to 1e-11
    assert len(chosen) >= 10 and jax.nn.softmax(certain(images))[chosen].max(axis=1).min() == 1
    images, labels = images[chosen], labels[chosen]
    blind = np.asarray(attacks.input_gradient(certain, images, labels, False))
    with jax.enable_x64(True):
        doubles = jnp.asarray(np.asarray(images, np.float64))
        exact = np.asarray(attacks.input_gradient(certain, doubles, labels, False))
    assert np.mean(np.sign(blind) == np.sign(exact)) < 0.9
    moved = np.asarray(attacks.fgsm(KEY, certain, images, labels, epsilon=0.01, bounds=(-1, 2)).images)
    assert np.mean(np.sign(moved - images) == np.sign(exact)) > 0.999
    moved = attacks.fgsm(KEY, certain, images, labels, epsilon=0.01, norm="l2", bounds=(-1, 2)).images
    lengths = np.linalg.norm(exact.reshape(len(exact), -1), axis=1)[:, None, None, None]
    np.testing.assert_allclose((moved - images) / 0.01, exact / lengths, atol=1e-3)


@functools.cache
def attack_scaled(name: str) -> Callable[..., Array]:
    """Attack the network with its logits times a number, compiled once for any of them and for both aims."""
    settings = attacks.select_settings(
        ATTACKS[name], {"steps": 100 if name == "cw" else 10, "restarts": 2, "queries": 100}
    )
    epsilon = 1.5 if REQUIRED_NORM.get(name) == "l2" else 0.3

    @jax.jit
    def attack(scale: Array, images: Array, labels: Array, targeted: Array) -> Array:
        def logits(images: Array) -> Array:
            return scale * network(images)

        found = ATTACKS[name](KEY, logits, images, labels, epsilon=epsilon, targeted=targeted, **settings)
        return found.success

    return attack


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize("targeted", [False, True])
def test_no_attack_is_blind_to_a_network_that_is_sure(name: str, targeted: bool, images: Array, labels: Array) -> None:
    """Logits times 1,000 name the same classes, for certain in float32, so the network is no more robust."""
    aims = attacks.class_at_rank(network, images, 2) if targeted else labels
    plain, certain = (attack_scaled(name)(scale, images, aims, targeted).sum() for scale in (1.0, 1000.0))
    assert plain > 6
    assert certain >= 0.8 * plain


@pytest.mark.parametrize("name", attacks.ATTACKS)
@pytest.mark.parametrize(("pixel", "told"), [(255.0, "to 255"), (-0.01, "from -0.01"), (np.nan, "nan")])
def test_images_outside_the_bounds_are_refused(
    name: str, pixel: float, told: str, images: Array, labels: Array
) -> None:
    """They would be clipped, and so moved by more than ε."""
    outside = images.at[3, 1, 2, 0].set(pixel)
    with pytest.raises(ValueError, match=rf"images reach .*{told}.* expected them within the bounds, \(0.0, 1.0\)"):
        ATTACKS[name](KEY, network, outside, labels, epsilon=0.1)
    with pytest.raises(ValueError, match="images reach"):
        rows = (labels[None], np.asarray([False]), np.asarray([0.1]))
        attacks.sweep(ATTACKS[name], KEY, network, outside, *rows, norm=REQUIRED_NORM.get(name, "linf"))


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_other_bounds_are_accepted(name: str, images: Array, labels: Array) -> None:
    few = attacks.select_settings(ATTACKS[name], {"steps": 3, "queries": 20})
    moved = ATTACKS[name](KEY, network, 2 * images - 1, labels, epsilon=0.1, bounds=(-1, 1), **few)
    assert jnp.abs(moved.images - (2 * images - 1)).max() <= 0.1 + 1e-6


def test_log_odds_are_those_of_the_probabilities(images: Array, labels: Array) -> None:
    logits = network(images)
    of_label = np.asarray(jax.nn.softmax(logits), np.float64)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(attacks.log_odds(logits, labels), np.log(1 - of_label) - np.log(of_label), rtol=1e-4)


def test_one_step_with_any_momentum_is_fgsm(images: Array, labels: Array) -> None:
    step = attacks.momentum_iterative(KEY, network, images, labels, epsilon=0.1, step_size=0.1, steps=1, momentum=0.9)
    np.testing.assert_array_equal(step.images, attacks.fgsm(KEY, network, images, labels, epsilon=0.1).images)


def test_momentum_accumulates_normalised_gradients(images: Array, labels: Array) -> None:
    kept, moved = np.zeros(images.shape), np.asarray(images)
    for _ in range(4):
        gradient = np.asarray(
            jax.grad(lambda x: attacks.loss(network, x, labels).sum())(jnp.asarray(moved)), np.float64
        )
        kept = 0.5 * kept + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        stepped = moved + 0.03 * np.sign(kept)
        moved = np.clip(np.clip(stepped, images - 0.05, images + 0.05), 0, 1).astype(np.float32)
    ours = attacks.momentum_iterative(KEY, network, images, labels, epsilon=0.05, step_size=0.03, steps=4, momentum=0.5)
    np.testing.assert_allclose(ours.images, moved, atol=1e-6)


@pytest.fixture(params=[12, 5], ids=["all at a time", "five at a time"])
def at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of the 12 images go through the network at a time."""
    monkeypatch.setattr(microbatch, "CACHED_PIXELS", request.param * 48)
    return request.param


@pytest.mark.usefixtures("at_a_time")
def test_a_sweep_is_its_attacks_one_by_one(images: Array, labels: Array) -> None:
    rows = jnp.stack([labels, *(attacks.class_at_rank(network, images, rank) for rank in (2, 3, 4))])
    targeted, epsilons = np.asarray([False, True, True, True]), np.asarray([0.0, 0.02, 0.3], np.float32)
    swept = jax.jit(lambda x: FGSM(KEY, network, x, rows, jnp.asarray(targeted), jnp.asarray(epsilons)))(images)
    for row, epsilon in np.ndindex(4, 3):
        alone = attacks.fgsm(KEY, network, images, rows[row], epsilon=epsilons[epsilon], targeted=bool(targeted[row]))
        np.testing.assert_allclose(swept.images[row, epsilon], alone.images, atol=1e-6)
        np.testing.assert_array_equal(swept.success[row, epsilon], alone.success)


def test_a_sweep_takes_one_gradient_a_target_however_many_epsilons(
    images: Array, labels: Array, at_a_time: int
) -> None:
    backward: list[None] = []

    @jax.custom_vjp
    def counted(x: Array) -> Array:
        return network(x)

    def of_loss(x: Array, cotangent: Array) -> tuple[Array]:
        jax.debug.callback(lambda _: backward.append(None), cotangent[0, 0])
        return jax.vjp(network, x)[1](cotangent)

    counted.defvjp(lambda x: (network(x), x), of_loss)
    rows, targeted = jnp.stack([labels, labels, labels]), jnp.asarray([False, True, True])
    for count in (1, 7):
        backward.clear()
        jax.block_until_ready(FGSM(KEY, counted, images, rows, targeted, jnp.linspace(0, 1, count)))
        jax.effects_barrier()
        assert len(backward) == len(rows) * -(-len(images) // at_a_time)


def test_restarts_keep_the_best_of_every_image(images: Array, labels: Array) -> None:
    arguments: dict[str, Any] = {"step_size": 0.02, "steps": 3}
    keys = jax.random.split(jax.random.key(3), len(images))
    many = attacks.pgd(keys, network, images, labels, epsilon=0.08, restarts=6, **arguments)
    starts_of_each = [
        [attacks.random_in_ball(one, images.shape[1:], "linf") for one in jax.random.split(key, 6)] for key in keys
    ]
    options = {"targeted": False, "norm": "linf", "bounds": (0.0, 1.0), "epsilon": 0.08}
    starts = [
        climb_odds(network, images, labels, jnp.clip(images + 0.08 * jnp.stack(moved), 0, 1), **options, **arguments)
        for moved in zip(*starts_of_each, strict=True)
    ]
    np.testing.assert_array_equal(many.success, np.any([one.success for one in starts], axis=0))
    losses = np.asarray([attacks.loss(network, one.images, labels) for one in starts])
    won = np.asarray([one.success for one in starts])
    best = np.where(won.any(axis=0), np.where(won, losses, -np.inf).max(axis=0), losses.max(axis=0))
    np.testing.assert_allclose(attacks.loss(network, many.images, labels), best, rtol=1e-5)


@functools.cache
def compiled_attack(name: str, norm: attacks.Norm) -> Callable[..., AttackResult]:
    @jax.jit
    def run(key: Array, images: Array, labels: Array, epsilon: Array, targeted: Array) -> AttackResult:
        steps = {"step_size": epsilon / 2, "steps": 3, "restarts": 2, "momentum": 0.5, "queries": 20}
        settings = attacks.select_settings(ATTACKS[name], steps)
        return ATTACKS[name](key, network, images, labels, epsilon=epsilon, targeted=targeted, norm=norm, **settings)

    return run


@given(
    epsilon=st.floats(0, 2, width=32),
    seed=st.integers(0, 100),
    targeted=st.booleans(),
    norm=st.sampled_from(["linf", "l2"]),
)
@settings(max_examples=15)
def test_no_attack_leaves_the_ball_or_the_bounds(epsilon: float, seed: int, targeted: bool, norm: attacks.Norm) -> None:
    images = jax.random.uniform(jax.random.key(seed), (3, 4, 4, 3))
    before, labels = np.array(images), attacks.class_at_rank(network, images, 1 + targeted)
    for name in (name for name in ATTACKS if REQUIRED_NORM.get(name, norm) == norm):
        attacked = compiled_attack(name, norm)(jax.random.key(seed), images, labels, epsilon, targeted)
        difference = np.asarray(attacked.images, np.float64) - before
        size = np.abs(difference).max() if norm == "linf" else np.sqrt((difference**2).sum(axis=(1, 2, 3)).max())
        assert size <= epsilon * (1 + 1e-6) + 2e-7
        assert attacked.images.min() >= 0 and attacked.images.max() <= 1
        if not epsilon:
            np.testing.assert_array_equal(attacked.images, before)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_to_first_order_untargeted_raises_and_targeted_lowers_the_loss(
    images: Array, targeted: bool, norm: attacks.Norm
) -> None:
    inside, labels = 0.25 + images / 2, jnp.arange(12) % CLASSES
    moved = attacks.fgsm(KEY, network, inside, labels, epsilon=1e-4, targeted=targeted, norm=norm).images
    change = attacks.loss(network, moved, labels) - attacks.loss(network, inside, labels)
    gradient = jax.grad(lambda x: attacks.loss(network, x, labels).sum())(inside)
    slope = jnp.abs(gradient) if norm == "linf" else gradient**2
    expected = 1e-4 * (jnp.sum(slope, axis=(1, 2, 3)) ** (1 if norm == "linf" else 0.5))
    np.testing.assert_allclose(change, -expected if targeted else expected, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_does_not_depend_on_its_batch(images: Array, labels: Array, name: str) -> None:
    searches = ATTACKS[name] in attacks.MINIMIZING
    steps = {"cw": 60, "deepfool": 20, "fmn": 20}.get(name, 4)
    settings = attacks.select_settings(ATTACKS[name], {"steps": steps, "restarts": 2, "queries": 20})
    keys, epsilon = jax.random.split(KEY, len(images)), jnp.inf if searches else 0.1

    def attack(rows: slice) -> AttackResult:
        return ATTACKS[name](keys[rows], network, images[rows], labels[rows], epsilon=epsilon, **settings)

    whole = attack(slice(None))
    if searches:
        assert whole.success.mean() > 0.5 and np.linalg.norm(whole.images - images) > 0.1
    some = slice(3, 8)
    found = attack(some)
    np.testing.assert_allclose(found.images, whole.images[some], atol=1e-6)
    np.testing.assert_array_equal(found.success, whole.success[some])
    # Where the label is third, the DLR loss is 1, and whether its gradient is 0 is a matter of rounding.
    if whole.zero_gradients is not None and name != "apgd-dlr":
        np.testing.assert_array_equal(found.zero_gradients, whole.zero_gradients[some])


def test_one_key_is_split_into_one_for_every_image(images: Array, labels: Array) -> None:
    one = attacks.pgd(KEY, network, images, labels, epsilon=0.1, steps=2)
    many = attacks.pgd(jax.random.split(KEY, len(images)), network, images, labels, epsilon=0.1, steps=2)
    np.testing.assert_array_equal(one.images, many.images)


@pytest.mark.parametrize("name", ATTACKS)
def test_gradients_that_are_zero_are_counted(name: str) -> None:
    def logits(images: Array) -> Array:
        """Tell apart nothing that is darker than a half."""
        means = jnp.maximum(images, 0.5).mean(axis=(1, 2))
        return jnp.concatenate([means, 0 * means[:, :1]], axis=1)

    images = jnp.stack([jnp.full((4, 4, 3), level) for level in (0.2, 0.8, 0.3)])
    settings = attacks.select_settings(ATTACKS[name], {"steps": 3, "restarts": 2, "queries": 5})
    labels = jnp.zeros(3, int)
    found = ATTACKS[name](KEY, logits, images, labels, epsilon=0.1, **settings)
    if name == "square":
        assert found.zero_gradients is None
        return
    dark, middle, black = found.zero_gradients
    assert dark == black == 1 and middle < 1, "FAB and DLR come where there is no gradient either"
    if name not in ("fgsm", "bim", "pgd", "mi-fgsm", "apgd-ce"):
        return
    assert middle == 0
    arguments = (KEY, logits, images, labels[None], jnp.asarray([False]), jnp.asarray([0.01, 0.1]))
    swept = attacks.sweep(ATTACKS[name], *arguments, **settings)
    np.testing.assert_array_equal(swept.zero_gradients, [[[1, 0, 1]] * 2])


def test_an_own_attack_is_swept_like_any_other(images: Array, labels: Array) -> None:
    def brighten(
        key: Array, logits: Any, images: Array, labels: Array, *, epsilon: Any, **settings: Any
    ) -> AttackResult:
        moved = jnp.clip(images + epsilon, 0, 1)
        return AttackResult(moved, attacks.has_succeeded(logits(moved), labels, settings["targeted"]))

    attack: Attack = brighten
    swept = SweptAttack(attack)(KEY, network, images, labels[None], jnp.asarray([False]), jnp.asarray([0.1, 0.2]))
    np.testing.assert_allclose(swept.images[0, 1], np.clip(images + 0.2, 0, 1), atol=1e-6)
    assert swept.success.shape == (1, 2, len(images))


def test_success_is_another_class_or_the_target() -> None:
    logits, labels = jnp.eye(3)[jnp.asarray([0, 1, 2])], jnp.asarray([0, 2, 2])
    assert attacks.has_succeeded(logits, labels, targeted=False).tolist() == [False, True, False]
    assert attacks.has_succeeded(logits, labels, targeted=True).tolist() == [True, False, True]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_fill_the_ball(norm: attacks.Norm) -> None:
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: attacks.random_in_ball(key, (1, 1, 2), norm))(keys)
    points = np.asarray(drawn, np.float64).reshape(-1, 2)
    size = np.abs(points).max(axis=1) if norm == "linf" else np.linalg.norm(points, axis=1)
    assert size.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.mean(size <= 0.5), 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 4000))


def test_ranks_count_from_the_top_and_from_the_end() -> None:
    def constant(images: Array) -> Array:
        return jnp.asarray([[0.1, 3.0, 2.0, -1.0]])

    ranked: Callable[[int], int] = lambda rank: int(attacks.class_at_rank(constant, jnp.zeros((1, 1, 1, 3)), rank)[0])  # noqa: E731
    assert [ranked(rank) for rank in (1, 2, 3, 4, -1)] == [1, 2, 0, 3, 3]
