"""Two-dimensional convolutions, each in the form that its platform runs fastest.

On GPU and TPU all of them are XLA's own convolutions. On CPU they are matrix products over
shifted copies of the input, because XLA's CPU backend runs convolutions slowly, and inside
`scan` and `while` several times slower still (`benchmarks/README.md`). The choice is made at lowering time
(`jax.lax.platform_dependent`), so one jitted function runs everywhere, under `vmap`, `grad`
and `scan`.

With images x, kernel w and output y, everything follows from one bilinear relation,

    y[q] = Σ_d x[stride · q + d - low] w[d],        low = the padding before the first row,

and its two adjoints: the transposed convolution (from y to x) and the kernel's gradient (from
x and y to w). The three are each other's derivatives, so reverse-mode differentiation of any
order stays on the fast path. Forward mode (`jvp`) works for the depthwise convolution only.

Images are (batch, height, width, channels), kernels (height, width, in, out). Padding is "SAME"
as TensorFlow means it (stride 2 on an even size pads 0 before and 1 after), "VALID", or
((top, bottom), (left, right)) in pixels.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]
Size = tuple[int, ...]

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    images: Float[Array, "batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width in out"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width out"]:
    """Convolution (cross-correlation, as everywhere in the field).

    Raises:
        ValueError: The channels of images and kernel differ, or the padding is not a padding.
    """
    if images.shape[3] != kernel.shape[2]:
        raise ValueError(f"images have {images.shape[3]} channels, the kernel expects {kernel.shape[2]}")
    return _convolution(images, kernel, stride, _pads(padding, images.shape[1:3], kernel.shape[:2], stride))


def convolution_transpose(
    images: Float[Array, "batch height width in"],
    kernel: Float[Array, "kernel_height kernel_width out in"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width out"]:
    """Adjoint of `convolution` with the same kernel, stride and padding, as in Keras's Conv2DTranspose.

    The kernel is that of the convolution it transposes: its last axis meets the channels of
    `images`. "SAME" gives `stride` times the size of `images`; explicit padding p gives
    stride · (size - 1) + kernel - Σp, the smallest size that the convolution maps to `images`.

    Raises:
        ValueError: The channels of images and kernel differ, or the padding is not a padding.
    """
    if images.shape[3] != kernel.shape[3]:
        raise ValueError(f"images have {images.shape[3]} channels, the kernel expects {kernel.shape[3]}")
    if padding == "SAME":
        size = images.shape[1] * stride, images.shape[2] * stride
        pads = _pads(padding, size, kernel.shape[:2], stride)
    else:
        pads = _pads(padding, images.shape[1:3], kernel.shape[:2], stride)
        height, width = (
            stride * (n - 1) + k - sum(p) for n, k, p in zip(images.shape[1:3], kernel.shape[:2], pads, strict=True)
        )
        size = height, width
    return _convolution_transpose(images, kernel, stride, pads, size)


def depthwise_convolution(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width 1 channels"],
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "batch out_height out_width channels"]:
    """Convolution of every channel with a filter of its own (depth multiplier 1).

    Raises:
        ValueError: The channels of images and kernel differ, or the padding is not a padding.
    """
    if kernel.shape[2:] != (1, images.shape[3]):
        raise ValueError(f"a depthwise kernel for {images.shape[3]} channels ends in (1, {images.shape[3]}), "
                         f"not {kernel.shape[2:]}")  # fmt: skip
    pads = _pads(padding, images.shape[1:3], kernel.shape[:2], stride)
    return lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_shifted_sum, stride=stride, pads=pads),
        default=partial(_xla_convolution, stride=stride, pads=pads, groups=images.shape[3]),
    )


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    **unused: Any,
) -> Array:
    """The signature of `jax.lax.conv_general_dilated`, for the `conv_general_dilated=` of linen's `nn.Conv`.

    Raises:
        ValueError: Unequal strides, dilation, or groups that are neither one nor one per channel.
    """
    if len({*window_strides}) != 1 or {*(lhs_dilation or ()), *(rhs_dilation or ())} - {1}:
        raise ValueError(f"strides {window_strides} must be equal and dilations {lhs_dilation}, {rhs_dilation} one")
    if feature_group_count not in (1, lhs.shape[3]):
        raise ValueError(f"feature_group_count is {feature_group_count}, expected 1 or {lhs.shape[3]} (depthwise)")
    depthwise = feature_group_count > 1
    return (depthwise_convolution if depthwise else convolution)(lhs, rhs, window_strides[0], padding)


def _pads(padding: Padding, size: Sequence[int], kernel: Sequence[int], stride: int) -> Pads:
    if isinstance(padding, str):
        (top, bottom), (left, right) = lax.padtype_to_pads(size, kernel, (stride, stride), padding)
    else:
        (top, bottom), (left, right) = padding
    return (int(top), int(bottom)), (int(left), int(right))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(images: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    return lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_cpu_convolution, stride=stride, pads=pads),
        default=partial(_xla_convolution, stride=stride, pads=pads),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolution_transpose(images: Array, kernel: Array, stride: int, pads: Pads, size: Size) -> Array:
    return lax.platform_dependent(
        images,
        kernel,
        cpu=partial(_cpu_transpose, stride=stride, pads=pads, size=size),
        default=partial(_xla_transpose, stride=stride, pads=pads, size=size),
    )


def _kernel_gradient(images: Array, outputs: Array, stride: int, pads: Pads, kernel: Size) -> Array:
    return lax.platform_dependent(
        images,
        outputs,
        cpu=partial(_cpu_kernel_gradient, stride=stride, pads=pads, kernel=kernel),
        default=partial(_xla_kernel_gradient, stride=stride, pads=pads, kernel=kernel),
    )


def _convolution_backward(stride: int, pads: Pads, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        _convolution_transpose(cotangent, kernel, stride, pads, images.shape[1:3]),
        _kernel_gradient(images, cotangent, stride, pads, kernel.shape[:2]),
    )


def _transpose_backward(
    stride: int, pads: Pads, size: Size, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    images, kernel = saved
    return (
        _convolution(cotangent, kernel, stride, pads),
        _kernel_gradient(cotangent, images, stride, pads, kernel.shape[:2]),
    )


_convolution.defvjp(lambda x, w, *static: (_convolution(x, w, *static), (x, w)), _convolution_backward)
_convolution_transpose.defvjp(
    lambda y, w, *static: (_convolution_transpose(y, w, *static), (y, w)), _transpose_backward
)


def _xla_convolution(images: Array, kernel: Array, stride: int, pads: Pads, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _xla_transpose(outputs: Array, kernel: Array, stride: int, pads: Pads, size: Size) -> Array:
    images = jax.ShapeDtypeStruct((outputs.shape[0], *size, kernel.shape[2]), outputs.dtype)
    return jax.linear_transpose(lambda x: _xla_convolution(x, kernel, stride, pads), images)(outputs)[0]


def _xla_kernel_gradient(images: Array, outputs: Array, stride: int, pads: Pads, kernel: Size) -> Array:
    weights = jax.ShapeDtypeStruct((*kernel, images.shape[3], outputs.shape[3]), images.dtype)
    return jax.linear_transpose(lambda w: _xla_convolution(images, w, stride, pads), weights)(outputs)[0]


def _cpu_convolution(images: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    size = _output_size(images, kernel, stride, pads)
    return _correlate(images, kernel, *_taps(kernel.shape[:2], pads), size, stride)


def _cpu_transpose(outputs: Array, kernel: Array, stride: int, pads: Pads, size: Size) -> Array:
    """Interleaves stride² phases x[stride · q + phase], each a convolution of y with the taps that reach it."""
    weights = kernel.swapaxes(2, 3)
    counts = -(-size[0] // stride), -(-size[1] // stride)
    phases = []
    for phase_row in range(stride):
        taps_row = [d for d in range(kernel.shape[0]) if (phase_row + pads[0][0] - d) % stride == 0]
        for phase_column in range(stride):
            taps_column = [d for d in range(kernel.shape[1]) if (phase_column + pads[1][0] - d) % stride == 0]
            if not taps_row or not taps_column:
                phases.append(jnp.zeros((outputs.shape[0], *counts, kernel.shape[2]), outputs.dtype))
                continue
            phases.append(
                _correlate(
                    outputs,
                    jnp.stack([jnp.stack([weights[d, e] for e in taps_column]) for d in taps_row]),
                    [(phase_row + pads[0][0] - d) // stride for d in taps_row],
                    [(phase_column + pads[1][0] - d) // stride for d in taps_column],
                    counts,
                )
            )
    if stride == 1:
        return phases[0]
    pairs = [jnp.stack(phases[i : i + stride], axis=3) for i in range(0, len(phases), stride)]
    images = jnp.stack(pairs, axis=2).reshape(outputs.shape[0], counts[0] * stride, counts[1] * stride, -1)
    return images[:, : size[0], : size[1]]


def _cpu_kernel_gradient(images: Array, outputs: Array, stride: int, pads: Pads, kernel: Size) -> Array:
    """Multiplies with shifted copies of the side with fewer channels; on a tie, those the input's gradient needs."""
    channels, features = images.shape[3], outputs.shape[3]
    if stride == 1 and features <= channels:
        row_taps, column_taps = _taps(kernel, pads)
        shifted = _shifts(outputs, [-t for t in row_taps], [-t for t in column_taps], images.shape[1:3])
        product = images.reshape(-1, channels).T @ shifted.reshape(-1, shifted.shape[-1])
        return product.reshape(channels, *kernel, features).transpose(1, 2, 0, 3)
    shifted = _shifts(images, *_taps(kernel, pads), outputs.shape[1:3], stride)
    product = shifted.reshape(-1, shifted.shape[-1]).T @ outputs.reshape(-1, features)
    return product.reshape(*kernel, channels, features)


def _output_size(images: Array, kernel: Array, stride: int, pads: Pads) -> Size:
    height, width = (
        (n + sum(p) - k) // stride + 1 for n, p, k in zip(images.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    return height, width


def _taps(kernel: Sequence[int], pads: Pads) -> tuple[list[int], list[int]]:
    """Offsets d - low at which the kernel reads the images, by row and by column."""
    return [d - pads[0][0] for d in range(kernel[0])], [d - pads[1][0] for d in range(kernel[1])]


def _correlate(
    images: Array, weights: Array, row_taps: list[int], column_taps: list[int], size: Size, stride: int = 1
) -> Array:
    """y[q] = Σ_d x[stride · q + tap_d] w[d] as one matrix product; x is zero outside.

    The shifted copies are made of the side with fewer numbers: of the input before the product,
    or, where the output has so few channels that all products fit into the input's size, after it.
    """
    height, width, channels, features = weights.shape
    if stride == 1 and height * width * features <= channels:
        matrix = weights.transpose(2, 0, 1, 3).reshape(channels, -1)
        products = (images.reshape(-1, channels) @ matrix).reshape(*images.shape[:3], -1)
        windows = _windows(products, row_taps, column_taps, size)
        return reduce(jnp.add, (w[..., i * features : (i + 1) * features] for i, w in enumerate(windows)))
    shifted = _shifts(images, row_taps, column_taps, size, stride)
    product = shifted.reshape(-1, shifted.shape[-1]) @ weights.reshape(-1, features)
    return product.reshape(images.shape[0], *size, features)


def _shifted_sum(images: Array, kernel: Array, stride: int, pads: Pads) -> Array:
    size = _output_size(images, kernel, stride, pads)
    windows = _windows(images, *_taps(kernel.shape[:2], pads), size, stride)
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
    return reduce(jnp.add, (window * weight for window, weight in zip(windows, weights, strict=True)))


def _shifts(images: Array, row_taps: list[int], column_taps: list[int], size: Size, stride: int = 1) -> Array:
    """Shifted copies side by side: (batch, rows, columns, taps · channels), taps row-major."""
    windows = _windows(images, row_taps, column_taps, size, stride)
    return jnp.concatenate(windows, axis=3) if len(windows) > 1 else windows[0]


def _windows(images: Array, row_taps: list[int], column_taps: list[int], size: Size, stride: int = 1) -> list[Array]:
    """x[stride · q + tap] for every tap, zero outside the images."""
    low, high = zip(
        *(
            (max(0, -min(taps)), max(0, stride * (count - 1) + max(taps) - (extent - 1)))
            for taps, count, extent in zip((row_taps, column_taps), size, images.shape[1:3], strict=True)
        ),
        strict=True,
    )
    padded = jnp.pad(images, ((0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)))

    def span(tap: int, axis: int) -> slice:
        start = tap + low[axis]
        return slice(start, start + stride * (size[axis] - 1) + 1, stride)

    return [padded[:, span(row, 0), span(column, 1)] for row in row_taps for column in column_taps]
