"""Weights of MobileNetV2 as Keras saves them, put one to one into its variables.

Layers have Keras's names in both. A Dense layer, of which there is at most one, may have any name: Keras's top, or a
new head on a base. Of depthwise kernels Keras has the last two axes the other way.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adversarial.mobilenet_v2 import GROUPS, MobileNetV2, multiple_of_8
from latentlab.errors import UserError
from latentlab.storage import hdf5, keras_weights

Variables = dict[str, Any]
WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
NORM = "batch_normalization"
BASE_LAYER = re.compile(r"(Conv1|expanded_conv|block_\d+|out)_")
HARMLESS = {
    "input", "input_layer", "dropout", "global_average_pooling2d", "flatten", "add", "re_lu", "zero_padding2d",
    "softmax", "functional", "sequential", "model", "random_flip", "random_rotation", "random_zoom",
    "random_translation", "random_contrast", "random_brightness",
}  # fmt: skip
"""Layers without weights that a MobileNetV2 has, or that change nothing outside training."""


def load(path: Path, md5: str = "") -> tuple[MobileNetV2, Variables]:
    """Return a network as wide and with as many classes as its weights say, and its variables.

    Raises:
        UserError: The file is missing, damaged, or of another network: the first weight that is missing, extra or
            misshapen is told.
    """
    saved = keras_weights.read(path, md5 or None)
    try:
        if path.is_file():
            _check_layers_without_weights(hdf5.layers_without_weights(path))
        arrays = _in_our_names(_name_counted_layers(in_layers(saved)))
        dense = [name for name, array in arrays.items() if name.endswith("/kernel") and array.ndim == 2]
        if len(dense) > 1:
            raise UserError(
                f"{len(dense)} Dense layers, {', '.join(dense)}: weights alone do not tell how they follow one "
                "another; expected the whole model, model.save('model.keras')"
            )
        network = MobileNetV2(_alpha(arrays), _classes(arrays))
        template = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        return network, keras_weights.assign(template, arrays, _names(template))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def in_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by layer and variable, `Conv1/kernel`, without the models around the layers.

    Raises:
        UserError: Two layers have one name.
    """
    named: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        path, _, variable = name.rpartition("/")
        layer = path.rpartition("/")[2]
        named[f"{layer}/{variable.removeprefix('depthwise_')}"] = array
    if len(named) != len(arrays):
        raise UserError("weights: two layers have one name, expected those of a single Keras MobileNetV2")
    return named


def _check_layers_without_weights(names: Sequence[str]) -> None:
    """Check that a file of weights alone has no layers whose effect only a configuration could tell.

    Raises:
        UserError: It has.
    """
    strange = [name for name in names if not (BASE_LAYER.match(name) or re.sub(r"_\d+$", "", name) in HARMLESS)]
    if strange:
        raise UserError(
            f"layers {', '.join(strange)}: weights alone do not tell what they do; expected the whole model, "
            "model.save('model.keras')"
        )


def _name_counted_layers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by Keras's names of layers where a file has classes and counts, `conv2d_1`, as tf-keras writes."""
    if "Conv1/kernel" in arrays:
        return arrays
    blocks = [f"block_{index}" if index else "expanded_conv" for index in range(sum(count for *_, count in GROUPS))]
    in_blocks = [("Conv1", "bn_Conv1")]
    for block in blocks:
        for part in ("expand", "depthwise", "project")[block == "expanded_conv" :]:
            in_blocks.append((f"{block}_{part}", f"{block}_{part}_BN"))
    in_blocks.append(("Conv_1", "Conv_1_bn"))
    counts: Counter[str] = Counter()
    names = {}
    for layer, norm in in_blocks:
        for kind, name in (("depthwise_conv2d" if "depthwise" in layer else "conv2d", layer), (NORM, norm)):
            names[f"{kind}_{counts[kind]}" if counts[kind] else kind] = name
            counts[kind] += 1
    renamed = {}
    for name, array in arrays.items():
        layer, _, variable = name.rpartition("/")
        renamed[f"{names.get(layer, layer)}/{variable}"] = array
    return renamed


def _in_our_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays in the shapes of Flax; the Dense layer as Keras's top, if there is one alone.

    One unit, whose sigmoid is the probability of the second of two classes, becomes two, the first of them 0.
    """
    dense = {name.rpartition("/")[0] for name, array in arrays.items() if name.endswith("/kernel") and array.ndim == 2}
    renamed = {}
    for name, array in arrays.items():
        layer, _, variable = name.rpartition("/")
        if dense == {layer}:
            layer, array = "predictions", np.insert(array, 0, 0, axis=-1) if array.shape[-1] == 1 else array
        is_depthwise = layer.endswith("depthwise") and array.ndim == 4
        renamed[f"{layer}/{variable}"] = array.swapaxes(2, 3) if is_depthwise else array
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
