"""Weights of MobileNetV2 as Keras saves them, put one to one into its variables.

Layers have Keras's names in both. A Dense layer, of which there is at most one, may have any name: Keras's top, or a
new head on a base. Of depthwise kernels Keras has the last two axes the other way.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adversarial.mobilenet_v2 import MobileNetV2, multiple_of_8
from latentlab.errors import UserError
from latentlab.storage import hdf5, keras_weights

Variables = dict[str, Any]
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def load(path: Path, md5: str = "") -> tuple[MobileNetV2, Variables]:
    """Return a network as wide and with as many classes as its weights say, and its variables.

    Raises:
        UserError: The file is missing, damaged, or of another network: the first weight that is missing, extra or
            misshapen is told.
    """
    saved = keras_weights.read(path, md5 or None)
    try:
        arrays = _in_our_names(saved)
        network = MobileNetV2(_alpha(arrays), _classes(arrays))
        template = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        return network, keras_weights.assign(template, arrays, _names(template))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def input_size(path: Path) -> int | None:
    """Return the height of the images that the model in a file was built for; None where the file does not tell."""

    def shapes(config: Any) -> Iterator[Any]:
        inner = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
        if isinstance(config, dict):
            yield from (config[key] for key in ("batch_shape", "batch_input_shape") if key in config)
        for part in inner:
            yield from shapes(part)

    found = shapes(hdf5.configuration(path))
    try:
        return next((s[1] for s in found if isinstance(s, list) and len(s) == 4 and isinstance(s[1], int)), None)
    except RecursionError:
        return None


def _in_our_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layer and variable without the models around them; the Dense layer as Keras's top, if there is one alone."""
    dense = {name.rpartition("/")[0] for name, array in arrays.items() if name.endswith("/kernel") and array.ndim == 2}
    renamed = {}
    for name, array in arrays.items():
        path, _, variable = name.rpartition("/")
        layer = "predictions" if dense == {path} else path.rpartition("/")[2]
        is_depthwise = layer.endswith("depthwise") and array.ndim == 4
        renamed[f"{layer}/{variable.removeprefix('depthwise_')}"] = array.swapaxes(2, 3) if is_depthwise else array
    if len(renamed) != len(arrays):
        raise UserError("weights: two layers have one name, expected those of a single Keras MobileNetV2")
    return renamed


def _alpha(arrays: dict[str, np.ndarray]) -> float:
    """Return the width whose stem and first projection have the channels of the weights."""
    found = tuple(getattr(arrays.get(f"{layer}/kernel"), "shape", (0,))[-1] for layer in ("Conv1", "block_13_project"))
    for alpha in WIDTHS:
        if found == (multiple_of_8(32 * alpha), multiple_of_8(int(160 * alpha))):
            return alpha
    if 0 in found:
        raise UserError("weights: no Conv1 or no block_13_project, expected the weights of a Keras MobileNetV2")
    raise UserError(f"weights: Conv1 and block_13_project have {found} channels, which no published width has")


def _classes(arrays: dict[str, np.ndarray]) -> int | None:
    kernel = arrays.get("predictions/kernel")
    return None if kernel is None else kernel.shape[-1]


def _names(template: Variables) -> dict[str, str]:
    """Path of every variable to its layer and Keras's name for it."""
    names = {}
    for path in keras_weights.paths(template):
        _, layer, variable = path.split("/")
        is_norm = variable != "kernel" and layer != "predictions"
        names[path] = f"{layer}/{keras_weights.FLAX_TO_KERAS[variable] if is_norm else variable}"
    return names
