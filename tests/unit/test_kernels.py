"""Convolutions against NumPy in float64, in value and in every gradient; they must be the same functions everywhere."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import Array, lax

from latentlab.kernels import convolution as kernels
from tests.oracles.numpy_convolution import convolve, output_size, pads_of


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def assert_value_and_gradients(
    function: Callable, arguments: Sequence[Array], cotangent: Array, expected: Sequence[np.ndarray]
) -> None:
    """The value of a compiled function and its gradients agree with float64 to 1e-5 of the largest entry."""

    @jax.jit
    def value_and_gradients(*arguments: Array) -> tuple[Array, ...]:
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(cotangent)

    for got, want in zip(value_and_gradients(*arguments), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1))


def assert_convolution(images: Array, kernel: Array, stride: int, padding: kernels.Padding) -> None:
    pads = pads_of(padding, images.shape[1:3], kernel.shape[:2], stride)
    size = output_size(images.shape[1:3], kernel.shape[:2], stride, pads)
    cotangent = normal(7, len(images), *size, kernel.shape[3])
    expected = convolve(*map(np.asarray, (images, kernel)), stride, pads, np.asarray(cotangent))
    assert_value_and_gradients(
        lambda x, w: kernels.convolution(x, w, stride, padding), (images, kernel), cotangent, expected
    )


PADDINGS = ["SAME", "VALID", ((1, 1), (2, 0))]
CHANNELS = [(3, 5), (64, 2), (1, 8)]  # one for each order of sums over taps and channels


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(1, 1, "SAME"), (1, 2, ((0, 1), (1, 0))), *((3, stride, padding) for stride in (1, 2) for padding in PADDINGS)],
    ids=str,
)
def test_convolution(size: int, stride: int, padding: kernels.Padding, channels: tuple[int, int]) -> None:
    assert_convolution(normal(0, 2, 7, 10, channels[0]), normal(1, size, size, *channels), stride, padding)


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolution_transpose(size: int, stride: int, channels: tuple[int, int]) -> None:
    """It is the adjoint: what the convolution's cotangent gives for its images."""
    images, kernel = normal(0, 2, 4, 5, channels[1]), normal(1, size, size, *channels)
    big = (4 * stride, 5 * stride)
    cotangent = normal(7, 2, *big, channels[0])
    pads = pads_of("SAME", big, (size, size), stride)
    back = convolve(*map(np.asarray, (cotangent, kernel)), stride, pads, np.asarray(images))
    assert_value_and_gradients(
        lambda y, w: kernels.convolution_transpose(y, w, stride),
        (images, kernel),
        cotangent,
        (back.images_gradient, back.output, back.kernel_gradient),
    )


@pytest.mark.parametrize("padding", ["VALID", ((0, 1), (0, 1)), ((1, 0), (1, 1))], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_transpose_with_explicit_padding(stride: int, padding: kernels.Padding) -> None:
    y, kernel = normal(1, 2, 4, 6, 5), normal(0, 3, 3, 4, 5)
    back = jax.jit(lambda y, w: kernels.convolution_transpose(y, w, stride, padding))(y, kernel)
    pads = pads_of(padding, back.shape[1:3], (3, 3), stride)
    expected = convolve(np.asarray(back), np.asarray(kernel), stride, pads, np.asarray(y)).images_gradient
    np.testing.assert_allclose(back, expected, rtol=0, atol=1e-4)


def assert_depthwise_convolution(images: Array, kernel: Array, stride: int, padding: kernels.Padding) -> None:
    """Its dense kernel is diagonal in the channels."""
    channels = images.shape[3]
    dense = np.asarray(kernel) * np.eye(channels, dtype=np.float32)
    pads = pads_of(padding, images.shape[1:3], kernel.shape[:2], stride)
    size = output_size(images.shape[1:3], kernel.shape[:2], stride, pads)
    cotangent = normal(7, len(images), *size, channels)
    value, images_gradient, kernel_gradient = convolve(np.asarray(images), dense, stride, pads, np.asarray(cotangent))
    diagonal = np.einsum("hwcc->hwc", kernel_gradient)[:, :, None]
    assert_value_and_gradients(
        lambda x, w: kernels.depthwise_convolution(x, w, stride, padding),
        (images, kernel),
        cotangent,
        (value, images_gradient, diagonal),
    )


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution(stride: int, padding: kernels.Padding) -> None:
    assert_depthwise_convolution(normal(0, 2, 7, 10, 6), normal(1, 3, 3, 1, 6), stride, padding)


def test_depthwise_convolution_is_compiled_apart_from_its_derivative() -> None:
    """Else XLA fuses the one into each tap of the other, and MobileNetV2's gradient takes five times as long."""

    def loss(x: Array, w: Array) -> Array:
        return jnp.sum(jax.nn.relu6(kernels.depthwise_convolution(jax.nn.relu6(x), w)) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(normal(0, 1, 8, 8, 4), normal(1, 3, 3, 1, 4)).compile()
    assert compiled.as_text().count(" call(") == 2


@settings(max_examples=25)
@example(height=1, width=3, stride=2, kernel=(3, 3), channels=(16, 16), pads=((1, 1), (1, 1)))  # no odd row at all
@example(height=1, width=1, stride=2, kernel=(3, 1), channels=(3, 1), pads=((0, 2), (0, 0)))  # nor of few channels
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.tuples(st.sampled_from([1, 3, 16]), st.sampled_from([1, 3, 16])),
    pads=st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2),
)
def test_any_geometry(
    height: int, width: int, stride: int, kernel: tuple[int, int], channels: tuple[int, int], pads: kernels.Pads
) -> None:
    height, width = max(height, kernel[0] - sum(pads[0])), max(width, kernel[1] - sum(pads[1]))
    images = normal(0, 2, height, width, channels[0])
    assert_convolution(images, normal(1, *kernel, *channels), stride, pads)
    assert_depthwise_convolution(images, normal(1, *kernel, 1, channels[0]), stride, pads)


@pytest.mark.parametrize(
    ("function", "shape"), [(kernels.convolution, (3, 3, 2, 3)), (kernels.depthwise_convolution, (3, 3, 1, 2))]
)
def test_forward_mode(function: Callable, shape: tuple[int, ...]) -> None:
    """The derivative in a direction is linear in it: jvp is the convolution of the tangents."""
    images, kernel, dx, dw = (normal(i, *s) for i, s in enumerate([(1, 6, 6, 2), shape] * 2))
    _, got = jax.jvp(lambda x, w: function(x, w, 2), (images, kernel), (dx, dw))
    expected = function(dx, kernel, 2) + function(images, dw, 2)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_vmap_and_scan_give_the_same() -> None:
    images, weights = normal(0, 4, 2, 8, 8, 3), normal(1, 4, 3, 3, 3, 5)

    def loss(x: Array, w: Array) -> Array:
        filtered = kernels.depthwise_convolution(x, w[:, :, :1, :3])
        return jnp.sum(jnp.sin(kernels.convolution_transpose(kernels.convolution(filtered, w, 2), w, 2)))

    gradient = jax.grad(loss, argnums=(0, 1))
    one_by_one = [gradient(x, w) for x, w in zip(images, weights, strict=True)]
    _, scanned = jax.jit(lambda x, w: lax.scan(lambda c, xw: (c, gradient(*xw)), 0, (x, w)))(images, weights)
    for together in (jax.jit(jax.vmap(gradient))(images, weights), scanned):
        for argument in range(2):
            expected = jnp.stack([g[argument] for g in one_by_one])
            np.testing.assert_allclose(together[argument], expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("function", "shape", "groups"),
    [(kernels.convolution, (3, 3, 2, 3), 1), (kernels.depthwise_convolution, (3, 3, 1, 2), 2)],
)
def test_second_derivatives(function: Callable, shape: tuple[int, ...], groups: int) -> None:
    images, kernel, direction = normal(0, 1, 6, 6, 2), normal(1, *shape), normal(2, 1, 6, 6, 2)

    def curvature(f: Callable) -> Array:
        slope = jax.grad(lambda x, w: jnp.sum(f(x, w) ** 3))
        return jax.jit(jax.grad(lambda x, w: jnp.vdot(slope(x, w), direction), argnums=(0, 1)))(images, kernel)

    ours = curvature(lambda x, w: function(x, w, 2))
    layout = ("NHWC", "HWIO", "NHWC")
    theirs = curvature(
        lambda x, w: lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=layout, feature_group_count=groups
        )
    )
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(
    ("function", "shape", "with_xla"),
    [
        (kernels.convolution, (3, 3, 3, 5), {"tpu"}),
        (kernels.convolution_transpose, (3, 3, 5, 3), {"tpu"}),
        (kernels.convolution, (1, 1, 3, 5), {"tpu", "cuda"}),
        (kernels.depthwise_convolution, (3, 3, 1, 3), {"tpu", "cuda"}),
    ],
)
def test_every_platform_gets_its_form(function: Callable, shape: tuple[int, ...], with_xla: set[str]) -> None:
    """XLA's own convolutions, in value and gradients, or none at all."""

    def loss(x: Array, w: Array) -> Array:
        return jnp.sum(jnp.sin(function(x, w, 2)))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(normal(0, 2, 8, 8, 3), normal(1, *shape))
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        expected = 3 if platform in {*with_xla, "rocm"} else 0
        assert text.count("stablehlo.convolution") == expected, platform


@pytest.mark.unchecked
def test_wrong_shapes_are_named() -> None:
    images = normal(0, 1, 6, 6, 2)
    with pytest.raises(ValueError, match="2 channels, the kernel expects 3"):
        kernels.convolution(images, normal(1, 3, 3, 3, 4))
    with pytest.raises(ValueError, match="2 channels, the kernel expects 4"):
        kernels.convolution_transpose(images, normal(1, 3, 3, 3, 4))
    with pytest.raises(ValueError, match="depthwise kernel for 2 channels"):
        kernels.depthwise_convolution(images, normal(1, 3, 3, 2, 2))
    with pytest.raises(ValueError, match="feature_group_count is 3"):
        kernels.conv_general_dilated(
            normal(0, 1, 6, 6, 6), normal(1, 3, 3, 2, 6), (1, 1), "SAME", feature_group_count=3
        )
    with pytest.raises(ValueError, match="strides"):
        kernels.conv_general_dilated(images, normal(1, 3, 3, 2, 2), (1, 2), "SAME")
