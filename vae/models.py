"""Autoencoder and VAE as bundles of pure functions: networks and objective put together."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from vae import nets, objectives
from vae.config import VaeConfig
from vae.train import Loss, Parameters

Images = Float[Array, "batch 28 28 1"]
Latents = Float[Array, "batch latent"]
LATENT_DIM = 2


@dataclass(frozen=True)
class Model:
    """What training, evaluation and figures need to know of a model; images are floats in [0, 1].

    Attributes:
        init: Key to parameters.
        loss: Training loss of each example and its parts.
        encode: Parameters and images to posterior mean and log variance; the autoencoder's
            posterior is a point, with log variance -∞.
        decode: Parameters and latents to logits of pixels.
    """

    init: Callable[[Key[Array, ""]], Parameters]
    loss: Loss
    encode: Callable[[Parameters, Images], tuple[Latents, Latents]]
    decode: Callable[[Parameters, Latents], Images]


def autoencoder() -> Model:
    """Deterministic encoder and decoder trained with squared error, mean over pixels."""
    encoder, decoder = nets.Encoder(("z",), LATENT_DIM), nets.Decoder()

    def encode(params: Parameters, images: Images) -> tuple[Latents, Latents]:
        (latents,) = encoder.apply(params["encoder"], images)
        return latents, jnp.full_like(latents, -jnp.inf)

    def decode(params: Parameters, latents: Latents) -> Images:
        return decoder.apply(params["decoder"], latents)

    def loss(
        params: Parameters, images: Images, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Array, dict[str, Array]]:
        del key, step
        return objectives.squared_error(decode(params, encode(params, images)[0]), images), {}

    return Model(_init(encoder, decoder), loss, encode, decode)


def variational_autoencoder(config: VaeConfig, warmup_steps: int = 0) -> Model:
    """VAE with the objective that the configuration names; the KL weight grows over `warmup_steps`."""
    encoder, decoder = nets.Encoder(("mean", "log_variance"), LATENT_DIM), nets.Decoder()
    reconstruct = objectives.RECONSTRUCTIONS[config.reconstruction]

    def encode(params: Parameters, images: Images) -> tuple[Latents, Latents]:
        mean, log_variance = encoder.apply(params["encoder"], images)
        return mean, log_variance

    def decode(params: Parameters, latents: Latents) -> Images:
        return decoder.apply(params["decoder"], latents)

    def loss(
        params: Parameters, images: Images, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Array, dict[str, Array]]:
        mean, log_variance = encode(params, images)
        logits = decode(params, objectives.reparameterize(key, mean, log_variance))
        reconstruction = reconstruct(logits, images)
        kl = objectives.gaussian_kl(mean, log_variance)
        beta = objectives.kl_warmup(step, warmup_steps, config.beta)
        total = objectives.negative_elbo(reconstruction, kl, beta, config.free_bits)
        return total, {"reconstruction": reconstruction, "kl": jnp.sum(kl, axis=-1)}

    return Model(_init(encoder, decoder), loss, encode, decode)


def _init(encoder: nets.Encoder, decoder: nets.Decoder) -> Callable[[Array], Parameters]:
    def init(key: Key[Array, ""]) -> Parameters:
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": encoder.init(encoder_key, jnp.zeros((1, 28, 28, 1))),
            "decoder": decoder.init(decoder_key, jnp.zeros((1, LATENT_DIM))),
        }

    return init
