"""Check that a run is complete and that its files hold the arrays that they should."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.errors import UserError
from latentlab.storage.run_directory import read_json, read_npz

DELIVERABLES = "deliverables.npz"


@dataclass(frozen=True)
class ArraySpec:
    """What an array should have.

    Attributes:
        shape: None stands for any length.
        dtype: "str" stands for text of any length.
        may_be_nan: NaN stands for what does not exist, such as the fourth of two classes.
    """

    shape: tuple[int | None, ...]
    dtype: str
    may_be_nan: bool = False

    def complaint(self, array: np.ndarray) -> str | None:
        """Return what is wrong with an array, or None."""
        expected = f"expected {self.dtype} {self.shape}".replace("None", "any")
        fits = len(array.shape) == len(self.shape) and all(
            length in (None, actual) for length, actual in zip(self.shape, array.shape, strict=True)
        )
        is_text = self.dtype == "str" and array.dtype.kind == "U"
        if not fits or not (is_text or array.dtype == np.dtype(self.dtype)):
            return f"is {array.dtype} {array.shape}, {expected}"
        if array.dtype.kind == "f" and not self.may_be_nan and not np.isfinite(array).all():
            return f"has {int((~np.isfinite(array)).sum())} entries that are NaN or infinite"
        return None


@dataclass(frozen=True)
class Manifest:
    """The files that an experiment leaves in its run directory.

    Attributes:
        deliverables: Array name to spec, in `deliverables.npz`.
        arrays: File name to array name to spec.
        results: Dotted paths in `results.json` of numbers, or of numbers `per_seed` with their `mean`.
        figures: File names under `figures/`.
        files: Others that must exist.
    """

    deliverables: Mapping[str, ArraySpec]
    arrays: Mapping[str, Mapping[str, ArraySpec]]
    results: tuple[str, ...]
    figures: tuple[str, ...]
    files: tuple[str, ...] = ("config.json", "metrics.jsonl")


def check(run_dir: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a line for everything that is missing or wrong; nothing where the run is complete."""
    for name in manifest.files:
        if not (run_dir / name).is_file():
            yield f"{run_dir / name} is missing"
    for file, specs in {**manifest.arrays, DELIVERABLES: manifest.deliverables}.items():
        if specs:
            yield from check_arrays(run_dir / file, specs)
    yield from _check_results(run_dir / "results.json", manifest.results)
    for name in manifest.figures:
        yield from _check_figure(run_dir / "figures" / name)


def check_arrays(path: Path, specs: Mapping[str, ArraySpec]) -> Iterator[str]:
    """Yield a line for every array of an .npz that is missing or has another shape or type."""
    try:
        arrays = read_npz(path)
    except UserError as error:
        yield str(error)
        return
    for name, spec in specs.items():
        complaint = spec.complaint(arrays[name]) if name in arrays else "is missing"
        if complaint:
            yield f"{path}: {name} {complaint}"


def _check_results(path: Path, names: tuple[str, ...]) -> Iterator[str]:
    try:
        results = read_json(path)
    except UserError as error:
        yield str(error)
        return
    for name in names:
        value: Any = results
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        numbers = [value]
        if isinstance(value, dict):
            numbers = [*np.ravel(value.get("per_seed") or [None]), value.get("mean")]
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in numbers):
            yield f"{path}: {name} is {json.dumps(value)[:80]}, expected finite numbers"


def _check_figure(path: Path) -> Iterator[str]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
    except FileNotFoundError:
        yield f"{path} is missing"
    except Exception as error:  # Pillow raises many types for damaged files
        yield f"{path} is no readable PNG ({error})"
