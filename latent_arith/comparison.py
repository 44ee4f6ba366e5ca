"""Which direction edits better: the difference of means, or the normal of a classifier's boundary?

Every estimator of `estimators` is fitted to the same latents, raw and balanced, for every attribute; held-out faces
are moved along each by the same multiples of the latents' standard deviation along it; and the classifier of the
scorecard, which has never seen a latent, measures success, leakage and identity distance. A step of one estimator moves
a face farther than a step of another, so what is compared is what an edit costs at the same success (`cost_at`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int8

from latent_arith import scorecard
from latent_arith.directions import inverse_propensity_weights
from latent_arith.estimators import FITS, bootstrap, standard_error_degrees
from latent_arith.model import Decode
from latent_arith.scorecard import Estimate, average_absolute, estimate, resample_means, square_moves
from latent_arith.scoring import Judge
from latentlab.errors import UserError

STRENGTHS = np.asarray([0, 1, 2, 3, 5, 8, 12], np.float32)
"""How far faces are moved, in standard deviations of the latents along the direction."""
FIRST = "means_raw"
"""The estimator that all are compared with, in names of results."""
SUCCESS = 0.8
"""Share of the faces that must have the attribute where costs are compared."""

Latents = Float[np.ndarray, "n latent"]
Resampled = Float[np.ndarray, "resamples targets steps"]


class Scores(NamedTuple):
    """What moved faces show, by target and strength: the first row over all faces, the others over resamples of them.

    Success is the share of faces with the attribute, leakage the mean absolute change of the others in percentage
    points, and identity the distance of `scorecard.measure_identity_distance`.
    """

    success: Resampled
    leakage: Resampled
    identity: Resampled


@dataclass(frozen=True, eq=False)
class Comparison:
    """Directions of E estimators (those of `estimators.FITS`, each raw and balanced), and what moving along them does.

    Attributes:
        names: Estimators, such as "svm balanced".
        targets: The T attributes.
        images: Number of images that estimators are fitted to.
        faces: Number of held-out faces that are moved.
        vectors: Unit vectors.
        standard_error_degrees: Of each, by bootstrap over images; NaN without resamples.
        scores: Of every estimator.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    images: int
    faces: int
    vectors: Float[np.ndarray, "estimators targets latent"]
    standard_error_degrees: Float[np.ndarray, "estimators targets"]
    scores: tuple[Scores, ...]

    def curve(self, score: str) -> Estimate:
        """Return the mean over targets of `success`, `leakage` or `identity` at every strength, (E, K)."""
        means = np.stack([getattr(scores, score).mean(axis=1) for scores in self.scores], axis=1)
        return estimate(means)

    def cost(self, score: str, level: float = SUCCESS) -> tuple[Estimate, Estimate]:
        """Return `leakage` or `identity` where success reaches a level, by estimator, and that of the first estimator.

        Both are means over the targets that the estimator and the first one bring to that level; NaN where there is
        none.
        """
        costs = np.stack([cost_at(scores.success, getattr(scores, score), level) for scores in self.scores], axis=1)
        kept = np.isfinite(costs[0]) & np.isfinite(costs[0, 0])
        own, first = (_mean_of_finite(np.where(kept, part, np.nan)) for part in (costs, costs[:, :1]))
        return estimate(own), estimate(first)

    def count_reached(self, level: float = SUCCESS) -> Int[np.ndarray, " estimators"]:
        """Return for how many targets every estimator reaches a level of success."""
        return np.stack([(scores.success[0].max(axis=1) >= level).sum() for scores in self.scores])

    def mean_cosines(self) -> Float[np.ndarray, "estimators estimators"]:
        """Return the cosine between the directions of every pair of estimators, mean over targets."""
        return np.einsum("atd,btd->ab", self.vectors, self.vectors, dtype=np.float64) / len(self.targets)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `estimators.npz` holds."""
        scores = {name: np.stack([getattr(each, name)[0] for each in self.scores]) for name in Scores._fields}
        curves = {name: self.curve(name) for name in Scores._fields}
        return {
            "names": np.asarray(self.names),
            "targets": np.asarray(self.targets),
            "strengths": STRENGTHS,
            "vectors": self.vectors,
            "standard_error_degrees": self.standard_error_degrees,
            "mean_cosines": self.mean_cosines(),
            **scores,
            **{f"mean_{name}": curve.value for name, curve in curves.items()},
            **{f"mean_{name}_low": curve.low for name, curve in curves.items()},
            **{f"mean_{name}_high": curve.high for name, curve in curves.items()},
        }

    def describe(self) -> dict[str, Any]:
        """Return what `results.json` says of it: means over attributes, and each attribute where costs are compared."""
        costs = {name: self.cost(name) for name in ("leakage", "identity")}
        angles = np.degrees(np.arccos(np.clip(np.einsum("etd,td->et", self.vectors, self.vectors[0]), -1, 1)))
        errors = self.standard_error_degrees
        return {
            "images": self.images,
            "faces": self.faces,
            "success": SUCCESS,
            "attributes": len(self.targets),
            "estimators": {
                name: {
                    "reached": int(reached),
                    **{f"{score}_at_success": [float(part[row]) for part in own] for score, (own, _) in costs.items()},
                    **{f"{score}_of_{FIRST}": float(first.value[row]) for score, (_, first) in costs.items()},
                    "angle_degrees": float(angles[row].mean()),
                    "standard_error_degrees": float(errors[row].mean()) if np.isfinite(errors[row]).all() else None,
                }
                for row, (name, reached) in enumerate(zip(self.names, self.count_reached(), strict=True))
            },
        }


def compare_estimators(
    judge: Judge,
    decode: Decode,
    latents: Latents,
    attributes: Int8[np.ndarray, "n attributes"],
    targets: Sequence[str],
    held_out: Float[np.ndarray, "m latent"],
    *,
    resamples: int,
    seed: int = 0,
) -> Comparison:
    """Fit all estimators, raw and balanced, and move held-out faces along their directions.

    Args:
        judge: What measures pictures.
        decode: Latents to pixels.
        latents: Posterior means of the images that estimators are fitted to.
        attributes: Their attributes, +1 or -1, those of the judge; balanced weights see all of them.
        targets: Attributes whose directions are wanted; those that all images share, or none has, are left out.
        held_out: Latents of the faces that are moved.
        resamples: Of the images, for standard errors.
        seed: Of the resampling.

    Raises:
        UserError: Of no target are there images with and without it.
    """
    has = attributes > 0
    positives = has.sum(axis=0)
    wanted = map(judge.names.index, targets)
    columns = np.asarray([column for column in wanted if 0 < positives[column] < len(has)], np.int64)
    if not len(columns):
        raise UserError(
            f"among the first {len(latents)} training images, compared_images, no attribute has images with and "
            "without it; expected more of them"
        )
    balanced = inverse_propensity_weights(attributes)
    before = judge.predict(decode(held_out))
    names, vectors, errors, scores = [], [], [], []
    for variant, weights in (("raw", np.ones_like(balanced)), ("balanced", balanced)):
        for name, fit in FITS.items():
            groups = [(latents, has[:, column], weights[:, column]) for column in columns]
            found = np.stack([fit(*group) for group in groups])
            names.append(f"{name} {variant}")
            vectors.append(found)
            errors.append(
                [
                    standard_error_degrees(vector, bootstrap(fit, *group, resamples, seed))
                    for vector, group in zip(found, groups, strict=True)
                ]
            )
            moves = np.std(latents @ found.T, axis=0)[:, None] * found
            after = scorecard.dose_response(judge.predict, decode, held_out, moves, STRENGTHS[1:])
            scores.append(_score(judge, columns, *(map(_put_first, before, after))))
    return Comparison(
        tuple(names),
        tuple(judge.names[column] for column in columns),
        len(latents),
        len(held_out),
        np.stack(vectors),
        np.asarray(errors),
        tuple(scores),
    )


def cost_at(success: np.ndarray, cost: np.ndarray, level: float) -> np.ndarray:
    """Return the cost where success first reaches a level, both (…, K) by strength; NaN where it never does.

    Between two strengths both are linear. Where the level is reached from the start, an edit costs nothing.
    """
    reached = success >= level
    at = np.argmax(reached, axis=-1)[..., None]
    before = np.maximum(at - 1, 0)
    low, high = (np.take_along_axis(success, index, -1) for index in (before, at))
    share = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 1)
    start, end = (np.take_along_axis(cost, index, -1) for index in (before, at))
    return np.where(reached.any(axis=-1), (start + np.where(at > 0, share, 0) * (end - start))[..., 0], np.nan)


def _mean_of_finite(values: Float[np.ndarray, "rows estimators targets"]) -> Float[np.ndarray, "rows estimators"]:
    counts = np.isfinite(values).sum(axis=2)
    return np.where(counts > 0, np.nansum(values, axis=2) / np.maximum(counts, 1), np.nan)


def _score(judge: Judge, targets: np.ndarray, seen: np.ndarray, factors: np.ndarray) -> Scores:
    """Return scores of what a judge sees in every target, strength and face: probabilities and factors."""
    found = np.stack([seen[row, :, :, column] >= 0.5 for row, column in enumerate(targets)])
    changes = 100 * (seen - seen[:, :1]).transpose(2, 0, 1, 3)
    others = np.arange(seen.shape[3]) != targets[:, None]
    kept = (others & ~judge.exclusive[targets])[:, None]
    values, defining, deviations = judge.identity_values(targets, seen, factors)
    return Scores(
        resample_means(np.moveaxis(found, 2, 0)),
        average_absolute(resample_means(changes), kept),
        np.sqrt(resample_means(square_moves(values, defining, deviations))),
    )


def _put_first(before: Float[np.ndarray, "n values"], after: Float[np.ndarray, "targets steps n values"]) -> np.ndarray:
    """Return what is seen in unedited faces, the same for all targets, before what is seen in moved ones."""
    return np.concatenate([np.broadcast_to(before, (len(after), 1, *before.shape)), after], axis=1)
