"""Classifiers by their configuration, against Keras itself; what is not modelled is refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

from adversarial import experiment, keras_model, weights
from adversarial.assets import REGISTRY
from adversarial.classifier import DOGS, open_classifier, wrap_classifier
from adversarial.config import AdversarialConfig
from adversarial.keras_layers import LAYERS, TRAINING_ALONE, Settings, Store, Weights
from adversarial.pixels import RANGES
from latentlab.errors import UserError
from latentlab.storage import assets
from latentlab.storage.check import check

pytestmark = [
    pytest.mark.unoptimized,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras, on NumPy 2
]

SIZE = 32


def end(*stack: keras.Layer, size: int | None = SIZE) -> keras.Model:
    """A model of an odd convolution and the layers."""
    return keras.Sequential([keras.Input((size, size, 3)), layers.Conv2D(6, 3, activation="swish"), *stack])


def flat_end(*stack: keras.Layer) -> keras.Model:
    """A model whose last layer has two units."""
    return end(*stack, layers.Flatten(), layers.Dense(2))


def front(*stack: Any) -> keras.Model:
    """A model that begins with layers or functions."""
    hidden = images = keras.Input((SIZE, SIZE, 3))
    for layer in stack:
        hidden = layer(hidden)
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(hidden))
    return keras.Model(images, layers.Dense(3, activation="softmax")(pooled))


def adapted() -> keras.Layer:
    """A Normalization that knows its data."""
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(2).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32))
    return layer


def residual() -> keras.Model:
    """Branches that meet again in all the ways that there are, a layer called twice, and a model in the model."""
    images = keras.Input((SIZE, SIZE, 3))
    shared = layers.Conv2D(4, 3, padding="same")
    one = shared(layers.Conv2D(3, 1)(images))
    two = shared(images)
    inner = keras.Sequential([layers.Conv2D(4, 1), layers.BatchNormalization(name="inner_norm")], name="inner")
    merged = [layers.Add()([one, two]), layers.Multiply()([one, two]), layers.Subtract()([one, two])]
    hidden = layers.Concatenate()([*merged, layers.Average()([one, inner(two)])])
    squeezed = layers.Reshape((1, 1, 16))(layers.GlobalMaxPooling2D()(hidden))
    hidden = layers.Multiply()([hidden, layers.Conv2D(16, 1, activation="sigmoid")(squeezed)])
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D(keepdims=False)(hidden)))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "mean and softmax": lambda: end(layers.GlobalAveragePooling2D(), layers.Dropout(0.2), layers.Dense(5, "softmax")),
    "maximum": lambda: end(layers.GlobalMaxPooling2D(), layers.Dense(5)),
    "flat": lambda: end(
        layers.AveragePooling2D(7), layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(2, "softmax")
    ),
    "pools": lambda: end(
        layers.MaxPooling2D(3, 2, padding="same"),
        layers.AveragePooling2D((2, 3), padding="same"),
        layers.Flatten(),
        layers.Dense(2),
    ),
    "normalized hidden layers": lambda: end(
        layers.GlobalAveragePooling2D(),
        layers.Dense(8),
        layers.BatchNormalization(),
        layers.Activation("gelu"),
        layers.Dense(7, "elu"),
        layers.BatchNormalization(scale=False, center=False),
        layers.LeakyReLU(),
        layers.Dense(4),
        layers.Activation("softmax"),
    ),
    "1×1 convolution": lambda: end(
        layers.GlobalAveragePooling2D(keepdims=True), layers.Conv2D(4, 1, activation="softmax"), layers.Reshape((4,))
    ),
    "softmax as a layer": lambda: end(
        layers.GlobalAveragePooling2D(), layers.Dense(4), layers.Softmax(), layers.Flatten()
    ),
    "odd convolutions": lambda: end(
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.Conv2D(8, (3, 2), (1, 2), groups=2),
        layers.Conv2D(4, 3, dilation_rate=2),
        layers.DepthwiseConv2D((3, 1)),
        layers.ReLU(6, 0.1),
        layers.ZeroPadding2D(((0, 1), (2, 0))),
        layers.GlobalMaxPooling2D(),
        layers.Dense(3),
    ),
    "augmented and rescaled": lambda: front(
        layers.RandomFlip(), layers.RandomRotation(0.1), layers.Rescaling(1 / 127.5, offset=-1)
    ),
    "rescaled by channel": lambda: front(layers.Rescaling([0.1, 0.2, 0.3], offset=[1, 2, 3])),
    "preprocess_input": lambda: front(keras.applications.mobilenet_v2.preprocess_input),
    "normalized": lambda: front(adapted()),
    "normalized by numbers": lambda: front(layers.Normalization(mean=[1, 2, 3], variance=[4, 5, 6])),
    "resized": lambda: front(layers.Resizing(20, 24)),
    "enlarged by repetition": lambda: front(layers.Resizing(50, 47, "nearest")),
    "branches": residual,
}


def randomize(model: keras.Model) -> keras.Model:
    """Weights and statistics that are not those of a fresh network."""
    draw = np.random.default_rng(0)
    for variable in model.variables:
        value = np.asarray(variable)
        if variable.path.endswith(("moving_variance", "gamma")):
            variable.assign(draw.uniform(0.5, 1.5, value.shape))
        elif variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(draw.normal(0, 0.3, value.shape))
    return model


def of_keras(model: keras.Model, images: np.ndarray) -> np.ndarray:
    with jax.numpy_rank_promotion("allow"):
        return np.asarray(model(images, training=False))


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_classifier(AdversarialConfig(weights=str(path), range="zero-one", **settings), RANGES["zero-one"])
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_gives_the_numbers_of_keras(name: str, suffix: str, tmp_path: Path) -> None:
    model = randomize(MODELS[name]())
    model.save(tmp_path / f"model{suffix}")
    loaded = keras_model.load(tmp_path / f"model{suffix}")
    assert loaded is not None
    network, variables, size = loaded
    assert size == SIZE
    images = np.random.default_rng(1).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    images = images if "scaled" in name or "normalized" in name else images / 255
    found, expected = jax.jit(network.apply)(variables, jnp.asarray(images)), of_keras(model, images)
    if np.allclose(expected.sum(axis=1), 1, atol=1e-5):
        assert not np.allclose(found, expected, atol=1e-4), "logits, not probabilities"
        found = jax.nn.softmax(found)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_all_layers_that_there_are_were_compared() -> None:
    used = {
        layer["class_name"]
        for make in MODELS.values()
        for layer in keras_model._all_layers(json.loads(make().to_json()))
    }
    assert LAYERS.keys() - used - {*TRAINING_ALONE} == {"TFOpLambda"}, "which tf-keras writes"


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
def test_one_unit_is_the_second_of_two_classes(activation: str, tmp_path: Path) -> None:
    model = randomize(end(layers.GlobalAveragePooling2D(), layers.Dense(1, activation)))
    model.save(tmp_path / "binary.keras")
    known, size = open_classifier(
        AdversarialConfig(weights=str(tmp_path / "binary.keras"), range="zero-one"), RANGES["zero-one"]
    )
    images = np.random.default_rng(1).uniform(size=(3, SIZE, SIZE, 3)).astype(np.float32)
    positive = of_keras(model, images)[:, 0]
    positive = positive if activation == "sigmoid" else np.asarray(jax.nn.sigmoid(positive))
    found = experiment.predict(known, images, 3)
    np.testing.assert_allclose(found, np.stack([1 - positive, positive], axis=1), atol=1e-6)
    assert [known.name for known in known.classes] == ["class_0", "class_1"] and size == SIZE


def test_one_unit_without_a_configuration_too(tmp_path: Path) -> None:
    base = keras.applications.MobileNetV2((SIZE, SIZE, 3), 0.35, include_top=False, weights=None)
    model = keras.Model(base.input, layers.Dense(1, "sigmoid")(layers.GlobalAveragePooling2D()(base.output)))
    model.save_weights(tmp_path / "binary.weights.h5")
    known, _ = open_classifier(AdversarialConfig(weights=str(tmp_path / "binary.weights.h5")), RANGES["minus-one-one"])
    images = np.random.default_rng(1).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(
        experiment.predict(known, images, 2)[:, 1], of_keras(model, 2 * images - 1)[:, 0], atol=1e-6
    )


@pytest.mark.parametrize(
    ("model", "words"),
    {
        "a layer": (lambda: flat_end(layers.UpSampling2D()), "UpSampling2D up_sampling2d"),
        "a setting": (lambda: flat_end(layers.GroupNormalization(2)), "GroupNormalization"),
        "a function": (lambda: flat_end(layers.Activation("hard_sigmoid")), "hard_sigmoid is not modelled"),
        "resizing": (
            lambda: front(layers.Resizing(24, 24, crop_to_aspect_ratio=True)),
            "crop_to_aspect_ratio is True, expected False",
        ),
        "bicubic": (
            lambda: front(layers.Resizing(24, 24, "bicubic")),
            "interpolation is bicubic, expected bilinear or nearest",
        ),
        "ReLU": (lambda: flat_end(layers.ReLU(threshold=0.5)), "ReLU .*: threshold is 0.5, expected 0"),
        "inverted": (lambda: front(layers.Normalization(mean=0.0, variance=1.0, invert=True)), "invert is True"),
        "no top": (lambda: end(), r"gives \(30, 30, 6\) for an image, no classes"),
        "several classes": (
            lambda: end(layers.Flatten(), layers.Dense(3, "sigmoid")),
            "3 units with sigmoid, so an image may be of",
        ),
        "tanh": (lambda: end(layers.Flatten(), layers.Dense(3, "tanh")), "ends in 3 units with tanh"),
        "one softmax": (lambda: end(layers.Flatten(), layers.Dense(1, "softmax")), "ends in 1 units with softmax"),
        "grey": (
            lambda: keras.Sequential([keras.Input((32, 32, 1)), layers.Flatten(), layers.Dense(2)]),
            r"takes images of shape \(32, 32, 1\)",
        ),
        "oblong": (
            lambda: keras.Sequential([keras.Input((32, 16, 3)), layers.Flatten(), layers.Dense(2)]),
            "expected square ones",
        ),
        "no picture": (lambda: keras.Sequential([keras.Input((8,)), layers.Dense(2)]), r"takes images of shape \(8,\)"),
    }.values(),
)
def test_what_is_not_modelled_is_refused_by_name(model: Callable[[], keras.Model], words: str, tmp_path: Path) -> None:
    model().save(tmp_path / "model.keras")
    with pytest.raises(UserError, match=words):
        keras_model.load(tmp_path / "model.keras")
    refused(tmp_path / "model.keras")


def test_weights_alone_are_refused_where_a_layer_could_do_anything(tmp_path: Path) -> None:
    base = keras.applications.MobileNetV2((SIZE, SIZE, 3), 0.35, include_top=False, weights=None)
    model = keras.Model(base.input, layers.Dense(3)(layers.GlobalMaxPooling2D()(base.output)))
    model.save_weights(tmp_path / "maximum.weights.h5")
    words = "layers global_max_pooling2d: weights alone do not tell what they do; expected the whole model"
    assert words in refused(tmp_path / "maximum.weights.h5")
    model.save(tmp_path / "maximum.keras")
    images = np.random.default_rng(1).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    known, _ = open_classifier(AdversarialConfig(weights=str(tmp_path / "maximum.keras")), RANGES["minus-one-one"])
    np.testing.assert_allclose(known(images / 2 + 0.5), of_keras(model, images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_half_precision_is_read_and_computed_in_float32(policy: str, suffix: str, tmp_path: Path) -> None:
    def build(dtype: str) -> keras.Model:
        head = [layers.Conv2D(4, 3, dtype=dtype), layers.GlobalAveragePooling2D(dtype=dtype)]
        return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *head, layers.Dense(3, dtype=dtype)])

    model, whole = build(policy), build("float32")
    model.save(tmp_path / f"half{suffix}")
    loaded = keras_model.load(tmp_path / f"half{suffix}")
    assert loaded is not None
    network, variables, _ = loaded
    whole = keras.Sequential(
        [keras.Input((SIZE, SIZE, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    )
    whole.set_weights([np.asarray(variable, np.float32) for variable in model.variables])
    images = np.random.default_rng(1).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(network.apply(variables, jnp.asarray(images)), of_keras(whole, images), atol=1e-6)


def test_two_outputs_and_training_mode_are_refused(tmp_path: Path) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    hidden = layers.Flatten()(images)
    keras.Model(images, [layers.Dense(2)(hidden), layers.Dense(3)(hidden)]).save(tmp_path / "two.keras")
    assert "has 2 of output layers, expected one" in refused(tmp_path / "two.keras")
    for layer in (layers.BatchNormalization(), layers.Dropout(0.5)):
        hidden = layers.Flatten()(layer(images, training=True))
        keras.Model(images, layers.Dense(2)(hidden)).save(tmp_path / "training.keras")
        assert "is called as in training" in refused(tmp_path / "training.keras")


def test_a_configuration_that_is_none_of_keras_is_refused(tmp_path: Path) -> None:
    end(layers.Flatten(), layers.Dense(2)).save(tmp_path / "model.h5")
    mine = {"class_name": "Mine", "config": {"layers": []}}
    for config in ({"class_name": "Sequential", "config": {}}, {"a": 1}, mine):
        with h5py.File(tmp_path / "model.h5", "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        refused(tmp_path / "model.h5")


def test_all_weights_that_do_not_fit_their_configuration_are_listed(tmp_path: Path) -> None:
    end(layers.Flatten(), layers.Dense(2, name="head")).save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5", "r+") as file:
        group = file["model_weights/head"]
        kernel = next(name for name in group.attrs["weight_names"] if "kernel" in str(name))
        del group[kernel], group.file["model_weights/head"].attrs["weight_names"]
        group.create_dataset("more", data=np.zeros(3, np.float32))
        bias = np.zeros(5, np.float32)
        group.create_dataset("bias_", data=bias)
        group.attrs["weight_names"] = ["bias_", "more"]
    message = refused(tmp_path / "model.h5")
    assert "head/kernel is missing, expected (5400, 2); head/bias is missing, expected (2,)" in message
    assert "head/bias_ is of no layer; head/more is of no layer, by the file's own configuration" in message


def test_a_network_that_does_not_rescale_needs_its_range(tmp_path: Path) -> None:
    path = tmp_path / "own.keras"
    end(layers.GlobalAveragePooling2D(), layers.Dense(2)).save(path)
    with pytest.raises(UserError, match="expected --range zero-one or minus-one-one or zero-255"):
        open_classifier(AdversarialConfig(weights=str(path)), RANGES["minus-one-one"])
    front(layers.Rescaling(1 / 255)).save(path)
    known, _ = open_classifier(AdversarialConfig(weights=str(path)), RANGES["minus-one-one"])
    assert known.range == RANGES["zero-255"] and not known.assumed
    known, _ = open_classifier(AdversarialConfig(weights=str(path), range="zero-one"), RANGES["zero-one"])
    assert known.range == RANGES["zero-one"]


def minus_one_one(images: Any) -> Any:
    return images * (1 / 127.5) - 1


@pytest.mark.parametrize(
    ("stack", "rescales"),
    {
        "a layer": ([layers.Rescaling(1 / 255)], True),
        "operations": ([minus_one_one], True),
        "after others": ([layers.RandomFlip(), layers.ZeroPadding2D(), layers.Rescaling(1 / 127.5, offset=-1)], True),
        "a model": (
            [lambda images: keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Rescaling(1 / 255)])(images)],
            True,
        ),
        "ImageNet's statistics": ([layers.Normalization(mean=[123.7, 116.3, 103.5], variance=[3e3] * 3)], True),
        "none": ([], False),
        "padding": ([layers.ZeroPadding2D()], False),
        "by one": ([layers.Rescaling(1.0)], False),
        "of [0, 1]": ([layers.Rescaling(2.0, offset=-1.0)], None),
        "statistics of [0, 1]": ([layers.Normalization(mean=0.5, variance=0.05)], None),
        "mean alone": ([lambda images: images - 127.5], None),
    }.values(),
)
def test_range_is_told_by_what_the_first_weights_are_fed(
    stack: list[Any], rescales: bool | None, tmp_path: Path
) -> None:
    path = tmp_path / "model.keras"
    front(*stack).save(path)
    config = AdversarialConfig(weights=str(path))
    if rescales:
        assert open_classifier(config, RANGES["minus-one-one"])[0].range == RANGES["zero-255"]
        return
    words = "no layer that rescales" if rescales is False else "rescales its images, but makes .* so it is for others"
    with pytest.raises(UserError, match=words):
        open_classifier(config, RANGES["minus-one-one"])
    known, _ = open_classifier(AdversarialConfig(weights=str(path), range="zero-one"), RANGES["zero-one"])
    assert known.range == RANGES["zero-one"] and not known.assumed


def test_precision_that_is_not_computed_is_told(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), layers.Flatten(), layers.Dense(2, dtype="mixed_float16")])
    model.save(tmp_path / "model.keras")
    known, _ = open_classifier(
        AdversarialConfig(weights=str(tmp_path / "model.keras"), range="zero-one"), RANGES["zero-one"]
    )
    assert known.assumed == "computed in float32 where Keras has mixed_float16"


def test_activations_of_another_module_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.keras").touch()
    config = json.loads(flat_end(layers.Activation("relu")).to_json())
    activation = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Activation")
    activation["config"]["activation"] = {"module": "mine", "class_name": "function", "config": "relu"}
    with pytest.raises(UserError, match="activation relu of mine is not modelled"):
        keras_model.interpret(config, {}, SIZE)


def test_a_number_before_a_tensor_as_tf_keras_keeps_it() -> None:
    def node(name: str, *inbound: Any) -> dict[str, Any]:
        kind, function = ("InputLayer", {}) if not inbound else ("TFOpLambda", {"function": f"math.{name}"})
        shape = {"batch_input_shape": [None, 2, 2, 3]} if not inbound else {}
        return {
            "class_name": kind,
            "module": "tf_keras.src.layers",
            "config": {"name": name, **function, **shape},
            "name": name,
            "inbound_nodes": [list(inbound)] if inbound else [],
        }

    flat = {
        "class_name": "Flatten",
        "config": {"name": "flat"},
        "name": "flat",
        "inbound_nodes": [[["subtract", 0, 0, {}]]],
    }
    config = {
        "class_name": "Functional",
        "config": {
            "layers": [
                node("images"),
                node("truediv", ["images", 0, 0, {"y": 255.0, "name": None}]),
                node("subtract", ["_CONSTANT_VALUE", -1, 1.0, {"y": ["truediv", 0, 0], "name": None}]),
                flat,
            ],
            "input_layers": [["images", 0, 0]],
            "output_layers": [["flat", 0, 0]],
        },
    }
    network, variables, _ = keras_model.interpret(config, {})
    images = np.full((1, 2, 2, 3), 51.0)
    np.testing.assert_allclose(network.apply(variables, images), np.full((1, 12), 0.8), rtol=1e-6)


def test_a_temperature_at_the_end_does_not_rescale_images(tmp_path: Path) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    hidden = layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(images)))
    model = randomize(keras.Model(images, keras.ops.true_divide(hidden, 3.0)))
    model.save(tmp_path / "cooled.keras")
    loaded = keras_model.load(tmp_path / "cooled.keras")
    assert loaded is not None and not loaded[0].rescales(*loaded[1:])
    pictures = np.random.default_rng(1).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    found = loaded[0].apply(loaded[1], jnp.asarray(pictures))
    np.testing.assert_allclose(found, of_keras(model, pictures), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", ["positions", "names", "turned names", "turned positions"])
def test_operands_keep_their_order(order: str, tmp_path: Path) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    operation: Any = keras.ops.subtract
    hidden = {
        "positions": lambda: operation(images, 2.0),
        "names": lambda: operation(x1=images, x2=2.0),
        "turned names": lambda: operation(x2=images, x1=2.0),
        "turned positions": lambda: operation(2.0, images),
    }[order]()
    model = keras.Model(images, layers.Dense(2)(layers.GlobalAveragePooling2D()(hidden)))
    model.save(tmp_path / "model.keras")
    loaded = keras_model.load(tmp_path / "model.keras")
    assert loaded is not None
    pictures = np.random.default_rng(1).uniform(size=(2, SIZE, SIZE, 3)).astype(np.float32)
    found = loaded[0].apply(loaded[1], jnp.asarray(pictures))
    np.testing.assert_allclose(found, of_keras(model, pictures), rtol=1e-4, atol=1e-6)


def test_a_softmax_that_is_not_the_last_step_is_refused(tmp_path: Path) -> None:
    images = keras.Input((SIZE, SIZE, 3))
    pooled = layers.GlobalAveragePooling2D()(images)
    two = [layers.Dense(3, activation="softmax")(pooled) for _ in range(2)]
    mapped = layers.GlobalAveragePooling2D()(layers.Conv2D(3, 1, activation="softmax")(images))
    rescaled = layers.Rescaling(0.5)(layers.Softmax()(layers.Dense(3)(pooled)))
    for end_of_model in (layers.Average()(two), mapped, rescaled):
        keras.Model(images, end_of_model).save(tmp_path / "inner.keras")
        assert "has a softmax that is not its last step" in refused(tmp_path / "inner.keras")
    shared = layers.Dense(3, activation="softmax")
    keras.Model(images, shared(shared(pooled))).save(tmp_path / "shared.keras")
    assert "its last layer, is called more than once" in refused(tmp_path / "shared.keras")


def test_a_list_of_numbers_is_one_for_each_channel() -> None:
    """As tf-keras keeps `images - [103.9, 116.8, 123.7]`."""
    node = [["input_1", 0, 0, {"y": [1.0, 2.0, 3.0], "name": None}]]
    assert keras_model._arguments(node) == ([("input_1", 0, 0), [1.0, 2.0, 3.0]], {"name": None})
    images = jnp.zeros((1, 2, 2, 3))
    moved = LAYERS["Subtract"](Settings({}), Weights("subtract", Store({})), images, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(moved[0, 1, 1], [-1, -2, -3])


def test_an_own_layer_that_is_called_as_one_of_keras_is_refused(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable(package="mine")
    class Rescaling(layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, images: Any) -> Any:
            return images * 3

    front(Rescaling()).save(tmp_path / "own.keras")
    assert "whose code the file does not hold, expected Keras's own layers" in refused(tmp_path / "own.keras")


def test_any_size_is_that_of_the_resizing_or_the_users(tmp_path: Path) -> None:
    stack = [
        keras.Input((None, None, 3)),
        layers.Resizing(40, 40),
        layers.Conv2D(2, 3),
        layers.GlobalMaxPooling2D(),
        layers.Dense(2),
    ]
    keras.Sequential(stack).save(tmp_path / "resized.keras")
    loaded = keras_model.load(tmp_path / "resized.keras")
    assert loaded is not None and loaded[2] == 40
    loaded = keras_model.load(tmp_path / "resized.keras", size=64)
    assert loaded is not None and loaded[2] == 64
    end(layers.GlobalMaxPooling2D(), layers.Dense(2), size=None).save(tmp_path / "any.keras")
    loaded = keras_model.load(tmp_path / "any.keras")
    assert loaded is not None and loaded[2] == 224
    inner = keras.Sequential([keras.Input((96, 96, 3)), layers.Conv2D(2, 3)])
    keras.Sequential([inner, layers.Flatten(), layers.Dense(2)]).save(tmp_path / "inner.keras")
    loaded = keras_model.load(tmp_path / "inner.keras")
    assert loaded is not None and loaded[2] == 96


def test_the_dogs_are_the_same_by_configuration_and_in_flax() -> None:
    (path,) = assets.fetch("dog_breed_mobilenetv2.h5", registry=REGISTRY)
    loaded = keras_model.load(path)
    assert loaded is not None
    network, variables, size = loaded
    assert size == 160 and network.is_mobilenet_v2() and not network.rescales(variables, size)
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 160, 160, 3)).astype(np.float32))
    flax, params = weights.load(path)
    found = jax.jit(network.apply)(variables, images)
    assert found.shape == (2, len(DOGS))
    np.testing.assert_allclose(found, jax.jit(flax.apply)(params, images), rtol=1e-4, atol=1e-4)
    known, _ = open_classifier(AdversarialConfig(weights=str(path)), RANGES["minus-one-one"])
    assert known.assumed == "a MobileNetV2 that is fed [-1, 1]"
    assert known.range == RANGES["minus-one-one"]


def test_one_class_is_no_classification() -> None:
    one = wrap_classifier(lambda images: images.mean(axis=(1, 2))[:, :1], 32)
    for settings in ({}, {"report": "robust-accuracy", "images": "packaged"}):
        config = AdversarialConfig(**settings)
        with pytest.raises(UserError, match="classifier: has 1 classes, expected at least two"):
            experiment.run(config, classifier=one, log=lambda _: None)


def test_ranks_are_those_of_the_logits_and_as_many_as_there_are(tmp_path: Path) -> None:
    """Probabilities of 0 have no order, and of two classes there is no third."""

    def logits(images: jax.Array) -> jax.Array:
        return images.mean(axis=(1, 2)) @ jnp.asarray([[900.0, 100, 500, 300, 700]] * 3) / 3

    photo = np.full((32, 32, 3), 255, np.uint8)
    config = AdversarialConfig(size=32, epsilons=(0, 0.01))
    found = experiment.run(config, classifier=wrap_classifier(logits, 32), photo=photo, log=lambda _: None)
    assert [entry["target_index"] for entry in found.measures["attacks"]] == [None, 4, 2, 3]
    assert [entry["index"] for entry in found.measures["top4"]] == [0, 4, 2, 3]
    lines: list[str] = []
    two = wrap_classifier(lambda images: logits(images)[:, :2], 32)
    found = experiment.run(config, tmp_path, classifier=two, photo=photo, log=lines.append)
    assert [entry["objective"] for entry in found.measures["attacks"]] == ["untargeted", "rank 2"]
    assert "adversarial: of the ranks (2, 3, 4) only (2,) are other classes than class_0" in lines
    manifest = experiment.manifest(config)
    assert [line for line in check(tmp_path, manifest) if "config.json" not in line] == []


def test_what_is_not_finite_or_has_no_gradient_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    photo = np.full((32, 32, 3), 90, np.uint8)
    config = AdversarialConfig(size=32, epsilons=(0, 0.01))
    flat = wrap_classifier(lambda images: jnp.round(images.mean(axis=(1, 2))) + jnp.arange(3.0)[None], 32)
    found = experiment.run(config, classifier=flat, photo=photo, log=lines.append)
    assert found.measures["attacks"][0]["zero_gradients"] == 1
    assert any("up to 100.0% of the gradients are 0 at every pixel" in line for line in lines)
    spoilt = wrap_classifier(lambda images: images.mean(axis=(1, 2)) * jnp.asarray([[1, jnp.nan, 1]]), 32)
    with pytest.raises(UserError, match="photo: the network gives it logits that are NaN or infinite"):
        experiment.run(config, classifier=spoilt, photo=photo, log=lines.append)
    many = AdversarialConfig(
        size=32, epsilons=(0, 0.01), report="robust-accuracy", images="packaged", labels="predictions"
    )
    with pytest.raises(UserError, match="jpg: the network gives it logits that are NaN or infinite"):
        experiment.run(many, classifier=spoilt, log=lines.append)
    lines.clear()
    found = experiment.run(many, classifier=flat, log=lines.append)
    assert found.measures["robust_accuracy"][1]["zero_gradients"] == 1
    assert any("gradients are 0 at every pixel" in line for line in lines)
