"""Two-dimensional convolutions, each in the form that its platform runs fastest.

On TPU all of them are XLA's own convolutions. On CPU and CUDA they are matrix products between
shifted copies of the input and shifted sums of the output. XLA's CPU backend runs convolutions
slowly, and inside `scan` and `while` several times slower still (`benchmarks/README.md`). On an
H100 cuDNN takes these small ones apart into Fourier transforms and changes of layout, between
which no CUDA graph can be formed: a training step of the face VAE took 3.9 ms with its
convolutions and 1.3 ms with products, one of the digits' VAE 0.65 and 0.37 ms. The choice is made
at lowering time (`jax.lax.platform_dependent`), so one jitted function runs everywhere, under
`vmap`, `grad`, `jvp` and `scan`.

With images x, kernel w and output y, a convolution is

    y[q] = Σ_d x[stride · q + d - low] w[d],        low = the padding before the first row,

and its transpose is the adjoint in x. In a form of products the sum over the taps d of either axis can be taken
before the matrix product, by laying shifted copies of x side by side, or after it, by adding
shifted slices of the product. A square kernel with about as many input as output channels does
one axis before and one after: three copies and three sums instead of nine of either. Derivatives
and the transpose are JAX's own: what is copied going forward is summed going back.

Images are (batch, height, width, channels), kernels (height, width, in, out). Padding is "SAME"
as TensorFlow means it (stride 2 on an even size pads 0 before and 1 after), "VALID", or
((top, bottom), (left, right)) in pixels.
"""

import itertools
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Float

from latentlab.arrays import AnyArray

Padding = str | Sequence[tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]
Size = tuple[int, ...]

LAYOUT = ("NHWC", "HWIO", "NHWC")
FEW_CHANNELS = 8  # fewer are copied for neighbouring taps together


def convolution(
    images: Float[AnyArray, "batch height width in"],
    kernel: Float[AnyArray, "kernel_height kernel_width in out"],
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
    images: Float[AnyArray, "batch height width in"],
    kernel: Float[AnyArray, "kernel_height kernel_width out in"],
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
    inputs = jax.ShapeDtypeStruct((images.shape[0], *size, kernel.shape[2]), images.dtype)
    (transposed,) = jax.linear_transpose(lambda x: _convolution(x, kernel, stride, pads), inputs)(images)
    return transposed


def depthwise_convolution(
    images: Float[AnyArray, "batch height width channels"],
    kernel: Float[AnyArray, "kernel_height kernel_width 1 channels"],
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
        cpu=partial(_depthwise_sum, stride=stride, pads=pads),
        default=partial(xla_convolution, stride=stride, pads=pads, groups=images.shape[3]),
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
    """Compute `convolution`, called as linen's `nn.Conv` calls its `conv_general_dilated=`.

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


def _convolution(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Array:
    xla = partial(xla_convolution, stride=stride, pads=pads)
    if kernel.shape[:2] == (1, 1):  # for cuDNN a product as it is
        pointwise = partial(_product_of_pixels, stride=stride, pads=pads)
        return lax.platform_dependent(images, kernel, cpu=pointwise, default=xla)
    products = partial(_products_of_windows, stride=stride, pads=pads)
    return lax.platform_dependent(images, kernel, cpu=products, cuda=products, default=xla)


def _product_of_pixels(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Array:
    """Compute a convolution of one tap, in few operations: JAX traces and differentiates each, layer by layer."""
    padded = _padded(images, pads)
    return (padded if stride == 1 else padded[:, ::stride, ::stride]) @ kernel[0, 0]


def xla_convolution(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads, groups: int = 1) -> Array:
    """Compute a convolution by XLA's own; with as many groups as channels it is depthwise."""
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), pads, dimension_numbers=LAYOUT, feature_group_count=groups
    )


def _products_of_windows(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Array:
    """Sum over taps along some axes before the matrix product and along the others after it.

    Axes summed afterwards are taken apart into `stride` phases of the input, for a row of the
    input meets only every `stride`-th tap.
    """
    size = _output_size(images, kernel, stride, pads)
    summed = _axes_summed_after(kernel.shape, stride)
    gathered = [axis for axis in (0, 1) if axis not in summed]
    terms = []
    for phases in itertools.product(range(stride), repeat=len(summed)):
        windows, weights = [images], kernel
        offsets = [[tap - pads[axis][0] for tap in range(kernel.shape[axis])] for axis in (0, 1)]
        for axis, phase in zip(summed, phases, strict=True):
            first = (pads[axis][0] + phase) % stride
            weights = _phase(weights, axis, first, stride)
            windows = [_phase(windows[0], axis + 1, phase, stride)]
            offsets[axis] = [(offset - phase) // stride for offset in offsets[axis][first::stride]]
        if not weights.size:
            continue
        if 0 in gathered:
            windows = [_window(x, 1, tap, size[0], stride) for x in windows for tap in offsets[0]]
        if 1 in gathered:
            windows = [window for x in windows for window in _windows_in_row(x, offsets[1], size[1], stride)]
        columns = jnp.concatenate(windows, axis=3) if len(windows) > 1 else windows[0]
        matrix = weights.transpose(*gathered, 2, *summed, 3).reshape(columns.shape[3], -1)
        products = columns.reshape(-1, columns.shape[3]) @ matrix
        products = products.reshape(*columns.shape[:3], matrix.shape[1])
        shifts = list(itertools.product(*(offsets[axis] for axis in summed)))
        for term, shift in zip(lax.split(products, [kernel.shape[3]] * len(shifts), 3), shifts, strict=True):
            for axis, offset in zip(summed, shift, strict=True):
                term = _shifted(term, axis + 1, offset, size[axis])
            terms.append(term)
    return reduce(jnp.add, terms)


def _axes_summed_after(kernel: Size, stride: int) -> tuple[int, ...]:
    """Return the axes whose taps are summed after the product: those that move the fewest numbers.

    Counted per output pixel: a copy is written and read twice (shifted, then concatenated), a product once.
    """
    height, width, channels, features = kernel
    costs = {
        (): 2 * height * width * channels + features,
        (0,): 2 * stride * width * channels + height * features,
        (0, 1): 2 * (stride**2 - 1) * channels + height * width * features,
    }
    return min(costs, key=lambda axes: costs[axes])


def _depthwise_sum(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Array:
    """Return the weighted sum of all windows, compiled apart from its neighbours.

    XLA's CPU backend fuses what comes before a window into it and computes it once for every tap: in a network's
    gradient, all taps of the forward pass for every tap of the backward one. It drops optimization barriers before it
    fuses, but keeps a call that is not to be inlined, and those of its derivative and transpose. The checkpoint keeps
    the images for the kernel's gradient, not a copy for every tap.
    """
    with set_xla_metadata(inlineable="false"):
        return sum_of_windows(images, kernel, stride, pads)


@partial(jax.jit, static_argnums=(2, 3))
@partial(jax.checkpoint, static_argnums=(2, 3))
def sum_of_windows(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Array:
    """Compute a depthwise convolution as the sum of its taps' windows, each times its weight."""
    height, width = _output_size(images, kernel, stride, pads)
    padded = _padded(images, pads)
    batch, _, _, channels = images.shape
    rows, columns = (range(n) for n in kernel.shape[:2])
    weights = lax.split(kernel.reshape(-1, 1, 1, channels), [1] * (len(rows) * len(columns)))
    terms = []
    for weight, (row, column) in zip(weights, itertools.product(rows, columns), strict=True):
        last = (batch, row + stride * (height - 1) + 1, column + stride * (width - 1) + 1, channels)
        terms.append(lax.slice(padded, (0, row, column, 0), last, (1, stride, stride, 1)) * weight)
    return reduce(jnp.add, terms)


def _padded(images: AnyArray, pads: Pads) -> AnyArray:
    if pads == ((0, 0), (0, 0)):
        return images
    return lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)])


def _output_size(images: AnyArray, kernel: AnyArray, stride: int, pads: Pads) -> Size:
    height, width = (
        (n + sum(p) - k) // stride + 1 for n, p, k in zip(images.shape[1:3], pads, kernel.shape[:2], strict=True)
    )
    return height, width


def _windows_in_row(images: AnyArray, taps: Sequence[int], size: int, stride: int) -> list[Array]:
    """Return the windows of neighbouring taps along the rows, channels in the order of the taps.

    Copies of one to three numbers are slow. Where pixels have few channels, `stride` neighbours become one pixel of
    `stride` times as many, and taps that meet the same one are copied together.
    """
    batch, height, width, channels = images.shape
    if channels >= FEW_CHANNELS:
        return [_window(images, 2, tap, size, stride) for tap in taps]
    filled = lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), (0, 0, 0), (0, -width % stride, 0), (0, 0, 0)])
    wide = filled.reshape(batch, height, filled.shape[2] // stride, stride * channels)
    windows = []
    for offset, together in itertools.groupby(taps, lambda tap: tap // stride):
        phases = [tap % stride for tap in together]
        window = wide[..., phases[0] * channels : (phases[-1] + 1) * channels]
        windows.append(_shifted(window, 2, offset, size))
    return windows


def _window(images: AnyArray, axis: int, tap: int, size: int, stride: int) -> Array:
    """x[stride · i + tap] for i = 0 … size - 1 along an axis, zero outside the images."""
    return _shifted(_phase(images, axis, tap % stride, stride), axis, tap // stride, size)


def _phase(images: AnyArray, axis: int, phase: int, stride: int) -> Array:
    """x[stride · i + phase] along an axis."""
    return images if stride == 1 else lax.slice_in_dim(images, min(phase, images.shape[axis]), None, stride, axis)


def _shifted(images: AnyArray, axis: int, offset: int, size: int) -> Array:
    """x[i + offset] for i = 0 … size - 1 along an axis, zero outside the images."""
    if not offset and size == images.shape[axis]:
        return images
    padding = [(0, 0, 0)] * images.ndim
    padding[axis] = (-offset, size - images.shape[axis] + offset, 0)
    return lax.pad(images, jnp.zeros((), images.dtype), padding)
