"""The share of photos that a classifier still recognises when each is moved by up to ε: its robust accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.stats import binomtest

from adversarial.one_photo import Attack, Predict
from adversarial.pixels import Epsilon, most_grey_levels, round_inward
from runtime.check import ArrayForm

ACCURACIES = tuple(f"{kind}{end}" for kind in ("accuracy", "accuracy_8_bit") for end in ("", "_low", "_high"))
FORM = {name: ArrayForm((None,), "float64") for name in ("epsilons", "grey_levels", *ACCURACIES)}
"""What `robustness.npz` holds."""


def recognised(
    predict: Predict,
    attack: Attack,
    pixels: UInt8[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, " n"],
    radii: Sequence[Epsilon],
    in_linf: bool = True,
) -> tuple[Bool[np.ndarray, "epsilons n"], Bool[np.ndarray, "epsilons n"]]:
    """Which photos the classifier still recognises after an untargeted attack: as floats, and on the 8-bit grid."""
    epsilons = np.asarray([radius.fraction for radius in radii], np.float32)
    images = np.asarray(attack(pixels, labels[None], np.asarray([False]), epsilons))[0]
    rounded = round_inward(images, pixels, most_grey_levels(radii, in_linf)[:, None, None, None, None])
    as_floats, on_grid = (predict(kind).argmax(axis=-1) == labels for kind in (images, rounded))
    return as_floats, on_grid


def estimate(rows: Sequence[Mapping[str, Any]], radii: Sequence[Epsilon]) -> dict[str, Float[np.ndarray, " epsilons"]]:
    """Accuracy against ε with 95 % Wilson intervals, of attacked images as floats and on the 8-bit grid.

    A photo counts as recognised at ε if no attack with that ε or a smaller one has fooled the network, for its images
    are within ε too. Wilson 1927, doi 10.1080/01621459.1927.10502953.

    Args:
        rows: A photo each, with `correct` and `correct_8_bit`, a truth value an ε.
        radii: The ε, in ascending order.
    """
    found = {
        "epsilons": np.asarray([radius.value for radius in radii], np.float64),
        "grey_levels": np.asarray([radius.grey_levels for radius in radii], np.float64),
    }
    for name in ("correct", "correct_8_bit"):
        survived = np.logical_and.accumulate(np.asarray([row[name] for row in rows], bool), axis=1)
        found |= _shares(name.replace("correct", "accuracy"), survived)
    return found


def described(found: Mapping[str, np.ndarray], radii: Sequence[Epsilon]) -> list[dict[str, Any]]:
    """An entry an ε for `results.json`."""
    return [
        {
            "epsilon": radius.value,
            "epsilon_range": str(radius.range),
            "epsilon_grey_levels": radius.grey_levels,
            **{name: float(found[name][column]) for name in ACCURACIES},
        }
        for column, radius in enumerate(radii)
    ]


def _shares(name: str, survived: Bool[np.ndarray, "photos epsilons"]) -> dict[str, np.ndarray]:
    tests = [binomtest(int(column.sum()), len(column)) for column in survived.T]
    intervals = [test.proportion_ci(0.95, "wilson") for test in tests]
    return {
        name: survived.mean(axis=0),
        f"{name}_low": np.asarray([interval.low for interval in intervals]),
        f"{name}_high": np.asarray([interval.high for interval in intervals]),
    }


def summary(results: Mapping[str, Any]) -> str:
    """What came out, in a few lines for the terminal."""
    lines = [f"{results['photos']} photos, clean accuracy {results['clean_accuracy']:.1%}; robust accuracy:"]
    for entry in results["robust_accuracy"]:
        lines.append(
            "  epsilon {epsilon:g} of {epsilon_range} ({epsilon_grey_levels:.4g} grey levels): {accuracy:.1%} "
            "({accuracy_low:.1%} to {accuracy_high:.1%}), on the 8-bit grid {accuracy_8_bit:.1%}".format(**entry)
        )
    return "\n".join(lines)
