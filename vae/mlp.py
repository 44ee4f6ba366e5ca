"""Networks of dense layers, as the papers that report bounds on log p(x) of binarised digits have them.

By default those of Burda, Grosse & Salakhutdinov 2016 (arXiv 1509.00519), one stochastic layer: 784-200-200-50 and
back, tanh.
"""

from collections.abc import Callable, Sequence
from math import prod

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from latentlab.model import Images, Latents
from vae.model import GLOROT, IMAGE_SHAPE, LATENT_DIM

WIDTHS = (200, 200)


class Encoder(nn.Module):
    """Images in [0, 1] to the outputs of linear heads on dense layers; see `vae.model.Encoder`."""

    heads: Sequence[str]
    latent_dim: int = LATENT_DIM
    widths: Sequence[int] = WIDTHS
    activation: Callable[[Array], Array] = jnp.tanh

    @nn.compact
    def __call__(self, images: Images) -> tuple[Latents, ...]:
        hidden = images.reshape(images.shape[0], -1)
        for index, width in enumerate(self.widths):
            hidden = self.activation(nn.Dense(width, kernel_init=GLOROT, name=f"dense_{index}")(hidden))
        return tuple(nn.Dense(self.latent_dim, kernel_init=GLOROT, name=head)(hidden) for head in self.heads)


class Decoder(nn.Module):
    """Latents to the logits of the pixels."""

    image_shape: tuple[int, int, int] = IMAGE_SHAPE
    widths: Sequence[int] = WIDTHS
    activation: Callable[[Array], Array] = jnp.tanh

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        hidden = latents
        for index, width in enumerate(self.widths):
            hidden = self.activation(nn.Dense(width, kernel_init=GLOROT, name=f"dense_{index}")(hidden))
        pixels = nn.Dense(prod(self.image_shape), kernel_init=GLOROT, name="pixels")(hidden)
        return pixels.reshape(-1, *self.image_shape)
