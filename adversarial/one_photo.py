"""One photo under attack: objectives, radii, predictions before and after it is saved as a PNG."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from adversarial.classifier import Class
from adversarial.pixels import Epsilon, encode_png, linf_grey_levels, most_grey_levels, round_inward
from latentlab.errors import UserError
from latentlab.storage.run_directory import finite_or_null
from latentlab.tables import format_table

TOP = 4

Picture = UInt8[np.ndarray, "h w 3"]
Predict = Callable[[np.ndarray], Float[np.ndarray, "*batch classes"]]


class SweptImages(NamedTuple):
    """What an attack made of pictures, as `AttackResult` has it.

    Attributes:
        images: In [0, 1].
        zero_gradients: Share of gradients that were 0, if it is known.
        distance: Of the nearest image found that reaches the objective, if it is known.
    """

    images: Float[np.ndarray, "objectives epsilons n h w 3"]
    zero_gradients: Float[np.ndarray, "objectives epsilons n"] | None = None
    distance: Float[np.ndarray, "objectives epsilons n"] | None = None


Attack = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], SweptImages]
"""Pictures (n, h, w, 3), labels (T, n), which rows of them are targets (T,), and ε in [0, 1] (E,), to what became of
them."""


class Objective(NamedTuple):
    """Where an attack goes: away from the true class, or towards a target."""

    name: str
    label: int
    targeted: bool


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a photo became under every objective and ε.

    Attributes:
        probabilities: Of all classes, of the attacked images as floats.
        pictures: The same images on the 8-bit grid, as they are read back from a PNG.
        after_png: Probabilities of those.
        zero_gradients: Share of the attack's gradients that were 0 at every pixel; NaN if it is not known.
        distance: Of the nearest image found that reaches the objective, in [0, 1]; NaN if it is not known.
    """

    probabilities: Float[np.ndarray, "objectives epsilons classes"]
    pictures: UInt8[np.ndarray, "objectives epsilons h w 3"]
    after_png: Float[np.ndarray, "objectives epsilons classes"]
    zero_gradients: Float[np.ndarray, "objectives epsilons"]
    distance: Float[np.ndarray, "objectives epsilons"]


def make_objectives(
    order: Int[np.ndarray, " classes"], true: int, ranks: Sequence[int], chosen: Sequence[int], classes: Sequence[Class]
) -> list[Objective]:
    """Return untargeted, then a target for every rank, then the chosen classes.

    Args:
        order: Classes from the most to the least probable.
        true: The true class.
        ranks: 2 is the second most probable class; -1 the least.
        chosen: Further targets.
        classes: Their names.

    Raises:
        UserError: There is no class of a rank, or a target is the true class.
    """
    found = [Objective("untargeted", true, False)]
    for rank in ranks:
        if not -len(order) <= rank <= len(order):
            raise UserError(f"targets: there is no class of rank {rank}, the network has {len(order)}")
        name = {-1: "least likely"}.get(rank, f"rank {rank}")
        found.append(Objective(name, int(order[rank - 1 if rank > 0 else rank]), True))
    found += [Objective(f"class {classes[target].name}", target, True) for target in chosen]
    for objective in found[1:]:
        if objective.label == true:
            raise UserError(
                f"target {objective.name} is {classes[true].name}, the true class; expected another one "
                "(--targets, --target-classes, --label)"
            )
    return found


def run_sweep(
    predict: Predict,
    attack: Attack,
    photo: Picture,
    objectives: Sequence[Objective],
    epsilons: Sequence[Epsilon],
    in_linf: bool = True,
) -> Sweep:
    """Attack a photo with every objective and ε at once, save the images, and classify both."""
    labels = np.asarray([[objective.label] for objective in objectives])
    targeted = np.asarray([objective.targeted for objective in objectives])
    radii = np.asarray([epsilon.fraction for epsilon in epsilons], np.float32)
    swept = attack(photo[None], labels, targeted, radii)
    images = swept.images[:, :, 0]
    rounded = round_inward(images, photo, most_grey_levels(epsilons, in_linf)[:, None, None, None])
    pictures = np.stack([[encode_png(picture)[1] for picture in row] for row in rounded])
    unknown = np.full(images.shape[:2], np.nan)
    zeros, distance = (unknown if part is None else part[:, :, 0] for part in (swept.zero_gradients, swept.distance))
    return Sweep(predict(images), pictures, predict(pictures), zeros, distance)


def join_sweeps(sweeps: Sequence[Sweep]) -> Sweep:
    """Return the objectives of several attacks as those of one sweep, the first attack's first."""
    parts = zip(*(vars(sweep).values() for sweep in sweeps), strict=True)
    return Sweep(*(np.concatenate(part) for part in parts))


def describe_sweep(
    found: Sweep,
    photo: Picture,
    objectives: Sequence[Objective],
    epsilons: Sequence[Epsilon],
    classes: Sequence[Class],
    attack: str,
) -> list[list[dict[str, Any]]]:
    """Return a row for every objective, with an entry for every ε, for `results.json`.

    `confidence` is the probability of the top class; a success is a top class that is the target, or, untargeted, not
    the true one.
    """

    def entry(row: int, column: int) -> dict[str, Any]:
        objective, epsilon = objectives[row], epsilons[column]
        before, after = found.probabilities[row, column], found.after_png[row, column]
        tops = int(np.argmax(before)), int(np.argmax(after))
        target = objective.label if objective.targeted else None
        distance = found.distance[row, column] * epsilon.range.width
        return {
            "attack": attack,
            "objective": objective.name,
            "target_index": target,
            "target_name": None if target is None else classes[target].name,
            "epsilon": epsilon.value,
            "epsilon_range": str(epsilon.range),
            "epsilon_grey_levels": epsilon.grey_levels,
            "top1_index": tops[0],
            "top1_name": classes[tops[0]].name,
            "confidence": float(before[tops[0]]),
            "true_class_probability": float(before[objectives[0].label]),
            "target_probability": None if target is None else float(before[target]),
            "success": (tops[0] == objective.label) == objective.targeted,
            "top1_name_after_png": classes[tops[1]].name,
            "confidence_after_png": float(after[tops[1]]),
            "success_after_png": (tops[1] == objective.label) == objective.targeted,
            "linf_grey_levels": linf_grey_levels(found.pictures[row, column], photo),
            "zero_gradients": finite_or_null(found.zero_gradients[row, column]),
            **({} if np.isnan(distance) else {"distance": finite_or_null(distance)}),
        }

    return [[entry(row, column) for column in range(len(epsilons))] for row in range(len(objectives))]


def rank_classes(logits: Float[np.ndarray, " classes"]) -> Int[np.ndarray, " classes"]:
    """Return the classes from the most to the least likely; probabilities may have underflowed to the same 0."""
    return np.argsort(-logits, kind="stable")


def describe_top(
    probabilities: Float[np.ndarray, " classes"],
    order: Int[np.ndarray, " classes"],
    classes: Sequence[Class],
    count: int = TOP,
) -> list[dict[str, Any]]:
    """Return the first classes of an order: index, name and probability."""
    return [
        {"index": int(index), "name": classes[index].name, "probability": float(probabilities[index])}
        for index in order[:count]
    ]


def format_distance(distance: float | None) -> str:
    """Return a distance with three digits, or that none was found."""
    return "none found" if distance is None else f"{distance:.3g}"


def summarize(results: Mapping[str, Any]) -> str:
    """Return the results in a few lines for the terminal."""
    first = results["attacks"][0]
    epsilon = f"{first['epsilon']:g} of {first['epsilon_range']} ({first['epsilon_grey_levels']:.4g} grey levels)"
    lines = ["taken for " + ", ".join(f"{one['name']} {one['probability']:.1%}" for one in results["top4"])]
    for attack in dict.fromkeys(entry["attack"] for entry in results["attacks"]):
        entries = [entry for entry in results["attacks"] if entry["attack"] == attack]
        has_distance = any("distance" in entry for entry in entries)
        head = ["objective", "target", "taken for, as floats", "as PNG", "reached"]
        rows = [
            [
                entry["objective"],
                entry["target_name"] or "any other",
                f"{entry['top1_name']} {entry['confidence']:.1%}",
                f"{entry['top1_name_after_png']} {entry['confidence_after_png']:.1%}",
                describe_success(entry),
                *([format_distance(entry["distance"]) if "distance" in entry else "–"] if has_distance else []),
            ]
            for entry in entries
        ]
        table = format_table([*head, *(["distance"] if has_distance else [])], rows)
        lines += ["", f"{attack}, epsilon {epsilon}:", "", table]
    return "\n".join(lines)


def describe_success(entry: Mapping[str, Any]) -> str:
    """Return where an objective was reached: yes (floats and PNG), no, floats only or PNG only."""
    words = {(True, True): "yes", (False, False): "no", (True, False): "floats only", (False, True): "PNG only"}
    return words[bool(entry["success"]), bool(entry["success_after_png"])]
