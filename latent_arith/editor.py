"""Edits of own photos with a model that is trained: `run.latent_arith.edit(…)`, and a run of `--image PHOTO`.

What an edit needs of a run are its weights, its directions with the length of their steps, and, to tell how ordinary a
face is, `population.npz`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from latent_arith import edits, photos, weights
from latent_arith.config import Crop, LatentArithConfig, parse_edit
from latent_arith.edits import Edit
from latent_arith.model import make_decode, make_encode, make_model
from latent_arith.photos import FacePhoto, Whole
from latent_arith.population import UNSEEN, Population
from latentlab.errors import UserError
from latentlab.experiment import Run
from latentlab.model import LatentVariableModel, Variables
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz

SHARES = np.linspace(0, 1, 5, dtype=np.float32)
"""How much of an edit the pictures of a strip show."""
POPULATION = "population.npz"


@dataclass(frozen=True, eq=False)
class Editor:
    """A trained model and its directions.

    Attributes:
        config: Settings of its run, by which photos are cut and resized.
        model: The model.
        variables: Its variables.
        names: Attributes that have a direction.
        moves: What a strength of 1 adds to a latent.
        population: Held-out faces that a photo is compared with; None for runs of older versions.
    """

    config: LatentArithConfig
    model: LatentVariableModel
    variables: Variables
    names: tuple[str, ...]
    moves: Float[np.ndarray, "attributes latent"]
    population: Population | None

    @classmethod
    def load(cls, path: Path) -> "Editor":
        """Read what a run left.

        Raises:
            UserError: The directory holds no run of the faces, or it is not complete or damaged.
        """
        run = Run(path)
        if "latent_arith" not in run.experiments:
            raise UserError(f"{path} is a run of {run.command!r}, which has no faces; expected one of latent-arith")
        part = run.experiments["latent_arith"]
        config, found = part.config, read_npz(part.run_dir / "directions.npz")
        model, _ = weights.fit_model(part.run_dir / weights.WEIGHTS, make_model(config))
        population = part.run_dir / POPULATION
        return cls(
            config,
            model,
            weights.load(part.run_dir / weights.WEIGHTS, model),
            tuple(found["names"].tolist()),
            found["step_lengths"][:, None] * found["vectors"],
            Population(**read_npz(population)) if population.exists() else None,
        )

    def encode(self, images: UInt8[Array | np.ndarray, "n height width 3"]) -> Float[np.ndarray, "n latent"]:
        """Return posterior means of images 0…255."""
        return make_encode(self.model, self.variables)(np.asarray(images))

    def decode(self, latents: Float[Array | np.ndarray, "n latent"]) -> UInt8[np.ndarray, "n height width 3"]:
        """Return images 0…255 of latents."""
        return make_decode(self.model, self.variables)(np.asarray(latents, np.float32))

    def move(self, strengths: Mapping[str, float]) -> Float[np.ndarray, " latent"]:
        """Return Σ strength · direction.

        Raises:
            UserError: There is no such direction.
        """
        for name in strengths:
            if name not in self.names:
                raise UserError(f"edit: no direction {name!r}; there are {', '.join(self.names)}")
        rows = [self.names.index(name) for name in strengths]
        return np.asarray(list(strengths.values()), np.float32) @ self.moves[rows]

    def read(self, photo: Path | UInt8[np.ndarray, "h w 3"], crop: Crop | Whole | None) -> FacePhoto:
        """Return the face of a photo, cut as those that the model was trained on; see `photos.read_face`."""
        kind = self.config.data.partition(":")[0]
        frame = photos.FRAMES.get(kind, photos.FRAMES["folder"])
        return photos.read_face(photo, crop, frame, self.model.image_shape[0], self.config.resize)

    def edit(self, photo: FacePhoto, name: str, strengths: Mapping[str, float]) -> "EditedPhoto":
        """Move a face along directions of attributes and measure how ordinary it is for the model."""
        move = self.move(strengths)
        (start,) = self.encode(photo.pixels[None])
        strip = self.decode(start + SHARES[:, None] * move)
        label = " ".join(f"{attribute}={strength:+g}" for attribute, strength in strengths.items())
        length = float(np.linalg.norm(move))
        kept = Edit(
            name, start, (start + move).astype(np.float32), tuple(map(float, SHARES * length)), label, name,
            weights.fingerprint(self.variables),
        )  # fmt: skip
        found = self.population.describe(start, photo.pixels, strip[0]) if self.population else {}
        measures = {"photo": {"image": name, "strengths": dict(strengths), "notes": list(photo.notes), **found}}
        return EditedPhoto(kept, photo.pixels, strip, measures)


@dataclass(frozen=True, eq=False)
class EditedPhoto:
    """A photo moved along directions: the results of a run of `--image PHOTO`.

    Attributes:
        kept_edit: The latents at both ends.
        photo: The face as the model was given it.
        strip: Decodings from the face as it is to the whole edit.
        measures: What `results.json` holds.
    """

    kept_edit: Edit
    photo: UInt8[np.ndarray, "height width 3"]
    strip: UInt8[np.ndarray, "steps height width 3"]
    measures: Mapping[str, Any]

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes, without the edit's."""
        edit = self.kept_edit
        return {
            "figures.npz": {"photo": self.photo, "photo_strip": self.strip},
            "deliverables.npz": {"ans09": np.asarray(edit.image_id), "ans10": edit.z_start, "ans11": edit.z_end},
        }

    def summary(self) -> str:
        """Return what was done to which face, and whether the model knows such faces."""
        found = self.measures["photo"]
        lines = [
            f"{found['image']}: {', '.join(found['notes']) or 'cut as asked'}",
            f"moved by {self.kept_edit.attribute}",
        ]
        return "\n".join([*lines, *describe_rarity(found)])

    def save(self, run_dir: Path) -> None:
        """Write all arrays, the edit and `results.json`, each file whole or not at all.

        Raises:
            UserError: A file could not be written.
        """
        for file, arrays in self.arrays().items():
            write_npz(run_dir / file, arrays)
        edits.write_edits(run_dir / "edit.npz", [self.kept_edit])
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path) -> "EditedPhoto":
        """Read what `save` wrote.

        Raises:
            UserError: A file is missing or damaged.
        """
        (edit, *_), pictures = edits.read_edits(run_dir / "edit.npz"), read_npz(run_dir / "figures.npz")
        return cls(edit, pictures["photo"], pictures["photo_strip"], read_json(run_dir / "results.json"))


def edit_photo(config: LatentArithConfig, run_dir: Path | None, log: Callable[[str], None]) -> EditedPhoto:
    """Edit the photo that a configuration names with the model of the run that it names.

    Raises:
        UserError: The photo or the run cannot be read, there is no face, or no such direction.
    """
    editor = Editor.load(weights.locate(config.weights))
    strengths = parse_edit(config.edit)
    editor.move(strengths)  # a misspelt attribute is told before the photo is looked at
    path = Path(config.image)
    photo = editor.read(path, config.crop)
    results = editor.edit(photo, path.name, strengths)
    if run_dir:
        results.save(run_dir)
    log(results.summary())
    return results


def describe_rarity(found: Mapping[str, Any]) -> list[str]:
    """Return lines that say how ordinary a face is for the model; none where that was not measured."""
    if "latent_percentile" not in found:
        return []
    lines = [
        f"Its latent lies farther from the training faces than that of {found['latent_percentile']:.0f} % of "
        f"{found['held_out_faces']} held-out faces, and it is decoded worse than "
        f"{found['reconstruction_percentile']:.0f} %."
    ]
    if found["reconstruction_percentile"] >= UNSEEN:
        lines.append("The model has seen nothing like this face: what it decodes is the nearest that it knows.")
    return lines
