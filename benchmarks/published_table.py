"""The published runs of FGSM on the Labrador photo (SPEC's table), beside our own with the same weights and photo.

python -m benchmarks.published_table

It needs the two files that `python run.py adversarial --weights imagenet` downloads, and says so where they are not in
the cache. As in those runs the photo is resized and attacked as floats, without rounding to 8 bits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adversarial import attacks, experiment, photos
from adversarial.assets import REGISTRY
from adversarial.attacks import SweptAttack
from adversarial.classifier import PUBLISHED, open_classifier
from adversarial.config import AdversarialConfig
from adversarial.pixels import RANGES, Epsilon
from latentlab.storage import assets

WEIGHTS, PHOTO, LABRADOR = PUBLISHED["imagenet"][0], experiment.PHOTOS["imagenet"][0], 208
SIZE = 224


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


def measured() -> list[tuple[str, float]]:
    """Top class and confidence for every row of the table."""
    (path,) = assets.fetch(PHOTO, registry=REGISTRY)
    image = photos.read(path, SIZE).pixels
    found = []
    for fed in RANGES:
        classifier, _ = open_classifier(AdversarialConfig(weights="imagenet"), RANGES[fed])
        rows = [row for row in TABLE if row.fed == fed]
        epsilons = np.asarray([Epsilon(row.epsilon, RANGES[fed]).fraction for row in rows], np.float32)
        label, targeted = np.asarray([[LABRADOR]]), np.asarray([False])
        attack = SweptAttack(attacks.fgsm)
        images = experiment.sweep_photo(attack, 0, classifier, image[None], label, targeted, epsilons).images
        for after in experiment.predict(classifier, np.asarray(images)[0, :, 0], 1):
            found.append((classifier.classes[after.argmax()].name, float(after.max())))
    return found


def report(found: Sequence[tuple[str, float]]) -> str:
    """Both tables as one, in Markdown."""
    lines = ["| fed | ε | published | measured | |", "| --- | --- | --- | --- | --- |"]
    for row, (name, confidence) in zip(TABLE, found, strict=True):
        published = f"{row.low:.2%}" if row.low == row.high else f"{row.low:.1%} to {row.high:.1%}"
        verdict = "agrees" if row.agrees(name, confidence) else "**differs**"
        lines.append(
            f"| {RANGES[row.fed]} | {row.epsilon:g} | {row.name} {published} | {name} {confidence:.2%} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit code 1 if a row differs, 3 if it could not be run."""
    if absent := missing():
        print(
            f"not run: {' and '.join(absent)} not in {assets.directory()}; python run.py adversarial --weights imagenet"
        )
        return 3
    found = measured()
    print(report(found))
    return 0 if all(row.agrees(*one) for row, one in zip(TABLE, found, strict=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
