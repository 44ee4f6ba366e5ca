"""MobileNetV2 as Keras defines it (Sandler et al. 2018, arXiv 1801.04381).

| part | layers |
| --- | --- |
| stem | Conv 3×3 stride 2, 32 |
| 17 blocks | expansion 1×1 to 6 times the channels (not in the first), depthwise 3×3, projection 1×1 |
| end | Conv 1×1 to 1280, mean over pixels, Dropout, Dense |

Every convolution is without bias and followed by BatchNorm; ReLU6 comes after all but projections. A block adds its
input where that has its output's shape. Channels are multiplied by `alpha` and rounded to multiples of 8. Layers carry
Keras's names.

"SAME" pads a stride-2 layer as Keras's `correct_pad` does: (0, 1) for an even size, (1, 1) for an odd one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from latentlab.arrays import AnyArray
from latentlab.kernels.convolution import conv_general_dilated

EXPANSION = 6
GROUPS = ((16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1))
"""Channels, stride of the first block, and number of blocks."""


class MobileNetV2(nn.Module):
    """Images to logits, or to features where there is no top. What range images have, its weights decide.

    Attributes:
        alpha: Width of the network; Keras publishes weights for 0.35, 0.5, 0.75, 1, 1.3 and 1.4.
        classes: Number of logits; None gives the last feature map, to put another head on.
        dropout: Share of the pooled features that is dropped in training.
    """

    alpha: float = 1.0
    classes: int | None = 1000
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[AnyArray, "batch height width 3"], *, train: bool = False
    ) -> Float[Array, "batch classes"] | Float[Array, "batch H W features"]:
        hidden = _activated(
            _layer(images, multiple_of_8(32 * self.alpha), "Conv1", "bn_Conv1", train, size=3, stride=2)
        )
        index = 0
        for features, stride, count in GROUPS:
            wide = multiple_of_8(int(features * self.alpha))
            for repeat in range(count):
                hidden = _block(hidden, wide, 1 if repeat else stride, index, train)
                index += 1
        last = multiple_of_8(1280 * max(self.alpha, 1.0))
        hidden = _activated(_layer(hidden, last, "Conv_1", "Conv_1_bn", train))
        if self.classes is None:
            return hidden
        pooled = nn.Dropout(self.dropout, deterministic=not train)(jnp.mean(hidden, axis=(1, 2)))
        return nn.Dense(self.classes, name="predictions")(pooled)


def multiple_of_8(channels: float) -> int:
    """Round to a multiple of 8, at least 8, and up where rounding would lose more than a tenth."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _block(
    inputs: Float[Array, "batch h w in"], features: int, stride: int, index: int, train: bool
) -> Float[Array, "batch H W out"]:
    """Expand, filter, project (an inverted residual)."""
    prefix, hidden = f"block_{index}" if index else "expanded_conv", inputs
    if index:
        wide = EXPANSION * inputs.shape[3]
        hidden = _activated(_layer(hidden, wide, f"{prefix}_expand", f"{prefix}_expand_BN", train))
    depthwise = f"{prefix}_depthwise"
    wide = hidden.shape[3]
    hidden = _activated(_layer(hidden, wide, depthwise, f"{depthwise}_BN", train, size=3, stride=stride, groups=wide))
    hidden = _layer(hidden, features, f"{prefix}_project", f"{prefix}_project_BN", train)
    return inputs + hidden if inputs.shape == hidden.shape else hidden


def _layer(
    inputs: Float[AnyArray, "batch h w in"],
    features: int,
    name: str,
    norm: str,
    train: bool,
    size: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> Float[Array, "batch H W out"]:
    """Apply a convolution without bias and its BatchNorm, both with Keras's name."""
    keywords: dict[str, Any] = {"use_bias": False, "feature_group_count": groups, "name": name}
    convolution = nn.Conv(
        features, (size, size), (stride, stride), conv_general_dilated=conv_general_dilated, **keywords
    )
    return nn.BatchNorm(not train, momentum=0.999, epsilon=1e-3, name=norm)(convolution(inputs))


def _activated(hidden: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w channels"]:
    return jax.nn.relu6(hidden)
