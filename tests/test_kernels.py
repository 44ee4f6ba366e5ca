"""Convolutions against `jax.lax`, in value and in every gradient; they must be the same functions on every platform."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, lax

from kernels import convolution as kernels

LAYOUT = ("NHWC", "HWIO", "NHWC")


def xla_convolution(images: Array, kernel: Array, stride: int, padding: kernels.Padding, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def xla_transpose(images: Array, kernel: Array, stride: int, padding: kernels.Padding) -> Array:
    return lax.conv_transpose(
        images, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, transpose_kernel=True
    )


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_same_function(ours: Callable, theirs: Callable, *arguments: Array) -> None:
    """Values and all gradients agree to 1e-5 of the largest entry."""

    def value_and_gradients(function: Callable) -> tuple[Array, ...]:
        value, pull = jax.vjp(function, *arguments)
        return value, *pull(normal(7, *value.shape))

    got, want = (jax.jit(value_and_gradients, static_argnums=0)(function) for function in (ours, theirs))
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


PADDINGS = ["SAME", "VALID", ((1, 1), (2, 0))]


@pytest.mark.parametrize("channels", [(3, 5), (64, 2), (1, 8)], ids=str)
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(1, 1, "SAME"), (1, 2, ((0, 1), (1, 0))), *((3, stride, padding) for stride in (1, 2) for padding in PADDINGS)],
    ids=str,
)
def test_convolution(size: int, stride: int, padding: kernels.Padding, channels: tuple[int, int]) -> None:
    assert_same_function(
        lambda x, w: kernels.convolution(x, w, stride, padding),
        lambda x, w: xla_convolution(x, w, stride, padding),
        normal(0, 2, 7, 10, channels[0]),
        normal(1, size, size, *channels),
    )


@pytest.mark.parametrize("channels", [(3, 5), (64, 2), (1, 8)], ids=str)
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_convolution_transpose(size: int, stride: int, channels: tuple[int, int]) -> None:
    assert_same_function(
        lambda x, w: kernels.convolution_transpose(x, w, stride),
        lambda x, w: xla_transpose(x, w, stride, "SAME"),
        normal(0, 2, 7, 10, channels[0]),
        normal(1, size, size, *channels[::-1]),
    )


@pytest.mark.parametrize("padding", ["VALID", ((0, 1), (0, 1)), ((1, 0), (1, 1))], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_transpose_is_the_adjoint(stride: int, padding: kernels.Padding) -> None:
    """⟨conv(x), y⟩ = ⟨x, conv_transpose(y)⟩ for every x and y."""
    kernel = normal(0, 3, 3, 4, 5)
    y = normal(1, 2, 4, 6, 5)
    back = kernels.convolution_transpose(y, kernel, stride, padding)
    x = normal(2, *back.shape)
    forward = kernels.convolution(x, kernel, stride, padding)
    assert forward.shape == y.shape
    np.testing.assert_allclose(jnp.vdot(forward, y), jnp.vdot(x, back), rtol=1e-4)


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolution(stride: int, padding: kernels.Padding) -> None:
    assert_same_function(
        lambda x, w: kernels.depthwise_convolution(x, w, stride, padding),
        lambda x, w: xla_convolution(x, w, stride, padding, groups=6),
        normal(0, 2, 7, 10, 6),
        normal(1, 3, 3, 1, 6),
    )


@settings(max_examples=6, deadline=None)
@given(
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    stride=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
def test_any_geometry(height: int, width: int, stride: int, kernel: tuple[int, int], pads: kernels.Pads) -> None:
    assert_same_function(
        lambda x, w: kernels.convolution(x, w, stride, pads),
        lambda x, w: xla_convolution(x, w, stride, pads),
        normal(0, 2, height, width, 3),
        normal(1, *kernel, 3, 2),
    )


def test_vmap_and_scan_give_the_same() -> None:
    images, weights = normal(0, 4, 2, 8, 8, 3), normal(1, 4, 3, 3, 3, 5)

    def loss(x: Array, w: Array) -> Array:
        return jnp.sum(jnp.sin(kernels.convolution_transpose(kernels.convolution(x, w, 2), w, 2)))

    gradient = jax.grad(loss, argnums=(0, 1))
    one_by_one = [gradient(x, w) for x, w in zip(images, weights, strict=True)]
    _, scanned = jax.jit(lambda x, w: lax.scan(lambda c, xw: (c, gradient(*xw)), 0, (x, w)))(images, weights)
    for together in (jax.jit(jax.vmap(gradient))(images, weights), scanned):
        for argument in range(2):
            expected = jnp.stack([g[argument] for g in one_by_one])
            np.testing.assert_allclose(together[argument], expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_second_derivatives() -> None:
    images, kernel, direction = normal(0, 1, 6, 6, 2), normal(1, 3, 3, 2, 3), normal(2, 1, 6, 6, 2)

    def curvature(f: Callable) -> Array:
        slope = jax.grad(lambda x, w: jnp.sum(f(x, w) ** 3))
        return jax.grad(lambda x, w: jnp.vdot(slope(x, w), direction), argnums=(0, 1))(images, kernel)

    ours = curvature(lambda x, w: kernels.convolution(x, w, 2))
    theirs = curvature(lambda x, w: xla_convolution(x, w, 2, "SAME"))
    for got, want in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_xla_convolutions_and_the_cpu_gets_none(platform: str) -> None:
    def loss(x: Array, w: Array) -> Array:
        return jnp.sum(kernels.convolution_transpose(kernels.convolution(x, w, 2), w, 2))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(normal(0, 2, 8, 8, 3), normal(1, 3, 3, 3, 5))
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()


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
