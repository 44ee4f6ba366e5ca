"""The networks of keras.io's example of a VAE, whose losses on all of MNIST are published there.

| part | layers |
| --- | --- |
| encoder | Conv 3×3 stride 2: 32, 64, ReLU each; flatten; Dense 16, ReLU; Dense heads |
| decoder | Dense to 1/4 of each side, 64 channels, ReLU; ConvTranspose 3×3 stride 2: 64, 32, ReLU each; 1 stride 1 |

Source: keras.io/examples/generative/vae (F. Chollet, 2020).
"""

from collections.abc import Sequence
from math import prod

import jax
from flax import linen as nn

from latentlab.kernels.convolution import conv_general_dilated
from latentlab.model import Images, Latents
from vae.model import GLOROT, IMAGE_SHAPE, LATENT_DIM, ConvTranspose


class Encoder(nn.Module):
    """Images in [0, 1] to the outputs of linear heads on one convolutional body; see `vae.model.Encoder`."""

    heads: Sequence[str]
    latent_dim: int = LATENT_DIM

    @nn.compact
    def __call__(self, images: Images) -> tuple[Latents, ...]:
        hidden = images
        for index, features in enumerate((32, 64)):
            convolution = nn.Conv(
                features,
                (3, 3),
                (2, 2),
                kernel_init=GLOROT,
                conv_general_dilated=conv_general_dilated,
                name=f"conv_{index}",
            )
            hidden = jax.nn.relu(convolution(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = jax.nn.relu(nn.Dense(16, kernel_init=GLOROT, name="dense")(hidden))
        return tuple(nn.Dense(self.latent_dim, kernel_init=GLOROT, name=head)(hidden) for head in self.heads)


class Decoder(nn.Module):
    """Latents to the logits of the pixels; height and width are multiples of 4."""

    image_shape: tuple[int, int, int] = IMAGE_SHAPE

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        height, width, channels = self.image_shape
        bottom = (height // 4, width // 4, 64)
        hidden = jax.nn.relu(nn.Dense(prod(bottom), kernel_init=GLOROT, name="dense")(latents))
        hidden = hidden.reshape(-1, *bottom)
        for index, features in enumerate((64, 32)):
            hidden = jax.nn.relu(ConvTranspose(features, 2, name=f"conv_t_{index}")(hidden))
        return ConvTranspose(channels, name="conv_t_2")(hidden)
