"""Digits whose pixels are drawn, and the dense networks and the falling learning rate of papers that train on them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentlab.errors import UserError
from latentlab.labeled_images import Dataset, LabeledImages
from latentlab.model import Labeled, Loss
from vae import experiment, losses, mlp
from vae.config import PRESETS
from vae.model import Vae

QUICK = PRESETS["quick"]
GREY = np.linspace(0, 1, 28, dtype=np.float32).reshape(1, 1, 28, 1) * np.ones((64, 28, 1, 1), np.float32)


def see_images(variables: dict, batch: Labeled, key: jax.Array, step: jax.Array) -> Loss:
    del variables, step
    return Loss(jnp.sum(batch.images, axis=(1, 2, 3)), {"images": batch.images, "labels": batch.labels, "key": key}, {})


def test_pixels_are_drawn_with_their_grey_level_as_probability_anew_for_each_key() -> None:
    loss = losses.binarize_images(see_images)
    labels = jnp.arange(64)
    batch, step = Labeled(jnp.asarray(GREY), labels), jnp.zeros((), jnp.int32)
    drawn = [loss({}, batch, jax.random.key(seed), step).parts for seed in range(9)]
    images = np.stack([parts["images"] for parts in drawn])
    assert set(np.unique(images)) == {0.0, 1.0}
    assert (images[0] != images[1]).any()
    share = images.mean(axis=(0, 1, 2, 4))
    level = GREY[0, 0, :, 0]
    deviation = np.sqrt(level * (1 - level) / (9 * 64 * 28))
    assert (np.abs(share - level) <= 5 * deviation).all()
    np.testing.assert_array_equal(drawn[0]["labels"], labels)
    assert (jax.random.key_data(drawn[0]["key"]) != jax.random.key_data(jax.random.key(0))).any()  # noise of its own


def test_data_are_drawn_once_and_alike() -> None:
    part = LabeledImages(np.round(255 * GREY).astype(np.uint8), np.arange(64, dtype=np.int32) % 10)
    data = Dataset("greys", part, part, factors=("turn",), test_factors=np.zeros((64, 1)))
    drawn, again = data.binarize(), data.binarize()
    for images in (drawn.train.images, drawn.test.images):
        assert set(np.unique(images)) == {0, 255}
        assert not images[:, :, 0].any() and (images[:, :, -1] == 255).all()
    assert np.abs(drawn.train.images.mean(axis=(0, 1, 3)) / 255 - GREY[0, 0, :, 0]).max() < 0.07
    assert (drawn.train.images != drawn.test.images).any()
    np.testing.assert_array_equal(drawn.test.images, again.test.images)
    assert (data.binarize(1).test.images != drawn.test.images).any()
    np.testing.assert_array_equal(drawn.train.labels, part.labels)
    assert drawn.factors == ("turn",) and drawn.source == "greys"


@pytest.mark.lenient
def test_dense_networks_are_those_of_the_paper() -> None:
    model = experiment.make_vae(replace(QUICK, network="mlp", latent_dim=50))
    variables = model.init(jax.random.key(0))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in variables["params"].items()}
    assert count == {
        "encoder": 785 * 200 + 201 * 200 + 2 * 201 * 50,
        "decoder": 51 * 200 + 201 * 200 + 201 * 784,
    }
    noise = iter(jax.random.split(jax.random.key(1), 20))
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(next(noise), leaf.shape), variables["params"])
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(layer: dict, values: np.ndarray) -> np.ndarray:
        return values @ layer["kernel"] + layer["bias"]

    def hidden(network: dict, values: np.ndarray) -> np.ndarray:
        return np.tanh(dense(network["dense_1"], np.tanh(dense(network["dense_0"], values))))

    images = np.random.default_rng(0).uniform(size=(5, 28, 28, 1)).astype(np.float32)
    body = hidden(wide["encoder"], images.reshape(5, -1).astype(np.float64))
    for found, head in zip(model.encode({"params": params}, images), ("mean", "log_variance"), strict=True):
        np.testing.assert_allclose(found, dense(wide["encoder"][head], body), atol=1e-5)
    latents = np.random.default_rng(1).normal(size=(5, 50)).astype(np.float32)
    logits = dense(wide["decoder"]["pixels"], hidden(wide["decoder"], latents.astype(np.float64)))
    np.testing.assert_allclose(model.decode({"params": params}, latents), logits.reshape(5, 28, 28, 1), atol=1e-4)


def test_widths_and_activation_are_arguments() -> None:
    encoder = mlp.Encoder(Vae.heads, 40, (400,), jax.nn.relu)
    model = Vae(40, encoder=encoder, decoder=mlp.Decoder(widths=(400,), activation=jax.nn.relu))
    params = model.init(jax.random.key(0))["params"]
    assert params["encoder"]["dense_0"]["kernel"].shape == (784, 400) and "dense_1" not in params["encoder"]
    assert hash(model) == hash(replace(model))


@pytest.mark.lenient
def test_the_learning_rate_falls_after_each_milestone() -> None:
    """Under a gradient that stays the same, Adam moves by the learning rate."""
    config = replace(
        QUICK, train_images=64, batch_size=32, learning_rate_milestones=(1, 3), learning_rate_factor=0.5,
        learning_rate=0.01, adam_epsilon=1e-12,
    )  # fmt: skip
    optimizer, params = experiment.make_optimizer(config), {"weight": jnp.zeros(())}
    state, moved = optimizer.init(params), []
    for _ in range(8):
        updates, state = optimizer.update({"weight": jnp.ones(())}, state, params)
        moved.append(-float(updates["weight"]))
    np.testing.assert_allclose(moved, [0.01] * 2 + [0.005] * 4 + [0.0025] * 2, rtol=1e-4)


def test_milestones_are_in_order() -> None:
    with pytest.raises(UserError, match=r"learning_rate_milestones is \(3, 2\), expected epochs in increasing order"):
        replace(QUICK, learning_rate_milestones=(3, 2))


@pytest.mark.lenient
def test_a_run_of_binarized_digits_measures_drawn_pixels() -> None:
    generator = np.random.default_rng(0)
    part = LabeledImages(
        generator.integers(256, size=(48, 28, 28, 1), dtype=np.uint8), np.arange(48, dtype=np.int32) % 10
    )
    config = replace(
        QUICK, binarize=True, network="mlp", train_images=48, epochs=2, epochs_per_checkpoint=2,
        learning_rate_milestones=(1,), latent_points=20, prior_samples=50,
    )  # fmt: skip
    results = experiment.run(config, data=Dataset("noise", part, part), log=lambda line: None)
    assert set(np.unique(results.pictures["originals"])) == {0, 255}
    assert results.measures["vae"]["test_iwae"]["mean"] > 500  # noise of one bit a pixel is 784 log 2 = 543 nats
