"""Experiment 1 on the page: both latent planes, what is decoded everywhere, prior samples, and numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.report.values import flatten_grid, round_numbers, sprite, to_floats
from latentlab.storage.run_directory import read_json, read_npz
from vae.figures import NAMES, read_classes
from vae.results import COMPARED

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
        "seeds": int(results["seeds"]),
        "shownClass": results.get("shown_class"),
        "styles": _sprite_of_styles(pictures.get("vae_styles")),
        "numbers": [
            {"label": label, "values": [_spread(results[name].get(key)) for name in NAMES]}
            for label, key in COMPARED.items()
            if key in results["vae"]
        ],
    }


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
