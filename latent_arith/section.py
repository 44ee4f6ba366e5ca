"""Experiment 2 on the page: faces moved along attributes, dose-response, leakage, and what a face takes to store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latent_arith.comparison import FIRST
from latent_arith.editor import describe_rarity
from latent_arith.edits import read_edits
from latentlab.report.values import flatten_grid, round_numbers, sprite, to_floats
from latentlab.storage.run_directory import read_json, read_npz

KEY, TITLE = "faces", "Faces"
SCALES = {
    "deviation": "standard deviations of the latents",
    "means": "half the distance between the means",
    "unit": "units of length",
}
STORED = {
    "float32": "latent, 32-bit floats",
    "float16": "latent, 16-bit floats",
    "jpeg_same_size": "JPEG of the same size",
    "jpeg_same_psnr": "JPEG of the same PSNR",
}
ESTIMATORS = ("balanced", "raw", "orthogonal")
"""Estimators of a direction in the order of the menu."""


def make_section(run_dir: Path) -> dict[str, Any]:
    """Return what the section shows, as JSON.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    pictures = read_npz(run_dir / "figures.npz")
    if "photo" in pictures:
        photo = _photo(run_dir, pictures)
        return {"photo": photo, "finding": {"number": photo["edit"], "text": " ".join(photo["lines"])}}
    directions, scores = (read_npz(run_dir / f"{name}.npz") for name in ("directions", "scorecard"))
    results = read_json(run_dir / "results.json")
    strengths, targets = scores["factors"].astype(float).tolist(), scores["targets"].tolist()
    curves = [scores[name].astype(float).tolist() for name in ("reached", "reached_low", "reached_high")]
    accuracies = results["scorecard"]["classifier_accuracies"]
    section = {
        "finding": _find(results["scorecard"]),
        "start": _start(strengths, float(scores["leakage_factor"])),
        "notLearned": results["scorecard"].get("not_learned", []),
        "pretrained": results.get("weights", {}).get("command"),
        "names": directions["names"].tolist(),
        "strengths": strengths,
        "shown": len(pictures["edit_originals"]),
        "originals": sprite(pictures["edit_originals"]),
        "edits": [sprite(flatten_grid(edits), len(strengths)) for edits in pictures["edits"]],
        "scale": SCALES[results["scorecard"]["scale"]],
        "faces": int(results["scorecard"]["faces"]),
        "dose": {
            name: {"reached": value, "low": low, "high": high, "accuracy": accuracies.get(name)}
            for name, value, low, high in zip(targets, *curves, strict=True)
        },
        "leakage": _leakage(scores),
        "stored": [{"name": name, **to_floats(results["face_in_800_bytes"][key])} for key, name in STORED.items()],
    }
    if (run_dir / "estimators.npz").exists():
        section["estimators"] = _estimators(results["estimators"])
    if "pair" in pictures:
        of_faces = [sprite(flatten_grid(both), len(strengths)) for both in pictures["pair_edits"]]
        section["pair"] = {"names": pictures["pair"].tolist(), "sprites": of_faces}
    return section


def _start(strengths: Sequence[float], strength: float) -> int:
    """Return the place of the strength that the page opens with, which is the scorecard's."""
    return int(np.argmin(np.abs(np.asarray(strengths) - strength)))


def _find(card: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page opens with: how often an edit succeeds, and what else it changes."""
    shares = {name: target["reached"]["balanced"][0] for name, target in card["targets"].items()}
    learned = [share for name, share in shares.items() if name not in card.get("not_learned", ())] or [0.0]
    reached = float(np.mean(learned))
    return {
        "number": f"{reached:.0%}".replace("%", " %"),
        "text": f"of faces show the attribute after an edit of +{card['factor']:g}, on average over {len(learned)} of "
        f"{len(shares)} attributes; others change by {card['mean_leakage']['balanced']:.1f} percentage points.",
    }


def _estimators(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an edit costs at the same success, by estimator of the direction."""
    names = {
        "reached": "reached",
        "leakage": "leakage_at_success",
        "identity": "identity_at_success",
        "leakageOfFirst": f"leakage_of_{FIRST}",
        "identityOfFirst": f"identity_of_{FIRST}",
        "angle": "angle_degrees",
        "error": "standard_error_degrees",
    }
    rows = [{"name": name, **{to: row[key] for to, key in names.items()}} for name, row in found["estimators"].items()]
    return {"rows": rows, **{name: found[name] for name in ("success", "attributes", "faces")}}


def _photo(run_dir: Path, pictures: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return a photo that was edited: its face, the strip, and what was measured of it."""
    (edit, *_) = read_edits(run_dir / "edit.npz")
    found = read_json(run_dir / "results.json")["photo"]
    return {
        "face": sprite(pictures["photo"][None]),
        "strip": sprite(pictures["photo_strip"]),
        "steps": len(pictures["photo_strip"]),
        "edit": edit.attribute,
        "lines": [f"{found['image']}: {', '.join(found['notes']) or 'cut as asked'}.", *describe_rarity(found)],
    }


def _leakage(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return by how many percentage points each attribute is found more often, by estimator of the direction."""
    return {
        "targets": scores["targets"].tolist(),
        "attributes": scores["attributes"].tolist(),
        "strength": float(scores["leakage_factor"]),
        "exclusive": scores["exclusive"].tolist(),
        "estimators": {
            estimator: {
                "value": round_numbers(scores[f"leakage_{estimator}"]),
                "low": round_numbers(scores[f"leakage_{estimator}_low"]),
                "high": round_numbers(scores[f"leakage_{estimator}_high"]),
            }
            for estimator in ESTIMATORS
        },
    }
