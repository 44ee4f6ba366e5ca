"""Encoder and decoder of the MNIST autoencoder and VAE: the only module of this experiment that imports Flax.

| part | layers |
| --- | --- |
| encoder | Conv 3×3: 32 stride 1, 64 stride 2, 64 stride 2, 64 stride 1, LeakyReLU 0.3 each; flatten; Dense heads |
| decoder | Dense 3136; ConvTranspose 3×3: 64 stride 1, 64 stride 2, 32 stride 2, LeakyReLU 0.3 each; 1 stride 1 |

Kernels start Glorot-uniform and biases zero, as in Keras; weights have Keras's shapes and axis
order, so they can be copied over one to one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from kernels.convolution import conv_general_dilated, convolution_transpose

GLOROT = nn.initializers.glorot_uniform()
SLOPE = 0.3
BOTTOM = (7, 7, 64)


class ConvTranspose(nn.Module):
    """Transposed 3×3 convolution, SAME, with Keras's kernel layout (height, width, out, in)."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, images: Float[Array, "batch h w in"]) -> Float[Array, "batch H W out"]:
        kernel = self.param("kernel", GLOROT, (3, 3, self.features, images.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolution_transpose(images, kernel, self.stride) + bias.reshape(1, 1, 1, -1)


class Encoder(nn.Module):
    """Images in [0, 1] to the outputs of linear heads on one convolutional body.

    The autoencoder's encoder has the head `z`, the VAE's has `mean` and `log_variance`.
    """

    heads: Sequence[str]
    latent_dim: int

    @nn.compact
    def __call__(self, images: Float[Array, "batch 28 28 1"]) -> tuple[Float[Array, "batch latent"], ...]:
        hidden = images
        for index, (features, stride) in enumerate(((32, 1), (64, 2), (64, 2), (64, 1))):
            convolution = nn.Conv(
                features,
                (3, 3),
                (stride, stride),
                kernel_init=GLOROT,
                conv_general_dilated=conv_general_dilated,
                name=f"conv_{index}",
            )
            hidden = jax.nn.leaky_relu(convolution(hidden), SLOPE)
        hidden = hidden.reshape(hidden.shape[0], -1)
        return tuple(nn.Dense(self.latent_dim, kernel_init=GLOROT, name=head)(hidden) for head in self.heads)


class Decoder(nn.Module):
    """Latent points to the logits of the pixels; `jax.nn.sigmoid` of them are images in [0, 1].

    Logits, because cross-entropy is stable in them and only in them.
    """

    @nn.compact
    def __call__(self, latents: Float[Array, "batch latent"]) -> Float[Array, "batch 28 28 1"]:
        hidden = nn.Dense(7 * 7 * 64, kernel_init=GLOROT, name="dense")(latents)
        hidden = jnp.reshape(hidden, (-1, *BOTTOM))
        for index, (features, stride) in enumerate(((64, 1), (64, 2), (32, 2))):
            hidden = jax.nn.leaky_relu(ConvTranspose(features, stride, name=f"conv_t_{index}")(hidden), SLOPE)
        return ConvTranspose(1, name="conv_t_3")(hidden)
