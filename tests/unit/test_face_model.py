"""Networks of the face VAE against Keras models built from the specification's table; what training mode changes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array
from scipy.stats import binomtest, kstest

from latent_arith.model import Decoder, Dropout, Encoder, FaceVae
from latentlab.model import LatentVariableModel, normalize, select_network_variables
from latentlab.training.optimizer import adam
from tests.oracles import keras_face_vae, keras_vae
from vae import losses

LEARNING_RATE = 5e-4
NETS = {"encoder": lambda dropout: Encoder(dropout=dropout), "decoder": lambda dropout: Decoder(dropout=dropout)}
key_of = partial(jax.random.key, impl="rbg")  # compiles in half the time of the default


def init(key: Array) -> dict[str, Any]:
    """Variables of the model, networks first."""
    variables = jax.jit(FaceVae().init)(key)
    return {name: select_network_variables(variables, name) for name in NETS}


INIT = jax.jit(init)


def pictures(count: int) -> Array:
    return jnp.asarray(np.random.default_rng(count).integers(0, 256, (count, 128, 128, 3)), jnp.uint8)


def noise(count: int) -> Array:
    return jnp.asarray(np.random.default_rng(count).normal(size=(count, 200)), jnp.float32)


def variables() -> dict[str, Any]:
    """Kernels as they start; all else random, as after training: biases, scales and running statistics."""
    generator = np.random.default_rng(5)

    def draw(path: Any, leaf: Array) -> Array:
        if leaf.ndim > 1:
            return leaf
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(generator.uniform(0.5 if positive else -0.5, 2 if positive else 0.5, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, INIT(key_of(2)))


@partial(jax.jit, static_argnames=("train", "dropout"))
def forward(
    variables: dict[str, Any],
    images: Array,
    noise: Array,
    key: Array | None = None,
    *,
    train: bool,
    dropout: float = 0.25,
) -> tuple[dict[str, Array], dict[str, Any]]:
    """What Keras's `forward` gives, and the running statistics after it; the key is for Dropout."""
    keys = {} if key is None else dict(zip(NETS, jax.random.split(key), strict=True))

    def apply(part: str, inputs: Array) -> Any:
        rngs = {"dropout": keys[part]} if keys else {}
        return NETS[part](dropout).apply(variables[part], inputs, train=train, rngs=rngs, mutable=["batch_stats"])

    (mean, log_variance), encoder = apply("encoder", images)
    logits, decoder = apply("decoder", mean + jnp.exp(log_variance / 2) * noise)
    cross_entropy = losses.binary_cross_entropy(logits, images) / images[0].size
    loss = 10_000 * cross_entropy + jnp.sum(losses.gaussian_kl(mean, log_variance), axis=-1)
    values = {"mean": mean, "log_variance": log_variance, "reconstruction": jax.nn.sigmoid(logits), "loss": loss}
    return values, {"encoder": encoder["batch_stats"], "decoder": decoder["batch_stats"]}


def collection(variables: dict[str, Any], name: str) -> dict[str, Any]:
    return {part: tree[name] for part, tree in variables.items()}


def assert_close(got: Any, want: Any, scale: float | None = None) -> None:
    """Agreement to 1e-5 of `scale`, of the largest entry wanted unless given."""
    assert got.shape == want.shape
    scale = float(np.abs(want).max()) if scale is None else scale
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


def test_parameter_counts_and_shapes() -> None:
    shapes = jax.eval_shape(init, key_of(0))
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) for part, tree in shapes.items()}
    assert sizes == {"encoder": 1_732_496, "decoder": 916_803}
    values, _ = jax.eval_shape(partial(forward, train=False), shapes, jnp.zeros((5, 128, 128, 3)), jnp.zeros((5, 200)))
    assert values["mean"].shape == values["log_variance"].shape == (5, 200)
    assert values["reconstruction"].shape == (5, 128, 128, 3)


def test_biases_start_at_zero_kernels_glorot_uniform_and_batch_norm_as_the_identity() -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(INIT(key_of(1))):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, path[-1].key in ("scale", "var"), err_msg=str(path))
            continue
        bound = np.float32(np.sqrt(6 / (np.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:]))))
        assert np.abs(leaf).max() <= bound, path
        assert kstest(np.ravel(leaf), "uniform", (-bound, 2 * bound)).pvalue > 1e-4, path


def test_the_same_weights_and_statistics_give_what_keras_gives() -> None:
    oracle, ours, images = keras_face_vae.build(), variables(), normalize(pictures(4))
    keras_face_vae.to_keras(ours, oracle)
    want, _ = jax.jit(partial(keras_face_vae.forward, oracle, training=False))(
        keras_vae.weights(oracle), keras_face_vae.others(oracle), images, noise(4)
    )
    got, _ = forward(ours, images, noise(4), train=False)
    for quantity, value in want.items():
        assert_close(got[quantity], value)


@pytest.mark.lenient
def test_a_training_step_gives_the_weights_and_statistics_that_keras_gives() -> None:
    """Weights agree to 1e-5 of the learning rate, statistics to 1e-5 of what the step moves them by.

    In float64, because a bias before BatchNorm has no gradient but round-off, and in float32 that is
    large enough for Adam to make a whole step of it.
    """
    with jax.enable_x64(True):
        before = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables())
        images, epsilon = normalize(pictures(4)).astype(jnp.float64), noise(4).astype(jnp.float64)
        oracle = keras_face_vae.build(dropout=0.0, dtype="float64")
        keras_face_vae.to_keras(before, oracle)
        optimizer = adam(LEARNING_RATE, 1e-7)

        @jax.jit
        def step(before: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Array]:
            def mean_loss(params: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
                merged = {part: tree | {"params": params[part]} for part, tree in before.items()}
                values, statistics = forward(merged, images, epsilon, train=True, dropout=0.0)
                return jnp.mean(values["loss"]), statistics

            params = collection(before, "params")
            (loss, statistics), gradients = jax.value_and_grad(mean_loss, has_aux=True)(params)
            updates, _ = optimizer.update(gradients, optimizer.init(params), params)
            return optax.apply_updates(params, updates), statistics, loss

        params, statistics, loss = step(before)
        assert_close(loss, keras_face_vae.train(oracle, images, epsilon))
        after = keras_face_vae.to_ours(oracle, before)
        jax.tree.map(partial(assert_close, scale=LEARNING_RATE), params, collection(after, "params"))
        moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), after, before)
        jax.tree.map(assert_close, statistics, collection(after, "batch_stats"), collection(moved, "batch_stats"))


def test_training_moves_the_running_statistics_and_inference_leaves_them() -> None:
    ours, images = variables(), normalize(pictures(4))
    before = collection(ours, "batch_stats")
    _, after = forward(ours, images, noise(4), train=True, dropout=0.0)
    assert all(jax.tree.leaves(jax.tree.map(lambda new, old: bool(np.all(new != old)), after, before)))
    _, after = forward(ours, images, noise(4), train=False)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_other_images_of_a_batch_matter_in_training_only() -> None:
    ours, images = variables(), normalize(pictures(4))
    others = images.at[1:].set(1 - images[1:])
    for training in (False, True):
        one, other = (forward(ours, batch, noise(4), train=training, dropout=0.0)[0] for batch in (images, others))
        for quantity, value in one.items():
            assert np.array_equal(value[0], other[quantity][0]) is not training, quantity


def test_dropout_is_determined_by_its_key() -> None:
    run = partial(forward, variables(), normalize(pictures(4)), noise(4), train=True)
    one, again, other = (run(key_of(seed))[0] for seed in (3, 3, 4))
    for quantity, value in one.items():
        np.testing.assert_array_equal(value, again[quantity])
        assert not np.array_equal(value, other[quantity]), quantity


def test_dropout_at_rate_zero_drops_nothing_and_needs_no_key() -> None:
    run = partial(forward, variables(), normalize(pictures(4)), noise(4), train=True, dropout=0.0)
    with_key, without = run(key_of(3)), run()
    jax.tree.map(np.testing.assert_array_equal, with_key, without)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("rate", [0.25, 0.3, 1 / 256, 0.9])
def test_dropout_drops_its_share_and_keeps_the_expectation(rate: float, impl: str) -> None:
    """The number of zeros is binomial, the others are scaled by 1 / (1 - rate), neighbours are independent."""
    key, ones = jax.random.key(0, impl=impl), jnp.ones((7, 41, 113))  # a size that is no multiple of 4

    def drop(key: Array, inputs: Array) -> Array:
        outputs: Any = Dropout(rate, deterministic=False).apply({}, inputs, rngs={"dropout": key})
        return outputs

    got = np.asarray(drop(key, ones))
    dropped = got == 0
    np.testing.assert_allclose(got[~dropped], 1 / (1 - rate), rtol=1e-6)
    assert binomtest(int(dropped.sum()), dropped.size, rate).pvalue > 1e-4
    both = np.ravel(dropped)[1:] & np.ravel(dropped)[:-1]
    assert binomtest(int(both[::2].sum()), len(both[::2]), rate**2).pvalue > 1e-4
    assert abs(got.mean() - 1) < 4 * np.sqrt(rate / (1 - rate) / got.size)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(drop(key, x)))(ones), got)
    keys = jax.random.split(key, 2)
    together = jax.vmap(drop, in_axes=(0, None))(keys, ones)
    assert not np.array_equal(*together)
    if impl == "threefry2x32":  # keys of rbg do not promise the same numbers under vmap
        np.testing.assert_array_equal(together, [drop(one, ones) for one in keys])


def test_dropout_follows_every_block_but_the_first_of_the_encoder() -> None:
    """At rate 1 the layer after it sees zeros and gives its bias; statistics from before it are those of rate 0."""
    ours = variables()
    run = partial(forward, ours, normalize(pictures(4)), noise(4), key_of(0), train=True)
    values, statistics = run(dropout=1.0)
    _, undropped = run(dropout=0.0)
    params = collection(ours, "params")
    for name in ("encoder_norm_0", "encoder_norm_1"):
        jax.tree.map(assert_close, statistics["encoder"][name], undropped["encoder"][name])
    layers = {"encoder_norm_2": "encoder_conv_2", "encoder_norm_3": "encoder_conv_3"}
    layers |= {"decoder_norm_t1": "decoder_conv_t1", "decoder_norm_t2": "decoder_conv_t2"}
    for norm, convolution in layers.items():
        part = norm.split("_")[0]
        old = ours[part]["batch_stats"][norm]
        bias = params[part][convolution]["bias"]
        assert_close(statistics[part][norm]["mean"], 0.99 * old["mean"] + 0.01 * bias)
        assert_close(statistics[part][norm]["var"], 0.99 * old["var"])
    for quantity, part, head in (("mean", "encoder", "mu"), ("log_variance", "encoder", "log_var")):
        np.testing.assert_array_equal(values[quantity], np.tile(params[part][head]["bias"], (4, 1)))
    pixel = jax.nn.sigmoid(params["decoder"]["decoder_conv_t3"]["bias"])
    assert_close(values["reconstruction"], np.broadcast_to(pixel, (4, 128, 128, 3)))


@pytest.mark.parametrize(("size", "latent_dim"), [(32, 7), (48, 200), (128, 3)])
def test_size_and_latent_dimension_are_the_models(size: int, latent_dim: int) -> None:
    model = FaceVae(latent_dim, (size, size, 3))
    shapes = jax.eval_shape(model.init, key_of(0))
    images, latents = jnp.zeros((2, size, size, 3)), jnp.zeros((2, latent_dim))
    mean, log_variance = jax.eval_shape(model.encode, shapes, images)
    assert mean.shape == log_variance.shape == latents.shape
    assert jax.eval_shape(model.decode, shapes, latents).shape == images.shape
    assert isinstance(model, LatentVariableModel)


def test_the_loss_of_training_moves_the_statistics_and_that_of_evaluation_does_not() -> None:
    model, images = FaceVae(image_shape=(32, 32, 3)), jax.random.uniform(key_of(1), (4, 32, 32, 3))
    variables = jax.jit(model.init)(key_of(0))
    loss = jax.jit(model.loss, static_argnames="train")
    trained, evaluated = (loss(variables, images, jax.random.key(2), 0, train=train) for train in (True, False))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (trained.batch_stats, variables["batch_stats"])]
    assert shapes[0] == shapes[1] and not evaluated.batch_stats
    moved = jax.tree.map(lambda one, other: bool(np.any(one != other)), trained.batch_stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    assert not np.allclose(trained.per_example, evaluated.per_example)
