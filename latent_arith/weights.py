"""Weights of the face VAE as files: ours, and those that Keras and TensorFlow saved.

`weights.npz` of a run holds every variable under the name that a Keras model with the same layers
gives it, `encoder/encoder_conv_0/kernel` or `decoder/decoder_norm_t2/moving_mean`. Foreign models
must have the attributes or layers `encoder` and `decoder` with convolutions `encoder_conv_0…3`
and `decoder_conv_t0…3` and heads `mu` and `log_var`; the normalisations and the decoder's dense
layer may have any name, and are taken in the order of the numbers in it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from jax import Array

from latent_arith.models import FaceVae
from runtime import keras_weights
from runtime.checkpoints import Checkpoints
from runtime.errors import UserError
from runtime.run_directory import read_npz, write_npz
from vae import train
from vae.train import Parameters, TrainState

WEIGHTS = "weights.npz"
CHECKPOINTS = Path("checkpoints", "face_vae")


def save(path: Path, params: Parameters) -> None:
    """Writes all variables to an .npz, atomically."""
    leaves = (np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(params))
    write_npz(path, dict(zip(_names(), leaves, strict=True)))


def load(path: Path, md5: str = "") -> Parameters:
    """Variables of both networks from a file or folder.

    Args:
        path: A run's folder (that of the experiment, or of all), a `weights.npz`, or anything that
            `runtime.keras_weights.read` takes.
        md5: MD5 that a foreign file must have.

    Raises:
        UserError: It is missing or damaged, or of another architecture: the first path and shape that differ are told.
    """
    for directory in (path, path / "latent_arith"):
        if (directory / CHECKPOINTS).is_dir() and not (directory / WEIGHTS).exists():
            return _newest_checkpoint(directory / CHECKPOINTS)
        if (directory / WEIGHTS).exists():
            path = directory / WEIGHTS
    if path.suffix == ".npz" and not md5:
        arrays = read_npz(path)
    else:
        arrays = _in_our_names(keras_weights.read(path, md5 or None))
    try:
        return keras_weights.assign(
            _template(), arrays, dict(zip(keras_weights.paths(_template()), _names(), strict=True))
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _template() -> Parameters:
    template: Parameters = jax.eval_shape(FaceVae().init, jax.random.key(0))
    return template


def _names() -> list[str]:
    """Keras's name of every variable, in the order of our leaves."""
    names = []
    for path in keras_weights.paths(_template()):
        network, _, layer, variable = path.split("/")
        names.append(f"{network}/{layer}/{keras_weights.FLAX_TO_KERAS[variable] if '_norm_' in layer else variable}")
    return names


def _in_our_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames normalisations and the decoder's dense layer, which a foreign model may call anything."""
    layers = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
    renamed: dict[str, str] = {}
    for network, norms in (("encoder", "encoder_norm_{}"), ("decoder", "decoder_norm_t{}")):
        found = [layer for layer in layers if layer.startswith(f"{network}/") and f"{layer}/moving_mean" in arrays]
        for index, layer in enumerate(sorted(found, key=_numbers)):
            renamed[layer] = f"{network}/{norms.format(index)}"
    dense = [
        layer
        for layer in layers
        if layer.startswith("decoder/") and getattr(arrays.get(f"{layer}/kernel"), "ndim", 0) == 2
    ]
    if len(dense) == 1:
        renamed[dense[0]] = "decoder/decoder_dense"
    return {
        f"{renamed.get(layer, layer)}/{variable}": array
        for (layer, _, variable), array in ((name.rpartition("/"), array) for name, array in arrays.items())
    }


def _numbers(layer: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", layer)]


def _newest_checkpoint(directory: Path) -> Parameters:
    """Parameters of the newest undamaged checkpoint of a training that is not over; the folder stays as it is."""

    def init(key: Array) -> TrainState:
        return train.init_state(key, FaceVae().init, train.adam(optax.constant_schedule(1.0), 1.0))

    like = jax.eval_shape(jax.vmap(init), jax.random.key(0)[None])
    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(like, warn=lambda line: None, discard_damaged=False)
    checkpoints.close()
    if not restored:
        raise UserError(f"{directory}: holds no checkpoint yet")
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), restored.state.params)
