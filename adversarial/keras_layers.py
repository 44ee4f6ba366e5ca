"""What the layers of Keras compute outside training, as functions of their settings, their weights and their inputs.

`LAYERS` has them by Keras's name. A setting that a function does not ask for must have no effect outside training;
`Settings.others` tells the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from latentlab.errors import UserError
from latentlab.kernels.convolution import LAYOUT, conv_general_dilated

WITHOUT_EFFECT = {
    "name", "trainable", "dtype", "batch_input_shape", "batch_shape", "input_dtype", "momentum", "renorm_momentum",
    "synchronized",
}  # fmt: skip
"""Settings that change nothing outside training, like those that end in `ENDINGS`."""
ENDINGS = ("_initializer", "_regularizer", "_constraint")


class Settings:
    """Settings of a layer, of which those that are asked for count as modelled."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {name: _plain(value) for name, value in values.items()}

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting; lists are tuples."""
        value = self._left.pop(name, default)
        return tuple(value) if isinstance(value, list) else value

    def take(self, name: str, expected: Any) -> None:
        """Check that a setting has the one value that is modelled, or none."""
        value = self.get(name)
        if value is not None and value != expected:
            raise UserError(f"{name} is {value!r}, expected {expected!r}")

    def others(self) -> list[str]:
        """Return those that were not asked for and may have an effect."""
        return [
            f"{name} {value!r}"
            for name, value in self._left.items()
            if name not in WITHOUT_EFFECT and not name.endswith(ENDINGS) and value
        ]

    def clear(self) -> None:
        """Count all settings as modelled."""
        self._left = {}


class BeforeWeights(Exception):
    """Carries what the first layer that weighs its input is fed."""


@dataclass
class Store:
    """Variables of all layers.

    Attributes:
        arrays: Variables by layer and name, `conv2d/kernel`.
        used: Names of those that were asked for, noted as it happens.
        problems: What is missing or misshapen, noted as it is asked for; zeros stand for it, so that all is found.
        stop_before_weights: Raise `BeforeWeights` at the first layer that weighs its input.
    """

    arrays: Mapping[str, Any]
    used: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    stop_before_weights: bool = False


@dataclass
class Weights:
    """Variables of a layer, in the order in which Keras creates them.

    Attributes:
        layer: Its name.
        store: Those of all layers.
        asked: How many were asked for.
    """

    layer: str
    store: Store
    asked: int = 0

    def __call__(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a variable by its name, or its number where the file has no name."""
        names = [f"{self.layer}/{name}", f"{self.layer}/{self.asked}"]
        self.asked += 1
        found = [name for name in names if name in self.store.arrays]
        array = self.store.arrays[found[0]] if found else None
        if array is None or array.shape != shape:
            self.store.used |= {*found}
            problem = "is missing" if array is None else f"has shape {array.shape}"
            self.store.problems.append(f"{(found or names)[0]} {problem}, expected {shape}")
            return jnp.zeros(shape)
        self.store.used.add(found[0])
        return jnp.asarray(array, jnp.float32)


def _plain(value: Any) -> Any:
    """Return a number that Keras wrapped, as NumPy's were."""
    if isinstance(value, dict) and isinstance(value.get("config"), dict) and "value" in value["config"]:
        return value["config"]["value"]
    return value


def activation_name(activation: Any) -> str:
    """Return the name of an activation, which Keras 3 may wrap, with its module if that is not Keras's."""
    found = activation.get("config") if isinstance(activation, dict) else activation
    module = str(activation.get("module") or "keras") if isinstance(activation, dict) else "keras"
    if module.partition(".")[0] not in ("keras", "tf_keras", "builtins"):
        return f"{found} of {module}"
    return found if isinstance(found, str) else "linear" if found is None else str(activation)


def _along_channels(vector: Array, like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
}


def _check_axis(settings: Settings, hidden: Array) -> None:
    axis = settings.get("axis", -1)
    axis = axis[0] if isinstance(axis, tuple) and len(axis) == 1 else axis
    if axis not in (-1, hidden.ndim - 1):
        raise UserError(f"axis is {axis}, expected the last")


def _activate(settings: Settings, hidden: Array) -> Array:
    name = activation_name(settings.get("activation", "linear"))
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name} is not modelled, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](hidden)


def _add_bias_and_activate(settings: Settings, weights: Weights, hidden: Array) -> Array:
    if settings.get("use_bias", True):
        hidden = hidden + _along_channels(weights("bias", hidden.shape[-1:]), hidden)
    return _activate(settings, hidden)


def leave(settings: Settings, weights: Weights, hidden: Array) -> Array:
    """Return what a layer does that acts in training alone."""
    del weights
    settings.clear()
    return hidden


def _activation(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    return _activate(settings, hidden)


def _softmax(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    _check_axis(settings, hidden)
    return jax.nn.softmax(hidden)


def _relu(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    settings.take("threshold", 0)
    slope, most = settings.get("negative_slope") or 0, settings.get("max_value")
    return jnp.where(hidden > 0, jnp.minimum(hidden, most) if most is not None else hidden, slope * hidden)


def _leaky_relu(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    slopes = settings.get("alpha"), settings.get("negative_slope")
    return jax.nn.leaky_relu(hidden, next((slope for slope in slopes if slope is not None), 0.3))


def _dense(settings: Settings, weights: Weights, hidden: Array) -> Array:
    kernel = weights("kernel", (hidden.shape[-1], settings.get("units")))
    return _add_bias_and_activate(settings, weights, hidden @ kernel)


def _convolve(settings: Settings, weights: Weights, hidden: Array) -> Array:
    groups, size, inputs = settings.get("groups") or 1, settings.get("kernel_size"), hidden.shape[-1]
    kernel = weights("kernel", (*size, inputs // groups, settings.get("filters")))
    return _add_bias_and_activate(settings, weights, _convolve_with(settings, hidden, kernel, groups))


def _convolve_depthwise(settings: Settings, weights: Weights, hidden: Array) -> Array:
    settings.take("groups", 1)
    size, inputs, each = settings.get("kernel_size"), hidden.shape[-1], settings.get("depth_multiplier", 1)
    kernel = weights("kernel", (*size, inputs, each)).reshape(*size, 1, inputs * each)
    return _add_bias_and_activate(settings, weights, _convolve_with(settings, hidden, kernel, inputs))


def _convolve_with(settings: Settings, hidden: Array, kernel: Array, groups: int) -> Array:
    strides, padding, dilation = settings.get("strides"), settings.get("padding"), settings.get("dilation_rate", (1, 1))
    is_common = (
        len({*strides}) == 1 and {*dilation} == {1} and (groups == 1 or groups == hidden.shape[-1] == kernel.shape[-1])
    )
    convolve = conv_general_dilated if is_common else jax.lax.conv_general_dilated
    keywords: dict[str, Any] = {"rhs_dilation": dilation, "dimension_numbers": LAYOUT, "feature_group_count": groups}
    return convolve(hidden, kernel, strides, padding.upper(), **keywords)


def _normalize_batch(settings: Settings, weights: Weights, hidden: Array) -> Array:
    _check_axis(settings, hidden)
    shape = hidden.shape[-1:]
    gamma = weights("gamma", shape) if settings.get("scale", True) else jnp.ones(shape)
    beta = weights("beta", shape) if settings.get("center", True) else jnp.zeros(shape)
    mean, variance = weights("moving_mean", shape), weights("moving_variance", shape)
    scale = _along_channels(gamma * jax.lax.rsqrt(variance + settings.get("epsilon")), hidden)
    return (hidden - _along_channels(mean, hidden)) * scale + _along_channels(beta, hidden)


def _pool(reduction: Callable[..., Array], settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    size = settings.get("pool_size")
    return reduction(hidden, size, settings.get("strides") or size, settings.get("padding").upper())


def _pool_globally(reduction: Callable[..., Array], settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    return reduction(hidden, axis=(1, 2), keepdims=bool(settings.get("keepdims")))


def _flatten(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del settings, weights
    return hidden.reshape(len(hidden), -1)


def _reshape(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    return hidden.reshape(len(hidden), *settings.get("target_shape"))


def _pad(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    (top, bottom), (left, right) = settings.get("padding")
    return jnp.pad(hidden, ((0, 0), (top, bottom), (left, right), (0, 0)))


def _rescale(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    scale, offset = (jnp.asarray(settings.get(name, 0), jnp.float32) for name in ("scale", "offset"))
    return hidden * _along_channels(scale, hidden) + _along_channels(offset, hidden)


def _normalize(settings: Settings, weights: Weights, hidden: Array) -> Array:
    _check_axis(settings, hidden)
    settings.take("invert", False)
    given, shape = [settings.get(name) for name in ("mean", "variance")], hidden.shape[-1:]
    if None in given:
        given = [weights(name, shape) for name in ("mean", "variance")]
    mean, variance = (_along_channels(jnp.asarray(value, jnp.float32), hidden) for value in given)
    return (hidden - mean) / jnp.maximum(jnp.sqrt(variance), 1e-7)


def _resize(settings: Settings, weights: Weights, hidden: Array) -> Array:
    del weights
    for name, expected in (("crop_to_aspect_ratio", False), ("pad_to_aspect_ratio", False), ("antialias", False)):
        settings.take(name, expected)
    height, width, method = (settings.get(name) for name in ("height", "width", "interpolation"))
    if method not in ("bilinear", "nearest"):
        raise UserError(f"interpolation is {method}, expected bilinear or nearest")
    for name in ("fill_mode", "fill_value"):  # of padding
        settings.get(name)
    return jax.image.resize(hidden, (len(hidden), height, width, hidden.shape[3]), method, antialias=False)


def _merge(operation: Callable[[Any, Any], Any], settings: Settings, weights: Weights, *inputs: Any) -> Array:
    """Reduce the inputs, of which some may be numbers, or a number for each channel."""
    del settings, weights
    ndims = {value.ndim for value in inputs if isinstance(value, Array)}
    if len(ndims) != 1:
        raise ValueError(f"of {ndims} dimensions, expected inputs of as many")
    (ndim,) = ndims
    values = [value if isinstance(value, Array) else jnp.asarray(value, jnp.float32) for value in inputs]
    arrays = [value.reshape((1,) * (ndim - value.ndim) + value.shape) for value in values]
    return reduce(operation, arrays)


def _average(settings: Settings, weights: Weights, *inputs: Array) -> Array:
    return _merge(jnp.add, settings, weights, *inputs) / len(inputs)


def _concatenate(settings: Settings, weights: Weights, *inputs: Array) -> Array:
    del weights
    _check_axis(settings, inputs[0])
    return jnp.concatenate(inputs, axis=-1)


def _call_tensorflow(settings: Settings, weights: Weights, *inputs: Any) -> Array:
    """Return one of TensorFlow's operations, as tf-keras keeps those of `preprocess_input`."""
    function = settings.get("function")
    kind = function.rpartition(".")[2]
    if kind not in TENSORFLOW:
        raise UserError(f"function {function} is not modelled, expected one of {', '.join(TENSORFLOW)}")
    return _merge(TENSORFLOW[kind], settings, weights, *inputs)


TENSORFLOW: dict[str, Callable[[Any, Any], Any]] = {
    "truediv": jnp.true_divide,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "add": jnp.add,
}

NOISE = ("Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "AlphaDropout")
TRAINING_ALONE = (
    *NOISE, "InputLayer", "Identity", "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom",
    "RandomTranslation", "RandomContrast", "RandomBrightness",
)  # fmt: skip
"""Layers that act in training alone, or never."""

LAYERS: dict[str, Callable[..., Array]] = {
    **dict.fromkeys(TRAINING_ALONE, leave),
    "Activation": _activation,
    "Add": partial(_merge, jnp.add),
    "Average": _average,
    "AveragePooling2D": partial(_pool, partial(nn.avg_pool, count_include_pad=False)),
    "BatchNormalization": _normalize_batch,
    "Concatenate": _concatenate,
    "Conv2D": _convolve,
    "Dense": _dense,
    "DepthwiseConv2D": _convolve_depthwise,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": partial(_pool_globally, jnp.mean),
    "GlobalMaxPooling2D": partial(_pool_globally, jnp.max),
    "LeakyReLU": _leaky_relu,
    "MaxPooling2D": partial(_pool, nn.max_pool),
    "Multiply": partial(_merge, jnp.multiply),
    "Normalization": _normalize,
    "ReLU": _relu,
    "Rescaling": _rescale,
    "Reshape": _reshape,
    "Resizing": _resize,
    "Softmax": _softmax,
    "Subtract": partial(_merge, jnp.subtract),
    "TFOpLambda": _call_tensorflow,
    "TrueDivide": partial(_merge, jnp.true_divide),
    "ZeroPadding2D": _pad,
}
"""Layers by Keras's name, `(settings, weights, *inputs) -> output`."""
