"""Autoencoder and VAE of small images: their networks, and the pure functions that both offer.

| part | layers |
| --- | --- |
| encoder | Conv 3×3: 32 stride 1, 64 stride 2, 64 stride 2, 64 stride 1, LeakyReLU 0.3 each; flatten; Dense heads |
| decoder | Dense to 1/4 of each side; ConvTranspose 3×3: 64 stride 1, 64 stride 2, 32 stride 2, LeakyReLU; 1 stride 1 |

Kernels start Glorot-uniform and biases zero, as in Keras; weights have Keras's shapes and axis order, so they can be
copied over one to one. This is the only module of the experiment that imports Flax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Int, Key

from latentlab.errors import UserError
from latentlab.kernels.convolution import conv_general_dilated, convolution_transpose
from latentlab.model import (
    Images,
    Labeled,
    Latents,
    Loss,
    PerExample,
    Variables,
    attach_labels,
    merge_network_variables,
    select_network_variables,
)
from latentlab.training.precision import Precision, apply_with_precision
from vae import losses

IMAGE_SHAPE = (28, 28, 1)
LATENT_DIM = 2
GLOROT = nn.initializers.glorot_uniform()
SLOPE = 0.3


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
    latent_dim: int = LATENT_DIM

    @nn.compact
    def __call__(self, images: Images) -> tuple[Latents, ...]:
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
    """Latents to the logits of the pixels, because cross-entropy is stable in them and only in them.

    Attributes:
        image_shape: Height, width and channels; height and width are multiples of 4.
    """

    image_shape: tuple[int, int, int] = IMAGE_SHAPE

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        height, width, channels = self.image_shape
        bottom = (height // 4, width // 4, 64)
        hidden = nn.Dense(bottom[0] * bottom[1] * bottom[2], kernel_init=GLOROT, name="dense")(latents)
        hidden = jnp.reshape(hidden, (-1, *bottom))
        for index, (features, stride) in enumerate(((64, 1), (64, 2), (32, 2))):
            hidden = jax.nn.leaky_relu(ConvTranspose(features, stride, name=f"conv_t_{index}")(hidden), SLOPE)
        return ConvTranspose(channels, name="conv_t_3")(hidden)


@dataclass(frozen=True)
class Autoencoder:
    """Deterministic encoder and decoder, trained with squared error, mean over pixels.

    Attributes:
        latent_dim: Number of latent dimensions.
        image_shape: Height, width and channels.
        encoder: A Flax module from images in [0, 1] to `(latents,)`, without BatchNorm and Dropout; None for `Encoder`.
        decoder: A Flax module from latents to logits; None for `Decoder`.
        precision: In which both networks are trained; evaluation is in the platform's own.
    """

    latent_dim: int = LATENT_DIM
    image_shape: tuple[int, int, int] = IMAGE_SHAPE
    encoder: Any = None
    decoder: Any = None
    precision: Precision = "default"

    heads: ClassVar[tuple[str, ...]] = ("z",)

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return the variables of both networks."""
        encoder_key, decoder_key = jax.random.split(key)
        encoder, decoder = self._networks()
        return merge_network_variables(
            encoder=encoder.init(encoder_key, jnp.zeros((1, *self.image_shape))),
            decoder=decoder.init(decoder_key, jnp.zeros((1, self.latent_dim))),
        )

    def encode(self, variables: Variables, images: Images) -> tuple[Latents, Latents]:
        """Return the codes as means of a posterior without width: log variances are -∞."""
        (latents,) = self._apply_encoder(variables, images)
        return latents, jnp.full_like(latents, -jnp.inf)

    def decode(self, variables: Variables, latents: Latents) -> Images:
        """Return the logits of the pixels."""
        logits: Images = self._networks()[1].apply(select_network_variables(variables, "decoder"), latents)
        return logits

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return the squared error of the reconstruction."""
        del step
        logits, _, _ = self._reconstruct(variables, images, key, train)
        return Loss(losses.squared_error(logits, images), {}, {})

    def _reconstruct(
        self, variables: Variables, images: Images, key: Key[Array, ""], train: bool
    ) -> tuple[Images, Latents, Latents]:
        """Return logits of one posterior sample per image, and the posterior's mean and log variance."""
        precision = self.precision if train else "default"
        mean, log_variance = apply_with_precision(precision, self.encode, variables, images)
        latents = losses.reparameterize(key, mean, log_variance)
        return apply_with_precision(precision, self.decode, variables, latents), mean, log_variance

    def _apply_encoder(self, variables: Variables, images: Images) -> tuple[Latents, ...]:
        outputs: tuple[Latents, ...] = self._networks()[0].apply(select_network_variables(variables, "encoder"), images)
        if not isinstance(outputs, tuple) or len(outputs) != len(self.heads):
            found = f"{len(outputs)} outputs" if isinstance(outputs, tuple) else type(outputs).__name__
            raise UserError(f"the encoder gives {found}, expected a tuple of {' and '.join(self.heads)}")
        return outputs

    def _networks(self) -> tuple[Any, Any]:
        return self.encoder or Encoder(self.heads, self.latent_dim), self.decoder or Decoder(self.image_shape)


@dataclass(frozen=True)
class Vae(Autoencoder):
    """Variational autoencoder with the negative evidence lower bound as its loss, or a variant of it.

    Its encoder is a Flax module from images in [0, 1] to the tuple of mean and log variance of the posterior, each
    (batch, latent_dim).

    Attributes:
        reconstruction: Key of `losses.RECONSTRUCTIONS`.
        beta: Weight of the KL.
        warmup_steps: Steps over which that weight grows from 0.
        free_bits: Nats per latent dimension below which KL is not penalised.
    """

    reconstruction: str = "binary_cross_entropy"
    beta: float = 1.0
    warmup_steps: int = 0
    free_bits: float = 0.0

    heads: ClassVar[tuple[str, ...]] = ("mean", "log_variance")

    def encode(self, variables: Variables, images: Images) -> tuple[Latents, Latents]:
        """Return mean and log variance of the posterior."""
        mean, log_variance = self._apply_encoder(variables, images)
        return mean, log_variance

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return the negative evidence lower bound with one posterior sample per image, in nats."""
        logits, mean, log_variance = self._reconstruct(variables, images, key, train)
        return self._bound(logits, images, mean, log_variance, step)

    def _bound(
        self, logits: Images, images: Images, mean: Latents, log_variance: Latents, step: Int[Array, ""] | int
    ) -> Loss:
        reconstruction: PerExample = losses.RECONSTRUCTIONS[self.reconstruction](logits, images)
        kl = losses.gaussian_kl(mean, log_variance)
        beta = losses.warm_up_beta(step, self.warmup_steps, self.beta)
        total = losses.negative_elbo(reconstruction, kl, beta, self.free_bits)
        return Loss(total, {"reconstruction": reconstruction, "kl": jnp.sum(kl, axis=-1)}, {})


@dataclass(frozen=True)
class TotalCorrelationVae(Vae):
    """β-TCVAE: the total correlation of the latents weighs β, and the rest of the KL 1 (Chen et al. 2018).

    The training loss of an example depends on the others of its batch; without `train` the loss is the negative
    evidence lower bound.

    Attributes:
        dataset_size: Number of training examples.
    """

    dataset_size: int = 1000

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return reconstruction + I(x; z) + β TC + dimension-wise KL, one posterior sample per image, in nats."""
        precision = self.precision if train else "default"
        mean, log_variance = apply_with_precision(precision, self.encode, variables, images)
        latents = losses.reparameterize(key, mean, log_variance)
        logits = apply_with_precision(precision, self.decode, variables, latents)
        reconstruction: PerExample = losses.RECONSTRUCTIONS[self.reconstruction](logits, images)
        kl = jnp.sum(losses.gaussian_kl(mean, log_variance), axis=-1)
        parts = {"reconstruction": reconstruction, "kl": kl}
        if not train:
            return Loss(reconstruction + kl, parts, {})
        terms = losses.decompose_kl(latents, mean, log_variance, self.dataset_size)
        beta = losses.warm_up_beta(step, self.warmup_steps, self.beta)
        return Loss(reconstruction + terms[0] + beta * terms[1] + terms[2], parts, {})


@dataclass(frozen=True)
class ImportanceWeightedVae(Vae):
    """VAE trained with the importance-weighted bound (IWAE; Burda, Grosse & Salakhutdinov 2016, arXiv 1509.00519).

    Attributes:
        samples: Posterior samples K per image.
    """

    samples: int = 5

    def loss(
        self, variables: Variables, images: Images, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return the negative bound -log 1/K Σ_k p(x, z_k) / q(z_k | x), in nats.

        Its parts are those of the evidence lower bound: the mean reconstruction of the K samples, and the KL.
        """
        del step
        precision = self.precision if train else "default"
        mean, log_variance = apply_with_precision(precision, self.encode, variables, images)

        def decode(latents: Latents) -> Images:
            return apply_with_precision(precision, self.decode, variables, latents)

        bound, reconstruction = losses.sample_importance_weights(key, images, mean, log_variance, decode, self.samples)
        kl = jnp.sum(losses.gaussian_kl(mean, log_variance), axis=-1)
        return Loss(-bound, {"reconstruction": reconstruction, "kl": kl}, {})


@dataclass(frozen=True)
class ConditionalVae(Vae):
    """VAE of images given their class (Sohn, Lee & Yan 2015): the bound is one on log p(x | class).

    The encoder sees a plane for every class behind the channels of the image, 1 in that of its own; the decoder sees
    the class one-hot behind the latents. What is left to the latents is what differs within a class.

    Attributes:
        classes: Number of classes.
    """

    classes: int = 10

    def init(self, key: Key[Array, ""]) -> Variables:
        """Return the variables of both networks."""
        encoder_key, decoder_key = jax.random.split(key)
        encoder, decoder = self._networks()
        height, width, channels = self.image_shape
        return merge_network_variables(
            encoder=encoder.init(encoder_key, jnp.zeros((1, height, width, channels + self.classes))),
            decoder=decoder.init(decoder_key, jnp.zeros((1, self.latent_dim + self.classes))),
        )

    def encode(self, variables: Variables, images: Labeled) -> tuple[Latents, Latents]:  # type: ignore[override]
        """Return mean and log variance of the posterior of images whose class is known."""
        pixels, labels = images
        planes = jax.nn.one_hot(labels, self.classes, dtype=pixels.dtype)[:, None, None]
        planes = jnp.broadcast_to(planes, (*pixels.shape[:3], self.classes))
        return super().encode(variables, jnp.concatenate([pixels, planes], axis=-1))

    def loss(  # type: ignore[override]
        self, variables: Variables, images: Labeled, key: Key[Array, ""], step: Int[Array, ""] | int, *, train: bool
    ) -> Loss:
        """Return the negative evidence lower bound of images given their class, in nats."""
        precision = self.precision if train else "default"
        mean, log_variance = apply_with_precision(precision, self.encode, variables, images)
        latents = attach_labels(losses.reparameterize(key, mean, log_variance), images.labels, self.classes)
        logits = apply_with_precision(precision, self.decode, variables, latents)
        return self._bound(logits, images.images, mean, log_variance, step)
