"""How well adding an attribute's vector does what its name says, and nothing else, by an independent classifier.

Held-out faces are moved along every direction, decoded, and shown to a classifier that has never seen a latent
(`attribute_classifier`). From its predictions come the share of faces in which the attribute appears (`success_rate`),
how much the other attributes change (`leakage`), how far the rest of the face moves (`identity_distance`), and, from
the latents alone, how well a linear probe reads an attribute off them (`probe_auc`). Intervals resample faces;
directions and classifier are given.

T targets are attributes along whose direction faces are moved, K strengths by how much, n faces, A
attributes and F factors of a face that the classifier tells.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from latent_arith import edits
from latent_arith.attribute_classifier import Predict
from latent_arith.model import Decode, global_batch_size
from latentlab.statistics import share_with_interval, with_one_thread

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)

Latents = Float[np.ndarray, "n latent"]
AttributeValues = Int8[np.ndarray, "n attributes"]
Probabilities = Float[np.ndarray, "targets steps n attributes"]


class Estimate(NamedTuple):
    """Numbers with the ends of their 95% intervals: percentiles over 1,000 resamples of the faces, if not said."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class MeanLeakage(NamedTuple):
    """Mean leakage of every target, (T,): over the attributes that do not exclude it, and over all others."""

    compatible: Estimate
    all_others: Estimate


def dose_response(
    predict: Predict,
    decode: Decode,
    latents: Latents,
    vectors: Float[np.ndarray, "targets latent"],
    strengths: Float[np.ndarray, " steps"],
) -> tuple[Probabilities, Float[np.ndarray, "targets steps n factors"]]:
    """Return what `predict` sees in decode(z + strength · vector) for every target, strength and face, float32.

    At most ten calls of `decode` are in memory at once.
    """
    moved = [edits.move_along(latents, vector[None], strengths[:, None]).swapaxes(0, 1) for vector in vectors]
    rows = np.concatenate(moved).reshape(-1, latents.shape[1])
    at_once = 10 * global_batch_size()
    seen = [predict(decode(rows[start : start + at_once])) for start in range(0, len(rows), at_once)]
    joined = [np.concatenate(parts).astype(np.float32) for parts in zip(*seen, strict=True)]
    probabilities, predicted = (
        part.reshape(len(vectors), len(strengths), len(latents), part.shape[1]) for part in joined
    )
    return probabilities, predicted


def measure_accuracy(
    probabilities: Float[np.ndarray, "n attributes"], attributes: AttributeValues
) -> Float[np.ndarray, " attributes"]:
    """Return the share of images for which p ≥ 0.5 says what the table says."""
    return np.mean((probabilities >= 0.5) == (attributes > 0), axis=0)


def success_rate(probabilities: Probabilities, targets: Int[np.ndarray, " targets"]) -> Estimate:
    """Return the share of the faces in which the classifier finds the target, p ≥ 0.5, at every strength, (T, K).

    Its interval is Wilson's (1927), which a share of 0 or 1 has too.

    Args:
        probabilities: From `dose_response`.
        targets: Column of every target among the attributes.
    """
    found = np.stack([probabilities[row, :, :, column] >= 0.5 for row, column in enumerate(targets)])
    return Estimate(*share_with_interval(found))


def measure_changes(
    probabilities: Probabilities, strengths: Float[np.ndarray, " steps"], strength: float
) -> Float[np.ndarray, "n targets attributes"]:
    """Return 100 (p(strength) - p(0)) of every face, in percentage points; p(0) is the decoding that was not edited.

    Raises:
        ValueError: 0 or `strength` is not among the strengths.
    """
    before, after = (probabilities[:, _strength_index(strengths, value)] for value in (0.0, strength))
    return 100 * (after - before).swapaxes(0, 1)


def measure_leakage(changes: Float[np.ndarray, "n targets attributes"], seed: int = 0) -> Estimate:
    """Return the mean change of every attribute, (T, A), in percentage points; of the target itself, the gain."""
    return _estimate(changes, lambda means: means, seed)


def measure_mean_leakage(
    changes: Float[np.ndarray, "n targets attributes"],
    targets: Int[np.ndarray, " targets"],
    exclusive: Bool[np.ndarray, "targets attributes"],
    seed: int = 0,
) -> MeanLeakage:
    """Return (1 / |S|) Σ_{a ∈ S} |mean over faces of the change of a| for every target, in percentage points.

    S are the attributes other than the target, once without those that exclude it by definition (more Blond_Hair is
    less Black_Hair, which is no fault of the direction), and once all of them, so that it can be seen what leaving
    out does. Where S is empty, the mean is 0. An absolute value cannot be negative, so noise alone gives some leakage,
    about 0.8 standard errors of the mean, and the interval of a small leakage begins above 0.

    Args:
        changes: From `measure_changes`.
        targets: Column of every target among the attributes.
        exclusive: Pairs that are left out of the first mean: the rows `targets` of `find_exclusive_pairs`.
        seed: Of the resampling.
    """
    others = np.arange(changes.shape[2]) != np.asarray(targets)[:, None]

    def over(kept: np.ndarray) -> Estimate:
        return _estimate(changes, lambda means: average_absolute(means, kept), seed)

    return MeanLeakage(over(others & ~exclusive), over(others))


def find_exclusive_pairs(attributes: AttributeValues) -> Bool[np.ndarray, "attributes attributes"]:
    """Return pairs of attributes that both occur in a table but never together.

    In a small table two rare attributes may miss each other by chance: take the whole one.
    """
    has = (attributes > 0).astype(np.float64)
    together = has.T @ has
    occurs = np.diag(together) > 0
    return (together == 0) & occurs & occurs[:, None]


def measure_identity_distance(
    values: Float[np.ndarray, "targets steps n values"],
    strengths: Float[np.ndarray, " steps"],
    defining: Bool[np.ndarray, "targets values"],
    deviations: Float[np.ndarray, " values"],
    seed: int = 0,
) -> Estimate:
    """Return √ mean ((v(strength) - v(0)) / deviation)² over faces and values that do not define the target, (T, K).

    0 at strength 0; √2 is the distance between two faces drawn at random, if the values tell them apart perfectly.

    Args:
        values: The factors that `dose_response` gives; for data without any, `logits` of its probabilities.
        strengths: The K steps, 0 among them.
        defining: Values that the target is made of and that are left out: the factor that it thresholds, or, of
            logits, its own and those of the attributes that exclude it. Where none are left, the distance is 0.
        deviations: Standard deviation of every value over the population.
        seed: Of the resampling.

    Raises:
        ValueError: 0 is not among the strengths.
    """
    moved = square_moves(values, defining, deviations, _strength_index(strengths, 0.0))
    return _estimate(moved, np.sqrt, seed)


def square_moves(
    values: Float[np.ndarray, "targets steps n values"],
    defining: Bool[np.ndarray, "targets values"],
    deviations: Float[np.ndarray, " values"],
    origin: int = 0,
) -> Float[np.ndarray, "n targets steps"]:
    """Return mean ((v(step) - v(origin)) / deviation)² over the values that do not define the target, of every face."""
    moved = (values - values[:, origin : origin + 1]) / np.where(deviations > 0, deviations, 1)
    share = ~defining / np.maximum((~defining).sum(axis=1, keepdims=True), 1)
    return np.einsum("tknv,tv->ntk", moved**2, share)


def log_odds(probabilities: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return the log-odds log(p / (1 - p)) of probabilities clipped to 1e-6…1 - 1e-6."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


@with_one_thread
def probe_auc(
    train_latents: Latents,
    train_attributes: AttributeValues,
    test_latents: Float[np.ndarray, "m latent"],
    test_attributes: Int8[np.ndarray, "m attributes"],
) -> list[float | None]:
    """Return the area under the ROC curve of a linear probe of every attribute.

    A probe is a logistic regression on standardised latents.

    0.5 is chance and 1 perfect. None stands for an attribute that all images of either set share, or none has.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    areas: list[float | None] = []
    for trained, tested in zip(train_attributes.T > 0, test_attributes.T > 0, strict=True):
        if trained.all() or tested.all() or not (trained.any() and tested.any()):
            areas.append(None)
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_latents, trained)
        areas.append(float(roc_auc_score(tested, probe.decision_function(test_latents))))
    return areas


def _strength_index(strengths: Float[np.ndarray, " steps"], value: float) -> int:
    where = np.flatnonzero(np.isclose(strengths, value))
    if not where.size:
        raise ValueError(f"strength {value:g} is not among {', '.join(f'{strength:g}' for strength in strengths)}")
    return int(where[0])


def resample_means(per_face: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return means over faces, the first axis: of all faces, then of 1,000 resamples of them, drawn with replacement.

    A resample is how often every face counts; the same number of faces and seed give the same resamples.
    """
    n, *shape = per_face.shape
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    means = (counts / n) @ per_face.reshape(n, -1).astype(np.float64)
    return np.concatenate([per_face.mean(axis=0, dtype=np.float64)[None], means.reshape(-1, *shape)])


def estimate(resampled: np.ndarray) -> Estimate:
    """Return the first row as the value, and percentiles of the others, which are resamples, as its interval."""
    low, high = np.percentile(resampled[1:], PERCENTILES, axis=0)
    return Estimate(resampled[0], low, high)


def average_absolute(means: Float[np.ndarray, "*rows attributes"], kept: Bool[np.ndarray, "*last attributes"]) -> Any:
    """Return the mean of |x| over the attributes that are kept, 0 where none is."""
    share = kept / np.maximum(kept.sum(axis=-1, keepdims=True), 1)
    return np.sum(np.abs(means) * share, axis=-1)


def _estimate(per_face: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> Estimate:
    """Return the statistic of the means over faces, the first axis."""
    return estimate(statistic(resample_means(per_face, seed)))
