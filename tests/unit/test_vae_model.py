"""Networks and training step against Keras models built from the specification's table."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from scipy.stats import kstest

from latentlab.model import LatentVariableModel, Loss, Variables, normalize
from latentlab.training.optimizer import adam
from latentlab.training.state import init_state, train_step
from tests.oracles import keras_vae
from vae import losses
from vae.config import VaeConfig
from vae.model import Autoencoder, Vae

HEADS = {"autoencoder": ("z",), "vae": ("mean", "log_variance")}
MODELS: dict[str, LatentVariableModel] = {"autoencoder": Autoencoder(), "vae": Vae()}
ADAM = adam(VaeConfig().learning_rate, VaeConfig().adam_epsilon)
NOISE = jax.random.key(11)
BOTH = pytest.mark.parametrize("name", MODELS)


def pictures(count: int) -> Array:
    return jnp.asarray(np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1)), jnp.uint8)


def random_like(params: Any) -> Any:
    """Weights, biases too, of a size at which logits reach several units."""
    generator = np.random.default_rng(5)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.05, leaf.shape), jnp.float32), params)


def with_noise_of_step(model: LatentVariableModel) -> Callable[..., Loss]:
    """The model's loss with noise from `NOISE` and the step, so that Keras can be given the same."""

    def loss(variables: Variables, images: Array, key: Array, step: Array) -> Loss:
        return model.loss(variables, images, jax.random.fold_in(NOISE, step), step, train=True)

    return loss


def step_of(model: LatentVariableModel, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Jitted `train_step`, let off strict promotion because Optax raises floats to integer powers."""
    step = jax.jit(partial(train_step, loss=with_noise_of_step(model), optimizer=optimizer))

    def lenient(*batch: Any) -> Any:
        with keras_vae.lenient():
            return step(*batch)

    return lenient


def assert_close(got: Any, want: Any) -> None:
    """Agreement to 1e-5 of the largest entry wanted."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize(("name", "encoder_size"), [("autoencoder", 98_946), ("vae", 105_220)])
def test_parameter_counts(name: str, encoder_size: int) -> None:
    params = jax.eval_shape(MODELS[name].init, jax.random.key(0))
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params["params"].items()}
    assert not params["batch_stats"]
    assert sizes == {"encoder": encoder_size, "decoder": 102_017}


@BOTH
def test_biases_start_at_zero_and_kernels_glorot_uniform(name: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(MODELS[name].init)(jax.random.key(1))):
        if leaf.ndim == 1:
            assert not leaf.any(), path
            continue
        bound = np.sqrt(6 / (np.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))
        assert np.abs(leaf).max() <= bound, path
        assert kstest(np.ravel(leaf), "uniform", (-bound, 2 * bound)).pvalue > 1e-4, path


@pytest.mark.parametrize("source", ["keras", "ours"])
@BOTH
def test_the_same_weights_give_what_keras_gives(name: str, source: str) -> None:
    model, oracle, images = MODELS[name], keras_vae.build(HEADS[name]), normalize(pictures(4))
    params = jax.jit(model.init)(jax.random.key(2))
    if source == "keras":
        params = keras_vae.to_ours(oracle, params)
    else:
        params = random_like(params)
        keras_vae.to_keras(params, oracle)

    @jax.jit
    def ours(params: Variables) -> dict[str, Array]:
        mean, log_variance = model.encode(params, images)
        z = losses.reparameterize(NOISE, mean, log_variance)
        loss, _, _ = model.loss(params, images, NOISE, jnp.asarray(0), train=True)
        reconstruction = jax.nn.sigmoid(model.decode(params, z))
        return {"mean": mean, "log_variance": log_variance, "z": z, "reconstruction": reconstruction, "loss": loss}

    got, noise = ours(params), jax.random.normal(NOISE, (4, 2))
    theirs = jax.jit(lambda weights: keras_vae.forward(oracle, weights, images, noise))(keras_vae.weights(oracle))
    for quantity, want in theirs.items():
        assert_close(got[quantity], want)


@BOTH
def test_adam_gives_the_weights_that_keras_gives(name: str) -> None:
    """One step, and two more, agree to 1e-5 of the learning rate: of what a step moves a weight by.

    In float64, because Adam's first step is the gradient's sign wherever the gradient is well above
    epsilon, and in float32 round-off decides the sign of the smallest.
    """
    with jax.enable_x64(True), keras_vae.lenient():
        model, oracle, images = MODELS[name], keras_vae.build(HEADS[name], "float64"), pictures(4)
        step = step_of(model, ADAM)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), jax.jit(model.init)(jax.random.key(3)))
        state = init_state(NOISE, lambda _: params, ADAM)
        keras_vae.to_keras({"params": state.params}, oracle)
        pixels = normalize(images).astype(jnp.float64)
        noises = [jax.random.normal(jax.random.fold_in(NOISE, step), (4, 2)) for step in range(3)]
        for _ in keras_vae.train(oracle, [(pixels, noise) for noise in noises]):
            state, _ = step(state, images, jnp.ones(len(images)))
            theirs = keras_vae.to_ours(oracle, {"params": state.params})
            ours = {"params": state.params}
            jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5 * 5e-4), ours, theirs)


def test_padding_does_not_train() -> None:
    """The last batch of an epoch, 8 images and 24 of padding, has the losses and gradients of the 8 alone.

    Both have the same noise, as JAX draws it by position. Gradients are read from the state of an
    optimiser that remembers nothing else.
    """
    model, images = MODELS["vae"], pictures(32)
    step = step_of(model, optax.trace(decay=0.0))
    state = init_state(jax.random.key(4), jax.jit(model.init), optax.trace(decay=0.0))
    padded, padded_metrics = step(state, images, (jnp.arange(32) < 8).astype(jnp.float32))
    alone, metrics = step(state, images[:8], jnp.ones(8))
    jax.tree.map(assert_close, padded_metrics, metrics)
    jax.tree.map(assert_close, padded.optimizer_state.trace, alone.optimizer_state.trace)


@pytest.mark.parametrize("model", [Vae(5), Vae(1), Autoencoder(3, (16, 24, 3)), Vae(2, (32, 32, 1))])
def test_latent_dimension_and_image_shape_are_the_models(model: LatentVariableModel) -> None:
    variables = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)
    mean, log_variance = jax.eval_shape(model.encode, variables, images)
    assert mean.shape == log_variance.shape == (2, model.latent_dim)
    assert jax.eval_shape(model.decode, variables, mean).shape == images.shape
    assert isinstance(model, LatentVariableModel)
