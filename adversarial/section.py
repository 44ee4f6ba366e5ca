"""Experiment 3 on the page: a photo at every objective and ε, or the share of many photos that is still recognised."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adversarial.config import NORMS, describe_attack
from adversarial.one_photo import TOP
from latentlab.report.values import sprite
from latentlab.storage.run_directory import read_json, read_npz

KEY, TITLE = "attack", "Attack"


def make_section(run_dir: Path) -> dict[str, Any]:
    """Return what the section shows, as JSON.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    results = read_json(run_dir / "results.json")
    if "trainings" in results:
        curves = training_curves(results)
        return {"robust": curves, "finding": _find_accuracy(curves)}
    if "robust_accuracy" in results:
        curves = accuracy_curves(results)
        return {"robust": curves, "finding": _find_accuracy(curves)}
    pictures, saved = read_npz(run_dir / "figures.npz"), read_npz(run_dir / "sweep.npz")
    sweep, count = results["sweep"], len(pictures["adversarial"][0])
    rows = [sweep[start : start + count] for start in range(0, len(sweep), count)]
    first = rows[0]
    radii = [entry["epsilon"] for entry in first]
    own = int(results["true_class"]["index"])
    shown = radii.index(results["attacks"][0]["epsilon"])
    reached = [index for index, row in enumerate(rows) if row[shown]["success_after_png"]]
    return {
        "finding": _find(results),
        "norm": NORMS[results["norm"]],
        "truth": str(results["true_class"]["name"]),
        "original": sprite(pictures["original"][None], lossless=True),
        "levels": [float(entry["epsilon_grey_levels"]) for entry in first],
        "epsilons": [float(radius) for radius in radii],
        "unit": str(first[0]["epsilon_range"]),
        "start": shown,
        "enlarged": int(64 // max(1, max(row[shown]["linf_grey_levels"] for row in rows))),
        "first": reached[0] if reached else 0,
        "objectives": [
            _describe_objective(row, saved, index, own, pictures["adversarial"][index], pictures["original"])
            for index, row in enumerate(rows)
        ],
    }


def _find(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page opens with: how many objectives the saved pictures reach."""
    name = results["attacks"][0]["attack"]
    entries = [entry for entry in results["attacks"] if entry["attack"] == name]
    reached = sum(bool(entry["success_after_png"]) for entry in entries)
    return {
        "number": f"{reached} of {len(entries)}",
        "text": f"objectives are reached by {str(name).upper()} within {entries[0]['epsilon_grey_levels']:.3g} grey "
        "levels, in pictures saved with 8 bits.",
    }


def _find_accuracy(curves: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page opens with: how much accuracy is left at the largest radius of a sweep."""
    first, clean, last = curves["curves"][0], curves["curves"][0]["value"][0], curves["curves"][0]["value"][-1]
    return {
        "number": f"{last:.0%}".replace("%", " %"),
        "text": f"of {curves['photos']:,} {curves['what']} are still recognised ({first['name']}) within "
        f"{curves['levels'][-1]:.3g} grey levels, against {clean:.0%} at {curves['levels'][0]:.3g}.",
    }


def accuracy_curves(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy under attack against ε, as computed and saved with 8 bits, with its intervals."""
    entries = results["robust_accuracy"]
    kinds = {"accuracy": "as computed", "accuracy_8_bit": "saved with 8 bits"}
    return {
        "photos": int(results["photos"]),
        "what": "photos",
        "attack": describe_attack(results),
        "levels": [float(entry["epsilon_grey_levels"]) for entry in entries],
        "curves": [
            {
                "name": name,
                "value": [float(entry[key]) for entry in entries],
                "low": [float(entry[f"{key}_low"]) for entry in entries],
                "high": [float(entry[f"{key}_high"]) for entry in entries],
            }
            for key, name in kinds.items()
        ],
    }


def training_curves(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy under attack against ε for every training, as computed, with its intervals."""
    trainings = {name: found["robust_accuracy"] for name, found in results["trainings"].items()}
    ends = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    return {
        "photos": int(results["photos"]),
        "what": "digits",
        "attack": describe_attack(results),
        "levels": [float(entry["epsilon_grey_levels"]) for entry in next(iter(trainings.values()))],
        "curves": [
            {"name": name, **{end: [float(entry[key]) for entry in entries] for end, key in ends.items()}}
            for name, entries in trainings.items()
        ],
    }


def _describe_objective(
    row: Sequence[Mapping[str, Any]],
    saved: Mapping[str, np.ndarray],
    index: int,
    own: int,
    adversarial: np.ndarray,
    photo: np.ndarray,
) -> dict[str, Any]:
    """Return an objective of the sweep at every ε; differences to the photo pack far better than pictures."""
    probabilities, after_png = saved["probabilities"][index], saved["after_png"][index]
    classes = saved["classes"].tolist()
    differences = ((adversarial.astype(int) - photo.astype(int) + 128) % 256).astype(np.uint8)
    before = int(np.argmax(saved["before"]))
    flips = [at for at, entry in enumerate(row) if entry["top1_index"] != before]
    saved_flips = np.flatnonzero(after_png.argmax(axis=1) != before).tolist()
    return {
        "attack": str(row[0]["attack"]).upper(),
        "name": row[0]["objective"],
        "target": row[0]["target_name"],
        "differences": sprite(differences, lossless=True),
        "entries": [
            {
                "reached": bool(entry["success_after_png"]),
                "most": int(entry["linf_grey_levels"]),
                "saved": str(entry["top1_name_after_png"]),
                "confidence": float(entry["confidence_after_png"]),
                "truth": float(entry["true_class_probability"]),
                "aimed": float(entry["target_probability"] if entry["target_name"] else entry["confidence"]),
                "top": _top_classes(computed, as_png, classes, own),
            }
            for entry, computed, as_png in zip(row, probabilities, after_png, strict=True)
        ],
        "flip": flips[0] if flips else None,
        "flipSaved": saved_flips[0] if saved_flips else None,
    }


def _top_classes(computed: np.ndarray, as_png: np.ndarray, classes: Sequence[str], own: int) -> list[dict[str, Any]]:
    """Return the most probable classes of a picture as computed, and their probabilities after it was saved."""
    order = np.argsort(-computed, kind="stable")[:TOP]
    return [
        {"name": classes[at], "probability": float(computed[at]), "saved": float(as_png[at]), "own": int(at) == own}
        for at in order
    ]
