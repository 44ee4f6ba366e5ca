"""What the page shows, as JSON, from the files of a run: numbers from results.json, points and pictures from NPZ.

Pictures travel as sprites, many of one size in one WebP or PNG.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from adversarial.figures import NORMS
from adversarial.one_photo import TOP
from runtime.run_directory import TIMES, read_json, read_npz
from vae.experiment import COMPARED
from vae.figures import NAMES, tile

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
QUALITY = 82  # of WebP


def latent_space(run_dir: Path) -> dict[str, Any]:
    """Both planes: points, what is decoded everywhere, originals and reconstructions, prior samples, numbers."""
    latents, pictures = read_npz(run_dir / "latents.npz"), read_npz(run_dir / "figures.npz")
    results = read_json(run_dir / "results.json")
    count = len(pictures["point_originals"])
    return {
        "labels": latents["labels"][:count].tolist(),
        "originals": sprite(pictures["point_originals"]),
        "samples": _rounded(latents["samples_z"].ravel()),
        "planes": [
            {
                "name": title,
                "extent": float(latents[f"{name}_extent"]),
                "side": len(pictures[f"{name}_plane"]),
                "points": _rounded(latents[f"{name}_z"][:count].ravel()),
                "plane": sprite(_flat(pictures[f"{name}_plane"])),
                "reconstructions": sprite(pictures[f"{name}_points"]),
                "samples": sprite(pictures[f"{name}_samples"]),
            }
            for name, title in NAMES.items()
        ],
        "seeds": int(results["seeds"]),
        "numbers": [
            {"label": label, "values": [_spread(results[name].get(key)) for name in NAMES]}
            for label, key in COMPARED.items()
        ],
    }


def faces(run_dir: Path) -> dict[str, Any]:
    """Faces, each moved along every attribute, dose-response curves, leakage, and what a face takes to store."""
    pictures, found, scores = (read_npz(run_dir / f"{name}.npz") for name in ("figures", "directions", "scorecard"))
    results = read_json(run_dir / "results.json")
    factors, targets = scores["factors"].astype(float).tolist(), scores["targets"].tolist()
    curves = [scores[name].astype(float).tolist() for name in ("reached", "reached_low", "reached_high")]
    told = {
        "names": found["names"].tolist(),
        "factors": factors,
        "shown": len(pictures["edit_originals"]),
        "originals": sprite(pictures["edit_originals"]),
        "edits": [sprite(_flat(edits), len(factors)) for edits in pictures["edits"]],
        "scale": SCALES[results["scorecard"]["scale"]],
        "faces": int(results["scorecard"]["faces"]),
        "dose": {
            name: {"reached": value, "low": low, "high": high}
            for name, value, low, high in zip(targets, *curves, strict=True)
        },
        "leakage": {
            "targets": targets,
            "attributes": scores["attributes"].tolist(),
            "factor": float(scores["leakage_factor"]),
            "exclusive": scores["exclusive"].tolist(),
            "contrasts": {
                contrast: {
                    "value": _rounded(scores[f"leakage_{contrast}"]),
                    "low": _rounded(scores[f"leakage_{contrast}_low"]),
                    "high": _rounded(scores[f"leakage_{contrast}_high"]),
                }
                for contrast in ("balanced", "raw", "orthogonal")
            },
        },
        "stored": [{"name": name, **_numbers(results["face_in_800_bytes"][key])} for key, name in STORED.items()],
    }
    if "pair" in pictures:
        of_faces = [sprite(_flat(both), len(factors)) for both in pictures["pair_edits"]]
        told["pair"] = {"names": pictures["pair"].tolist(), "sprites": of_faces}
    return told


def attack(run_dir: Path) -> dict[str, Any]:
    """Every objective at every ε of one photo, or the share of many photos that is still recognised."""
    results = read_json(run_dir / "results.json")
    if "robust_accuracy" in results:
        return {"robust": _robust(results)}
    pictures, swept = read_npz(run_dir / "figures.npz"), read_npz(run_dir / "sweep.npz")
    sweep, classes = results["sweep"], swept["classes"].tolist()
    count = len(pictures["adversarial"][0])
    rows = [sweep[start : start + count] for start in range(0, len(sweep), count)]
    first, photo = rows[0], pictures["original"].astype(int)
    own = int(results["true_class"]["index"])
    aims = []
    for row, probable, saved, attacked in zip(
        rows, swept["probabilities"], swept["after_png"], pictures["adversarial"], strict=True
    ):
        differences = ((attacked.astype(int) - photo + 128) % 256).astype(np.uint8)  # packs far better than pictures
        entries = [
            {
                "fools": bool(entry["success_after_png"]),
                "most": int(entry["linf_grey_levels"]),
                "truth": float(entry["true_class_probability"]),
                "aimed": float(entry["target_probability"] if entry["target_name"] else entry["confidence"]),
                "top": _top(before, after, classes, own),
            }
            for entry, before, after in zip(row, probable, saved, strict=True)
        ]
        tops = [entry["top1_index"] for entry in row]
        flips = [at for at, top in enumerate(tops) if top != int(np.argmax(swept["before"]))]
        aims.append(
            {
                "name": row[0]["objective"],
                "target": row[0]["target_name"],
                "differences": sprite(differences, exactly=True),
                "entries": entries,
                "flip": flips[0] if flips else None,
            }
        )
    radii = [entry["epsilon"] for entry in first]
    return {
        "attack": str(results["attack"]).upper(),
        "norm": NORMS[results["norm"]],
        "truth": str(results["true_class"]["name"]),
        "original": sprite(pictures["original"][None], exactly=True),
        "levels": [float(entry["epsilon_grey_levels"]) for entry in first],
        "epsilons": [float(radius) for radius in radii],
        "unit": str(first[0]["epsilon_range"]),
        "start": radii.index(results["attacks"][0]["epsilon"]),
        "aims": aims,
    }


def made(run_dir: Path, parts: Mapping[str, Path], repeat: str) -> dict[str, Any]:
    """Where all of it comes from: of every part command, machine, time and data, and the files of the run."""
    described = []
    for package, directory in parts.items():
        record = _record(directory / "config.json") or _record(run_dir / "config.json")
        results, times = _record(directory / "results.json"), _record(directory / TIMES)
        facts = {
            "command": " ".join(map(str, _list(record.get("command")))),
            "started": record.get("started"),
            "time": f"{times['seconds']:,.0f} s" if isinstance(times.get("seconds"), int | float) else None,
            "devices": ", ".join(map(str, _list(record.get("devices")))),
            "data": _line(results.get("data") or results.get("photo")),
            "versions": _line(record.get("versions")),
            "Python": record.get("python"),
            "platform": record.get("platform"),
        }
        config = record.get("config")
        config = config.get(package, config) if isinstance(config, dict) else {}
        described.append(
            {
                "name": package,
                "facts": [[name, str(fact)] for name, fact in facts.items() if fact],
                "config": [[name, _line(value)] for name, value in config.items()] if isinstance(config, dict) else [],
            }
        )
    files = [path.relative_to(run_dir) for path in sorted(run_dir.rglob("*")) if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") or part == "checkpoints" for part in path.parts)]
    return {
        "command": repeat,
        "parts": described,
        "files": [
            {
                "name": path.as_posix(),
                "href": "../" + quote(path.as_posix()),
                "size": f"{math.ceil((run_dir / path).stat().st_size / 1000):,} kB",
            }
            for path in shown
            if path.parts[0] != "report"
        ],
    }


def sprite(images: np.ndarray, columns: int = 0, exactly: bool = False) -> dict[str, Any]:
    """Pictures (n, height, width, 1 or 3) in rows of `columns` each, as many as rows if none are told."""
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    image = Image.fromarray(tile(images, columns))
    packed = io.BytesIO()
    kind, options = ("png", {"optimize": True}) if exactly else ("webp", {"quality": QUALITY, "method": 4})
    image.save(packed, kind, **options)
    uri = f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"
    return {"uri": uri, "columns": columns, "width": width, "height": height}


def _flat(grid: np.ndarray) -> np.ndarray:
    return grid.reshape(-1, *grid.shape[-3:])


def _rounded(values: np.ndarray, digits: int = 3) -> Any:
    return np.round(values.astype(float), digits).tolist()


def _spread(value: Mapping[str, Any] | None) -> dict[str, float] | None:
    return (
        None if value is None else _numbers({key: value[key] for key in ("mean", "standard_deviation") if key in value})
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _top(before: np.ndarray, after: np.ndarray, classes: Sequence[str], own: int) -> list[dict[str, Any]]:
    """The likeliest classes of a picture as computed, and their probabilities after it was saved."""
    order = np.argsort(-before, kind="stable")[:TOP]
    return [
        {"name": classes[at], "probability": float(before[at]), "saved": float(after[at]), "own": int(at) == own}
        for at in order
    ]


def _robust(results: Mapping[str, Any]) -> dict[str, Any]:
    entries = results["robust_accuracy"]
    kinds = {"accuracy": "as computed", "accuracy_8_bit": "saved with 8 bits"}
    return {
        "photos": int(results["photos"]),
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


def _record(path: Path) -> dict[str, Any]:
    """A file of JSON that may be missing."""
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_line(inner)}" for key, inner in value.items())
    return ", ".join(map(_line, value)) if isinstance(value, list) else "" if value is None else str(value)
