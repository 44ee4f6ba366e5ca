"""Weights of MobileNetV2 as Keras saves them, put one to one into its variables.

Layers have Keras's names in both. A Dense layer, of which there is at most one, may have any name: Keras's top, or a
new head on a base. Of depthwise kernels Keras has the last two axes the other way.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from adversarial.mobilenet_v2 import MobileNetV2, multiple_of_8
from runtime import keras_weights
from runtime.errors import UserError
from vae.train import Parameters

KERAS_NAMES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)


def load(path: Path, md5: str = "") -> tuple[MobileNetV2, Parameters]:
    """A network as wide and with as many classes as its weights say, and its variables.

    Raises:
        UserError: The file is missing, damaged, or of another network: the first weight that is missing, extra or
            misshapen is told.
    """
    arrays = {
        _ours(name, array): _transposed(name, array) for name, array in keras_weights.read(path, md5 or None).items()
    }
    network = MobileNetV2(_alpha(path, arrays), _classes(arrays))
    template = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    try:
        return network, keras_weights.assign(template, arrays, _names(template))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _ours(name: str, array: np.ndarray) -> str:
    """Layer and variable, without the models around them."""
    *_, layer, variable = name.split("/")
    if variable == "depthwise_kernel":
        variable = "kernel"
    is_dense = array.ndim == (2 if variable == "kernel" else 1) and variable in ("kernel", "bias")
    return f"{'predictions' if is_dense else layer}/{variable}"


def _transposed(name: str, array: np.ndarray) -> np.ndarray:
    return array.swapaxes(2, 3) if "depthwise/" in name and array.ndim == 4 else array


def _alpha(path: Path, arrays: dict[str, np.ndarray]) -> float:
    """The width whose stem and first projection have the channels of the weights."""
    found = tuple(getattr(arrays.get(f"{layer}/kernel"), "shape", (0,))[-1] for layer in ("Conv1", "block_13_project"))
    for alpha in WIDTHS:
        if found == (multiple_of_8(32 * alpha), multiple_of_8(int(160 * alpha))):
            return alpha
    if 0 in found:
        raise UserError(f"{path}: has no Conv1 or no block_13_project, expected the weights of a Keras MobileNetV2")
    raise UserError(f"{path}: Conv1 and block_13_project have {found} channels, which no published width has")


def _classes(arrays: dict[str, np.ndarray]) -> int | None:
    kernel = arrays.get("predictions/kernel")
    return None if kernel is None else kernel.shape[-1]


def _names(template: Parameters) -> dict[str, str]:
    """Path of every variable to its layer and Keras's name for it."""
    names = {}
    for key, _ in jax.tree_util.tree_leaves_with_path(template):
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        _, layer, variable = path.split("/")
        names[path] = f"{layer}/{variable if variable == 'kernel' or layer == 'predictions' else KERAS_NAMES[variable]}"
    return names
