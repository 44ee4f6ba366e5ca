"""MobileNetV2 against Keras 3 on the same weights, block by block and whole, and its files read back."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from adversarial import photos, weights
from adversarial.assets import REGISTRY
from adversarial.mobilenet_v2 import MobileNetV2
from latentlab.errors import UserError
from latentlab.storage import assets

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, on NumPy 2


def keras_model(alpha: float, size: int, classes: int | None = 1000) -> keras.Model:
    """Keras's own, with random weights and statistics that are not those of a fresh network."""
    model = keras.applications.MobileNetV2(
        (size, size, 3), alpha, include_top=classes is not None, weights=None, classes=classes or 1000,
        classifier_activation=None,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    for variable in model.variables:
        value = np.asarray(variable)
        if "moving_variance" in variable.path or "gamma" in variable.path:
            variable.assign(draw.uniform(0.5, 1.5, value.shape))
        elif "moving_mean" in variable.path or "beta" in variable.path or "bias" in variable.path:
            variable.assign(draw.normal(0, 0.3, value.shape))
    return model


def of_keras(model: keras.Model, images: np.ndarray) -> Any:
    """Outputs of Keras, which lets biases grow dimensions."""
    with jax.numpy_rank_promotion("allow"):
        return jax.tree.map(np.asarray, model(images))


def ours(model: keras.Model, directory: Path) -> tuple[MobileNetV2, weights.Variables]:
    path = directory / "model.weights.h5"
    model.save_weights(path)
    return weights.load(path)


def assert_blocks_equal(model: keras.Model, network: MobileNetV2, params: Any, images: np.ndarray) -> tuple[Any, Any]:
    """Compares the outputs of all 52 normalised layers, and returns the logits and what Keras ends with.

    The layers may be the model's own, or those of a base in it.
    """
    base = next((layer for layer in model.layers if isinstance(layer, keras.Model)), model)
    normalized = [layer for layer in base.layers if layer.name.endswith(("_BN", "_bn", "bn_Conv1"))]
    *blocks, end = of_keras(keras.Model(base.input, [*(layer.output for layer in normalized), base.output]), images)
    expected = end if base is model else of_keras(model, images)
    logits, captured = jax.jit(lambda x: network.apply(params, x, capture_intermediates=True))(jnp.asarray(images))
    for layer, output in zip(normalized, blocks, strict=True):
        (found,) = captured["intermediates"][layer.name]["__call__"]
        np.testing.assert_allclose(found, output, rtol=1e-4, atol=1e-4, err_msg=layer.name)
    assert len(normalized) == 52
    return logits, expected


@pytest.mark.parametrize(("alpha", "size"), [(1.0, 96), (0.5, 160), (0.35, 224), (0.35, 97)])
def test_logits_and_every_block_are_those_of_keras(alpha: float, size: int, tmp_path: Path) -> None:
    model = keras_model(alpha, size)
    network, params = ours(model, tmp_path)
    images = np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    logits, expected = assert_blocks_equal(model, network, params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(expected), atol=1e-5)


def test_with_trained_weights_too() -> None:
    path, picture = assets.fetch("dog_breed_mobilenetv2.h5", "imagenet_00_243.jpg", registry=REGISTRY)
    images = 2 * photos.read(picture, 160).pixels[None].astype(np.float32) / 255 - 1
    model = keras.models.load_model(path, compile=False)
    logits, expected = assert_blocks_equal(model, *weights.load(path), images)
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, atol=1e-5)


def test_the_network_has_as_many_weights_as_the_published_one() -> None:
    variables = jax.eval_shape(MobileNetV2().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 3_538_984


def test_without_a_top_it_gives_the_feature_map(tmp_path: Path) -> None:
    model = keras_model(0.35, 96, classes=None)
    network, params = ours(model, tmp_path)
    images = np.random.default_rng(1).uniform(-1, 1, (1, 96, 96, 3)).astype(np.float32)
    found = jax.jit(network.apply)(params, jnp.asarray(images))
    assert found.shape == (1, 3, 3, 1280)
    np.testing.assert_allclose(found, of_keras(model, images), atol=1e-4)


def test_a_new_head_on_a_base_is_read_from_a_whole_model(tmp_path: Path) -> None:
    base = keras_model(0.35, 96, classes=None)
    pooled = keras.layers.GlobalAveragePooling2D()(base.output)
    model = keras.Model(base.input, keras.layers.Dense(19, name="breeds")(keras.layers.Dropout(0.2)(pooled)))
    model.save(tmp_path / "dogs.h5")
    network, params = weights.load(tmp_path / "dogs.h5")
    images = np.random.default_rng(1).uniform(-1, 1, (1, 96, 96, 3)).astype(np.float32)
    assert (network.alpha, network.classes) == (0.35, 19)
    np.testing.assert_allclose(jax.jit(network.apply)(params, jnp.asarray(images)), of_keras(model, images), atol=1e-4)


def test_a_training_step_moves_the_running_statistics() -> None:
    network = MobileNetV2(0.35, 3, dropout=0.5)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), shapes)  # random ones take longer to compile
    key = {"dropout": jax.random.key(2)}
    apply = jax.jit(partial(network.apply, train=True, mutable=["batch_stats"]))
    _, moved = apply(variables, images, rngs=key)
    before, after = (tree["batch_stats"]["bn_Conv1"]["mean"] for tree in (variables, moved))
    assert not np.allclose(before, after)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="no Conv1"):
        weights.load(tmp_path / "other.weights.h5")
    model = keras_model(0.35, 96)
    names = [variable.path for variable in model.variables]
    assert "bn_Conv1/gamma" in names
    keras.Model(model.input, model.get_layer("block_15_add").output).save_weights(tmp_path / "cut.weights.h5")
    with pytest.raises(UserError, match=r"Conv_1_bn/mean: missing"):
        weights.load(tmp_path / "cut.weights.h5")
    two = [keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(model.layers[-3].output)) for _ in range(2)]
    keras.Model(model.input, two).save_weights(tmp_path / "two.weights.h5")
    with pytest.raises(UserError, match=r"2 Dense layers, dense\w*/kernel, .*expected the whole model"):
        weights.load(tmp_path / "two.weights.h5")
