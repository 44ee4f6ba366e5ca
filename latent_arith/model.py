"""The face VAE: its networks, and the pure functions that `latentlab.model.LatentVariableModel` asks for.

| part | layers |
| --- | --- |
| encoder | 4 × (Conv 3×3 stride 2, BatchNorm, LeakyReLU 0.3, Dropout): 32, 64, 64, 64; flatten; two Dense 200 |
| decoder | Dense to 1/16 of each side; 3 × (ConvTranspose 3×3 stride 2, BatchNorm, …): 64, 64, 32; 3 stride 2 |

There is no Dropout after the encoder's first block. Kernels start Glorot-uniform and biases zero. Convolutions and
heads have the names of the Keras models that weights come from, and weights Keras's shapes and axis order, so they can
be copied over one to one. The running variance follows that of the batch divided by n, as in Keras 3.

With `train`, BatchNorm takes the statistics of the batch and moves the running ones (apply with
`mutable=["batch_stats"]`), and Dropout draws from the `dropout` key, one for each network; without it the running
statistics are used and nothing is dropped. A trap, measured in Keras 2 and 3: a custom `train_step` that calls
`self.encoder(data)` without `training=True` leaves BatchNorm and Dropout inert for the whole training, and the moving
mean stays exactly 0. Hence `train` has no default here: it is true in the training loss, false when encoding and
decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from latent_arith.config import LatentArithConfig
from latentlab import parallel
from latentlab.kernels.convolution import conv_general_dilated
from latentlab.kernels.materialize import materialize
from latentlab.kernels.microbatch import microbatch
from latentlab.model import (
    Images,
    Latents,
    LatentVariableModel,
    Loss,
    Variables,
    merge_network_variables,
    normalize,
    select_network_variables,
)
from latentlab.parallel import LocalRows, batched_apply
from latentlab.training.precision import Precision, apply_with_precision
from vae import losses
from vae.model import GLOROT, SLOPE, ConvTranspose

IMAGE_SHAPE = (128, 128, 3)
LATENT_DIM = 200
ENCODER_FILTERS, DECODER_FILTERS = (32, 64, 64, 64), (64, 64, 32)
ROWS, CPU_ROWS = 250, 50
"""Images that a device encodes or decodes in one call; on an H100 a call of 250 takes as long as 1.5 of 50."""
MICROBATCH = 10
"""Images of them at a time, on CPU."""

Pixels = UInt8[np.ndarray, "n height width 3"]
Encode = Callable[[Pixels | LocalRows], Float[np.ndarray, "n latent"]]
Decode = Callable[[Float[np.ndarray, "n latent"]], Pixels]


class Encoder(nn.Module):
    """Images in [0, 1] to mean and log variance of the posterior.

    Attributes:
        latent_dim: Number of latent dimensions.
        dropout: Share of the activations that is dropped in training.
        filters: Output channels of the convolutions.
        batch_norm: Whether a BatchNorm follows each.
    """

    latent_dim: int = LATENT_DIM
    dropout: float = 0.25
    filters: tuple[int, ...] = ENCODER_FILTERS
    batch_norm: bool = True

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> tuple[Latents, Latents]:
        hidden = images
        for index, features in enumerate(self.filters):
            convolution = nn.Conv(
                features,
                (3, 3),
                (2, 2),
                kernel_init=GLOROT,
                conv_general_dilated=conv_general_dilated,
                name=f"encoder_conv_{index}",
            )
            norm = f"encoder_norm_{index}" if self.batch_norm else None
            hidden = _block(convolution, hidden, norm, self.dropout if index else 0, train)
        hidden = hidden.reshape(hidden.shape[0], -1)
        mean = nn.Dense(self.latent_dim, kernel_init=GLOROT, name="mu")(hidden)
        log_variance = nn.Dense(self.latent_dim, kernel_init=GLOROT, name="log_var")(hidden)
        return mean, log_variance


class Decoder(nn.Module):
    """Latents to the logits of the pixels; `jax.nn.sigmoid` of them are images in [0, 1].

    Attributes:
        image_shape: Height, width and channels; height and width are multiples of 16.
        dropout: Share of the activations that is dropped in training.
        filters: Channels that are reshaped from the latents, and output channels of all convolutions but the last.
        batch_norm: Whether a BatchNorm follows each of these.
    """

    image_shape: tuple[int, int, int] = IMAGE_SHAPE
    dropout: float = 0.25
    filters: tuple[int, ...] = (ENCODER_FILTERS[-1], *DECODER_FILTERS)
    batch_norm: bool = True

    @nn.compact
    def __call__(self, latents: Latents, *, train: bool) -> Images:
        height, width, channels = self.image_shape
        shrunk, (first, *filters) = 2 ** len(self.filters), self.filters
        bottom = (height // shrunk, width // shrunk, first)
        hidden = nn.Dense(prod(bottom), kernel_init=GLOROT, name="decoder_dense")(latents)
        hidden = jnp.reshape(hidden, (-1, *bottom))
        for index, features in enumerate(filters):
            convolution = ConvTranspose(features, 2, name=f"decoder_conv_t{index}")
            norm = f"decoder_norm_t{index}" if self.batch_norm else None
            hidden = _block(convolution, hidden, norm, self.dropout, train)
        return ConvTranspose(channels, 2, name=f"decoder_conv_t{len(filters)}")(hidden)


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


@dataclass(frozen=True)
class FaceVae:
    """Encoder, decoder and loss as functions of variables; images are floats in [0, 1].

    Attributes:
        latent_dim: Number of latent dimensions.
        image_shape: Height, width and channels; height and width are multiples of 16.
        dropout: Share of the activations that is dropped in training.
        reconstruction_weight: Weight of the binary cross-entropy, which is a mean over pixels, against the KL.
        precision: In which both networks are trained; evaluation is in the platform's own.
        encoder_filters: Output channels of the encoder's convolutions, each of which halves the sides.
        decoder_filters: Those of the decoder's, but for the last, which has the image's; one fewer.
        batch_norm: Whether BatchNorm follows convolutions.
        encoder: A Flax module, called with `train`, from images to mean and log variance; None for `Encoder`.
        decoder: A Flax module, called with `train`, from latents to logits; None for `Decoder`.
    """

    latent_dim: int = LATENT_DIM
    image_shape: tuple[int, int, int] = IMAGE_SHAPE
    dropout: float = 0.25
    reconstruction_weight: float = 10_000.0
    precision: Precision = "default"
    encoder_filters: tuple[int, ...] = ENCODER_FILTERS
    decoder_filters: tuple[int, ...] = DECODER_FILTERS
    batch_norm: bool = True
    encoder: Any = None
    decoder: Any = None

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return the variables of both networks."""
        encoder_key, decoder_key = jax.random.split(key)
        encoder, decoder = self._networks()
        return merge_network_variables(
            encoder=encoder.init(encoder_key, jnp.zeros((1, *self.image_shape)), train=False),
            decoder=decoder.init(decoder_key, jnp.zeros((1, self.latent_dim)), train=False),
        )

    def encode(self, variables: Variables, images: Images) -> tuple[Latents, Latents]:
        """Return mean and log variance of the posterior, with running statistics and without dropout."""
        mean, log_variance = self._networks()[0].apply(
            select_network_variables(variables, "encoder"), images, train=False
        )
        return mean, log_variance

    def decode(self, variables: Variables, latents: Latents) -> Images:
        """Return the logits of the pixels, with running statistics and without dropout."""
        logits: Images = self._networks()[1].apply(select_network_variables(variables, "decoder"), latents, train=False)
        return logits

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return weight · cross-entropy (mean over pixels and channels) + KL (sum over latent dimensions).

        BatchNorm and Dropout are active with `train` and never else (see the module).
        """
        del step
        if not train:
            return self._evaluate(variables, images, key)
        noise_key, encoder_key, decoder_key = jax.random.split(key, 3)
        encoder, decoder = self._networks()

        def apply(network: Any, name: str, key: Array, inputs: Array) -> Any:
            def apply_trained(variables: Variables, inputs: Array) -> Any:
                return network.apply(variables, inputs, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

            return apply_with_precision(
                self.precision, apply_trained, select_network_variables(variables, name), inputs
            )

        (mean, log_variance), encoder_moved = apply(encoder, "encoder", encoder_key, images)
        latents = losses.reparameterize(noise_key, mean, log_variance)
        logits, decoder_moved = apply(decoder, "decoder", decoder_key, latents)
        moved = {"encoder": encoder_moved, "decoder": decoder_moved}
        statistics = {name: tree["batch_stats"] for name, tree in moved.items() if "batch_stats" in tree}
        return self._combine(logits, images, mean, log_variance)._replace(batch_stats=statistics)

    def _evaluate(self, variables: Variables, images: Images, key: Key[Array, ""]) -> Loss:
        mean, log_variance = self.encode(variables, images)
        logits = self.decode(variables, losses.reparameterize(key, mean, log_variance))
        return self._combine(logits, images, mean, log_variance)

    def _combine(self, logits: Images, images: Images, mean: Latents, log_variance: Latents) -> Loss:
        reconstruction = losses.binary_cross_entropy(logits, images) / prod(self.image_shape)
        kl = jnp.sum(losses.gaussian_kl(mean, log_variance), axis=-1)
        total = self.reconstruction_weight * reconstruction + kl
        return Loss(total, {"reconstruction": reconstruction, "kl": kl}, {})

    def _networks(self) -> tuple[Any, Any]:
        encoder = self.encoder or Encoder(self.latent_dim, self.dropout, self.encoder_filters, self.batch_norm)
        filters = (self.encoder_filters[-1], *self.decoder_filters)
        return encoder, self.decoder or Decoder(self.image_shape, self.dropout, filters, self.batch_norm)


def make_model(config: LatentArithConfig) -> FaceVae:
    """Return the model that a configuration names."""
    return FaceVae(
        config.latent_dim,
        (config.size, config.size, 3),
        config.dropout,
        config.reconstruction_weight,
        config.precision,
    )


def equivalent_beta(reconstruction_weight: float, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> float:
    """Return the β of a β-VAE, whose cross-entropy is summed over pixels, with the same minimum: pixels / weight."""
    return prod(image_shape) / reconstruction_weight


def make_encode(model: LatentVariableModel, variables: Variables) -> Encode:
    """Return a function from pixels 0…255 to posterior means, compiled for one size of batch and used for any."""
    return partial(_apply_to_rows, encode_rows, model, variables)


def make_decode(model: LatentVariableModel, variables: Variables) -> Decode:
    """Return a function from latents to pixels 0…255, compiled for one size of batch and used for any."""
    return partial(_apply_to_rows, decode_rows, model, variables)


def evaluate_test_set(
    model: LatentVariableModel, variables: Variables, images: Pixels, key: Key[Array, ""]
) -> dict[str, float]:
    """Return means of the loss and its parts over held-out images, with one posterior sample of each."""
    keys = np.asarray(jax.random.key_data(jax.random.split(key, len(images))))
    each = _apply_to_rows(_measure_rows, model, variables, images, keys)
    return {name: float(np.mean(values, dtype=np.float32)) for name, values in each.items()}


def global_batch_size() -> int:
    """Return how many images are encoded or decoded in one call, on all devices together."""
    return device_batch_size() * parallel.device_count()


def device_batch_size() -> int:
    """Return how many images a device encodes or decodes in one call."""
    return CPU_ROWS if jax.default_backend() == "cpu" else ROWS


def encode_rows(model: LatentVariableModel, variables: Variables, images: UInt8[Array, "n h w c"]) -> Latents:
    """Return posterior means of images 0…255; `make_encode` compiles it for one size of batch."""
    return microbatch(lambda few: model.encode(variables, normalize(few))[0], images, size=MICROBATCH)


def decode_rows(model: LatentVariableModel, variables: Variables, latents: Latents) -> UInt8[Array, "n h w c"]:
    """Return images 0…255 of latents; `make_decode` compiles it for one size of batch."""

    def decode(few: Latents) -> Array:
        return jnp.round(jax.nn.sigmoid(model.decode(variables, few)) * 255).astype(jnp.uint8)

    return microbatch(decode, latents, size=MICROBATCH)


def _apply_to_rows(
    function: Callable[..., Any], model: LatentVariableModel, variables: Variables, *rows: np.ndarray | LocalRows
) -> Any:
    return batched_apply(function, *rows, batch_size=device_batch_size(), shared=variables, static=(model,))


def _measure_rows(
    model: LatentVariableModel, variables: Variables, images: Array, key_data: Array
) -> dict[str, Float[Array, " n"]]:
    def measure(image: Array, key_data: Array) -> dict[str, Array]:
        key = jax.random.wrap_key_data(key_data)
        found = model.loss(variables, normalize(image)[None], key, 0, train=False)
        return {name: value[0] for name, value in {"loss": found.per_example, **found.parts}.items()}

    return jax.vmap(measure)(images, key_data)


def _block(
    convolution: Callable[[Array], Array],
    images: Images,
    norm: str | None,
    dropout: float,
    train: bool,
) -> Float[Array, "batch H W features"]:
    """Apply convolution, BatchNorm unless its name is None, LeakyReLU and Dropout.

    The variance takes a second pass, because E[x²] - E[x]² cancels in float32. In training, the results of the
    convolution and of the block are written to memory, and so are their cotangents: convolutions and the gradient of
    BatchNorm read them several times over.
    """
    write = materialize if train else lambda hidden: hidden
    hidden = write(convolution(images))
    if norm:
        hidden = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, use_fast_variance=False, name=norm)(hidden)
    hidden = jax.nn.leaky_relu(hidden, SLOPE)
    if dropout:
        hidden = Dropout(dropout, deterministic=not train)(hidden)
    return write(hidden)
