"""Latent arithmetic: faces moved along directions, paths between two faces, and the files that keep an edit.

An edit is kept as the latents at its two ends, 400 floats: whoever has the weights redraws every
step between them without the data set. Strengths are in units of latent space along a unit vector; files call them
factors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from latentlab.errors import UserError
from latentlab.storage.run_directory import atomic, read_npz, write_npz

STRENGTHS = (0.0, 1.0, 2.0, 3.0, 4.0)
BARE = {".f32": "<f4", ".f16": "<f2"}
"""Files that hold one latent and nothing else, by their suffix, and what their numbers are."""

Latent = Float[np.ndarray, " latent"]
Steps = Float[np.ndarray, "steps latent"]


@dataclass(frozen=True, eq=False)
class Edit:
    """One face moved from `z_start` to `z_end`.

    Attributes:
        image_id: The source image, as its data set names it.
        z_start: Latent at the first strength, float32.
        z_end: Latent at the last strength.
        strengths: Steps of the strip; latents are linear in them.
        attribute: What the direction is called, or "" where the file does not say.
        dataset: Where the source image is from, or "".
        fingerprint: SHA-256 of the weights (`weights.fingerprint`), or "".
    """

    image_id: str
    z_start: Latent
    z_end: Latent
    strengths: tuple[float, ...] = STRENGTHS
    attribute: str = ""
    dataset: str = ""
    fingerprint: str = ""

    @property
    def direction(self) -> Latent:
        """Return the unit vector from start to end."""
        difference = self.z_end.astype(np.float64) - self.z_start
        return (difference / np.linalg.norm(difference)).astype(np.float32)

    def latents(self) -> Steps:
        """Return z_start + (strength - first) / (last - first) · (z_end - z_start) for every strength, ends exact."""
        strengths = np.asarray(self.strengths, np.float64)
        share = ((strengths - strengths[0]) / (strengths[-1] - strengths[0]))[:, None]
        return ((1 - share) * self.z_start + share * self.z_end).astype(np.float32)

    def check_weights(self, fingerprint: str) -> None:
        """Raise UserError unless the edit was made with the weights of this fingerprint."""
        if self.fingerprint != fingerprint:
            made_with = (
                f"with weights {self.fingerprint[:12]}…" if self.fingerprint else "with weights it does not name"
            )
            raise UserError(
                f"the edit of {self.image_id} was made {made_with}, these are {fingerprint[:12]}…; "
                f"another network decodes its latents to another face"
            )


def move_along(
    latents: Float[np.ndarray, "faces latent"],
    directions: Float[np.ndarray, "directions latent"],
    strengths: Float[np.ndarray, "steps directions"],
) -> Float[np.ndarray, "faces steps latent"]:
    """Return z + Σ_k strength_k · direction_k for every face and step."""
    return (latents[:, None, :] + (strengths @ directions)[None]).astype(np.float32)


def lerp(start: Latent, end: Latent, steps: int) -> Steps:
    """Return the straight path (1 - t) · start + t · end with both ends, t = 0 … 1 in `steps` ≥ 2 points."""
    t = np.linspace(0, 1, steps)[:, None]
    return ((1 - t) * start + t * end).astype(np.float32)


def slerp(start: Latent, end: Latent, steps: int) -> Steps:
    """Return the arc (sin((1 - t) ω) · start + sin(t ω) · end) / sin ω, ω the angle between them, with both ends.

    Latents of a Gaussian prior lie near a sphere, which a straight path leaves (Shoemake 1985; White 2016). Where
    the arc is not determined, at angles of 0 and π and from the origin, the path is straight.
    """
    one, other = start.astype(np.float64), end.astype(np.float64)
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    angle = np.arccos(np.clip(one @ other / lengths, -1, 1)) if lengths else 0.0
    if np.sin(angle) < 1e-6:
        return lerp(start, end, steps)
    t = np.linspace(0, 1, steps)[:, None]
    return ((np.sin((1 - t) * angle) * one + np.sin(t * angle) * other) / np.sin(angle)).astype(np.float32)


def decode_all(
    decode: Callable[[Float[np.ndarray, "n latent"]], UInt8[np.ndarray, "n height width channels"]],
    latents: Float[np.ndarray, "*grid latent"],
) -> UInt8[np.ndarray, "*grid height width channels"]:
    """Return images 0…255 of a whole grid of latents, from one call of `decode`."""
    images = np.asarray(decode(latents.reshape(-1, latents.shape[-1])))
    return images.reshape(*latents.shape[:-1], *images.shape[1:])


def write_edits(path: Path, edits: Sequence[Edit]) -> None:
    """Write edits that share strengths, attribute, data set and weights, atomically.

    Raises:
        UserError: The file cannot be written.
        ValueError: They do not share them.
    """
    first = edits[0]
    shared = (first.strengths, first.attribute, first.dataset, first.fingerprint)
    if any((e.strengths, e.attribute, e.dataset, e.fingerprint) != shared for e in edits):
        raise ValueError("edits in one file share strengths, attribute, data set and fingerprint")
    write_npz(
        path,
        {
            "image_ids": np.asarray([edit.image_id for edit in edits]),
            "z_start": np.stack([edit.z_start for edit in edits]).astype(np.float32),
            "z_end": np.stack([edit.z_end for edit in edits]).astype(np.float32),
            "factors": np.asarray(first.strengths, np.float32),
            "attribute": np.asarray(first.attribute),
            "dataset": np.asarray(first.dataset),
            "fingerprint": np.asarray(first.fingerprint),
        },
    )


def write_bare(run_dir: Path, latent: Latent) -> None:
    """Write a face as nothing but its latent: `face.f32`, 4 bytes a dimension, and `face.f16`, 2, little-endian.

    Raises:
        UserError: A file cannot be written.
    """
    for suffix, kind in BARE.items():
        with atomic(run_dir / f"face{suffix}") as file:
            file.write(latent.astype(kind).tobytes())


def read_bare(path: Path) -> Latent:
    """Read what `write_bare` wrote; the file says no more of the latent than its numbers.

    Raises:
        UserError: The file is missing, empty, not of whole numbers, or holds NaN or infinity.
    """
    kind = np.dtype(BARE[path.suffix])
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not content or len(content) % kind.itemsize:
        raise UserError(f"{path}: has {len(content)} bytes, expected {kind.itemsize} for each latent dimension")
    latent = np.frombuffer(content, kind).astype(np.float32)
    if not np.isfinite(latent).all():
        raise UserError(f"{path}: has {int((~np.isfinite(latent)).sum())} entries that are NaN or infinite")
    return latent


def read_edits(path: Path) -> list[Edit]:
    """Read what `write_edits` wrote; of a foreign file `image_ids`, `z_start` and `z_end` suffice.

    Raises:
        UserError: The file is missing, damaged, holds pickled objects, NaN or infinity, or arrays of other shapes.
    """
    arrays = read_npz(path)
    missing = [name for name in ("image_ids", "z_start", "z_end") if name not in arrays]
    if missing:
        raise UserError(f"{path}: has no {missing[0]}; expected image_ids, z_start and z_end")
    ids, start, end = (arrays[name] for name in ("image_ids", "z_start", "z_end"))
    factors = arrays.get("factors", np.asarray(STRENGTHS, np.float32))
    if ids.ndim != 1 or ids.dtype.kind != "U" or not len(ids):
        raise UserError(f"{path}: image_ids is {ids.dtype} {ids.shape}, expected strings (n,)")
    for name, array in (("z_start", start), ("z_end", end)):
        if array.ndim != 2 or len(array) != len(ids) or array.shape != start.shape or array.dtype.kind != "f":
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected float32 ({len(ids)}, latent) for "
                f"{len(ids)} image_ids, z_start and z_end alike"
            )
    if factors.ndim != 1 or len(factors) < 2 or factors.dtype.kind != "f" or factors[0] == factors[-1]:
        raise UserError(
            f"{path}: factors is {factors.dtype} {factors.shape}, expected two or more that begin and end apart"
        )
    for name, array in (("z_start", start), ("z_end", end), ("factors", factors)):
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} has {int((~np.isfinite(array)).sum())} entries that are NaN or infinite")
    same = np.flatnonzero((start == end).all(axis=1))
    if same.size:
        raise UserError(f"{path}: edit {same[0]} ({ids[same[0]]}) ends where it starts, so it has no direction")
    words = {name: str(arrays.get(name, "")) for name in ("attribute", "dataset", "fingerprint")}
    return [
        Edit(str(name), one.astype(np.float32), other.astype(np.float32), tuple(map(float, factors)), **words)
        for name, one, other in zip(ids, start, end, strict=True)
    ]
