"""The scorecard of a run: all directions and estimators scored on held-out faces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from latent_arith import scorecard
from latent_arith.attribute_classifier import AttributeClassifier, train_attribute_classifier
from latent_arith.config import LatentArithConfig
from latent_arith.datasets.face_data import FaceData
from latent_arith.directions import Vectors
from latent_arith.model import Decode, Encode
from latent_arith.pictures import STRENGTHS
from latent_arith.scorecard import Estimate, MeanLeakage

PROBED = 2000
"""Training images of the linear probes."""


@dataclass(frozen=True, eq=False)
class Scorecard:
    """What the classifier sees in moved faces, by estimator.

    Attributes:
        config: Settings: scale, strength and number of faces.
        targets: The T attributes along whose direction faces were moved.
        attributes: The A attributes that the classifier tells.
        accuracies: Of the classifier on held-out faces, (A,).
        exclusive: Attributes that exclude a target by definition, (T, A).
        curve: Success rate of the balanced directions at every strength, (T, K).
        ends: Success rates at the strength of the configuration, (T,), by estimator.
        leakage: Changes of every attribute, (T, A), by estimator.
        mean_leakage: Means of their absolute values, by estimator.
        identity: Identity distance of the balanced directions at every strength, (T, K).
        probe_auc: Areas of linear probes, (T,).
    """

    config: LatentArithConfig
    targets: Sequence[str]
    attributes: Sequence[str]
    accuracies: Float[np.ndarray, " attributes"]
    exclusive: Bool[np.ndarray, "targets attributes"]
    curve: Estimate
    ends: Mapping[str, Estimate]
    leakage: Mapping[str, Estimate]
    mean_leakage: Mapping[str, MeanLeakage]
    identity: Estimate
    probe_auc: Sequence[float | None]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `scorecard.npz` holds."""
        return {
            "targets": np.asarray(self.targets),
            "attributes": np.asarray(self.attributes),
            "factors": STRENGTHS,
            "reached": self.curve.value.astype(np.float32),
            "reached_low": self.curve.low,
            "reached_high": self.curve.high,
            "exclusive": self.exclusive,
            "identity": self.identity.value,
            "leakage_factor": np.asarray(self.config.score_strength),
            **{f"leakage_{name}": found.value for name, found in self.leakage.items()},
            **{f"leakage_{name}_low": found.low for name, found in self.leakage.items()},
            **{f"leakage_{name}_high": found.high for name, found in self.leakage.items()},
        }

    def describe(self) -> dict[str, Any]:
        """Return what `results.json` says of it."""
        means = {name: mean.compatible for name, mean in self.mean_leakage.items()}
        means_of_all = {name: mean.all_others for name, mean in self.mean_leakage.items()}
        at = int(np.flatnonzero(self.config.score_strength == STRENGTHS)[0])
        targets = {
            name: {
                "reached": _describe_row(self.ends, row),
                "mean_leakage": _describe_row(means, row),
                "mean_leakage_all_others": _describe_row(means_of_all, row),
                "identity_distance": float(self.identity.value[row, at]),
                "probe_auc": self.probe_auc[row],
            }
            for row, name in enumerate(self.targets)
        }
        return {
            "factor": self.config.score_strength,
            "scale": self.config.scale,
            "faces": self.config.scored_faces,
            "classifier_accuracy": float(self.accuracies.mean()),
            "classifier_accuracies": dict(zip(self.attributes, self.accuracies.tolist(), strict=True)),
            "mean_leakage": {name: float(mean.value.mean()) for name, mean in means.items()},
            "mean_leakage_all_others": {name: float(mean.value.mean()) for name, mean in means_of_all.items()},
            "targets": targets,
        }


def score_directions(
    config: LatentArithConfig,
    data: FaceData,
    encode: Encode,
    decode: Decode,
    names: Sequence[str],
    latents: Float[np.ndarray, "held_out latent"],
    moves: Mapping[str, Vectors],
) -> Scorecard:
    """Score all directions on held-out faces.

    Args:
        config: Settings.
        data: Images and their attributes.
        encode: Pixels to posterior means.
        decode: Latents to pixels.
        names: The T targets.
        latents: Posterior means of the held-out images.
        moves: What a strength of 1 adds, (T, latent), for every estimator.
    """
    classifier = _train_judge(config, data)
    held_out, attributes = data.source[data.held_out], data.table.values[data.held_out]
    held_out_probabilities = classifier.predict(held_out)[0]
    targets = np.asarray([data.table.names.index(name) for name in names])
    exclusive = scorecard.find_exclusive_pairs(data.table.values)[targets]

    scored, at = latents[: config.scored_faces], np.asarray([0, config.score_strength], np.float32)
    seen, factors = scorecard.dose_response(classifier.predict, decode, scored, moves["balanced"], STRENGTHS)
    zero, end = (int(np.flatnonzero(value == STRENGTHS)[0]) for value in at)
    seen_by = {"balanced": seen[:, [zero, end]]}
    for estimator in ("raw", "orthogonal"):
        moved, _ = scorecard.dose_response(classifier.predict, decode, scored, moves[estimator], at[1:])
        seen_by[estimator] = np.concatenate([seen[:, [zero]], moved], axis=1)
    changes = {name: scorecard.measure_changes(both, at, config.score_strength) for name, both in seen_by.items()}
    if data.factors:
        values, defining, deviations = factors, data.find_defining_factors(names), classifier.factor_deviation
    else:
        values = scorecard.log_odds(seen)
        defining = exclusive | (np.arange(len(data.table.names)) == targets[:, None])
        deviations = scorecard.log_odds(held_out_probabilities).std(axis=0)
    rates = {name: scorecard.success_rate(both, targets) for name, both in seen_by.items()}
    probed = data.train[:PROBED]
    return Scorecard(
        config,
        names,
        data.table.names,
        scorecard.measure_accuracy(held_out_probabilities, attributes),
        exclusive,
        curve=scorecard.success_rate(seen, targets),
        ends={name: Estimate(*(part[:, 1] for part in rate)) for name, rate in rates.items()},
        leakage={name: scorecard.measure_leakage(change) for name, change in changes.items()},
        mean_leakage={
            name: scorecard.measure_mean_leakage(change, targets, exclusive) for name, change in changes.items()
        },
        identity=scorecard.measure_identity_distance(values, STRENGTHS, defining, deviations),
        probe_auc=scorecard.probe_auc(
            encode(data.source[probed]), data.table.values[probed][:, targets], latents, attributes[:, targets]
        ),
    )


def _train_judge(config: LatentArithConfig, data: FaceData) -> AttributeClassifier:
    part = data.classifier
    return train_attribute_classifier(
        jax.random.fold_in(jax.random.key(config.seed), 3),
        part.images,
        part.attributes,
        part.factors,
        data.table.names,
        epochs=config.classifier_epochs,
    )


def _describe_row(estimates: Mapping[str, Estimate], row: int) -> dict[str, list[float]]:
    """Return value and interval of every estimator for one target."""
    return {name: [float(part[row]) for part in estimate] for name, estimate in estimates.items()}
