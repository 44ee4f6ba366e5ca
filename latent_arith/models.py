"""The face VAE as a bundle of pure functions: both networks and the objective put together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Key, UInt8

from kernels.few_at_a_time import few_at_a_time
from latent_arith import nets
from runtime import mesh
from runtime.mesh import Portion
from vae import objectives
from vae.config import Precision
from vae.precision import in_precision
from vae.train import Parameters, normalize

PIXELS = 128 * 128 * 3
CHUNK = 50  # images that a device encodes or decodes in one call
FEW = 10  # of them at a time, on CPU

PerExample = Float[Array, " batch"]
Images = Float[Array, "batch 128 128 3"]
Latents = Float[Array, "batch latent"]
Encode = Callable[[UInt8[np.ndarray, "n 128 128 3"] | Portion], Float[np.ndarray, "n latent"]]
Decode = Callable[[Float[np.ndarray, "n latent"]], UInt8[np.ndarray, "n 128 128 3"]]


@dataclass(frozen=True)
class FaceVae:
    """Encoder, decoder and loss as functions of parameters; images are floats in [0, 1].

    Attributes:
        dropout: Share of the activations that is dropped in training.
        reconstruction_weight: Weight of the binary cross-entropy, which is a mean over pixels, against the KL.
        precision: In which both networks are trained; all else is in the platform's own.
    """

    dropout: float = 0.25
    reconstruction_weight: float = 10_000.0
    precision: Precision = "default"

    def init(self, key: Key[Array, ""]) -> Parameters:
        """Variables of both networks, `params` and `batch_stats` of each."""
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": nets.Encoder().init(encoder_key, jnp.zeros((1, 128, 128, 3)), train=False),
            "decoder": nets.Decoder().init(decoder_key, jnp.zeros((1, nets.LATENT_DIM)), train=False),
        }

    def encode(self, params: Parameters, images: Images) -> tuple[Latents, Latents]:
        """Mean and log variance of the posterior, with running statistics and without dropout."""
        mean_and_log_variance: Any = nets.Encoder().apply(params["encoder"], images, train=False)
        return mean_and_log_variance

    def decode(self, params: Parameters, latents: Latents) -> Images:
        """Logits of pixels, with running statistics and without dropout."""
        logits: Any = nets.Decoder().apply(params["decoder"], latents, train=False)
        return logits

    def loss(
        self, params: Parameters, images: Images, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample], Parameters]:
        """Weight · cross-entropy (mean over pixels and channels) + KL (sum over latent dimensions), of one sample.

        BatchNorm and Dropout are active here and nowhere else. The trap is a training step that calls the networks as
        one calls them to encode: then both are inert, and the moving mean stays exactly 0 (see `nets`). So the
        statistics that come back as the third value have moved.
        """
        del step
        noise_key, encoder_key, decoder_key = jax.random.split(key, 3)

        def trained(network: nets.Encoder | nets.Decoder, key: Array) -> Callable[[Parameters, Array], Any]:
            return partial(network.apply, train=True, rngs={"dropout": key}, mutable=["batch_stats"])

        encode = trained(nets.Encoder(self.dropout), encoder_key)
        decode = trained(nets.Decoder(self.dropout), decoder_key)
        (mean, log_variance), encoder = in_precision(self.precision, encode, params["encoder"], images)
        latents = objectives.reparameterize(noise_key, mean, log_variance)
        logits, decoder = in_precision(self.precision, decode, params["decoder"], latents)
        reconstruction = objectives.binary_cross_entropy(logits, images) / PIXELS
        kl = jnp.sum(objectives.gaussian_kl(mean, log_variance), axis=-1)
        total = self.reconstruction_weight * reconstruction + kl
        return total, {"reconstruction": reconstruction, "kl": kl}, {"encoder": encoder, "decoder": decoder}


def equivalent_beta(reconstruction_weight: float) -> float:
    """β of a β-VAE, whose cross-entropy is summed over pixels, with the same minimum: pixels / weight."""
    return PIXELS / reconstruction_weight


def encoder(params: Parameters) -> Encode:
    """Function from pixels 0…255 to posterior means, compiled for one size of batch and used for any."""
    return lambda images: mesh.in_chunks(partial(posterior_means, params), images, rows_at_once())


def decoder(params: Parameters) -> Decode:
    """Function from latents to pixels 0…255, compiled for one size of batch and used for any."""
    return lambda latents: mesh.in_chunks(partial(pixels_of, params), latents, rows_at_once())


@jax.jit
def held_out_losses(
    params: Parameters, images: UInt8[Array, "n 128 128 3"], key: Key[Array, ""], reconstruction_weight: float
) -> dict[str, Float[Array, ""]]:
    """Means of the loss and its parts over images that were not trained on, with one posterior sample of each."""
    model = FaceVae()

    def one(params: Parameters, image: Array, key: Array) -> dict[str, Array]:
        pixels = normalize(image)[None]
        mean, log_variance = model.encode(params, pixels)
        logits = model.decode(params, objectives.reparameterize(key, mean, log_variance))
        reconstruction = objectives.binary_cross_entropy(logits, pixels) / PIXELS
        kl = jnp.sum(objectives.gaussian_kl(mean, log_variance), axis=-1)
        return {"reconstruction": reconstruction, "kl": kl}

    each = mesh.map_rows(one, params, images, jax.random.split(key, len(images)), at_once=CHUNK)
    means = {name: jnp.mean(values) for name, values in each.items()}
    return {"loss": reconstruction_weight * means["reconstruction"] + means["kl"], **means}


@jax.jit
def posterior_means(params: Parameters, images: UInt8[Array, "batch 128 128 3"]) -> Latents:
    """Posterior means of images 0…255; `encoder` compiles it for one size."""

    def encode(params: Parameters, images: Array) -> Array:
        return few_at_a_time(lambda few: FaceVae().encode(params, normalize(few))[0], images, few=FEW)

    return mesh.over_rows(encode, (None, 0))(params, images)


@jax.jit
def pixels_of(params: Parameters, latents: Latents) -> UInt8[Array, "batch 128 128 3"]:
    """Images 0…255 of latents; `decoder` compiles it for one size."""

    def decode(params: Parameters, latents: Array) -> Array:
        return few_at_a_time(
            lambda few: jnp.round(jax.nn.sigmoid(FaceVae().decode(params, few)) * 255).astype(jnp.uint8),
            latents,
            few=FEW,
        )

    return mesh.over_rows(decode, (None, 0))(params, latents)


def rows_at_once() -> int:
    """Images encoded or decoded in one call, on all devices together."""
    return CHUNK * mesh.devices()
