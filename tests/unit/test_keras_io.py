"""The networks of keras.io's example, against Keras with the same weights and the numbers of parameters it prints."""

import jax
import keras
import numpy as np
import pytest
from keras import layers

from vae import experiment
from vae.config import PRESETS
from vae.model import Vae

pytestmark = pytest.mark.lenient
PARAMETERS = {"encoder": 69_076, "decoder": 65_089}
"""As the example's summaries print them."""


@pytest.fixture(scope="module")
def model() -> Vae:
    return experiment.make_vae(PRESETS["quick"].__class__(network="keras_io"))


def keras_networks() -> dict[str, keras.Model]:
    images = keras.Input((28, 28, 1))
    hidden = layers.Conv2D(32, 3, activation="relu", strides=2, padding="same")(images)
    hidden = layers.Conv2D(64, 3, activation="relu", strides=2, padding="same")(hidden)
    hidden = layers.Dense(16, activation="relu")(layers.Flatten()(hidden))
    heads = [layers.Dense(2)(hidden), layers.Dense(2)(hidden)]
    latents = keras.Input((2,))
    hidden = layers.Reshape((7, 7, 64))(layers.Dense(7 * 7 * 64, activation="relu")(latents))
    hidden = layers.Conv2DTranspose(64, 3, activation="relu", strides=2, padding="same")(hidden)
    hidden = layers.Conv2DTranspose(32, 3, activation="relu", strides=2, padding="same")(hidden)
    decoded = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(hidden)
    return {"encoder": keras.Model(images, heads), "decoder": keras.Model(latents, decoded)}


def test_outputs_are_those_of_keras(model: Vae) -> None:
    variables = model.init(jax.random.key(0))
    theirs = keras_networks()
    order = {
        "encoder": ("conv_0", "conv_1", "dense", "mean", "log_variance"),
        "decoder": ("dense", "conv_t_0", "conv_t_1", "conv_t_2"),
    }
    for name, network in theirs.items():
        params = variables["params"][name]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name] == network.count_params()
        noise = iter(range(100))
        for layer in order[name]:
            key = jax.random.key(next(noise))
            params[layer]["bias"] = 0.1 * jax.random.normal(key, params[layer]["bias"].shape)
        network.set_weights([np.asarray(params[layer][part]) for layer in order[name] for part in ("kernel", "bias")])
    images = np.random.default_rng(0).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    latents = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    with jax.numpy_rank_promotion("allow"):
        expected_codes, expected_images = theirs["encoder"](images), theirs["decoder"](latents)
    for ours, expected in zip(model.encode(variables, images), expected_codes, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(jax.nn.sigmoid(model.decode(variables, latents)), expected_images, atol=1e-5)
