"""Weights of a face model as files: ours, and those that Keras and TensorFlow saved for the face VAE.

`weights.npz` of a run holds every variable of a `FaceVae` under the name that a Keras model with the same layers
gives it, `encoder/encoder_conv_0/kernel` or `decoder/decoder_norm_t2/moving_mean`; those of another model under their
paths.

Of foreign models the decoder is where transposed convolutions are, in an attribute or layer of any name, or in one flat
model with the encoder. Layers of a kind are taken in the order of the numbers in their names: `decoder_conv_t_0` of
Foster's «Generative Deep Learning», `decoder_conv_t0`, or `conv2d_transpose_1` where a file has no names. The heads are
the two dense layers of the encoder; if one name says that it is of a variance (`log_var`, `z_logvar`, `sigma`), it is,
and otherwise the second is taken for it. Filters, and whether there is BatchNorm, are as the file has them
(`fit_model`).
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from latent_arith.config import AUTO, PACKAGED
from latent_arith.model import IMAGE_SHAPE, FaceVae
from latentlab.errors import UserError
from latentlab.model import LatentVariableModel, Variables, select_network_variables
from latentlab.storage import hdf5, keras_weights
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.run_directory import read_json, read_npz, write_npz
from latentlab.training.optimizer import adam
from latentlab.training.state import TrainState, init_state
from vae.model import SLOPE

WEIGHTS = "weights.npz"
PRETRAINED = Path(__file__).parent / "pretrained"
"""A run of painted faces, without what can be made anew of it; `about.json` says how it was made."""
CHECKPOINTS = Path("checkpoints", "face_vae")
HEADS = ("mu", "log_var")
VARIANCE = re.compile(r"var|sigma|std", re.I)
CONVOLUTION = {"strides": (2,), "padding": ("same",), "dilation_rate": (1,), "groups": (1,), "activation": ("linear",)}
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Conv2D": CONVOLUTION,
    "Conv2DTranspose": CONVOLUTION | {"activation": ("linear", "sigmoid")},
    "Dense": {"activation": ("linear",)},
    "BatchNormalization": {"epsilon": (1e-3,), "axis": (-1, 3)},
    "LeakyReLU": {"alpha": (SLOPE,), "negative_slope": (SLOPE,)},
    "Activation": {"activation": ("linear", "sigmoid")},
}
"""What settings of Keras's layers may be in a face VAE."""
OTHER_LAYERS = {
    "ReLU", "PReLU", "ELU", "ThresholdedReLU", "Softmax", "UpSampling2D", "MaxPooling2D", "AveragePooling2D",
    "GlobalAveragePooling2D", "GlobalMaxPooling2D", "Rescaling", "Normalization", "Resizing", "LayerNormalization",
    "GroupNormalization", "DepthwiseConv2D", "SeparableConv2D", "ZeroPadding2D", "Cropping2D",
}  # fmt: skip
"""Layers of Keras's that would change the numbers."""
TRANSPOSED = re.compile(r"conv_t_?\d|transpose")


def locate(weights: str) -> Path:
    """Return where weights are that a configuration names: the package's own, or a path."""
    return PRETRAINED if weights in (AUTO, PACKAGED) else Path(weights)


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
    arrays, _ = _read(found, md5)
    template = jax.eval_shape(model.init, jax.random.key(0))
    names = dict(zip(keras_weights.paths(template), _names(model), strict=True))
    try:
        return keras_weights.assign(template, arrays, names)
    except UserError as error:
        size, latent_dim = _dimensions(arrays)
        fitting = size and (size, size, latent_dim) != (*model.image_shape[:2], model.latent_dim)
        hint = f"; expected --size {size} --latent-dim {latent_dim} for these weights" if fitting else ""
        raise UserError(f"{found}: {error}{hint}") from error


def fit_model(path: Path, model: FaceVae, md5: str = "") -> tuple[FaceVae, str]:
    """Return the model with the filters of weights, and with BatchNorm if they have it; and what was assumed, or "".

    Its image shape and latent dimension stay, and so does a model whose networks are not the face VAE's.

    Raises:
        UserError: The weights are missing or damaged.
    """
    found = _find(path)
    if model.encoder or model.decoder or (found != path and found.is_dir()):
        return model, ""
    arrays, assumed = _read(found, md5)
    encoder = _filters(arrays, "encoder/encoder_conv_{}/kernel", 3)
    *decoder, _ = _filters(arrays, "decoder/decoder_conv_t{}/kernel", 2) or (0,)
    if not encoder or not decoder:
        return model, ""
    batch_norm = "encoder/encoder_norm_0/moving_mean" in arrays
    return replace(model, encoder_filters=encoder, decoder_filters=tuple(decoder), batch_norm=batch_norm), assumed


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
    size, _ = _dimensions(_read(found, md5)[0])
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


def _in_our_names(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """Return arrays under our names, and what was assumed of them, "" if nothing."""
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in arrays))
    kinds = {layer: _kind(layer, arrays) for layer in layers}
    containers = {layer.rpartition("/")[0] for layer in layers if kinds[layer] == "transposed convolution"}
    if len(containers) != 1:
        return dict(arrays), ""
    (container,) = containers
    in_decoder = {layer for layer in layers if layer.rpartition("/")[0] == container}
    if any(kinds[layer] == "convolution" for layer in in_decoder):  # one flat model of both
        in_decoder = _decoder_of_flat(layers, kinds)
    renamed: dict[str, str] = {}
    assumed = ""
    for network in ("encoder", "decoder"):
        is_decoder = network == "decoder"
        own = sorted((layer for layer in layers if (layer in in_decoder) == is_decoder), key=_numbers)
        for kind, name in (
            ("convolution", "encoder_conv_{}"),
            ("transposed convolution", "decoder_conv_t{}"),
            ("normalization", "decoder_norm_t{}" if is_decoder else "encoder_norm_{}"),
        ):
            for index, layer in enumerate(layer for layer in own if kinds[layer] == kind):
                renamed[layer] = f"{network}/{name.format(index)}"
        dense = [layer for layer in own if kinds[layer] == "dense"]
        last = [layer.rpartition("/")[2] for layer in dense]
        if is_decoder and len(dense) == 1:
            renamed[dense[0]] = "decoder/decoder_dense"
        elif not is_decoder and len(dense) == len(HEADS):
            variances = [bool(VARIANCE.search(name)) for name in last]
            if sum(variances) == 1:
                dense = [dense[variances.index(False)], dense[variances.index(True)]]
            else:
                assumed = (
                    f"{last[0]} is taken for the mean and {last[1]} for the log variance, in the order of their numbers"
                )
            renamed |= {layer: f"encoder/{head}" for layer, head in zip(dense, HEADS, strict=True)}
    found = {
        f"{renamed.get(layer, layer)}/{variable}": array
        for (layer, _, variable), array in ((name.rpartition("/"), array) for name, array in arrays.items())
    }
    return found, assumed


def _kind(layer: str, arrays: Mapping[str, np.ndarray]) -> str:
    if f"{layer}/moving_mean" in arrays:
        return "normalization"
    ndim = getattr(arrays.get(f"{layer}/kernel"), "ndim", 0)
    if ndim == 4:
        return "transposed convolution" if TRANSPOSED.search(layer.rpartition("/")[2]) else "convolution"
    return "dense" if ndim == 2 else ""


def _decoder_of_flat(layers: Sequence[str], kinds: Mapping[str, str]) -> set[str]:
    """Return the decoder's layers of a model that has all in one: the later normalizations, and the third dense one."""

    def of(kind: str) -> list[str]:
        return sorted((layer for layer in layers if kinds[layer] == kind), key=_numbers)

    heads = [layer for layer in of("dense") if layer.rpartition("/")[2] in HEADS]
    dense = [layer for layer in of("dense") if layer not in heads][len(HEADS) - len(heads) :]
    return {*of("transposed convolution"), *of("normalization")[len(of("convolution")) :], *dense}


def _numbers(layer: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", layer.rpartition("/")[2])]


def _find(path: Path) -> Path:
    """Return the weights in a run's folder, of a training that is not over its checkpoints; other paths as they are."""
    for directory in (path, path / "latent_arith"):
        if (directory / WEIGHTS).exists():
            return directory / WEIGHTS
        if (directory / CHECKPOINTS).is_dir():
            return directory / CHECKPOINTS
    return path


def _read(path: Path, md5: str) -> tuple[dict[str, np.ndarray], str]:
    """Return arrays under our names, and what was assumed of foreign ones."""
    if path.suffix != ".npz" or md5:
        arrays = keras_weights.read(path, md5 or None)
        _check_layers(path, hdf5.configuration(path) if path.is_file() else None)
        return _in_our_names(arrays)
    arrays = read_npz(path)
    keras_weights.check_finite(path, arrays)
    return arrays, ""


def _check_layers(path: Path, config: Any) -> None:
    """Check that layers that have no weights, and settings of those that have, are the face VAE's.

    Args:
        path: Of the file, for messages.
        config: The configuration of a model or anything within one; nothing of it is known where weights are alone.

    Raises:
        UserError: One is not, so that the numbers would not be Keras's.
    """
    if not isinstance(config, dict):
        for part in config if isinstance(config, list) else ():
            _check_layers(path, part)
        return
    settings, kind = config.get("config"), config.get("class_name")
    if isinstance(settings, dict) and kind in {*SETTINGS, *OTHER_LAYERS}:
        name = f"{path}: {kind} {settings.get('name', '')}"
        if kind in OTHER_LAYERS:
            raise UserError(f"{name}: the face VAE has no such layer, expected {', '.join(SETTINGS)}")
        for setting, expected in SETTINGS[kind].items():
            found = settings.get(setting)
            found = found[0] if isinstance(found, list) and len({*map(str, found)}) == 1 else found
            if isinstance(found, float):  # TensorFlow keeps it in float32
                is_right = bool(np.isclose(found, expected, rtol=1e-6).any())
            else:
                is_right = found is None or found in expected
            if not is_right:
                raise UserError(f"{name} has {setting} {found}, expected {' or '.join(map(str, expected))}")
    for part in config.values():
        _check_layers(path, part)


def _filters(arrays: Mapping[str, np.ndarray], name: str, axis: int) -> tuple[int, ...]:
    """Return the length of an axis of the kernels that are called `name` with 0, 1, …, as far as there are any."""
    found = itertools.takewhile(lambda name: np.ndim(arrays.get(name, 0)) == 4, map(name.format, itertools.count()))
    return tuple(arrays[name].shape[axis] for name in found)


def _dimensions(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Return image side and latent dimension of a face VAE; its dense layer makes what the encoder shrinks sides to."""
    kernel = arrays.get("decoder/decoder_dense/kernel")
    filters = _filters(arrays, "encoder/encoder_conv_{}/kernel", 3)
    if kernel is None or kernel.ndim != 2 or not filters:
        return 0, 0
    return 2 ** len(filters) * math.isqrt(kernel.shape[1] // filters[-1]), kernel.shape[0]


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
