"""What experiment 2 gives: the model with its weights, directions, an edit, pictures and measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from latent_arith import edits, weights
from latent_arith.config import UNITS, Crop, LatentArithConfig
from latent_arith.directions import Directions
from latent_arith.editor import POPULATION, Editor
from latent_arith.edits import Edit
from latent_arith.photos import Whole, check_pixels
from latent_arith.population import Population
from latentlab.export.networks import Network, make_networks
from latentlab.model import LatentVariableModel, Variables
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz
from latentlab.tables import format_table

SCORES = ("scorecard.npz", "estimators.npz", "components.npz")
"""Files of measurements; runs of older versions have only the first."""


@dataclass(frozen=True, eq=False)
class LatentArithResults:
    """The model, the directions in its latent space, and what was measured of them.

    Attributes:
        config: Settings of the run.
        model: The model.
        variables: Its variables, on the host.
        directions: Directions of all attributes by every estimator.
        step_lengths: What a strength of 1 along each balanced direction is, by `config.scale`.
        population: Held-out faces that a photo is compared with; None for runs of older versions.
        kept_edit: The edit that is kept as 400 floats.
        pictures: What `figures.npz` holds: pictures 0…255 behind the figures.
        scores: What the files of `SCORES` hold.
        measures: What `results.json` holds.
    """

    config: LatentArithConfig
    model: LatentVariableModel
    variables: Variables
    directions: Directions
    step_lengths: Float[np.ndarray, " attributes"]
    population: Population | None
    kept_edit: Edit
    pictures: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    measures: Mapping[str, Any]

    @property
    def editor(self) -> Editor:
        """Return what edits photos."""
        moves = self.step_lengths[:, None] * self.directions.of("balanced")
        return Editor(self.config, self.model, self.variables, self.directions.names, moves, self.population)

    def encode(self, images: UInt8[Array | np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n latent"]:
        """Return posterior means of images 0…255."""
        return self.editor.encode(images)

    def decode(self, latents: Float[Array | np.ndarray, "n latent"]) -> UInt8[np.ndarray, "n height width 3"]:
        """Return images 0…255 of latents."""
        return self.editor.decode(latents)

    def edit(
        self,
        photo: UInt8[Array | np.ndarray, "h w 3"] | str | Path,
        crop: Crop | Whole | None = "whole",
        **strengths: float,
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Move a face along directions of attributes, `edit(photo, Smiling=3, Eyeglasses=-1)`.

        Args:
            photo: Pixels 0…255 or a file.
            crop: What of it is the face: all of it, a square (left and upper edge and width, in pixels), or None to
                find the face.
            strengths: How far to move along each balanced direction, in the unit of `config.scale`.

        Raises:
            UserError: The photo cannot be read, there is no face in it, or no such direction.
        """
        editor = self.editor
        move = editor.move(strengths)
        face = editor.read(Path(photo) if isinstance(photo, str | Path) else check_pixels(photo), crop)
        return editor.decode(editor.encode(face.pixels[None]) + move)[0]

    def networks(self) -> tuple[Network, ...]:
        """Return the encoder and the decoder, for `export`."""
        return make_networks("", self.model, self.variables)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes, without the edit's."""
        edit = self.kept_edit
        return {
            weights.WEIGHTS: weights.named_arrays(self.model, self.variables),
            "directions.npz": {**self.directions.arrays(), "step_lengths": self.step_lengths},
            **({POPULATION: self.population.arrays()} if self.population else {}),
            **{file: dict(arrays) for file, arrays in self.scores.items()},
            "figures.npz": dict(self.pictures),
            "deliverables.npz": {"ans09": np.asarray(edit.image_id), "ans10": edit.z_start, "ans11": edit.z_end},
        }

    def summary(self) -> str:
        """Return what was measured, in a few lines for the terminal."""
        card, size = self.measures["scorecard"], self.measures["face_in_800_bytes"]
        scores, missing = self.scores[SCORES[0]], set(card.get("not_learned", ()))
        strengths = scores["factors"].tolist()
        far, zero = (int(np.argmin(np.abs(scores["factors"] - at))) for at in (scores["leakage_factor"], 0))
        head = (
            "attribute",
            f"at {strengths[zero]:g}",
            f"at {strengths[far]:+g}",
            "95 % interval",
            "classifier right",
        )
        rows = [
            (
                name + (" (not learned)" if name in missing else ""),
                f"{before:.0%}",
                f"{after:.0%}",
                f"{low:.0%} to {high:.0%}",
                f"{card['classifier_accuracies'].get(name, float('nan')):.0%}",
            )
            for name, before, after, low, high in zip(
                scores["targets"].tolist(),
                scores["reached"][:, zero],
                *(scores[f"reached{end}"][:, far] for end in ("", "_low", "_high")),
                strict=True,
            )
        ]
        leakage = ", ".join(f"{estimator} {mean:.1f}" for estimator, mean in card["mean_leakage"].items())
        return "\n".join(
            [
                f"held-out loss {self.measures['held_out_loss']:,.1f} (KL {self.measures['held_out_kl']:.1f} nats)",
                f"\nshares of {card['faces']} held-out faces in which a classifier finds an attribute, moved along it",
                f"by {UNITS[card['scale']]}:\n",
                format_table(head, rows),
                f"\nmean change of other attributes, percentage points: {leakage}",
                f"a face in {size['float32']['bytes']:.0f} bytes: {size['float32']['psnr_decibels']:.1f} dB",
            ]
        )

    def save(self, run_dir: Path) -> None:
        """Write all arrays, the edit and `results.json`, each file whole or not at all.

        Raises:
            UserError: A file could not be written.
        """
        for file, arrays in self.arrays().items():
            write_npz(run_dir / file, arrays)
        edits.write_edits(run_dir / "edit.npz", [self.kept_edit])
        edits.write_bare(run_dir, self.kept_edit.z_start)
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path, config: LatentArithConfig, model: LatentVariableModel) -> "LatentArithResults":
        """Read what `save` wrote; `model` is the one that was trained.

        Raises:
            UserError: A file is missing or damaged, or the weights are those of another model.
        """
        variables = weights.load(run_dir / weights.WEIGHTS, model)
        stored = read_npz(run_dir / "directions.npz")
        estimators = {"raw": "raw", "balanced": "vectors", "orthogonal": "orthogonal"}
        vectors = np.stack([stored[array] for array in estimators.values()])
        distances, positive, negative, degrees = (
            np.broadcast_to(stored[name], vectors.shape[:2])
            for name in ("distances", "n_positive", "n_negative", "standard_error_degrees")
        )
        found = Directions(
            tuple(stored["names"].tolist()),
            tuple(estimators),
            vectors,
            distances,
            positive,
            negative,
            degrees,
        )
        (edit, *_) = edits.read_edits(run_dir / "edit.npz")
        pictures = read_npz(run_dir / "figures.npz")
        scores = {file: read_npz(run_dir / file) for file in SCORES if (run_dir / file).exists()}
        measures, place = read_json(run_dir / "results.json"), run_dir / POPULATION
        population = Population(**read_npz(place)) if place.exists() else None
        lengths = stored["step_lengths"]
        return cls(config, model, variables, found, lengths, population, edit, pictures, scores, measures)


def step_lengths(
    config: LatentArithConfig, latents: Float[np.ndarray, "n latent"], found: Directions, estimator: str
) -> Float[np.ndarray, " attributes"]:
    """Return how far a strength of 1 moves along each unit vector, as `scale` has it.

    By the standard deviation of the latents along it, by half the distance between the two means along it (from the
    middle between them, +1 is the mean of those with the attribute), or by 1.
    """
    if config.scale == "deviation":
        return np.std(latents @ found.of(estimator).T, axis=0)
    if config.scale == "means":
        return (found.distances[found.estimators.index(estimator)] / 2).astype(np.float32)
    return np.ones(len(found.names), np.float32)


def describe_directions(found: Directions) -> dict[str, Any]:
    """Return each direction in numbers, of the balanced one where no estimator is named."""
    raw, balanced = (found.estimators.index(name) for name in ("raw", "balanced"))
    described: dict[str, Any] = {name: list(getattr(found, name)) for name in ("left_out", "without_orthogonal")}
    for row, name in enumerate(found.names):
        described[name] = {
            "distance": float(found.distances[balanced, row]),
            "distance_raw": float(found.distances[raw, row]),
            "standard_error_degrees": float(found.standard_error_degrees[balanced, row]),
            "standard_error_degrees_raw": float(found.standard_error_degrees[raw, row]),
            "positives": int(found.n_positive[balanced, row]),
            "negatives": int(found.n_negative[balanced, row]),
            "cosine_raw": float(found.vector(name) @ found.vector(name, "raw")),
            "cosine_orthogonal": float(found.vector(name) @ found.vector(name, "orthogonal")),
        }
        for estimator in ("raw", "balanced"):
            halves = [f"{estimator} half {half}" for half in (0, 1)]
            if set(halves) <= set(found.estimators):
                cosine = float(found.vector(name, halves[0]) @ found.vector(name, halves[1]))
                if np.isfinite(cosine):
                    described[name][f"cosine_of_halves_{estimator}"] = cosine
    return described
