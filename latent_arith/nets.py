"""Encoder and decoder of the 128×128×3 face VAE, and a classifier: this experiment's only module that imports Flax.

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

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from kernels.convolution import conv_general_dilated
from kernels.materialized import materialized
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
            hidden = _block(convolution, hidden, f"encoder_norm_{index}", self.dropout if index else 0, train)
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
            hidden = _block(convolution, hidden, f"decoder_norm_t{index}", self.dropout, train)
        return ConvTranspose(3, 2, name="decoder_conv_t3")(hidden)


class Dropout(nn.Module):
    """Zeroes a share of the activations at random and divides the others by 1 - share, which keeps the expectation.

    Flax's own draws a float for every activation, which took a fifth of a training step on CPU. Here four activations
    share a random word if the share is a multiple of 1/256, and it is still met exactly.

    Attributes:
        rate: Share that is dropped.
        deterministic: Drop nothing, and need no key.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, inputs: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        if self.deterministic or self.rate == 0:
            return inputs
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        width = 8 if (256 * self.rate).is_integer() else 32
        # jax.random.bits would spend a whole word on every byte.
        words = jax.random.bits(self.make_rng("dropout"), (-(-inputs.size * width // 32),), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.dtype(f"uint{width}")).ravel()
        kept = bits[: inputs.size].reshape(inputs.shape) >= jnp.asarray(round(self.rate * 2**width), bits.dtype)
        return jnp.where(kept, inputs / (1 - self.rate), 0)


def _block(
    convolution: Callable[[Array], Array],
    images: Float[Array, "batch h w channels"],
    norm: str,
    dropout: float,
    train: bool,
) -> Float[Array, "batch h w channels"]:
    """Convolution, BatchNorm, LeakyReLU and Dropout.

    The variance takes a second pass, for E[x²] - E[x]² cancels in float32. In training, what comes of the
    convolution and of the block is written to memory, and so are their cotangents: convolutions and the gradient of
    BatchNorm read them several times over.
    """
    written = materialized if train else lambda hidden: hidden
    hidden = written(convolution(images))
    hidden = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, use_fast_variance=False, name=norm)(hidden)
    hidden = jax.nn.leaky_relu(hidden, SLOPE)
    if dropout:
        hidden = Dropout(dropout, deterministic=not train)(hidden)
    return written(hidden)


class AttributeClassifier(nn.Module):
    """Images in [0, 1] to logits of attributes and to factors in units of their standard deviation.

    Images are averaged down to 64×64; every patch of 4×4 goes through a Dense layer, then come two Conv 3×3 stride 2
    and a Dense layer. Each is followed by LayerNorm, which unlike BatchNorm sees only one image, and by GELU.

    Attributes:
        attributes: Number of attributes.
        factors: Number of factors, 0 where none are known.
        side: Size that images are averaged down to; theirs is a multiple of it.
    """

    attributes: int
    factors: int = 0
    side: int = 64

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> tuple[Float[Array, "batch attributes"], Float[Array, "batch factors"]]:
        batch, patches = len(images), self.side // 4
        hidden = (self.averaged(images) - 0.5) * 4
        hidden = hidden.reshape(batch, patches, 4, patches, 4, 3).swapaxes(2, 3).reshape(batch, patches, patches, 48)
        hidden = nn.gelu(nn.LayerNorm()(nn.Dense(48)(hidden)))
        for features in (96, 128):
            convolution = nn.Conv(features, (3, 3), (2, 2), conv_general_dilated=conv_general_dilated)
            hidden = nn.gelu(nn.LayerNorm()(convolution(hidden)))
        hidden = nn.gelu(nn.LayerNorm()(nn.Dense(256)(hidden.reshape(batch, -1))))
        outputs = nn.Dense(self.attributes + self.factors)(hidden)
        return outputs[:, : self.attributes], outputs[:, self.attributes :]

    def averaged(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch side side 3"]:
        """Means of squares of pixels, `side` of them on a side; images of that size stay as they are."""
        square = images.shape[1] // self.side
        return images.reshape(len(images), self.side, square, self.side, square, 3).mean(axis=(2, 4))
