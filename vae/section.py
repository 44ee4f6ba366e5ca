"""Experiment 1 on the page: both latent planes, what is decoded everywhere, prior samples, and numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.report.values import flatten_grid, round_numbers, sprite, to_floats
from latentlab.storage.run_directory import read_json, read_npz
from vae.figures import NAMES, read_classes
from vae.results import COMPARED, HIGHER_IS_BETTER, LOWER_IS_BETTER

KEY, TITLE = "latent", "Latent space"


def make_section(run_dir: Path) -> dict[str, Any]:
    """Return what the section shows, as JSON; points are coordinates in the plane of each model.

    Raises:
        UserError: A file of the run is missing or damaged.
    """
    latents, pictures = read_npz(run_dir / "latents.npz"), read_npz(run_dir / "figures.npz")
    results = read_json(run_dir / "results.json")
    count = len(pictures["point_originals"])
    return {
        "labels": latents["labels"][:count].tolist(),
        "classes": read_classes(latents),
        "latentDim": latents["vae_z"].shape[1],
        "originals": sprite(pictures["point_originals"]),
        "planes": [
            {
                "name": title,
                "extent": float(latents[f"{name}_extent"]),
                "side": len(pictures[f"{name}_plane"]),
                "points": _project(latents, name, latents[f"{name}_z"][:count]),
                "samplePoints": _project(latents, name, latents["samples_z"]),
                "plane": sprite(flatten_grid(pictures[f"{name}_plane"])),
                "reconstructions": sprite(pictures[f"{name}_points"]),
                "samples": sprite(pictures[f"{name}_samples"]),
            }
            for name, title in NAMES.items()
        ],
        "finding": _find(results),
        "seeds": int(results["seeds"]),
        "shownClass": results.get("shown_class"),
        "styles": _sprite_of_styles(pictures.get("vae_styles")),
        "numbers": [
            {"label": label + _arrow(key), "values": [_spread(results[name].get(key)) for name in NAMES]}
            for label, key in COMPARED.items()
            if key in results["vae"]
        ],
    }


def _find(results: Mapping[str, Any]) -> dict[str, str]:
    """Return what the page opens with: how near samples from the prior are to real digits."""
    ours, theirs = (results[name]["prior_frechet_distance"]["mean"] for name in ("vae", "autoencoder"))
    if ours is None or theirs is None:  # of a single sample
        return {}
    return {
        "number": f"{ours:.1f}",
        "text": "is the Fréchet distance of samples from the VAE's prior to held-out digits, against "
        f"{theirs:.1f} of the autoencoder's; lower is better.",
    }


def _arrow(key: str) -> str:
    return " ↓" if key in LOWER_IS_BETTER else " ↑" if key in HIGHER_IS_BETTER else ""


def _sprite_of_styles(pictures: np.ndarray | None) -> dict[str, Any] | None:
    return None if pictures is None else sprite(flatten_grid(pictures), pictures.shape[1])


def _project(latents: Mapping[str, np.ndarray], name: str, codes: np.ndarray) -> list[float]:
    axes = latents.get(f"{name}_axes", np.eye(2, dtype=np.float32))  # older runs have two dimensions, and no axes
    points: list[float] = round_numbers((codes @ axes.T).ravel())
    return points


def _spread(value: Mapping[str, Any] | None) -> dict[str, float | None] | None:
    if value is None or value["mean"] is None:
        return None
    return to_floats({key: value[key] for key in ("mean", "standard_deviation") if key in value})
