"""What experiment 3 gives: of one photo, what became of it; of many, the robust accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from scipy.special import softmax

from adversarial import one_photo, robustness
from adversarial.classifier import Class, Classifier, make_network
from adversarial.config import DEFAULT_SIZE, AdversarialConfig, Training, describe_attack
from adversarial.digits import AdversarialTraining, DigitsNetwork
from adversarial.one_photo import Sweep
from adversarial.pixels import RANGES, encode_png
from latentlab.export.networks import Network
from latentlab.figures import file_name
from latentlab.labeled_images import IMAGE_SHAPE
from latentlab.model import Variables
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import atomic, read_json, read_npz, write_json, write_npz
from latentlab.storage.weights import read_variables, variable_arrays
from latentlab.tables import format_table

NO_CLASS = -1
EXERCISE = "fgsm"
"""The exercise's attack, whose confidences are its answers."""
TINY = np.finfo(np.float32).tiny
DELIVERED = {2: "ans16", 3: "ans17", 4: "ans18"}
"""Rank of a target, and the exercise's name for the confidence after the attack aimed at it."""


@dataclass(frozen=True, eq=False)
class PhotoResults:
    """What one photo became under every objective and ε.

    Attributes:
        config: Settings of the run.
        classifier: What was attacked.
        photo: The photo, 0…255.
        logits: Of all classes, for the photo.
        sweep: Attacked pictures and the probabilities for them.
        measures: What `results.json` holds.
    """

    config: AdversarialConfig
    classifier: Classifier
    photo: UInt8[np.ndarray, "h w 3"]
    logits: Float[np.ndarray, " classes"]
    sweep: Sweep
    measures: Mapping[str, Any]

    def networks(self) -> tuple[Network, ...]:
        """Return the classifier, for `export`."""
        return (make_network("classifier", self.classifier, self.photo.shape),)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes."""
        order = one_photo.rank_classes(self.logits)
        second, fourth = (order[place] if place < len(order) else NO_CLASS for place in (1, 3))
        answers = {"ans14": np.asarray(second), "ans15": np.asarray(fourth)}
        names = [entry["attack"] for entry in self.measures["attacks"]]
        own = EXERCISE if EXERCISE in names else names[0]
        entries = {entry["objective"]: entry for entry in self.measures["attacks"] if entry["attack"] == own}
        for rank in self.config.targets:
            if rank in DELIVERED:
                name, entry = DELIVERED[rank], entries.get(f"rank {rank}", {})
                answers[name] = np.asarray(entry.get("confidence", np.nan))
                answers[f"{name}_reached"] = np.asarray(entry.get("success", False))  # a confidence alone looks like it
                answers[f"{name}_taken_for"] = np.asarray(entry.get("top1_name", ""))
        return {
            "figures.npz": {"original": self.photo, "adversarial": self.sweep.pictures},
            "sweep.npz": {
                "logits": self.logits,
                "before": softmax(self.logits),
                "probabilities": self.sweep.probabilities,
                "after_png": self.sweep.after_png,
                "classes": np.asarray([known.name for known in self.classifier.classes]),
            },
            "deliverables.npz": answers,
        }

    def summary(self) -> str:
        """Return what was measured, in a few lines for the terminal."""
        return one_photo.summarize(self.measures)

    def save(self, run_dir: Path) -> None:
        """Write arrays, metrics, `results.json`, and the photo and the pictures at `config.epsilon` as PNGs.

        Raises:
            UserError: A file could not be written.
        """
        values = sorted({entry["epsilon"] for entry in self.measures["sweep"]})
        shown = self.sweep.pictures[:, values.index(self.config.epsilon)]  # figures.npz has those of every ε
        first = self.measures["attacks"][0]["attack"]
        names = [
            entry["objective"] + (f" {entry['attack']}" if entry["attack"] != first else "")
            for entry in self.measures["attacks"]
        ]
        for name, picture in zip(["original", *names], [self.photo, *shown], strict=True):
            with atomic(run_dir / "pictures" / file_name(name.replace(" ", "_"))) as file:
                file.write(encode_png(picture)[0])
        for file_of_arrays, arrays in self.arrays().items():
            write_npz(run_dir / file_of_arrays, arrays)
        MetricsLog(run_dir / "metrics.jsonl").replace(self.measures["sweep"])
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path, config: AdversarialConfig, classifier: Classifier) -> "PhotoResults":
        """Read what `save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        pictures, swept = read_npz(run_dir / "figures.npz"), read_npz(run_dir / "sweep.npz")
        measures = read_json(run_dir / "results.json")
        unknown = np.full(swept["probabilities"].shape[:2], np.nan)  # those are in `measures`
        sweep = Sweep(swept["probabilities"], pictures["adversarial"], swept["after_png"], unknown, unknown)
        logits = swept.get("logits", np.log(swept["before"] + TINY))  # runs of before kept probabilities alone
        return cls(config, classifier, pictures["original"], logits, sweep, measures)


@dataclass(frozen=True, eq=False)
class RobustnessResults:
    """The share of many photos that is still recognised.

    Attributes:
        config: Settings of the run.
        classifier: What was attacked.
        accuracy: What `robustness.npz` holds: accuracy against ε with intervals.
        rows: What `metrics.jsonl` holds: a row a photo.
        measures: What `results.json` holds.
    """

    config: AdversarialConfig
    classifier: Classifier
    accuracy: Mapping[str, np.ndarray]
    rows: tuple[Mapping[str, Any], ...]
    measures: Mapping[str, Any]

    def networks(self) -> tuple[Network, ...]:
        """Return the classifier, for `export`."""
        size = int(self.measures.get("image_size", self.config.size or DEFAULT_SIZE))  # runs of before kept none
        return (make_network("classifier", self.classifier, (size, size, 3)),)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes."""
        return {"robustness.npz": dict(self.accuracy)}

    def summary(self) -> str:
        """Return what was measured, in a few lines for the terminal."""
        return robustness.summarize(self.measures)

    def save(self, run_dir: Path) -> None:
        """Write arrays, metrics and `results.json`.

        Raises:
            UserError: A file could not be written.
        """
        MetricsLog(run_dir / "metrics.jsonl").replace(self.rows)
        write_npz(run_dir / "robustness.npz", self.accuracy)
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path, config: AdversarialConfig, classifier: Classifier) -> "RobustnessResults":
        """Read what `save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        rows = tuple(MetricsLog(run_dir / "metrics.jsonl").rows())
        accuracy, measures = read_npz(run_dir / "robustness.npz"), read_json(run_dir / "results.json")
        return cls(config, classifier, accuracy, rows, measures)


@dataclass(frozen=True, eq=False)
class DefenseResults:
    """What classifiers of digits withstand, by how they were trained.

    Attributes:
        config: Settings of the run.
        classes: Names of the classes.
        variables: Variables of the networks by training, every leaf with a leading axis of seeds.
        standing: What `robustness.npz` holds: `TRAINING_as_floats` and `TRAINING_on_grid`, whether every digit is
            still recognised, and `TRAINING_felled_by`, all (seeds, digits, epsilons).
        measures: What `results.json` holds.
    """

    config: AdversarialConfig
    classes: tuple[str, ...]
    variables: Mapping[Training, Variables]
    standing: Mapping[str, np.ndarray]
    measures: Mapping[str, Any]

    def classifier(self, training: Training, seed: int = 0) -> Classifier:
        """Return a trained network."""
        return make_classifier(self.variables[training], seed, self.classes)

    def networks(self, seed: int = 0) -> tuple[Network, ...]:
        """Return the classifiers of one seed, for `export`."""
        return tuple(
            make_network(training, self.classifier(training, seed), IMAGE_SHAPE) for training in self.variables
        )

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes."""
        weights = {
            f"{training}/{path}": array
            for training, variables in self.variables.items()
            for path, array in variable_arrays(variables).items()
        }
        return {"weights.npz": weights, "robustness.npz": dict(self.standing)}

    def summary(self) -> str:
        """Return robust accuracies, a row a training."""
        measures = self.measures
        trainings = measures["trainings"]
        entries = [found["robust_accuracy"] for found in trainings.values()]
        counted = f"{measures['photos']} digits" + (f", {measures['seeds']} seeds" if measures["seeds"] > 1 else "")
        head = ["training", *(f"ε {entry['epsilon']:g}" for entry in entries[0])]
        rows = [
            [training, *(f"{entry['accuracy']:.1%}" for entry in found)]
            for training, found in zip(trainings, entries, strict=True)
        ]
        title = f"{counted}; robust accuracy against {describe_attack(measures)}, an upper bound:"
        return f"{title}\n\n{format_table(head, rows)}"

    def save(self, run_dir: Path) -> None:
        """Write weights, arrays and `results.json`.

        Raises:
            UserError: A file could not be written.
        """
        for file, arrays in self.arrays().items():
            write_npz(run_dir / file, arrays)
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path, config: AdversarialConfig) -> "DefenseResults":
        """Read what `save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        measures, arrays = read_json(run_dir / "results.json"), read_npz(run_dir / "weights.npz")
        classes = tuple(measures["data"]["classes"])
        init = AdversarialTraining(DigitsNetwork(len(classes))).init
        variables = {
            training: read_variables(init, arrays, f"{training}/", config.seeds, run_dir / "weights.npz")
            for training in config.training
        }
        return cls(config, classes, variables, read_npz(run_dir / "robustness.npz"), measures)


def make_classifier(variables: Variables, seed: int, classes: Sequence[str]) -> Classifier:
    """Return the network of a seed as a classifier of digits."""
    own: Variables = {"params": jax.tree.map(lambda leaf: leaf[seed], variables["params"])}
    names = tuple(Class("", name) for name in classes)
    return Classifier(DigitsNetwork(len(names)), own, RANGES["zero-one"], names)


AdversarialResults = PhotoResults | RobustnessResults | DefenseResults
