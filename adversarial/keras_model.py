"""Classifiers that Keras saved with their configuration, computed layer for layer as the file says.

A configuration is data, and nothing of it is run: its layers name functions in `LAYERS`. A layer or a setting that is
not modelled there is refused by its name.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from adversarial.config import DEFAULT_SIZE
from adversarial.keras_layers import (
    LAYERS,
    NOISE,
    TRAINING_ALONE,
    BeforeWeights,
    Settings,
    Store,
    Weights,
    activation_name,
)
from adversarial.pixels import RANGES
from adversarial.weights import in_layers
from latentlab.arrays import AnyArray
from latentlab.errors import UserError, first_line
from latentlab.storage import hdf5, keras_weights, limits
from latentlab.storage.keras_weights import MOST_PROBLEMS

Configuration = dict[str, Any]
Variables = dict[str, Any]
Key = tuple[str, int, int]
"""Of a tensor: layer, which of its calls, which of its outputs."""

MODELS = ("Functional", "Sequential", "Model")
RESCALING = ("Rescaling", "Normalization", "TrueDivide", "Multiply", "Subtract", "Add", "TFOpLambda")
FED = 8.0
"""Largest value that a first layer with weights is fed by models that normalize pixels in any usual way."""
WEIGHTED = ("Conv2D", "DepthwiseConv2D", "Dense", "BatchNormalization")
SHAPING = (*TRAINING_ALONE, "Flatten", "Reshape", "Activation")


@dataclass(frozen=True)
class KerasModel:
    """A classifier's graph of layers; equal ones share what was compiled.

    Attributes:
        config: Its configuration as JSON; the activation at its end is taken off.
        classes: Number of logits.
        is_binary: It ends in one unit, the log odds of the second of two classes.
    """

    config: str
    classes: int
    is_binary: bool = False

    def apply(self, variables: Variables, images: Float[AnyArray, "n h w 3"]) -> Float[Array, "n classes"]:
        """Return the logits; of a binary classifier 0 and the log odds, whose softmax is Keras's sigmoid."""
        logits = _evaluate_model(json.loads(self.config), Store(variables), jnp.asarray(images))
        return jnp.concatenate([jnp.zeros_like(logits), logits], axis=1) if self.is_binary else logits

    def rescales(self, variables: Variables, size: int) -> bool:
        """Return whether layers before the first with weights rescale the images, so that it takes pixels 0…255.

        Raises:
            UserError: They do, but pixels 0…255 come out far from -1 to 1, so they are for another range.
        """
        store = Store(variables, stop_before_weights=True)
        fed = []
        for level in (0.0, 255.0):
            try:
                _evaluate_model(json.loads(self.config), store, jnp.full((1, size, size, 3), level))
            except BeforeWeights as reached:
                (hidden,) = reached.args  # its middle, for edges may be padded
                fed.append(hidden[0, hidden.shape[1] // 2, hidden.shape[2] // 2] if hidden.ndim == 4 else hidden[0])
        if all(bool(jnp.all(values == level)) for values, level in zip(fed, (0, 255), strict=False)):
            return False
        low, high = float(jnp.min(jnp.asarray(fed))), float(jnp.max(jnp.asarray(fed)))
        if max(-low, high) > FED:
            raise UserError(
                f"rescales its images, but makes {low:.4g} to {high:.4g} of pixels 0…255, so it is for others; "
                f"expected --range {' or '.join(RANGES)}"
            )
        return True

    def other_precision(self) -> str:
        """Return what its layers compute in where it is not float32, "mixed_float16", "" if it is."""
        kinds = {_dtype(layer) for layer in _all_layers(json.loads(self.config)) if layer["class_name"] in WEIGHTED}
        return " and ".join(sorted(kinds - {"float32"}))

    def is_mobilenet_v2(self) -> bool:
        """Return whether there is a MobileNetV2 of Keras's in the model, by the names of its layers."""
        names = {layer["config"].get("name") for layer in _all_layers(json.loads(self.config))}
        return {"Conv1", "expanded_conv_project", "block_16_project", "Conv_1"} <= names


def load(path: Path, md5: str = "", size: int = 0) -> tuple[KerasModel, Variables, int] | None:
    """Return the classifier in a file, its variables, and the size of its images; None if the file has weights alone.

    Args:
        path: A `.keras` or `.h5` that Keras 2 or 3 saved.
        md5: The MD5 that the file must have, if any.
        size: Height and width of the images, where the file is not to tell it.

    Raises:
        UserError: The file is damaged or of no classifier, or has a layer or setting that is not modelled.
    """
    config = hdf5.configuration(path) if path.is_file() else None
    if not isinstance(config, dict):
        return None
    arrays = keras_weights.read(path, md5 or None)
    try:
        return interpret(config, arrays, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def interpret(
    config: Configuration, arrays: Mapping[str, np.ndarray], size: int = 0
) -> tuple[KerasModel, Variables, int]:
    """Return what `load` does, of a configuration and of arrays as `keras_weights.read` names them.

    Raises:
        UserError: As `load`.
    """
    try:
        logits, activation = _take_off_activation(config)
        size = size or _image_size(config)
        store = Store(in_layers(arrays))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        found = jax.eval_shape(lambda images: _evaluate_model(logits, store, images), images)
        is_binary = _check_end(found.shape[1:], activation)
        if activation == "linear" and any(map(_has_softmax, _all_layers(logits))):
            raise UserError("has a softmax that is not its last step, so its end is neither logits nor a softmax")
    except UserError:
        raise
    except Exception as error:  # of a configuration that a stranger wrote, anything
        raise UserError(f"its configuration is not one of Keras's ({first_line(error)})") from error
    extra = sorted(store.arrays.keys() - store.used)
    problems = [*dict.fromkeys(store.problems), *(f"{name} is of no layer" for name in extra)]
    if problems:
        rest = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise UserError(f"weights: {'; '.join(problems[:MOST_PROBLEMS])}{rest}, by the file's own configuration")
    variables = {name: np.asarray(array, np.float32) for name, array in store.arrays.items()}
    return KerasModel(json.dumps(logits), 2 if is_binary else found.shape[1], is_binary), variables, size


def _check_end(shape: tuple[int, ...], activation: str) -> bool:
    """Check that a model ends in the probabilities or logits of classes, and return whether of two by one unit."""
    if len(shape) != 1:
        raise UserError(f"gives {shape} for an image, no classes; expected a model with a Dense layer at its end")
    (count,) = shape
    if activation not in ("softmax", "sigmoid", "linear") or (activation == "softmax" and count == 1):
        raise UserError(f"ends in {count} units with {activation}, expected softmax, logits, or one unit with sigmoid")
    if activation == "sigmoid" and count > 1:
        raise UserError(
            f"ends in {count} units with sigmoid, so an image may be of several classes at once; expected one of them"
        )
    return bool(count == 1)


def _all_layers(model: Configuration) -> Iterator[Configuration]:
    """Yield all layers, also those of models within the model."""
    for layer in _layers(model):
        yield from _all_layers(layer) if layer["class_name"] in MODELS else [layer]


def _dtype(layer: Configuration) -> str:
    """Return the type or policy of a layer by its name."""
    dtype = layer["config"].get("dtype") or "float32"
    return str(dtype["config"].get("name") if isinstance(dtype, dict) else dtype)


def _has_softmax(layer: Configuration) -> bool:
    activation = layer["config"].get("activation")
    return layer["class_name"] == "Softmax" or (activation is not None and activation_name(activation) == "softmax")


def _layers(model: Configuration) -> list[Configuration]:
    if model["class_name"] not in MODELS:
        raise UserError(
            f"a model of class {model['class_name']} is code that the file does not hold, expected one of "
            f"{', '.join(MODELS)}; weights alone, model.save_weights('model.weights.h5'), can be read of a MobileNetV2"
        )
    config = model["config"]  # Keras 2.2 wrote a list for Sequential
    layers: list[Configuration] = config if isinstance(config, list) else config["layers"]
    return layers


def _image_size(model: Configuration) -> int:
    """Return the height of the images of a model; of a Resizing at its front where it takes any size."""
    for layer in _all_layers(model):
        config = layer["config"]
        shape = config.get("batch_shape") or config.get("batch_input_shape")
        if shape:
            _, height, width, channels = shape if len(shape) == 4 else (None, *[0] * 3)
            if channels != 3 or height != width:
                raise UserError(f"takes images of shape {tuple(shape[1:])}, expected square ones of three channels")
            if height:
                return int(height)
        if layer["class_name"] == "Resizing":
            return int(config["height"])
        if layer["class_name"] not in (*TRAINING_ALONE, *RESCALING):
            break
    return DEFAULT_SIZE


def _take_off_activation(model: Configuration) -> tuple[Configuration, str]:
    """Return a model without the activation of its end, and that."""
    layers = list(_layers(model))
    names = [_name(layer) for layer in layers]
    index = len(layers) - 1 if model["class_name"] == "Sequential" else names.index(_single(model, "output_layers")[0])
    while True:
        layer = layers[index]
        kind, config = layer["class_name"], layer["config"]
        activation = "linear"
        if kind in MODELS:
            layer, activation = _take_off_activation(layer)
        elif kind == "Softmax":
            layer, activation = {**layer, "class_name": "Identity"}, "softmax"
        elif "activation" in config:
            activation = activation_name(config["activation"])
            layer = {**layer, "config": {**config, "activation": "linear"}}
        layers[index] = layer
        if activation != "linear" and len(layer.get("inbound_nodes", ())) > 1:
            raise UserError(f"{kind} {names[index]}, its last layer, is called more than once, expected once")
        if activation != "linear" or kind not in SHAPING:
            break
        if model["class_name"] == "Sequential":
            index -= 1
        else:
            ((source, *_), *_), _ = _arguments(layer["inbound_nodes"][0])
            index = names.index(source)
        if index < 0:
            break
    config = layers if isinstance(model["config"], list) else {**model["config"], "layers": layers}
    return {**model, "config": config}, activation


def _evaluate_model(model: Configuration, store: Store, images: Array) -> Array:
    """Return the output of a model for one input, and note in the store what it used and lacked."""
    kind, layers = model["class_name"], _layers(model)
    if kind == "Sequential":
        return reduce(lambda hidden, layer: _evaluate_layer(layer, store, {}, [hidden]), layers, images)
    end = _single(model, "output_layers")
    values: dict[Key, Any] = {_single(model, "input_layers"): images}
    calls = [
        ((_name(layer), call), layer, *_arguments(node))
        for layer in layers
        for call, node in enumerate(layer["inbound_nodes"])
    ]
    # Keras 2 counts the call that made a model within the model too.
    referred = {key[:2] for _, _, arguments, _ in calls for key in arguments if isinstance(key, tuple)} | {end[:2]}
    late = {_name(layer) for layer in layers if layer["class_name"] in MODELS and (_name(layer), 0) not in referred}
    calls = [
        ((name, call + (name in late)), layer, arguments, keywords)
        for (name, call), layer, arguments, keywords in calls
    ]
    while end not in values:
        ready = [call for call in calls if all(a in values for a in call[2] if isinstance(a, tuple))]
        if not ready:
            raise UserError(f"the layers of {_name(model)} do not lead to its output")
        for (name, call), layer, arguments, keywords in ready:
            inputs = [values[a] if isinstance(a, tuple) else a for a in arguments]
            values[name, call, 0] = _evaluate_layer(layer, store, keywords, inputs)
        calls = [call for call in calls if (*call[0], 0) not in values]
    return jnp.asarray(values[end])


def _evaluate_layer(layer: Configuration, store: Store, keywords: Mapping[str, Any], inputs: Sequence[Any]) -> Array:
    kind, name = layer["class_name"], _name(layer)
    if keywords.get("training") and kind in (*MODELS, *NOISE, "BatchNormalization"):  # of others it is the default
        raise UserError(f"{kind} {name} is called as in training, expected inference")
    module = layer.get("module") or "keras"
    if module.partition(".")[0] not in ("keras", "tf_keras"):
        raise UserError(f"{kind} {name} is of {module}, whose code the file does not hold, expected Keras's own layers")
    if kind in MODELS:
        return _evaluate_model(layer, store, *inputs)
    function = LAYERS.get(kind)
    if function is None:
        raise UserError(f"{kind} {name}: there is no such layer here, expected one of {', '.join(sorted(LAYERS))}")
    settings, weights = Settings(layer["config"]), Weights(name, store)
    settings.take("data_format", "channels_last")
    if store.stop_before_weights and kind in WEIGHTED:
        raise BeforeWeights(inputs[0])
    try:
        output = function(settings, weights, *inputs)
    except UserError as error:
        raise UserError(f"{kind} {name}: {error}") from error
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        shapes = " and ".join(str(jnp.shape(value)[1:]) for value in inputs)
        raise UserError(f"{kind} {name}: does not take inputs of shape {shapes} ({first_line(error)})") from error
    try:
        limits.check_bytes(4 * math.prod(output.shape))
    except ValueError as error:
        raise UserError(f"{kind} {name}: {error}") from error
    if others := settings.others():
        raise UserError(f"{kind} {name}: {' and '.join(others)} not modelled here")
    return output


def _name(layer: Configuration) -> str:
    config = layer["config"]
    name: str = layer.get("name") or (config.get("name") if isinstance(config, dict) else "") or layer["class_name"]
    return name


def _single(model: Configuration, which: str) -> Key:
    """Return the one input or output of a model."""
    found = model["config"][which]
    found = [found] if found and isinstance(found[0], str) else found
    if len(found) != 1:
        raise UserError(f"{_name(model)} has {len(found)} of {which.replace('_', ' ')}, expected one")
    name, call, output = found[0]
    return name, call, output


def _arguments(node: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return what a layer is called with: keys of tensors and numbers, and its keywords."""
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}

    def add(value: Any) -> None:
        if isinstance(value, list) and value and value[0] == "_CONSTANT_VALUE":  # of tf-keras, before a tensor
            arguments.append(value[2])
            for part in value[3:]:
                keywords.update(part)
        elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            name, call, output = value["config"]["keras_history"]
            arguments.append((name, call, output))
        elif isinstance(value, list) and value and isinstance(value[0], str):  # as Keras 2 had it
            name, call, output, *further = value
            arguments.append((name, call, output))
            for part in further:
                keywords.update(part)
        elif isinstance(value, list) and value and all(isinstance(part, int | float) for part in value):
            arguments.append(value)  # a number for each channel
        elif isinstance(value, list):
            for part in value:
                add(part)
        elif value is not None:
            arguments.append(value)

    if isinstance(node, dict):
        add(node["args"])
        keywords = dict(node["kwargs"])
    else:
        add(node)
    for name in ("x", "x1", "y", "x2"):
        if keywords.get(name) is not None:
            add(keywords.pop(name))
    unknown = [name for name, value in keywords.items() if value is not None and name not in ("training", "name")]
    if unknown:
        raise UserError(f"a layer is called with {', '.join(unknown)}, expected nothing but its inputs")
    return arguments, keywords
