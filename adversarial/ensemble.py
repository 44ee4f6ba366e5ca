"""An ensemble of attacks on many photos: those that fell leave, and every call has the same shape.

For every ε, from the smallest on, the attacks of the ensemble follow one another. A call takes a batch of photos that
still stand, filled up to one size, so each attack is compiled once. A photo that fell at one ε has fallen at all larger
ones. It is attacked there only if it survives being rounded to 8 bits. What every call found is kept as a line, with
which a run that was killed goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

from adversarial.attacks import Attack, Norm, SweptAttack, evaluate_logits, select_settings
from adversarial.attacks.auto import Ensemble, Stage
from adversarial.attacks.base import fold_in
from adversarial.classifier import Classifier, in_unit_range
from adversarial.pixels import Epsilon, most_grey_levels
from adversarial.robustness import MISCLASSIFIED, round_on_device
from latentlab.parallel import batched_apply, device_count
from latentlab.storage.metrics import MetricsLog

OUTCOME = ("fell", "fell_8_bit", "zero_gradients")


class Standing(NamedTuple):
    """Which photos withstood an ensemble, at every ε.

    Attributes:
        as_floats: Whether a photo is still recognised.
        on_grid: The same after rounding to the 8-bit grid.
        felled_by: Name of the attack that it fell to, "" where it stands, `MISCLASSIFIED` where none was needed.
        zero_gradients: Mean share of the gradients that were 0 at every pixel; NaN where none was taken.
        is_finite: Whether its own logits are finite.
    """

    as_floats: Bool[np.ndarray, "n epsilons"]
    on_grid: Bool[np.ndarray, "n epsilons"]
    felled_by: np.ndarray
    zero_gradients: Float[np.ndarray, "n epsilons"]
    is_finite: Bool[np.ndarray, " n"]


def attack_in_stages(
    classifier: Classifier,
    attack: SweptAttack,
    seed: int,
    photos: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    epsilons: Sequence[Epsilon],
    batch_size: int,
    *,
    first: int = 0,
    calls: MetricsLog | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Standing:
    """Attack photos untargeted at every ε with the stages of an ensemble.

    Args:
        classifier: What is attacked.
        attack: An `Ensemble` with its settings.
        seed: Of the keys; a photo's key depends on its number alone.
        photos: Pixels 0…255.
        labels: True classes.
        epsilons: Radii, in ascending order.
        batch_size: Photos that a device takes at a time.
        first: Number of the first photo.
        calls: Where the outcome of every call is kept, and found again.
        report: Called with a line at every stage.
    """
    ensemble = attack.attack
    assert isinstance(ensemble, Ensemble)
    calls, at_once = calls or MetricsLog(None), batch_size * device_count()
    known = {_name_of_call(row): row for row in calls.rows() if _is_call(row)}
    tops, is_finite = batched_apply(_classify_rows, photos, batch_size=batch_size, shared=classifier)
    stands, stands_on_grid = tops == labels, tops == labels
    felled_by = np.where(stands, "", MISCLASSIFIED).astype("<U16")
    found = []
    for epsilon, levels in zip(epsilons, most_grey_levels(epsilons, attack.norm == "linf"), strict=True):
        zeros, counts = np.zeros(len(photos)), np.zeros(len(photos))
        # A picture cannot be changed by less than a grey level.
        is_left = (stands | (stands_on_grid & (levels > 0))) & (epsilon.value > 0)
        for stage in ensemble.stages(len(classifier.classes)):
            rows = np.flatnonzero(is_left)
            if not len(rows):
                break
            report(f"epsilon {epsilon.value:g}, {_describe(stage)}: {len(rows)} photos")
            for start in range(0, len(rows), at_once):
                chunk = rows[start : start + at_once]
                call = {"epsilon": epsilon.value, "stage": _describe(stage), "photos": (first + chunk).tolist()}
                row = known.get(_name_of_call(call))
                if row is None:
                    some = (photos[chunk], labels[chunk], first + chunk)
                    outcome = _run_stage(classifier, attack, stage, seed, *some, epsilon, int(levels), batch_size)
                    row = call | {name: part.tolist() for name, part in zip(OUTCOME, outcome, strict=True)}
                    calls.append(row)
                fell, fell_on_grid, share = (np.asarray(row[name]) for name in OUTCOME)
                felled_by[chunk[fell & stands[chunk]]] = stage.name
                stands[chunk] &= ~fell
                stands_on_grid[chunk] &= ~fell_on_grid
                is_left[chunk] &= ~fell
                counts[chunk] += share >= 0
                zeros[chunk] += np.maximum(share, 0)
        with np.errstate(invalid="ignore"):
            found.append((stands.copy(), stands_on_grid.copy(), felled_by.copy(), zeros / counts))
    as_floats, on_grid, names, shares = (np.stack(part, axis=1) for part in zip(*found, strict=True))
    return Standing(as_floats, on_grid, names, shares, is_finite)


def photo_keys(seed: int, numbers: Int[np.ndarray, " n"]) -> Key[Array, " n"]:
    """Return the key of every photo, by its number."""
    keys: Key[Array, " n"] = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers)
    return keys


def _run_stage(
    classifier: Classifier,
    attack: SweptAttack,
    stage: Stage,
    seed: int,
    photos: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    numbers: Int[np.ndarray, " n"],
    epsilon: Epsilon,
    levels: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of every photo whether it fell, whether rounded to 8 bits, and its zero gradients, -1 without any."""
    rows = (photos, np.asarray(jax.random.key_data(fold_in(photo_keys(seed, numbers), stage.member))), labels)
    shared = (classifier, np.float32(epsilon.fraction), np.float32(levels), np.int32(stage.rank or 0))
    settings = tuple(select_settings(stage.attack, dict(attack.settings)).items())
    static = (stage.attack, attack.norm, settings, stage.rank is not None)
    found: tuple[np.ndarray, np.ndarray, np.ndarray] = batched_apply(
        _attack_rows, *rows, batch_size=batch_size, shared=shared, static=static
    )
    return found


def _attack_rows(
    attack: Attack,
    norm: Norm,
    settings: tuple[tuple[str, Any], ...],
    aims: bool,
    shared: tuple[Classifier, Array, Array, Array],
    photos: Array,
    key_data: Array,
    labels: Array,
) -> tuple[Bool[Array, " n"], Bool[Array, " n"], Float[Array, " n"]]:
    classifier, epsilon, levels, rank = shared
    keys, images = jax.random.wrap_key_data(key_data), in_unit_range(photos)
    further = dict(settings) | ({"rank": rank} if aims else {})
    found = attack(keys, classifier.logits, images, labels, epsilon=epsilon, norm=norm, **further)
    rounded = round_on_device(found.images, photos, levels)
    tops = jnp.argmax(evaluate_logits(classifier.logits, rounded), axis=1)
    zeros = jnp.full(len(photos), -1.0) if found.zero_gradients is None else found.zero_gradients
    return found.success, tops != labels, zeros


def _classify_rows(classifier: Classifier, photos: Array) -> tuple[Int[Array, " n"], Bool[Array, " n"]]:
    logits = evaluate_logits(classifier.logits, in_unit_range(photos))
    return jnp.argmax(logits, axis=1), jnp.all(jnp.isfinite(logits), axis=1)


def _describe(stage: Stage) -> str:
    return stage.name if stage.rank is None else f"{stage.name} towards rank {stage.rank + 1}"


def _name_of_call(row: Mapping[str, Any]) -> tuple[float, str, tuple[int, ...]]:
    return row["epsilon"], row["stage"], tuple(row["photos"])


def _is_call(row: Mapping[str, Any]) -> bool:
    return {"epsilon", "stage", "photos", *OUTCOME} <= row.keys()
