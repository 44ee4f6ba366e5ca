"""Pictures behind the figures of experiment 2: held-out faces moved along directions, and the edit that is kept."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from latent_arith import edits
from latent_arith.config import LatentArithConfig
from latent_arith.datasets.face_data import FaceData
from latent_arith.directions import Directions, Vectors
from latent_arith.edits import Edit
from latent_arith.model import Decode, Encode
from latent_arith.representation import Components

STRENGTHS = np.arange(-4.0, 5.0, dtype=np.float32)
RECONSTRUCTIONS, PRIOR_SAMPLES, SHOWN_FACES, INTERPOLATION_STEPS = 12, 40, 5, 9
PAIR = ("Smiling", "Eyeglasses")  # faces are moved along both at once, where both directions are found


def make_pictures(
    config: LatentArithConfig,
    data: FaceData,
    encode: Encode,
    decode: Decode,
    found: Directions,
    moves: Vectors,
    fingerprint: str,
) -> tuple[dict[str, np.ndarray], Edit]:
    """Return the pictures behind the figures, of faces moved by strengths of `moves`, and the edit that is kept."""
    lacking = data.table.values[data.held_out[:RECONSTRUCTIONS], _kept_attribute(config, data, found)] < 0
    shown = np.argsort(~lacking, kind="stable")  # faces first that have something to gain
    originals = data.source[data.held_out[:RECONSTRUCTIONS]][shown]
    latents = encode(originals)
    strips = [edits.move_along(latents[:SHOWN_FACES], move[None], STRENGTHS[:, None]) for move in moves]
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    prior = np.asarray(jax.random.normal(key, (PRIOR_SAMPLES, latents.shape[1])))
    edit = make_kept_edit(config, data, encode, found, fingerprint)
    pictures = {
        "originals": originals,
        "reconstructions": decode(latents),
        "prior_samples": decode(prior),
        "edit_originals": originals[:SHOWN_FACES],
        "edits": edits.decode_all(decode, np.stack(strips)),
        **_move_along_pair(decode, latents[:SHOWN_FACES], found.names, moves),
        "edit_strip": decode(edit.latents()),
        "interpolation_ends": originals[:2],
        "lerp": decode(edits.lerp(latents[0], latents[1], INTERPOLATION_STEPS)),
        "slerp": decode(edits.slerp(latents[0], latents[1], INTERPOLATION_STEPS)),
    }
    return pictures, edit


def move_along_components(
    decode: Decode, latent: Float[np.ndarray, " latent"], components: Components
) -> UInt8[np.ndarray, "components steps h w 3"]:
    """Return a face moved along every principal component, by -4 to 4 standard deviations."""
    moves = components.vectors * components.deviations[:, None]
    moved = [edits.move_along(latent[None], move[None], STRENGTHS[:, None])[0] for move in moves]
    return edits.decode_all(decode, np.stack(moved))


def make_kept_edit(
    config: LatentArithConfig, data: FaceData, encode: Encode, found: Directions, fingerprint: str
) -> Edit:
    """Move the first held-out face without the attribute `label`, Smiling if none is named, by 4 along it.

    The direction is that of `config.estimator`.
    """
    column = _kept_attribute(config, data, found)
    name, lacking = data.table.names[column], data.table.values[data.held_out, column] < 0
    row = data.held_out[int(np.argmax(lacking))]
    (start,) = encode(data.source[np.asarray([row])])
    end = (start + edits.STRENGTHS[-1] * found.vector(name, config.estimator)).astype(np.float32)
    source = data.description["source"]
    return Edit(data.table.ids[row], start, end, attribute=name, dataset=source, fingerprint=fingerprint)


def _kept_attribute(config: LatentArithConfig, data: FaceData, found: Directions) -> int:
    """Return the column of the attribute of the kept edit: `label`, Smiling if none is named."""
    preferred = config.label or "Smiling"
    return data.table.names.index(preferred if preferred in found.names else found.names[0])


def _move_along_pair(
    decode: Decode, latents: np.ndarray, names: Sequence[str], moves: Vectors
) -> dict[str, np.ndarray]:
    """Return faces moved along both of `PAIR` at once, (faces, strengths, strengths, h, w, 3), if there are both."""
    if not set(PAIR) <= set(names):
        return {}
    strengths = np.stack(np.meshgrid(STRENGTHS, STRENGTHS, indexing="ij"), axis=-1)
    both = moves[[names.index(name) for name in PAIR]]
    moved = edits.move_along(latents, both, strengths.reshape(-1, len(PAIR)))
    pictures = edits.decode_all(decode, moved.reshape(len(latents), *strengths.shape[:2], -1))
    return {"pair": np.asarray(PAIR), "pair_edits": pictures}
