"""ResNet as torchvision defines it (He et al. 2016, arXiv 1512.03385), and its weights from PyTorch.

| part | layers |
| --- | --- |
| stem | Conv 7×7 stride 2, 64; max-pool 3×3 stride 2 |
| 4 groups of blocks | of 64, 128, 256, 512 channels, the first block of the last three with stride 2 |
| end | mean over pixels, Dense |

A block is two convolutions 3×3, or, in networks of 50 layers and more, 1×1, 3×3, 1×1 to four times the channels, with
the stride in the 3×3 one. It adds its input, through a convolution 1×1 where the shapes differ. All convolutions are
without bias and followed by BatchNorm. Layers carry torchvision's names, with `_` for `.`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from latentlab.arrays import AnyArray
from latentlab.errors import UserError
from latentlab.kernels.convolution import conv_general_dilated
from latentlab.storage import keras_weights, torch_weights

Variables = Any
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of the four groups by the number of layers."""
BOTTLENECKS_FROM = 50
WIDTH, EXPANSION = 64, 4
TORCH_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


class ResNet(nn.Module):
    """Images to logits; torchvision's weights expect them with ImageNet's mean and standard deviation.

    Attributes:
        layers: 18, 34, 50, 101 or 152.
        classes: Number of logits.
    """

    layers: int = 50
    classes: int = 1000

    @nn.compact
    def __call__(self, images: Float[AnyArray, "batch height width 3"]) -> Float[Array, "batch classes"]:
        hidden = nn.relu(_convolve(images, WIDTH, "conv1", "bn1", 7, 2))
        hidden = nn.max_pool(hidden, (3, 3), (2, 2), ((1, 1), (1, 1)))
        block = _bottleneck if self.layers >= BOTTLENECKS_FROM else _basic_block
        for group, count in enumerate(BLOCKS[self.layers]):
            for index in range(count):
                stride = 2 if group and not index else 1
                hidden = block(hidden, WIDTH * 2**group, stride, f"layer{group + 1}_{index}")
        return nn.Dense(self.classes, name="fc")(jnp.mean(hidden, axis=(1, 2)))


def load(path: Path, md5: str = "") -> tuple[ResNet, Variables]:
    """Return the ResNet that a file has the weights of, and its variables.

    Raises:
        UserError: The file is missing, damaged, or of another network.
    """
    arrays = torch_weights.read(path, md5 or None)
    try:
        network = ResNet(_count_layers(arrays), _count_classes(arrays))
        template = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        renamed = {name: _to_flax_layout(array) for name, array in arrays.items()}
        return network, keras_weights.assign(template, renamed, _names(template))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _basic_block(inputs: Array, features: int, stride: int, name: str) -> Array:
    hidden = nn.relu(_convolve(inputs, features, f"{name}_conv1", f"{name}_bn1", 3, stride))
    hidden = _convolve(hidden, features, f"{name}_conv2", f"{name}_bn2", 3)
    return _add_inputs(inputs, hidden, stride, name)


def _bottleneck(inputs: Array, features: int, stride: int, name: str) -> Array:
    hidden = nn.relu(_convolve(inputs, features, f"{name}_conv1", f"{name}_bn1", 1))
    hidden = nn.relu(_convolve(hidden, features, f"{name}_conv2", f"{name}_bn2", 3, stride))
    hidden = _convolve(hidden, EXPANSION * features, f"{name}_conv3", f"{name}_bn3", 1)
    return _add_inputs(inputs, hidden, stride, name)


def _add_inputs(inputs: Array, hidden: Array, stride: int, name: str) -> Array:
    if inputs.shape != hidden.shape:
        inputs = _convolve(inputs, hidden.shape[3], f"{name}_downsample_0", f"{name}_downsample_1", 1, stride)
    return nn.relu(hidden + inputs)


def _convolve(inputs: AnyArray, features: int, name: str, norm: str, size: int, stride: int = 1) -> Array:
    """Apply a convolution without bias and its BatchNorm, which pads the same on both sides."""
    pads = ((size // 2, size // 2),) * 2
    how: dict[str, Any] = {"use_bias": False, "name": name, "conv_general_dilated": conv_general_dilated}
    convolution = nn.Conv(features, (size, size), (stride, stride), pads, **how)
    normalized: Array = nn.BatchNorm(True, epsilon=1e-5, name=norm)(convolution(inputs))
    return normalized


def _count_layers(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many layers a network has, by the names of its weights."""
    groups = [{match[1] for name in arrays if (match := re.match(rf"layer{at}\.(\d+)\.", name))} for at in range(1, 5)]
    has_bottlenecks = "layer1.0.conv3.weight" in arrays
    for layers, counts in BLOCKS.items():
        if tuple(map(len, groups)) == counts and has_bottlenecks == (layers >= BOTTLENECKS_FROM):
            return layers
    raise UserError(
        "weights: of no ResNet of 18, 34, 50, 101 or 152 layers as torchvision names them, conv1.weight to fc.bias; "
        f"the first are {', '.join(list(arrays)[:3])}"
    )


def _count_classes(arrays: Mapping[str, np.ndarray]) -> int:
    shape = arrays["fc.weight"].shape if "fc.weight" in arrays else ()
    if len(shape) != 2 or not shape[0]:
        raise UserError(f"weights: fc.weight has shape {shape}, expected that of a last layer, (classes, features)")
    return int(shape[0])


def _to_flax_layout(array: np.ndarray) -> np.ndarray:
    """Return a kernel (out, in, height, width) as (height, width, in, out), and (out, in) as (in, out)."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def _names(template: Variables) -> dict[str, str]:
    """Path of every variable to PyTorch's name for it."""
    names = {}
    for path in keras_weights.paths(template):
        _, layer, variable = path.split("/")
        names[path] = f"{layer.replace('_', '.')}.{TORCH_NAMES[variable]}"
    return names
