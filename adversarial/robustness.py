"""The share of photos that a classifier still recognises when each is moved by up to ε: its robust accuracy.

What is measured is an upper bound: a stronger attack, more steps or more restarts may find what this one did not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8

from adversarial.attacks import SweptAttack, evaluate_logits
from adversarial.classifier import Classifier, in_unit_range
from adversarial.config import describe_attack
from adversarial.one_photo import format_distance
from adversarial.pixels import GREY_LEVELS, SLACK, Epsilon, PixelRange, most_grey_levels
from latentlab.arrays import AnyArray
from latentlab.parallel import LocalRows, batched_apply
from latentlab.statistics import share_with_interval
from latentlab.storage.check import ArraySpec
from latentlab.storage.run_directory import finite_or_null
from latentlab.tables import format_table

MISCLASSIFIED = "none"
"""In the place of an attack's name, for photos that are not recognised as they are."""
ACCURACIES = tuple(f"{kind}{end}" for kind in ("accuracy", "accuracy_8_bit") for end in ("", "_low", "_high"))
STORED_ARRAYS = {name: ArraySpec((None,), "float64") for name in ("epsilons", "grey_levels", *ACCURACIES)}
"""What `robustness.npz` holds."""


class AttackedPhotos(NamedTuple):
    """What an attack made of photos at every ε.

    Attributes:
        as_floats: Whether a photo is still recognised.
        on_grid: The same after rounding to the 8-bit grid.
        zero_gradients: Share of the gradients that were 0 at every pixel; NaN where the attack does not count them.
        is_finite: Whether all logits were finite.
        distance: Of the nearest image found that is not recognised, in [0, 1], infinite where none was; NaN where the
            attack does not look for it.
    """

    as_floats: Bool[AnyArray, "n epsilons"]
    on_grid: Bool[AnyArray, "n epsilons"]
    zero_gradients: Float[AnyArray, "n epsilons"]
    is_finite: Bool[AnyArray, " n"]
    distance: Float[AnyArray, " n"]


def attack_and_classify(
    classifier: Classifier,
    attack: SweptAttack,
    keys: Key[Array, " n"],
    photos: UInt8[np.ndarray, "n h w 3"] | LocalRows,
    labels: Int[np.ndarray, " n"],
    epsilons: Sequence[Epsilon],
    batch_size: int,
) -> AttackedPhotos:
    """Attack photos untargeted at every ε, and test whether the classifier still recognises them.

    Attack, rounding and both predictions are one compiled call: photos go in as uint8, truth values come out.

    Args:
        classifier: What is attacked.
        attack: The attack and its settings.
        keys: A key of every photo.
        photos: Pixels 0…255, or those that this process has read.
        labels: True classes.
        epsilons: Radii.
        batch_size: Photos that a device takes at a time.
    """
    radii = np.asarray([epsilon.fraction for epsilon in epsilons], np.float32)
    most = most_grey_levels(epsilons, attack.norm == "linf").astype(np.float32)
    rows = (photos, np.asarray(jax.random.key_data(keys)), labels)
    settings: dict[str, Any] = {"batch_size": batch_size, "shared": (classifier, radii, most), "static": (attack,)}
    found: AttackedPhotos = batched_apply(_attack_and_classify_rows, *rows, **settings)
    return found


def _attack_and_classify_rows(
    attack: SweptAttack, shared: tuple[Classifier, Array, Array], photos: Array, key_data: Array, labels: Array
) -> AttackedPhotos:
    classifier, radii, most = shared
    keys, images = jax.random.wrap_key_data(key_data), in_unit_range(photos)
    found = attack(keys, classifier.logits, images, labels[None], jnp.asarray([False]), radii)
    swept = found.images[0]
    rounded = round_on_device(swept, photos[None], most[:, None, None, None, None])

    def classify(images: Float[Array, "epsilons n h w c"]) -> tuple[Bool[Array, "n epsilons"], Bool[Array, " n"]]:
        logits = evaluate_logits(classifier.logits, images.reshape(-1, *images.shape[2:]))
        tops = jnp.argmax(logits, axis=-1).reshape(images.shape[:2]).T
        is_finite = jnp.isfinite(logits).reshape(*images.shape[:2], -1)
        return labels[:, None] == tops, jnp.all(is_finite, axis=(0, 2))

    (as_floats, one), (on_grid, other) = classify(swept), classify(rounded)
    unknown = jnp.full_like(found.success[0], jnp.nan, jnp.float32)
    zeros = unknown if found.zero_gradients is None else found.zero_gradients[0]
    distance = unknown if found.distance is None else found.distance[0]
    return AttackedPhotos(as_floats, on_grid, zeros.T, one & other, distance[0])


def round_on_device(
    images: Float[AnyArray, "*more n h w c"], photos: UInt8[AnyArray, "..."], most: Float[AnyArray, "..."]
) -> Float[Array, "*more n h w c"]:
    """Return what `pixels.round_inward` does, within `jit`, as floats in [0, 1]."""
    pixels = photos.astype(jnp.float32)
    difference = images * GREY_LEVELS - pixels
    levels = jnp.trunc(difference + SLACK * jnp.sign(difference))
    return jnp.clip(pixels + jnp.clip(levels, -most, most), 0, GREY_LEVELS) / GREY_LEVELS


def estimate_accuracy(
    rows: Sequence[Mapping[str, Any]], epsilons: Sequence[Epsilon]
) -> dict[str, Float[np.ndarray, " epsilons"]]:
    """Return accuracy against ε with 95 % Wilson intervals, of attacked images as floats and on the 8-bit grid.

    A photo counts as recognised at ε if no attack with that ε or a smaller one has fooled the network, for its images
    are within ε too. Wilson 1927, doi 10.1080/01621459.1927.10502953.

    Args:
        rows: A photo each, with `correct` and `correct_8_bit`, a truth value an ε.
        epsilons: The ε, in ascending order.
    """
    found = {
        "epsilons": np.asarray([epsilon.value for epsilon in epsilons], np.float64),
        "grey_levels": np.asarray([epsilon.grey_levels for epsilon in epsilons], np.float64),
    }
    for name in ("correct", "correct_8_bit"):
        survived = np.logical_and.accumulate(np.asarray([row[name] for row in rows], bool), axis=1)
        found |= _shares(name.replace("correct", "accuracy"), survived)
    return found


def mean_zero_gradients(
    rows: Sequence[Mapping[str, Any]], epsilons: Sequence[Epsilon]
) -> Float[np.ndarray, " epsilons"]:
    """Return the mean of the photos' `zero_gradients` at every ε; NaN where a row has none, as those of before."""
    shares = [row.get("zero_gradients") or [None] * len(epsilons) for row in rows]
    return np.asarray(shares, np.float64).mean(axis=0)


def describe_distances(rows: Sequence[Mapping[str, Any]], unit: PixelRange) -> dict[str, Any]:
    """Return quartiles of the distance to the nearest image found, of the photos that are recognised as they are.

    A photo of which none was found is farther than all others. Where the attack does not look for the nearest, there
    is nothing to tell.
    """
    distances = [row["distance"] for row in rows if "distance" in row and row["correct"][0]]
    if not distances:
        return {}
    values = np.asarray([np.inf if distance is None else distance for distance in distances])
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75), method="lower")
    return {
        "distance": {
            "photos": len(values),
            "found": int(np.isfinite(values).sum()),
            "median": finite_or_null(median),
            "quartiles": [finite_or_null(low), finite_or_null(high)],
            "range": str(unit),
        }
    }


def describe_accuracy(
    found: Mapping[str, np.ndarray],
    zero_gradients: Float[np.ndarray, " epsilons"],
    epsilons: Sequence[Epsilon],
    rows: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Return an entry for every ε, for `results.json`; `felled_by` counts photos by the attack of an ensemble."""
    is_ensemble = bool(rows) and all("felled_by" in row for row in rows)
    return [
        {
            "epsilon": epsilon.value,
            "epsilon_range": str(epsilon.range),
            "epsilon_grey_levels": epsilon.grey_levels,
            **{name: float(found[name][column]) for name in ACCURACIES},
            "zero_gradients": finite_or_null(zero_gradients[column]),
            **({"felled_by": dict(Counter(row["felled_by"][column] for row in rows))} if is_ensemble else {}),
        }
        for column, epsilon in enumerate(epsilons)
    ]


def _shares(name: str, survived: Bool[np.ndarray, "photos epsilons"]) -> dict[str, np.ndarray]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), share_with_interval(survived.T), strict=True))


def _describe_fall(entry: Mapping[str, Any]) -> str:
    """Return which attacks of an ensemble the photos fell to, "" for other attacks."""
    counts = [(name, count) for name, count in entry.get("felled_by", {}).items() if name not in ("", MISCLASSIFIED)]
    return "fell to " + ", ".join(f"{name} {count}" for name, count in counts) if counts else ""


def summarize(results: Mapping[str, Any]) -> str:
    """Return the results in a few lines for the terminal."""
    skipped = len(results.get("skipped", ()))
    counted = f"{results['photos']} photos" + (f" ({skipped} more cannot be read)" if skipped else "")
    lines = [
        f"{counted}, clean accuracy {results['clean_accuracy']:.1%}; robust accuracy against "
        f"{describe_attack(results)}, an upper bound:",
        "",
    ]
    entries = results["robust_accuracy"]
    unit = entries[0]["epsilon_range"]
    rows = [
        [
            f"{entry['epsilon']:g}",
            f"{entry['epsilon_grey_levels']:.4g}",
            f"{entry['accuracy']:.1%}",
            f"{entry['accuracy_low']:.1%} to {entry['accuracy_high']:.1%}",
            f"{entry['accuracy_8_bit']:.1%}",
        ]
        for entry in entries
    ]
    lines.append(format_table([f"ε of {unit}", "grey levels", "recognised", "95 % interval", "as PNG"], rows))
    lines += [f"ε = {entry['epsilon']:g}: {fall}" for entry in entries if (fall := _describe_fall(entry))]
    if found := results.get("distance"):
        lines.append(
            f"distance to the nearest image found that is not recognised: median {format_distance(found['median'])} "
            f"of {found['range']}, quartiles {' and '.join(map(format_distance, found['quartiles']))}, over "
            f"{found['photos']} photos"
        )
    return "\n".join(lines)
