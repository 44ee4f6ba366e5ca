"""The published runs of FGSM on the Labrador photo, as the exercise prints them, beside our own with any weights.

    python -m benchmarks.published_table
    python -m benchmarks.published_table --weights FILE --photo PHOTO --label 243

By default with the two files that `python run.py adversarial --weights imagenet` downloads; it says so where they are
not in the cache. As in those runs the photo has TensorFlow's pixels, and is resized and attacked as floats, without
rounding to 8 bits. Where TensorFlow and Keras are installed, they do the same beside us. What was published holds for
Keras's own weights and the Labrador alone, and is compared with nothing else.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from adversarial import attacks, experiment, photos
from adversarial.assets import REGISTRY
from adversarial.attacks import SweptAttack
from adversarial.classifier import PUBLISHED, imagenet_classes, open_classifier
from adversarial.config import AdversarialConfig
from adversarial.pixels import RANGES, Epsilon
from latentlab.decoding import decode_as_tensorflow
from latentlab.storage import assets

WEIGHTS, PHOTO, LABRADOR = PUBLISHED["imagenet"][0], experiment.PHOTOS["imagenet"][0], 208
SIZE = 224
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """FGSM on one photo, ours, TensorFlow's and published."""

    weights: str = "imagenet"
    """imagenet, or a file of a MobileNetV2 of ImageNet's 1,000 classes."""
    photo: str = ""
    """Photo; by default the Labrador."""
    label: int = LABRADOR
    """Its true class."""

    @property
    def is_published(self) -> bool:
        """Whether weights and photo are those of the published runs."""
        return self.weights == "imagenet" and not self.photo


@dataclass(frozen=True)
class Published:
    """A published run: the top class after the untargeted attack, its confidence, lowest and highest if several."""

    fed: str
    epsilon: float
    name: str
    low: float
    high: float

    def agrees(self, name: str, confidence: float) -> bool:
        """Whether a run gives the same class, and its confidence to 0.1 points up to ε = 0.01 and 2 points above."""
        tolerance = 0.001 if self.epsilon <= 0.01 else 0.02
        return name == self.name and self.low - tolerance <= confidence <= self.high + tolerance


TABLE = (
    Published("zero-one", 0.0, "Labrador_retriever", 0.3716, 0.3716),
    Published("zero-one", 0.01, "Ibizan_hound", 0.238, 0.238),
    Published("zero-one", 0.1, "bath_towel", 0.295, 0.305),
    Published("zero-one", 0.15, "brain_coral", 0.776, 0.791),
    Published("minus-one-one", 0.0, "Labrador_retriever", 0.4182, 0.4182),
    Published("minus-one-one", 0.01, "Saluki", 0.1308, 0.1308),
    Published("minus-one-one", 0.1, "Weimaraner", 0.1513, 0.1513),
    Published("minus-one-one", 0.15, "Weimaraner", 0.1658, 0.1658),
)


def missing() -> list[str]:
    """Files that are not in the cache."""
    return [name for name in (WEIGHTS, PHOTO) if not (assets.directory() / name).exists()]


def measured(options: Options) -> list[tuple[str, float]]:
    """Top class and confidence for every row of the table."""
    path = Path(options.photo) if options.photo else assets.fetch(PHOTO, registry=REGISTRY)[0]
    image = photos.resize(decode_as_tensorflow(path.read_bytes()), SIZE)
    found = []
    for fed in dict.fromkeys(row.fed for row in TABLE):
        classifier, _ = open_classifier(AdversarialConfig(weights=options.weights), RANGES[fed])
        rows = [row for row in TABLE if row.fed == fed]
        epsilons = np.asarray([Epsilon(row.epsilon, RANGES[fed]).fraction for row in rows], np.float32)
        label, targeted = np.asarray([[options.label]]), np.asarray([False])
        attack = SweptAttack(attacks.fgsm)
        images = experiment.sweep_photo(attack, 0, classifier, image[None], label, targeted, epsilons).images
        for after in experiment.predict(classifier, images[0, :, 0], 1):
            found.append((classifier.classes[after.argmax()].name, float(after.max())))
    return found


def by_tensorflow(options: Options) -> list[tuple[str, float]] | None:
    """The same by Keras on TensorFlow, in a process of its own; None where they are not installed."""
    if not all(importlib.util.find_spec(name) for name in ("tensorflow", "keras")):
        return None
    weights = assets.fetch(WEIGHTS, registry=REGISTRY)[0] if options.weights == "imagenet" else Path(options.weights)
    photo = Path(options.photo) if options.photo else assets.fetch(PHOTO, registry=REGISTRY)[0]
    command = [sys.executable, "-m", "benchmarks.published_keras", str(weights.resolve()), str(photo.resolve())]
    rows = [[*RANGES[row.fed], row.epsilon] for row in TABLE]
    done = subprocess.run(
        [*command, str(options.label)], input=json.dumps(rows), capture_output=True, text=True, check=True, cwd=ROOT
    )
    return [(imagenet_classes()[index].name, confidence) for index, confidence in json.loads(done.stdout)]


def report(
    found: Sequence[tuple[str, float]],
    theirs: Sequence[tuple[str, float]] | None = None,
    is_published: bool = True,
) -> str:
    """All columns that there are, in Markdown."""
    heads = ["fed", "ε", "measured", *["TensorFlow here"] * (theirs is not None), *["published", ""] * is_published]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for index, (row, (name, confidence)) in enumerate(zip(TABLE, found, strict=True)):
        cells = [str(RANGES[row.fed]), f"{row.epsilon:g}", f"{name} {confidence:.2%}"]
        if theirs is not None:
            cells.append("{} {:.2%}".format(*theirs[index]))
        if is_published:
            published = f"{row.low:.2%}" if row.low == row.high else f"{row.low:.1%} to {row.high:.1%}"
            cells += [f"{row.name} {published}", "agrees" if row.agrees(name, confidence) else "**differs**"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit code 1 if a row differs from what was published, 3 if it could not be run."""
    options = tyro.cli(Options)
    absent = missing() if options.is_published else []
    if absent:
        print(
            f"not run: {' and '.join(absent)} not in {assets.directory()}; python run.py adversarial --weights imagenet"
        )
        return 3
    found = measured(options)
    print(report(found, by_tensorflow(options), options.is_published))
    if not options.is_published:
        print("\nOther weights or another photo than those of the published runs, so nothing is compared with these.")
        return 0
    return 0 if all(row.agrees(*one) for row, one in zip(TABLE, found, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
