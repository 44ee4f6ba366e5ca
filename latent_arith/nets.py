"""Encoder and decoder of the 128×128×3 face VAE: the only module of this experiment that imports Flax.

| part | layers |
| --- | --- |
| encoder | 4 × (Conv 3×3 stride 2, BatchNorm, LeakyReLU 0.3, Dropout): 32, 64, 64, 64; flatten; two Dense 200 |
| decoder | Dense 4096; 3 × (ConvTranspose 3×3 stride 2, BatchNorm, LeakyReLU 0.3, Dropout): 64, 64, 32; 3 stride 2 |

There is no Dropout after the encoder's first block. Kernels start Glorot-uniform and biases
zero. Convolutions and heads have the names of the Keras models that weights come from, and
weights Keras's shapes and axis order, so they can be copied over one to one. Variables are
`{"params": ..., "batch_stats": ...}`; the running variance follows that of the batch divided by
n, as in Keras 3.

With `train`, BatchNorm takes the statistics of the batch and moves the running ones (apply with
`mutable=["batch_stats"]`), and Dropout draws from the `dropout` key, one for each network;
without it the running statistics are used and nothing is dropped. A trap, measured in Keras 2
and 3: a custom `train_step` that calls `self.encoder(data)` without `training=True` leaves
BatchNorm and Dropout inert for the whole training, and the moving mean stays exactly 0. Hence
`train` has no default here: it is true in the loss, false when encoding and decoding.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from kernels.convolution import conv_general_dilated
from vae.nets import GLOROT, SLOPE, ConvTranspose

LATENT_DIM = 200
BOTTOM = (8, 8, 64)


class Encoder(nn.Module):
    """Images in [0, 1] to mean and log variance of the posterior.

    Attributes:
        dropout: Share of the activations that is dropped in training.
    """

    dropout: float = 0.25

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch 128 128 3"], *, train: bool
    ) -> tuple[Float[Array, "batch latent"], Float[Array, "batch latent"]]:
        hidden = images
        for index, features in enumerate((32, 64, 64, 64)):
            convolution = nn.Conv(
                features,
                (3, 3),
                (2, 2),
                kernel_init=GLOROT,
                conv_general_dilated=conv_general_dilated,
                name=f"encoder_conv_{index}",
            )
            hidden = _normalized(convolution(hidden), f"encoder_norm_{index}", train)
            if index:
                hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        hidden = hidden.reshape(hidden.shape[0], -1)
        mean = nn.Dense(LATENT_DIM, kernel_init=GLOROT, name="mu")(hidden)
        log_variance = nn.Dense(LATENT_DIM, kernel_init=GLOROT, name="log_var")(hidden)
        return mean, log_variance


class Decoder(nn.Module):
    """Latent points to the logits of the pixels; `jax.nn.sigmoid` of them are images in [0, 1].

    Attributes:
        dropout: Share of the activations that is dropped in training.
    """

    dropout: float = 0.25

    @nn.compact
    def __call__(self, latents: Float[Array, "batch latent"], *, train: bool) -> Float[Array, "batch 128 128 3"]:
        hidden = nn.Dense(8 * 8 * 64, kernel_init=GLOROT, name="decoder_dense")(latents)
        hidden = jnp.reshape(hidden, (-1, *BOTTOM))
        for index, features in enumerate((64, 64, 32)):
            convolution = ConvTranspose(features, 2, name=f"decoder_conv_t{index}")
            hidden = _normalized(convolution(hidden), f"decoder_norm_t{index}", train)
            hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        return ConvTranspose(3, 2, name="decoder_conv_t3")(hidden)


def _normalized(
    hidden: Float[Array, "batch h w channels"], name: str, train: bool
) -> Float[Array, "batch h w channels"]:
    """BatchNorm and LeakyReLU; the variance takes a second pass, for E[x²] - E[x]² cancels in float32."""
    norm = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, use_fast_variance=False, name=name)
    return jax.nn.leaky_relu(norm(hidden), SLOPE)
