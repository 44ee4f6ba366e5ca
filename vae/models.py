"""Autoencoder and VAE as bundles of pure functions: networks and objective put together."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, Key

from vae import nets, objectives
from vae.config import Precision, VaeConfig
from vae.precision import in_precision
from vae.train import Parameters

LATENT_DIM = 2

PerExample = Float[Array, " batch"]
Images = Float[Array, "batch 28 28 1"]
Latents = Float[Array, "batch latent"]


@dataclass(frozen=True)
class Model:
    """What training, evaluation and figures need to know of a model; images are floats in [0, 1].

    Attributes:
        init: Key to parameters.
        encode: Parameters and images to the mean and log variance of the posterior; that of the
            autoencoder is a point, with log variance -∞.
        decode: Parameters and latents to logits of pixels.
        objective: Logits, images, mean, log variance and step to the training loss of each example and its parts.
        precision: In which both networks are trained; all else is in the platform's own.
    """

    init: Callable[[Key[Array, ""]], Parameters]
    encode: Callable[[Parameters, Images], tuple[Latents, Latents]]
    decode: Callable[[Parameters, Latents], Images]
    objective: Callable[[Images, Images, Latents, Latents, Int[Array, ""]], tuple[PerExample, dict[str, PerExample]]]
    precision: Precision = "default"

    def loss(
        self, params: Parameters, images: Images, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample], Parameters]:
        """Objective with one posterior sample per image; the autoencoder's sample is its code."""
        mean, log_variance = in_precision(self.precision, self.encode, params, images)
        latents = objectives.reparameterize(key, mean, log_variance)
        logits = in_precision(self.precision, self.decode, params, latents)
        return *self.objective(logits, images, mean, log_variance, step), {}


def autoencoder(precision: Precision = "default") -> Model:
    """Deterministic encoder and decoder trained with squared error, mean over pixels."""
    encoder = nets.Encoder(("z",), LATENT_DIM)

    def encode(params: Parameters, images: Images) -> tuple[Latents, Latents]:
        outputs: Any = encoder.apply(params["encoder"], images)
        (latents,) = outputs
        return latents, jnp.full_like(latents, -jnp.inf)

    def objective(
        logits: Images, images: Images, mean: Latents, log_variance: Latents, step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        del mean, log_variance, step
        return objectives.squared_error(logits, images), {}

    return Model(_init(encoder), encode, _decode, objective, precision)


def variational_autoencoder(config: VaeConfig, warmup_steps: int = 0) -> Model:
    """VAE with the objective that the configuration names; the weight of the KL grows over `warmup_steps`."""
    encoder = nets.Encoder(("mean", "log_variance"), LATENT_DIM)
    reconstruct = objectives.RECONSTRUCTIONS[config.reconstruction]

    def encode(params: Parameters, images: Images) -> tuple[Latents, Latents]:
        outputs: Any = encoder.apply(params["encoder"], images)
        mean, log_variance = outputs
        return mean, log_variance

    def objective(
        logits: Images, images: Images, mean: Latents, log_variance: Latents, step: Int[Array, ""]
    ) -> tuple[PerExample, dict[str, PerExample]]:
        reconstruction = reconstruct(logits, images)
        kl = objectives.gaussian_kl(mean, log_variance)
        beta = objectives.kl_warmup(step, warmup_steps, config.beta)
        total = objectives.negative_elbo(reconstruction, kl, beta, config.free_bits)
        return total, {"reconstruction": reconstruction, "kl": jnp.sum(kl, axis=-1)}

    return Model(_init(encoder), encode, _decode, objective, config.precision)


def _decode(params: Parameters, latents: Latents) -> Images:
    logits: Any = nets.Decoder().apply(params["decoder"], latents)
    return logits


def _init(encoder: nets.Encoder) -> Callable[[Array], Parameters]:
    def init(key: Key[Array, ""]) -> Parameters:
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": encoder.init(encoder_key, jnp.zeros((1, 28, 28, 1))),
            "decoder": nets.Decoder().init(decoder_key, jnp.zeros((1, LATENT_DIM))),
        }

    return init
