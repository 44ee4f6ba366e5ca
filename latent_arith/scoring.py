"""The scorecard of a run: all directions and estimators scored on held-out faces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from latent_arith import scorecard
from latent_arith.attribute_classifier import AttributeClassifier, Pixels, train_attribute_classifier
from latent_arith.config import LatentArithConfig
from latent_arith.datasets.face_data import FaceData
from latent_arith.directions import Vectors
from latent_arith.model import Decode, Encode
from latent_arith.pictures import STRENGTHS
from latent_arith.scorecard import Estimate, MeanLeakage

LEARNED = 0.5
"""Share of the edited faces that must show an attribute, for it to count as one that the model has learned."""
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
            "accuracies": self.accuracies[[self.attributes.index(name) for name in self.targets]],
            "leakage_factor": np.asarray(self.config.score_strength),
            **{f"leakage_{name}": found.value for name, found in self.leakage.items()},
            **{f"leakage_{name}_low": found.low for name, found in self.leakage.items()},
            **{f"leakage_{name}_high": found.high for name, found in self.leakage.items()},
        }

    def not_learned(self) -> list[str]:
        """Return the targets that fewer than half of the faces show after an edit along the balanced direction."""
        shares = self.ends["balanced"].value
        return [name for name, share in zip(self.targets, shares, strict=True) if share < LEARNED]

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
                "classifier_accuracy": float(self.accuracies[self.attributes.index(name)]),
            }
            for row, name in enumerate(self.targets)
        }
        return {
            "factor": self.config.score_strength,
            "scale": self.config.scale,
            "faces": self.config.scored_faces,
            "not_learned": self.not_learned(),
            "classifier_accuracy": float(self.accuracies.mean()),
            "classifier_accuracies": dict(zip(self.attributes, self.accuracies.tolist(), strict=True)),
            "mean_leakage": {name: float(mean.value.mean()) for name, mean in means.items()},
            "mean_leakage_all_others": {name: float(mean.value.mean()) for name, mean in means_of_all.items()},
            "targets": targets,
        }


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier that has never seen a latent, and what of a picture it measures.

    Attributes:
        classifier: The classifier.
        exclusive: Pairs of attributes that exclude each other by definition.
        defining: Factors that attributes are thresholds of, (A, F); no columns where factors are not known.
        log_odds_deviation: Standard deviation over held-out images of the log-odds of the attributes.
        accuracies: Share of the held-out images of which it is right, by attribute.
    """

    classifier: AttributeClassifier
    exclusive: Bool[np.ndarray, "attributes attributes"]
    defining: Bool[np.ndarray, "attributes factors"]
    log_odds_deviation: Float[np.ndarray, " attributes"]
    accuracies: Float[np.ndarray, " attributes"]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the A attributes."""
        return self.classifier.names

    def predict(self, images: Pixels) -> tuple[Float[np.ndarray, "n attributes"], Float[np.ndarray, "n factors"]]:
        """Return probabilities of the attributes, and the factors in their own units, of pixels 0…255."""
        return self.classifier.predict(images)

    def identity_values(
        self,
        targets: Int[np.ndarray, " targets"],
        seen: Float[np.ndarray, "*rows attributes"],
        factors: Float[np.ndarray, "*rows factors"],
    ) -> tuple[np.ndarray, Bool[np.ndarray, "targets values"], Float[np.ndarray, " values"]]:
        """Return what identity is measured by, which of it defines every target, and standard deviations.

        The factors, or, for data without any, the log-odds of the attributes.
        """
        if self.defining.shape[1]:
            return factors, self.defining[targets], self.classifier.factor_deviation
        own = np.arange(len(self.names)) == targets[:, None]
        return scorecard.log_odds(seen), self.exclusive[targets] | own, self.log_odds_deviation


def train_judge(config: LatentArithConfig, data: FaceData) -> Judge:
    """Return the judge of a data set."""
    part, names = data.classifier, data.table.names
    classifier = train_attribute_classifier(
        jax.random.fold_in(jax.random.key(config.seed), 3),
        part.images,
        part.attributes,
        part.factors,
        names,
        epochs=config.classifier_epochs,
    )
    probabilities, _ = classifier.predict(data.source[data.held_out])
    return Judge(
        classifier,
        scorecard.find_exclusive_pairs(data.table.values),
        data.find_defining_factors(names) if data.factors else np.zeros((len(names), 0), bool),
        scorecard.log_odds(probabilities).std(axis=0),
        scorecard.measure_accuracy(probabilities, data.table.values[data.held_out]),
    )


def score_directions(
    config: LatentArithConfig,
    data: FaceData,
    judge: Judge,
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
        judge: What measures pictures.
        encode: Pixels to posterior means.
        decode: Latents to pixels.
        names: The T targets.
        latents: Posterior means of the held-out images.
        moves: What a strength of 1 adds, (T, latent), for every estimator.
    """
    targets = np.asarray([judge.names.index(name) for name in names])
    exclusive = judge.exclusive[targets]
    scored, at = latents[: config.scored_faces], np.asarray([0, config.score_strength], np.float32)
    seen, factors = scorecard.dose_response(judge.predict, decode, scored, moves["balanced"], STRENGTHS)
    zero, end = (int(np.flatnonzero(value == STRENGTHS)[0]) for value in at)
    seen_by = {"balanced": seen[:, [zero, end]]}
    for estimator in ("raw", "orthogonal"):
        moved, _ = scorecard.dose_response(judge.predict, decode, scored, moves[estimator], at[1:])
        seen_by[estimator] = np.concatenate([seen[:, [zero]], moved], axis=1)
    changes = {name: scorecard.measure_changes(both, at, config.score_strength) for name, both in seen_by.items()}
    values, defining, deviations = judge.identity_values(targets, seen, factors)
    rates = {name: scorecard.success_rate(both, targets) for name, both in seen_by.items()}
    probed = data.train[:PROBED]
    return Scorecard(
        config,
        names,
        judge.names,
        judge.accuracies,
        exclusive,
        curve=scorecard.success_rate(seen, targets),
        ends={name: Estimate(*(part[:, 1] for part in rate)) for name, rate in rates.items()},
        leakage={name: scorecard.measure_leakage(change) for name, change in changes.items()},
        mean_leakage={
            name: scorecard.measure_mean_leakage(change, targets, exclusive) for name, change in changes.items()
        },
        identity=scorecard.measure_identity_distance(values, STRENGTHS, defining, deviations),
        probe_auc=scorecard.probe_auc(
            encode(data.source[probed]),
            data.table.values[probed][:, targets],
            latents,
            data.table.values[data.held_out][:, targets],
        ),
    )


def _describe_row(estimates: Mapping[str, Estimate], row: int) -> dict[str, list[float]]:
    """Return value and interval of every estimator for one target."""
    return {name: [float(part[row]) for part in estimate] for name, estimate in estimates.items()}
