"""Weights of a face model as files: ours, and those that Keras and TensorFlow saved for the face VAE.

`weights.npz` of a run holds every variable of a `FaceVae` under the name that a Keras model with the same layers
gives it, `encoder/encoder_conv_0/kernel` or `decoder/decoder_norm_t2/moving_mean`; those of another model under their
paths. Foreign models must have the attributes or layers `encoder` and `decoder` with convolutions `encoder_conv_0…3`
and `decoder_conv_t0…3` and heads `mu` and `log_var`; the normalisations and the decoder's dense layer may have any
name, and are taken in the order of the numbers in it.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from jax import Array

from latent_arith.model import IMAGE_SHAPE, FaceVae
from latentlab.errors import UserError
from latentlab.model import LatentVariableModel, Variables, select_network_variables
from latentlab.storage import keras_weights
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.run_directory import read_json, read_npz, write_npz
from latentlab.training.optimizer import adam
from latentlab.training.state import TrainState, init_state

WEIGHTS = "weights.npz"
CHECKPOINTS = Path("checkpoints", "face_vae")


def save(path: Path, model: LatentVariableModel, variables: Variables) -> None:
    """Write all variables to an .npz, atomically."""
    write_npz(path, named_arrays(model, variables))


def named_arrays(model: LatentVariableModel, variables: Variables) -> dict[str, np.ndarray]:
    """Return all variables under their names in `weights.npz`."""
    leaves = map(np.ascontiguousarray, jax.tree.leaves(variables))
    return dict(zip(_names(model), leaves, strict=True))


def load(path: Path, model: LatentVariableModel, md5: str = "") -> Variables:
    """Read the variables of a model from a file or folder.

    Args:
        path: A run's folder (that of the experiment, or of all), a `weights.npz`, or anything that
            `latentlab.storage.keras_weights.read` takes.
        model: Whose weights they are.
        md5: MD5 that a foreign file must have.

    Raises:
        UserError: It is missing or damaged, or of another architecture: the paths and shapes that differ are named.
    """
    found = _find(path)
    if found != path and found.is_dir():
        return _newest_checkpoint(found, model)
    arrays = _read(found, md5)
    template = jax.eval_shape(model.init, jax.random.key(0))
    names = dict(zip(keras_weights.paths(template), _names(model), strict=True))
    try:
        return keras_weights.assign(template, arrays, names)
    except UserError as error:
        size, latent_dim = _dimensions(arrays)
        fitting = size and (size, size, latent_dim) != (*model.image_shape[:2], model.latent_dim)
        hint = f"; expected --size {size} --latent-dim {latent_dim} for these weights" if fitting else ""
        raise UserError(f"{found}: {error}{hint}") from error


def image_size(path: Path, md5: str = "") -> int:
    """Return the side of the faces that weights were trained on: by their shapes, or, in training, as its run says.

    Raises:
        UserError: They are missing or damaged, or have no dense layer that tells it.
    """
    found = _find(path)
    if found != path and found.is_dir():
        run = path if (path / "config.json").exists() else path.parent  # of `all`, whose experiment `path` is
        config = read_json(run / "config.json")["config"]
        return int(config.get("latent_arith", config).get("size", IMAGE_SHAPE[0]))
    size, _ = _dimensions(_read(found, md5))
    if not size:
        raise UserError(f"{found}: holds no weights of a face VAE: no decoder/decoder_dense")
    return size


def fingerprint(variables: Variables) -> str:
    """Return the SHA-256 of all weights, networks first, by which edits name the weights they were made with."""
    return digest({name: select_network_variables(variables, name) for name in variables["params"]})


def _names(model: LatentVariableModel) -> list[str]:
    """Return the name of every variable, in the order of the leaves."""
    paths = keras_weights.paths(jax.eval_shape(model.init, jax.random.key(0)))
    if not isinstance(model, FaceVae) or model.encoder or model.decoder:
        return paths
    names = []
    for path in paths:
        _, network, layer, variable = path.split("/")
        names.append(f"{network}/{layer}/{keras_weights.FLAX_TO_KERAS[variable] if '_norm_' in layer else variable}")
    return names


def _in_our_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename normalisations and the decoder's dense layer, which a foreign model may call anything."""
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


def _find(path: Path) -> Path:
    """Return the weights in a run's folder, of a training that is not over its checkpoints; other paths as they are."""
    for directory in (path, path / "latent_arith"):
        if (directory / WEIGHTS).exists():
            return directory / WEIGHTS
        if (directory / CHECKPOINTS).is_dir():
            return directory / CHECKPOINTS
    return path


def _read(path: Path, md5: str) -> dict[str, np.ndarray]:
    if path.suffix != ".npz" or md5:
        return _in_our_names(keras_weights.read(path, md5 or None))
    arrays = read_npz(path)
    keras_weights.check_finite(path, arrays)
    return arrays


def _dimensions(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return image side and latent dimension of a face VAE: its dense layer makes 64 features of 1/16 of each side."""
    kernel = arrays.get("decoder/decoder_dense/kernel")
    if kernel is None or kernel.ndim != 2:
        return 0, 0
    return 16 * math.isqrt(kernel.shape[1] // 64), kernel.shape[0]


def _newest_checkpoint(directory: Path, model: LatentVariableModel) -> Variables:
    """Read the variables of the newest undamaged checkpoint of a training that is not over."""

    def init(key: Array) -> TrainState:
        return init_state(key, model.init, adam(optax.constant_schedule(1.0), 1.0))

    checkpoints = Checkpoints(directory)
    restored = checkpoints.restore(jax.eval_shape(init, jax.random.key(0)), warn=lambda line: None)
    checkpoints.close()
    if not restored:
        raise UserError(f"{directory}: holds no checkpoint yet")
    variables: Variables = jax.tree.map(np.asarray, restored.state.variables)
    return variables
