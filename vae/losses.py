"""Losses and bounds of autoencoders, one number per example; the caller reduces over the batch.

Pixels are grey levels in [0, 1], reconstructions are logits. Cross-entropy is summed over an
image's pixels, squared error is averaged over them (the conventions of the two original
models); KL is summed over latent dimensions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key

from latentlab.model import Loss, Variables
from latentlab.training.state import TrainingLoss

PerExample = Float[Array, " batch"]
Latents = Float[Array, "batch latent"]
Images = Float[Array, "batch height width channels"]


def binary_cross_entropy(logits: Images, images: Images) -> PerExample:
    """Return -Σ x log σ(l) + (1 - x) log(1 - σ(l)) over pixels, in nats, against grey levels x; stable for any logit.

    Raises:
        ValueError: The shapes differ (they would broadcast).
    """
    _check_shapes(logits, images)
    return jnp.sum(jax.nn.softplus(logits) - images * logits, axis=(1, 2, 3))


def squared_error(logits: Images, images: Images) -> PerExample:
    """Return the mean over pixels of (σ(logits) - images)².

    Raises:
        ValueError: The shapes differ (they would broadcast).
    """
    _check_shapes(logits, images)
    return jnp.mean((jax.nn.sigmoid(logits) - images) ** 2, axis=(1, 2, 3))


RECONSTRUCTIONS = {
    "binary_cross_entropy": binary_cross_entropy,
    "squared_error": lambda logits, images: squared_error(logits, images) * images[0].size,
}
"""Reconstruction losses of a VAE, each summed over pixels."""


def gaussian_kl(mean: Latents, log_variance: Latents) -> Latents:
    """Return KL(N(mean, exp(log_variance)) ‖ N(0, 1)) of every latent dimension, in nats.

    -½ (1 + logvar - mean² - exp(logvar)); sum over the last axis for the whole KL
    (Kingma & Welling 2014, appendix B).
    """
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)


def reparameterize(key: Key[Array, ""], mean: Latents, log_variance: Latents) -> Latents:
    """Sample mean + exp(log_variance / 2) · ε with ε ~ N(0, I); gradients pass through it."""
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def negative_elbo(
    reconstruction: PerExample, kl: Latents, beta: Float[Array, ""] | float = 1.0, free_bits: float = 0.0
) -> PerExample:
    """Return reconstruction + β Σ_d max(KL_d, free_bits), in nats.

    With β = 1 and no free bits this is the negative evidence lower bound.

    Args:
        reconstruction: Reconstruction loss of each example.
        kl: KL of each example and latent dimension.
        beta: Weight of the KL (Higgins et al. 2017), for instance from `warm_up_beta`.
        free_bits: Nats per example and latent dimension below which KL costs the same
            (after Kingma et al. 2016, who take the floor of a batch mean); 0 for none.
    """
    return reconstruction + beta * jnp.sum(jnp.maximum(kl, free_bits), axis=-1)


def warm_up_beta(step: Array | int, warmup_steps: int, beta: float = 1.0) -> Float[Array, ""]:
    """Return β · min(1, (step + 1) / warmup_steps): the weight of the KL grows linearly from the first step on."""
    return beta * jnp.minimum(1.0, (jnp.asarray(step, jnp.float32) + 1) / max(warmup_steps, 1))


def decompose_kl(
    latents: Latents, mean: Latents, log_variance: Latents, dataset_size: int
) -> tuple[PerExample, PerExample, PerExample]:
    """Return estimates of mutual information, total correlation and dimension-wise KL, in nats, one sample each.

    KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ Π_d q(z_d)) + Σ_d KL(q(z_d) ‖ p(z_d)), on average over data. The aggregate
    posterior is estimated by minibatch-weighted sampling, q(z_i) ≈ 1 / (N M) Σ_j q(z_i | x_j) over the M examples of
    the batch, and so is every q(z_d) (Chen et al. 2018, arXiv 1802.04942, equation 10). The three add up to the KL of
    the sample exactly; the first two are off by constants in log N.

    Args:
        latents: A posterior sample of every example.
        mean: Posterior means.
        log_variance: Posterior log variances.
        dataset_size: N, the number of training examples.
    """
    log_two_pi = jnp.log(2 * jnp.pi)
    distance = latents[:, None] - mean[None]
    pairs = -0.5 * (distance**2 * jnp.exp(-log_variance[None]) + log_variance[None] + log_two_pi)
    correction = jnp.log(dataset_size * len(latents))
    log_posterior = jnp.sum(-0.5 * ((latents - mean) ** 2 * jnp.exp(-log_variance) + log_variance + log_two_pi), axis=1)
    log_prior = jnp.sum(-0.5 * (latents**2 + log_two_pi), axis=1)
    log_aggregate = jax.nn.logsumexp(jnp.sum(pairs, axis=2), axis=1) - correction
    log_product = jnp.sum(jax.nn.logsumexp(pairs, axis=1) - correction, axis=1)
    return log_posterior - log_aggregate, log_aggregate - log_product, log_product - log_prior


def binarize_images(loss: TrainingLoss) -> TrainingLoss:
    """Return the loss of images whose pixels are drawn, 1 with the grey level as the probability, anew in every step.

    After Salakhutdinov & Murray 2008; labels beside the images stay as they are.
    """

    def draw_and_measure(variables: Variables, batch: Any, key: Key[Array, ""], step: Array) -> Loss:
        pixel_key, key = jax.random.split(key)

        def draw(leaf: Array) -> Array:
            is_image = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jax.random.bernoulli(pixel_key, leaf).astype(leaf.dtype) if is_image else leaf

        return loss(variables, jax.tree.map(draw, batch), key, step)

    return draw_and_measure


def importance_weighted_bound(
    key: Key[Array, ""],
    images: Images,
    mean: Latents,
    log_variance: Latents,
    decode: Callable[[Latents], Images],
    samples: int,
) -> PerExample:
    """Return the lower bound log 1/K Σ_k p(x, z_k) / q(z_k | x), z_k ~ q, on log p(x), in nats; it grows with K.

    p(x | z) is the Bernoulli likelihood of `decode(z)` logits, evaluated at grey levels as the
    training loss is (Burda, Grosse & Salakhutdinov 2016, equation 8). K = 1 is one sample of
    the ELBO. All B · K decodings are one batch.

    Args:
        key: Key of the samples.
        images: Pixels in [0, 1].
        mean: Posterior means.
        log_variance: Posterior log variances.
        decode: Latents (n, latent) to logits (n, height, width, channels).
        samples: K.
    """
    return sample_importance_weights(key, images, mean, log_variance, decode, samples)[0]


def sample_importance_weights(
    key: Key[Array, ""],
    images: Images,
    mean: Latents,
    log_variance: Latents,
    decode: Callable[[Latents], Images],
    samples: int,
) -> tuple[PerExample, PerExample]:
    """Return `importance_weighted_bound`, and the mean cross-entropy of its K decodings."""
    batch, latent_dim = mean.shape
    noise = jax.random.normal(key, (samples, batch, latent_dim), mean.dtype)
    latents = mean[None] + jnp.exp(log_variance[None] / 2) * noise
    logits = decode(latents.reshape(-1, latent_dim)).reshape(samples, *images.shape)
    log_likelihood = -jax.vmap(lambda one: binary_cross_entropy(one, images))(logits)
    log_prior = jnp.sum(-0.5 * latents**2, axis=-1)
    log_posterior = jnp.sum(-0.5 * noise**2 - 0.5 * log_variance[None], axis=-1)
    bound = jax.nn.logsumexp(log_likelihood + log_prior - log_posterior, axis=0) - jnp.log(samples)
    return bound, -jnp.mean(log_likelihood, axis=0)


def _check_shapes(logits: Array, images: Array) -> None:
    if logits.shape != images.shape:
        raise ValueError(f"logits have shape {logits.shape}, images {images.shape}; expected the same")
