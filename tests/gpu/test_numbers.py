"""The same numbers on this device as in float64 on the host: `pytest -m gpu` on a GPU, and in CI on a CPU.

All is computed in float64 on the CPU, and with products at the highest precision on the default device, which is held
against it; on all but CPUs also in the device's own precision (TF32 on an H100). The distances are printed at the end.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from adversarial import attacks
from adversarial.mobilenet_v2 import MobileNetV2
from latent_arith import model as faces
from latent_arith.directions import init_moments, update_moments
from latentlab.kernels import convolution as kernels
from latentlab.model import Variables, select_network_variables
from latentlab.training.loop import LoopSchedule, TrainState, init_states, resident_train_steps, streaming_train_steps
from latentlab.training.optimizer import adam
from vae import losses
from vae.model import Vae

pytestmark = pytest.mark.lenient
Tell = Callable[[str, object], None]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def uniform(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        doubles = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float64 if np.asarray(leaf).dtype == np.float32 else None), arguments
        )
        return jax.device_get(jax.jit(function)(*doubles))


def distance(found: Any, exact: Any) -> float:
    """The largest ‖found - exact‖ / ‖exact‖ of two trees."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return max(float(np.linalg.norm(one - other) / max(np.linalg.norm(other), 1e-30)) for one, other in pairs)


def precisions() -> tuple[str, ...]:
    """The highest, and the device's own: a CPU has one for both, and so computes once."""
    return ("highest",) if jax.default_backend() == "cpu" else ("highest", "default")


def assert_exact(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], most: float, tell: Tell) -> None:
    """A function is within `most` of float64, relative in L2, and tells how far it is in the device's own precision."""
    exact, found = on_host(function, *arguments), {}
    for precision in precisions():
        with jax.default_matmul_precision(precision):
            found[precision] = distance(jax.device_get(jax.jit(function)(*arguments)), exact)
    assert found["highest"] <= most
    tell(name, ", ".join(f"{precision} {value:.1e}" for precision, value in found.items()))


def value_and_gradients(function: Callable[..., Array]) -> Callable[..., Any]:
    """Of Σ function(…) · cotangent, in all arguments."""

    def of(cotangent: Array, *arguments: Array) -> Any:
        value, pull = jax.vjp(function, *arguments)
        return value, pull(cotangent)

    return of


LAYERS = {
    "digits, 1 to 32": ((28, 28, 1), (3, 3, 1, 32), 1, 28),
    "digits, 32 to 64": ((28, 28, 32), (3, 3, 32, 64), 2, 14),
    "faces, 3 to 32": ((128, 128, 3), (3, 3, 3, 32), 2, 64),
    "faces, 64 to 64": ((32, 32, 64), (3, 3, 64, 64), 2, 16),
    "pointwise, 96 to 24": ((56, 56, 96), (1, 1, 96, 24), 1, 56),
    "depthwise of 96": ((112, 112, 96), (3, 3, 1, 96), 2, 56),
    "depthwise of 144": ((56, 56, 144), (3, 3, 1, 144), 1, 56),
}
"""Images, kernel, stride and side of the output: of every kind that the networks have."""


@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_and_their_gradients(name: str, record_property: Tell) -> None:
    image, kernel, stride, side = LAYERS[name]
    function = kernels.depthwise_convolution if "depthwise" in name else kernels.convolution
    arguments = normal(0, 4, side, side, kernel[3]), normal(1, 4, *image), normal(2, *kernel)
    work = value_and_gradients(lambda x, w: function(x, w, stride))
    assert_exact(f"convolution, {name}", work, arguments, 1e-5, record_property)


@pytest.mark.parametrize(("low", "high", "stride"), [((7, 7, 64), 64, 2), ((14, 14, 64), 32, 2), ((28, 28, 32), 1, 1)])
def test_transposed_convolutions_and_their_gradients(
    low: tuple[int, int, int], high: int, stride: int, record_property: Tell
) -> None:
    side = low[0] * stride
    arguments = normal(0, 4, side, side, high), normal(1, 4, *low), normal(2, 3, 3, high, low[2])
    work = value_and_gradients(lambda y, w: kernels.convolution_transpose(y, w, stride))
    assert_exact(f"transposed convolution, {low[2]} to {high}", work, arguments, 1e-5, record_property)


def drawn(init: Callable[..., Any], *arguments: Any) -> Any:
    """Variables of the shapes that `init` gives: small random kernels, and scales and variances near one."""

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        drawn = normal(zlib.crc32(name.encode()), *leaf.shape)
        if leaf.ndim > 1:
            return drawn * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return 1 + np.abs(drawn) / 2 if name.endswith(("['scale']", "['var']")) else drawn / 10

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, *arguments))


def test_the_digits_loss_and_its_gradients(record_property: Tell) -> None:
    model = Vae()

    def loss(variables: Variables, images: Array) -> Array:
        logits = model.decode(variables, model.encode(variables, images)[0])
        return jnp.mean(losses.binary_cross_entropy(logits, images))

    images = uniform(16, *model.image_shape)
    arguments = drawn(model.init, jax.random.key(0)), images
    assert_exact("digits, loss and gradients", jax.value_and_grad(loss), arguments, 1e-4, record_property)


def test_the_faces_loss_and_its_gradients_through_batch_norm(record_property: Tell) -> None:
    shape = (64, 64, 3)
    networks = {"encoder": faces.Encoder(50, 0.0), "decoder": faces.Decoder(shape, 0.0)}

    def apply(name: str, variables: Variables, inputs: Array) -> Any:
        part = select_network_variables(variables, name)
        return networks[name].apply(part, inputs, train=True, mutable=["batch_stats"])[0]

    def loss(params: Any, statistics: Any, images: Array) -> Array:
        variables = {"params": params, "batch_stats": statistics}
        logits = apply("decoder", variables, apply("encoder", variables, images)[0])
        return jnp.mean(losses.binary_cross_entropy(logits, images))

    images = uniform(8, *shape)
    variables = drawn(faces.FaceVae(50, shape).init, jax.random.key(0))
    arguments = variables["params"], variables["batch_stats"], images
    exact = jax.grad(loss)

    def without_biases_before_batch_norm(*arguments: Any) -> Any:
        """Their gradients are 0 but for rounding."""
        return [leaf for leaf in jax.tree.leaves(exact(*arguments)) if leaf.ndim > 1]

    assert_exact("faces, gradients", without_biases_before_batch_norm, arguments, 1e-4, record_property)


CLASSES, EPSILON = 10, 0.002


@pytest.fixture(scope="module")
def photos() -> tuple[Any, np.ndarray, np.ndarray]:
    """Variables of a MobileNetV2, smooth images in [0, 1], and classes.

    Its statistics are those of the images, as after a training: else rounding grows from layer to layer.
    """
    network, momentum = MobileNetV2(1.0, CLASSES), 0.999
    images = uniform(4, 12, 12, 3).repeat(8, axis=1).repeat(8, axis=2)
    variables = drawn(network.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
    of_batch = partial(network.apply, train=True, mutable=["batch_stats"])
    _, moved = on_host(of_batch, variables, 2 * images - 1)
    statistics = jax.tree.map(
        lambda new, old: np.asarray((new - momentum * old) / (1 - momentum), np.float32),
        moved["batch_stats"],
        variables["batch_stats"],
    )
    return {**variables, "batch_stats": statistics}, images, np.arange(4, dtype=np.int32)


def logits_of(variables: Any) -> attacks.Logits:
    return lambda images: MobileNetV2(1.0, CLASSES).apply(variables, 2 * images - 1)


def test_mobilenet_v2_and_its_gradient_in_the_image(
    photos: tuple[Any, np.ndarray, np.ndarray], record_property: Tell
) -> None:
    """ReLU6 has corners: where rounding puts an activation on the other side, the gradient differs."""

    def gradient(variables: Any, images: Array, labels: Array) -> Array:
        return attacks.input_gradient(logits_of(variables), images, labels, jnp.asarray(False))

    variables, images, _ = photos
    assert_exact("MobileNetV2, logits", lambda v, x: logits_of(v)(x), (variables, images), 1e-4, record_property)
    assert_exact("MobileNetV2, gradient in the image", gradient, photos, 2e-2, record_property)
    exact = on_host(gradient, *photos)
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(gradient)(*photos))
    share = np.mean(np.sign(found) == np.sign(exact))
    assert share > 0.999
    record_property("MobileNetV2, signs of the gradient that agree", f"{share:.4%}")


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi-fgsm", "apgd-ce", "fab-t", "square"])
def test_attacks_stay_in_the_ball_and_raise_the_loss(
    name: str, photos: tuple[Any, np.ndarray, np.ndarray], record_property: Tell
) -> None:
    """FGSM moves pixels as in float64; where an attack goes on, the signs that differ lead to others.

    The other attacks are made of the same parts.
    """
    settings = attacks.select_settings(attacks.ATTACKS[name], {"steps": 4, "queries": 30})

    def attack(variables: Any, images: Array, labels: Array) -> tuple[Array, Array, Array]:
        logits = logits_of(variables)
        result = attacks.ATTACKS[name](jax.random.key(0), logits, images, labels, epsilon=EPSILON, **settings)
        return result.images, attacks.loss(logits, images, labels), attacks.loss(logits, result.images, labels)

    exact = on_host(attack, *photos) if name == "fgsm" else None
    for precision in precisions():
        with jax.default_matmul_precision(precision):
            found, before, after = map(np.asarray, jax.jit(attack)(*photos))
        assert np.abs(found - photos[1]).max() <= EPSILON + 1e-6 and found.min() >= 0 and found.max() <= 1
        least_rise = -1e-5 if name == "fab-t" else 0  # which leaves what it cannot reach as it is
        assert np.mean(after) - np.mean(before) > least_rise
        if exact:
            share = np.mean(np.abs(found - exact[0]) < 1e-6)
            assert share > {"highest": 0.999, "default": 0.9}[precision]
            record_property(f"{name}, pixels as in float64, {precision}", f"{share:.3%}")


def test_moments_of_directions(record_property: Tell) -> None:
    """However precise products are by default, these are not; the host's are NumPy's."""
    latents, weights = 5 + normal(0, 500, 20), np.abs(normal(1, 2, 500, 3))
    signs = np.where(normal(2, 500, 3) > 0, 1, -1).astype(np.int8)
    found = update_moments(init_moments(2, 3, 20), latents, signs, weights)
    groups = [signs < 0, signs > 0]
    kept = np.stack([[weights[e] * group for group in groups] for e in range(2)]).astype(np.float64)  # (E, 2, n, A)
    means = np.einsum("egna,nl->egal", kept, latents) / kept.sum(axis=2)[..., None]
    deviations = np.einsum("egna,egnal->egal", kept, (latents[:, None] - means[:, :, None]) ** 2)
    assert distance(found.mean, means) < 1e-6 and distance(found.deviations, deviations) < 1e-4
    distances = f"{distance(found.mean, means):.1e} and {distance(found.deviations, deviations):.1e}"
    record_property("directions, means and deviations", distances)


def digits_steps(images: Array, schedule: LoopSchedule) -> tuple[TrainState, Any]:
    model, optimizer = Vae(), adam(1e-3, 1e-7)
    state = init_states(jax.random.key, [0], model.init, optimizer)
    loss = partial(model.loss, train=True)
    return state, resident_train_steps(images, schedule, loss=loss, optimizer=optimizer)


def faces_steps(images: Array, schedule: LoopSchedule) -> tuple[TrainState, Any]:
    model, optimizer = faces.FaceVae(20, (32, 32, 3)), adam(1e-3, 1e-7)
    state = init_states(jax.random.key, [0], model.init, optimizer)
    batches = (np.asarray(images)[:16] for _ in iter(int, 1))
    loss = partial(model.loss, train=True)
    return state, streaming_train_steps(batches, schedule, loss=loss, optimizer=optimizer)


@pytest.mark.parametrize(("make", "shape"), [(digits_steps, (28, 28, 1)), (faces_steps, (32, 32, 3))])
def test_a_run_that_stopped_goes_on_to_the_same_bits(
    make: Callable[..., tuple[TrainState, Any]], shape: tuple[int, int, int]
) -> None:
    """Compiled anew, with whatever algorithms are chosen then, as in another process."""
    schedule, found = LoopSchedule(64, 16, 1, 16, 1), []
    images = jnp.asarray(255 * uniform(64, *shape), jnp.uint8)
    for stops in (False, True):
        state, train_steps = make(images, schedule)
        state, _ = train_steps(state, 4)
        if stops:
            key_data = [jax.random.key_data(key) for key in (state.order_key, state.noise_key)]
            held = jax.device_get(state._replace(order_key=key_data[0], noise_key=key_data[1]))
            jax.clear_caches()
            _, train_steps = make(images, schedule)
            keys = [jax.random.wrap_key_data(jnp.asarray(key)) for key in (held.order_key, held.noise_key)]
            state = jax.tree.map(jnp.asarray, held)._replace(order_key=keys[0], noise_key=keys[1])
        state, metrics = train_steps(state, 4)
        found.append(jax.device_get((state.variables, state.optimizer_state, metrics)))
    jax.tree.map(np.testing.assert_array_equal, *found)
