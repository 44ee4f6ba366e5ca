"""APGD, FAB-T and Square against the code of Auto-Attack (`tests/oracles/auto_attack.py`) and SciPy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.optimize import linprog, minimize
from scipy.special import logsumexp

from adversarial import ensemble, experiment
from adversarial.attacks import ATTACKS, LEAST_CLASSES, Ensemble, Norm, SweptAttack, auto, losses, select_settings
from adversarial.attacks.apgd import MORE_STEPS, checkpoint_distances, climb
from adversarial.attacks.base import has_succeeded
from adversarial.attacks.fab import find_least_change, project_to_plane
from adversarial.attacks.square import pyramids, square_sides
from adversarial.classifier import CallableNetwork, Class, Classifier, wrap_classifier
from adversarial.config import AdversarialConfig
from adversarial.digits import DigitsNetwork
from adversarial.ensemble import Standing, attack_in_stages
from adversarial.pixels import RANGES, Epsilon
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset, LabeledImages, open_dataset
from latentlab.storage.metrics import MetricsLog

pytestmark = [pytest.mark.lenient, pytest.mark.unoptimized]

MADE = Path(__file__).parents[1] / "data" / "auto_attack"
NAMES = ("standard", "pgd")
KEY = jax.random.key(0)
WATCHED = 8


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(MADE / "expected.npz"))


@pytest.fixture(scope="module")
def digits() -> LabeledImages:
    return open_dataset("packaged").test


def params_of(name: str) -> dict[str, dict[str, Array]]:
    params: dict[str, dict[str, Array]] = {}
    for key, value in np.load(MADE / "networks.npz").items():
        network, layer, variable = key.split("/")
        if network == name:
            params.setdefault(layer, {})[variable] = jnp.asarray(value, jnp.float32)
    return params


def network_of(name: str) -> Callable[[Array], Array]:
    params, network = params_of(name), DigitsNetwork(filters=(8, 16), hidden=50)
    return lambda images: network.apply({"params": params}, images)  # type: ignore[return-value]


def unit(images: np.ndarray, count: int) -> Array:
    return jnp.asarray(images[:count], jnp.float32) / 255


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_auto_attack(name: str, expected: dict[str, np.ndarray], digits: LabeledImages) -> None:
    count = len(expected[f"{name}/logits"])
    labels = jnp.asarray(digits.labels[:count])
    found = network_of(name)(unit(digits.images, count))
    np.testing.assert_allclose(found, expected[f"{name}/logits"], atol=1e-4)
    logits = jnp.asarray(expected[f"{name}/logits"])
    np.testing.assert_allclose(losses.dlr(logits, labels), expected[f"{name}/dlr"], rtol=1e-5, atol=1e-5)
    targets = jnp.argsort(logits, axis=1)[:, -2]
    aimed = losses.targeted_dlr(logits, labels, targets)
    np.testing.assert_allclose(aimed, expected[f"{name}/dlr-targeted"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_of_apgd_are_those_of_auto_attack(
    name: str, norm: Norm, loss: str, expected: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    seen: dict[int, np.ndarray] = {}
    inner = network_of(name)

    def watched(images: Array) -> Array:
        jax.debug.callback(lambda images: seen.setdefault(len(seen), np.asarray(images)), images, ordered=True)
        return inner(images)

    images, labels = unit(digits.images, WATCHED), jnp.asarray(digits.labels[:WATCHED])
    objective: Any = {"ce": losses.cross_entropy, "dlr": losses.dlr, "dlr-targeted": losses.targeted_dlr}[loss]
    rows = [labels, jnp.argsort(inner(images), axis=1)[:, -2]][: 1 + (loss == "dlr-targeted")]
    epsilon = {"linf": 0.2, "l2": 1.5}[norm]
    start = jnp.asarray(expected[f"start/{norm}"][:WATCHED])
    climb(
        objective,
        lambda found, labels, *targets: jnp.zeros(len(labels), bool),  # so that nothing rests
        watched,
        images,
        start,
        *rows,
        epsilon=epsilon,
        steps=100,
        norm=norm,
        bounds=(0.0, 1.0),
    )
    jax.effects_barrier()
    assert len(seen) == 101
    is_known = np.ones(WATCHED, bool)
    for step in range(10):
        found = np.asarray(inner(seen[step]), np.float64)
        own = found[np.arange(WATCHED), labels]
        if loss == "ce":  # where p rounds to 1, rounding decides on the gradient
            is_known &= np.exp(own - logsumexp(found, axis=1)) < 1 - 1e-4
        elif loss == "dlr":  # where the label is third, the loss is 1 and its gradient 0
            is_known &= np.sum(found > own[:, None], axis=1) != 2
    assert is_known.sum() >= 2
    for place, step in enumerate((0, 5, 10)):
        theirs = expected[f"{name}/{norm}/{loss}"][place]
        np.testing.assert_allclose(seen[step][is_known], theirs[is_known], atol=1e-4)


def test_checkpoints_come_when_the_paper_says() -> None:
    found = np.flatnonzero(checkpoint_distances(100)) + 1
    np.testing.assert_array_equal(found, [22, 41, 57, 70, 80, 87, 93, 99])
    assert np.flatnonzero(checkpoint_distances(3)).tolist() == [0, 1, 2]


def test_an_image_that_fell_goes_on_for_some_steps_and_no_more(digits: LabeledImages) -> None:
    """However long its neighbours take, so what it becomes does not depend on them."""
    inner, images, labels = network_of("standard"), unit(digits.images, 1), jnp.asarray(digits.labels[:1])
    stubborn = jnp.concatenate([images, jnp.zeros_like(images)])

    def logits(images: Array) -> Array:
        is_bright = images.max(axis=(1, 2, 3)) > 0.5
        return jnp.where(is_bright[:, None], inner(images), jnp.eye(10)[labels[0]])

    def attack(images: Array) -> Any:
        return climb(
            losses.log_odds,
            lambda found, labels: has_succeeded(found, labels, False),
            logits,
            images,
            images,
            jnp.repeat(labels, len(images)),
            epsilon=0.3,
            steps=100,
            norm="linf",
            bounds=(0.0, 1.0),
        )

    alone, beside = attack(images), attack(stubborn)
    assert alone.success.tolist() == [True] and beside.success.tolist() == [True, False]
    np.testing.assert_allclose(alone.images[0], beside.images[0], atol=1e-6)
    assert MORE_STEPS == 10


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_are_those_of_auto_attack_and_of_scipy(norm: Norm, expected: dict[str, np.ndarray]) -> None:
    points, normals, offsets = (expected[f"plane/{part}"] for part in ("points", "normals", "offsets"))
    values = jnp.asarray((points * normals).sum(axis=1) - offsets, jnp.float32)

    def shaped(rows: np.ndarray) -> Array:
        return jnp.asarray(rows, jnp.float32).reshape(len(rows), 5, 6, 1)

    found = np.asarray(project_to_plane(shaped(points), shaped(normals), values, norm, (0.0, 1.0)), np.float64)
    found = found.reshape(len(found), -1)
    theirs = expected[f"plane/{norm}"]
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert (points + found).min() > -1e-6 and (points + found).max() < 1 + 1e-6
    for row in range(6):
        change, value = found[row], float(values[row])
        reached = value + normals[row] @ change
        bounds = [*zip(-points[row], 1 - points[row], strict=True)]
        if norm == "linf":  # least t with |δ| ≤ t, on the plane and within the bounds
            plane = np.append(normals[row], 0)[None]
            within = np.block([[np.eye(30), -np.ones((30, 1))], [-np.eye(30), -np.ones((30, 1))]])
            best = linprog(np.append(np.zeros(30), 1), within, np.zeros(60), plane, [-value], [*bounds, (0, None)])
            least = best.fun if best.success else None
            length = np.abs(change).max()
        else:
            plane = {"type": "eq", "fun": lambda step, row=row, value=value: value + normals[row] @ step}
            best = minimize(lambda step: step @ step, change * 0, jac=lambda step: 2 * step, bounds=bounds,
                            constraints=plane, method="SLSQP", options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
            is_solved = abs(value + normals[row] @ best.x) < 1e-6  # SLSQP stops where its line search gains nothing
            least = np.sqrt(best.fun) if is_solved else None
            length = np.linalg.norm(change)
        assert least is not None and abs(reached) < 1e-4 * max(1, abs(value))
        np.testing.assert_allclose(length, least, rtol=1e-3, atol=1e-5)


def test_where_the_plane_is_out_of_reach_all_pixels_go_to_their_bounds() -> None:
    points, normals = jnp.full((2, 2, 2, 1), 0.25), jnp.asarray([[1.0, -1.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
    found = project_to_plane(points, jnp.repeat(normals, 2, axis=0), jnp.asarray([50.0, -50.0]), "linf", (0.0, 1.0))
    np.testing.assert_allclose(found[..., 0], [[[-0.25, 0.75], [-0.25, 0]], [[0.75, -0.25], [0.75, 0]]])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_least_change_of_a_linear_network_is_its_distance_from_the_boundary(norm: Norm) -> None:
    weights = jax.random.normal(KEY, (48, 3))
    images = jax.random.uniform(jax.random.key(1), (6, 4, 4, 3), minval=0.4, maxval=0.6)

    def logits(images: Array) -> Array:
        return images.reshape(len(images), -1) @ weights

    found = logits(images)
    labels, targets = jnp.argsort(found, axis=1)[:, -1], jnp.argsort(found, axis=1)[:, -2]
    search = find_least_change(logits, images, labels, targets, steps=30, norm=norm, bounds=(0.0, 1.0))
    normal = np.asarray(weights.T[targets] - weights.T[labels], np.float64)
    gap = -np.asarray(jnp.take_along_axis(found, targets[:, None], 1) - jnp.max(found, 1, keepdims=True))[:, 0]
    dual = np.abs(normal).sum(axis=1) if norm == "linf" else np.linalg.norm(normal, axis=1)
    assert (search.nearest.distance >= gap / dual * 0.999).all()
    assert (search.nearest.distance <= gap / dual * 1.06).all(), "an overshoot of 5 %"


def test_squares_have_the_sides_and_patterns_of_the_authors(expected: dict[str, np.ndarray]) -> None:
    shares = expected["square/shares"]
    np.testing.assert_array_equal(
        square_sides(5000, (28, 28), odd=False), np.maximum(np.round(np.sqrt(shares * 784)), 1)
    )
    odd = square_sides(5000, (28, 28), odd=True)
    assert odd.min() == 3 and set(odd % 2) == {1}
    for side in (3, 5, 6, 9):
        pattern = expected[f"square/pattern{side}"]
        for turned in (False, True):
            found = np.asarray(pyramids((12, 14), jnp.asarray(side), (2, 4), jnp.asarray(turned)))
            np.testing.assert_allclose(found[2 : 2 + side, 4 : 4 + side], pattern.T if turned else pattern, atol=1e-6)
            assert np.count_nonzero(found) == np.count_nonzero(pattern)


def classifier_of(name: str) -> Classifier:
    network = DigitsNetwork(filters=(8, 16), hidden=50)
    classes = tuple(Class("", str(digit)) for digit in range(10))
    return Classifier(network, {"params": params_of(name)}, RANGES["zero-one"], classes)


SHORT = SweptAttack(auto, "linf", (("steps", 6), ("queries", 30)))
EPSILONS = [Epsilon(value, RANGES["zero-one"]) for value in (0.0, 0.002, 0.1, 0.25)]


def stand(digits: LabeledImages, count: int, batch_size: int, **how: Any) -> Standing:
    photos, labels = digits.images[:count], digits.labels[:count]
    return attack_in_stages(classifier_of("pgd"), SHORT, 0, photos, labels, EPSILONS, batch_size, **how)


@pytest.fixture(scope="module")
def standing(digits: LabeledImages) -> Standing:
    return stand(digits, 20, 8)


def test_stages_find_what_the_attack_finds_that_runs_them_all(digits: LabeledImages, standing: Standing) -> None:
    logits = network_of("pgd")
    keys = jax.vmap(lambda number: jax.random.fold_in(KEY, number))(jnp.arange(20, dtype=jnp.uint32))
    images, labels = unit(digits.images, 20), jnp.asarray(digits.labels[:20])
    attack = jax.jit(lambda epsilon: auto(keys, logits, images, labels, epsilon=epsilon, steps=6, queries=30))
    success = np.stack([attack(epsilon.value).success for epsilon in EPSILONS], axis=1)
    np.testing.assert_array_equal(standing.as_floats, ~np.logical_or.accumulate(success, axis=1))
    clean = np.argmax(logits(images), axis=1) == digits.labels[:20]
    np.testing.assert_array_equal(standing.as_floats[:, 0], clean)
    np.testing.assert_array_equal(standing.on_grid[:, 1], clean)  # less than a grey level
    assert (np.diff(standing.as_floats.astype(int), axis=1) <= 0).all()
    assert 0 < standing.as_floats[:, -1].mean() < standing.as_floats[:, 0].mean()
    names = standing.felled_by
    np.testing.assert_array_equal(names == "", standing.as_floats)
    np.testing.assert_array_equal(names == "none", np.broadcast_to(~clean[:, None], names.shape))


def test_a_digit_does_not_depend_on_its_batch(digits: LabeledImages, standing: Standing) -> None:
    for count, batch_size in ((20, 20), (7, 3)):
        found = stand(digits, count, batch_size)
        np.testing.assert_array_equal(found.as_floats, standing.as_floats[:count])
        np.testing.assert_array_equal(found.on_grid, standing.on_grid[:count])
        np.testing.assert_array_equal(found.felled_by, standing.felled_by[:count])


def test_an_ensemble_that_was_killed_goes_on(
    digits: LabeledImages, standing: Standing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = MetricsLog(tmp_path / "calls.jsonl")
    stand(digits, 20, 8, calls=calls)
    rows = calls.rows()
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    (tmp_path / "calls.jsonl").write_text("\n".join(lines[: len(lines) // 2]) + '\n{"epsilon": 0.1, "sta')
    run_stage, made = ensemble._run_stage, []

    def counted(*arguments: Any) -> Any:
        made.append(arguments)
        return run_stage(*arguments)

    monkeypatch.setattr(ensemble, "_run_stage", counted)
    again = stand(digits, 20, 8, calls=MetricsLog(tmp_path / "calls.jsonl"))
    assert len(made) == len(rows) - len(lines) // 2
    for one, other in zip(again, standing, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", LEAST_CLASSES)
def test_too_few_classes_for_a_loss_are_one_line(name: str) -> None:
    def colours(images: Array) -> Array:
        return images.mean(axis=(1, 2))[:, : LEAST_CLASSES[name] - 1]

    config = AdversarialConfig(attack=name, images="packaged", report="robust-accuracy", size=32)
    with pytest.raises(UserError, match=rf"the loss of {name} is defined for {LEAST_CLASSES[name]} classes and more"):
        experiment.run(config, classifier=colours, log=lambda line: None)
    beside = AdversarialConfig(beside=name, size=32)
    with pytest.raises(UserError, match=rf"the loss of {name} is defined for"):
        experiment.run(beside, classifier=colours, photo=np.zeros((32, 32, 3), np.uint8), log=lambda line: None)
    part = LabeledImages(np.zeros((60, 28, 28, 1), np.uint8), np.zeros(60, np.int32))
    digits = Dataset("mine", part, part, ("a", "b"))
    with pytest.raises(UserError, match=rf"the loss of {name} is defined for"):
        experiment.run(AdversarialConfig(classifier="digits", attack=name), data=digits, log=lambda line: None)
    with pytest.raises(ValueError, match="is not defined for"):
        ATTACKS[name](KEY, colours, jnp.zeros((1, 4, 4, 3)), jnp.zeros(1, int), epsilon=0.1)


def test_two_classes_have_attacks() -> None:
    def light(images: Array) -> Array:
        mean = images.mean(axis=(1, 2, 3))
        return jnp.stack([0.5 - mean, mean - 0.5], axis=1)

    images, labels = jnp.full((1, 6, 6, 3), 0.45), jnp.zeros(1, int)
    for name in experiment.OF_TWO_CLASSES:
        settings = select_settings(ATTACKS[name], {"steps": 10, "queries": 100})
        for epsilon, succeeds in ((0.04, False), (0.06, True)):
            found = ATTACKS[name](KEY, light, images, labels, epsilon=epsilon, **settings)
            assert found.success.tolist() == [succeeds], name


def robust_digits(
    name: str, member: str, norm: Norm, epsilon: float, digits: LabeledImages, count: int, seed: int = 0
) -> np.ndarray:
    """Which of the first digits withstand a member of the ensemble, alone."""
    photos, labels, radii = digits.images[:count], digits.labels[:count], [Epsilon(epsilon, RANGES["zero-one"])]
    attack: Any = ATTACKS[member] if member == "auto" else Ensemble(((member, ATTACKS[member]),))
    swept = SweptAttack(attack, norm)
    return attack_in_stages(classifier_of(name), swept, seed, photos, labels, radii, count).as_floats[:, 0]


@pytest.mark.slow
@pytest.mark.unoptimized(False)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(
    ("name", "norm", "epsilon"),
    [("standard", "linf", 0.1), ("standard", "l2", 1.5), ("pgd", "linf", 0.3), ("pgd", "l2", 1.5)],
)
def test_robust_accuracy_of_apgd_is_that_of_auto_attack(
    name: str, norm: Norm, epsilon: float, loss: str, expected: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    """Of 500 digits, over three random starts. Every member: `benchmarks/auto_attack.py`.

    Which digits fall depends on the starts, and on the rounding of a processor as on another start. So two means over
    three starts differ by √(2/3) of one start's standard error, which the digits that fell in some of the three tell;
    beyond three times that and one digit it is another attack.
    """
    found = [robust_digits(name, f"apgd-{loss}", norm, epsilon, digits, 500, seed) for seed in range(3)]
    theirs = expected[f"seeds/{name}/{norm}/{epsilon}/apgd-{loss}"].mean()
    error = np.sqrt(np.var(found, axis=0, ddof=1).sum()) / 500
    assert abs(np.mean(found) - theirs) <= 3 * np.sqrt(2 / 3) * error + 1 / 500
    assert error < 0.01, "with which nothing would be shown"


@pytest.mark.slow
@pytest.mark.unoptimized(False)
@pytest.mark.parametrize("member", ["apgd-t", "fab-t", "square", "auto"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_member_finds_as_many_as_auto_attack(
    norm: Norm, member: str, expected: dict[str, np.ndarray], digits: LabeledImages
) -> None:
    """Of 100 digits, on the network that was trained against attacks; two are chance, and more may be found here."""
    epsilon = {"linf": 0.2, "l2": 1.5}[norm]
    found = robust_digits("pgd", member, norm, epsilon, digits, 100).sum()
    theirs = expected[f"robust/pgd/{norm}/{epsilon}/{'standard' if member == 'auto' else member}"][:100].sum()
    assert int(found) <= int(theirs) + 2


def test_wrapped_functions_go_through_stages() -> None:
    def colours(images: Array) -> Array:
        return jnp.concatenate([images.mean(axis=(1, 2)), images.mean(axis=(1, 2, 3))[:, None]], axis=1)

    assert isinstance(wrap_classifier(colours, 8).network, CallableNetwork)
    photos = np.full((2, 8, 8, 3), (140, 120, 100), np.uint8)
    photos[1] = (130, 128, 100)
    found = attack_in_stages(
        wrap_classifier(colours, 8), SHORT, 0, photos, np.asarray([0, 0]), [Epsilon(0.01, RANGES["zero-one"])], 2
    )
    assert found.as_floats[:, 0].tolist() == [True, False]
