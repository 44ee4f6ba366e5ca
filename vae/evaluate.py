"""What is measured of a trained autoencoder and VAE, on images that neither has seen.

Likelihoods are Bernoulli likelihoods of grey levels in nats, whatever the training objective
was, so that runs can be compared. How good samples from the prior N(0, I) are is measured
against held-out images in the space of their first 50 principal components: by the Fréchet
distance between Gaussians fitted to both sets (0 is perfect), and by density and coverage
(Naeem et al. 2020). Around every real image lies a ball that reaches to its fifth nearest real
neighbour: density tells in how many balls a sample lies, as a share of what real images would
give, and coverage is the share of balls that hold any sample. A few real outliers with wide
balls weigh little in either. Density alone says little: blurred samples crowd where balls
overlap, and samples that are all alike can score high; coverage shows that they are alike.

Scikit-learn is imported where it is used, which is after training: to import it takes as long as
all else before the first step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key, UInt8

from runtime import mesh
from vae import objectives
from vae.models import Model
from vae.train import Parameters, normalize

EXAMPLES_PER_BATCH = 100
DECODINGS_PER_BATCH = 256
ACTIVE_UNIT_VARIANCE = 0.01
PRINCIPAL_COMPONENTS = 50

Codes = Float[np.ndarray, "n latent"]
FINAL_STEP = np.iinfo(np.int32).max

_of_seeds = partial(jax.vmap, spmd_axis_name=mesh.SEED)


@partial(jax.jit, static_argnums=0)
def held_out(
    model: Model, params: Parameters, images: UInt8[Array, "n 28 28 1"], keys: Key[Array, " seeds"]
) -> dict[str, Array]:
    """Per seed and image: latents and losses, with one posterior sample each; the same for any batch size.

    Args:
        model: Networks and objective.
        params: Parameters of all seeds, each leaf with a leading axis of seeds.
        images: Pixels 0…255, shared by all seeds.
        keys: Key of each seed's posterior samples.

    Returns:
        `mean`, `log_variance`, `latent` (a sample; the autoencoder's code) and `kl`, each
        (seeds, n, latent); `loss` (the training objective after any warm-up), `reconstruction`
        (cross-entropy summed over pixels) and `squared_error` (mean over pixels), each (seeds, n).
    """

    def one(params: Parameters, image: Array, key: Array) -> dict[str, Array]:
        pixels = normalize(image)[None]
        mean, log_variance = model.encode(params, pixels)
        latent = objectives.reparameterize(key, mean, log_variance)
        logits = model.decode(params, latent)
        values = {
            "mean": mean,
            "log_variance": log_variance,
            "latent": latent,
            "kl": objectives.gaussian_kl(mean, log_variance),
            "loss": model.objective(logits, pixels, mean, log_variance, jnp.asarray(FINAL_STEP))[0],
            "reconstruction": objectives.binary_cross_entropy(logits, pixels),
            "squared_error": objectives.squared_error(logits, pixels),
        }
        return {name: value[0] for name, value in values.items()}

    def one_seed(params: Parameters, key: Array) -> dict[str, Array]:
        keys = jax.random.split(key, len(images))
        return mesh.map_rows(one, params, images, keys, at_once=EXAMPLES_PER_BATCH)

    return _of_seeds(one_seed)(params, keys)


@partial(jax.jit, static_argnums=0)
def encode(model: Model, params: Parameters, images: UInt8[Array, "n 28 28 1"]) -> Float[Array, "seeds n latent"]:
    """Posterior means (the autoencoder's codes) of images 0…255, for every seed."""

    def one(params: Parameters, image: Array) -> Array:
        return model.encode(params, normalize(image)[None])[0][0]

    return _of_seeds(lambda params: mesh.map_rows(one, params, images, at_once=EXAMPLES_PER_BATCH))(params)


@partial(jax.jit, static_argnums=0)
def decode(
    model: Model, params: Parameters, latents: Float[Array, "seeds n latent"]
) -> UInt8[Array, "seeds n 28 28 1"]:
    """Images 0…255 of latents, for every seed."""

    def one(params: Parameters, latent: Array) -> Array:
        return jnp.round(jax.nn.sigmoid(model.decode(params, latent[None])[0]) * 255).astype(jnp.uint8)

    return _of_seeds(partial(mesh.map_rows, one, at_once=EXAMPLES_PER_BATCH))(params, latents)


@partial(jax.jit, static_argnums=(0, 4))
def importance_weighted_bound(
    model: Model, params: Parameters, images: UInt8[Array, "n 28 28 1"], keys: Key[Array, " seeds"], samples: int
) -> Float[Array, "seeds n"]:
    """Bound on log p(x) of every image from K samples, in nats; see `objectives.importance_weighted_bound`."""

    def one(params: Parameters, image: Array, key: Array) -> Array:
        pixels = normalize(image)[None]
        mean, log_variance = model.encode(params, pixels)
        return objectives.importance_weighted_bound(
            key, pixels, mean, log_variance, partial(model.decode, params), samples
        )[0]

    def one_seed(params: Parameters, key: Array) -> Array:
        keys = jax.random.split(key, len(images))
        return mesh.map_rows(one, params, images, keys, at_once=max(1, DECODINGS_PER_BATCH // samples))

    return _of_seeds(one_seed)(params, keys)


def active_units(mean: Codes) -> int:
    """Number of latent dimensions whose posterior mean varies over images by more than 0.01 (Burda et al. 2016)."""
    return int(np.sum(np.var(mean, axis=0) > ACTIVE_UNIT_VARIANCE))


def aggregate_posterior(latents: Codes) -> dict[str, object]:
    """Mean and covariance of all codes, and KL(N(mean, covariance) ‖ N(0, I)) in nats.

    ½ (tr Σ + μᵀμ - d - log det Σ): how far the codes, seen as one Gaussian, are from the prior.
    """
    latents = latents.astype(np.float64)
    mean, covariance = latents.mean(axis=0), np.cov(latents, rowvar=False).reshape(latents.shape[1], -1)
    _, log_determinant = np.linalg.slogdet(covariance)
    kl = 0.5 * (np.trace(covariance) + mean @ mean - len(mean) - log_determinant)
    return {
        "aggregate_mean": mean.tolist(),
        "aggregate_covariance": covariance.tolist(),
        "aggregate_kl_to_prior": float(kl),
        "latent_standard_deviation": np.sqrt(np.diag(covariance)).tolist(),
        "largest_absolute_latent": float(np.abs(latents).max()),
    }


def neighbour_accuracy(
    train: Codes, train_labels: np.ndarray, test: Codes, test_labels: np.ndarray, neighbours: int = 10
) -> float:
    """Accuracy of a k-nearest-neighbour vote in latent space, trained on the codes of the training images."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(neighbours, len(train))).fit(train, train_labels)
    return float(classifier.score(test, test_labels))


def sample_quality(samples: UInt8[np.ndarray, "m 28 28 1"], real: UInt8[np.ndarray, "n 28 28 1"]) -> dict[str, float]:
    """Fréchet distance, density and coverage of samples against real images (see the module).

    Args:
        samples: Decoded prior samples, pixels 0…255.
        real: Held-out images; the first as many as there are samples serve for density and coverage.
    """
    from sklearn.decomposition import PCA

    flat_real, flat_samples = (x.reshape(len(x), -1) / 255 for x in (real, samples))
    components = min(PRINCIPAL_COMPONENTS, *flat_real.shape)
    projection = PCA(components, svd_solver="covariance_eigh").fit(flat_real)
    ours, theirs = projection.transform(flat_samples), projection.transform(flat_real)
    density, coverage = density_and_coverage(ours, theirs[: len(ours)])
    return {"frechet_distance": frechet_distance(ours, theirs), "density": density, "coverage": coverage}


def frechet_distance(one: Codes, other: Codes) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) between Gaussians fitted to two sets of points (Heusel et al. 2017)."""
    shift = one.mean(axis=0) - other.mean(axis=0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross)


def density_and_coverage(samples: Codes, real: Codes, neighbours: int = 5) -> tuple[float, float]:
    """Density, 1 on average for samples that are like the real points, and coverage in 0…1 (Naeem et al. 2020).

    Args:
        samples: Points (m, d) to judge.
        real: Points (n, d), n > neighbours.
        neighbours: The k whose distance is the radius of the ball around each real point.
    """
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.neighbors import NearestNeighbors

    radius = NearestNeighbors().fit(real).kneighbors(real, neighbours + 1)[0][:, -1]
    inside = euclidean_distances(real, samples) <= radius[:, None]
    return float(inside.sum(axis=0).mean() / neighbours), float(inside.any(axis=1).mean())
