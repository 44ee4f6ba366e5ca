"""What is measured of a trained autoencoder and VAE, on images that neither has seen.

Likelihoods are Bernoulli likelihoods of grey levels in nats, whatever the training loss was, so that runs can be
compared. How good samples from the prior N(0, I) are is measured against held-out images in the space of their first
50 principal components: by the Fréchet distance between Gaussians fitted to both sets (0 is perfect), and by density
and coverage (Naeem et al. 2020). Around every real image lies a ball that reaches to its fifth nearest real neighbour:
density tells in how many balls a sample lies, as a share of what real images would give, and coverage is the share of
balls that hold any sample. A few real outliers with wide balls weigh little in either. Density alone says little:
blurred samples crowd where balls overlap, and samples that are all alike can score high; coverage shows that they are
alike.

Scikit-learn is imported where it is used, which is after training, because its import takes as long as all else before
the first step.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key, UInt8

from latentlab.model import (
    EVALUATION_STEP,
    ConditionalModel,
    Images,
    Labeled,
    Latents,
    LatentVariableModel,
    Variables,
    attach_labels,
    normalize,
)
from latentlab.parallel import batched_apply, map_seeds
from vae import losses

EXAMPLES_PER_BATCH = 100
DECODINGS_PER_BATCH = 256
ACTIVE_UNIT_VARIANCE = 0.01
PRINCIPAL_COMPONENTS = 50
NEIGHBOURS = 5
"""Real neighbours whose distance is the radius of the balls of density and coverage."""

Codes = Float[np.ndarray, "n latent"]
OtherCodes = Float[np.ndarray, "m latent"]
Pixels = UInt8[np.ndarray, "n height width channels"]
Inputs = Pixels | Labeled
"""Images 0…255, of a conditional model with their classes."""


def evaluate_test_set(
    model: LatentVariableModel, variables: Variables, images: Inputs, keys: Key[Array, " seeds"]
) -> dict[str, np.ndarray]:
    """Return latents and losses per seed and image, with one posterior sample each; the same for any batch size.

    Args:
        model: Networks and loss.
        variables: Variables; of several seeds, each leaf has a leading axis of seeds.
        images: Pixels 0…255, shared by all seeds.
        keys: Key of each seed's posterior samples.

    Returns:
        `mean`, `log_variance`, `latent` (a sample; the autoencoder's code) and `kl`, each (seeds, n, latent); `loss`
        (the training loss after any warm-up), `reconstruction` (cross-entropy summed over pixels) and `squared_error`
        (mean over pixels), each (seeds, n).
    """
    return _apply_to_seeds(_measure_image, model, variables, len(keys), images, keys=keys)


def encode(model: LatentVariableModel, variables: Variables, images: Inputs, seeds: int = 1) -> np.ndarray:
    """Return posterior means (the autoencoder's codes) of images 0…255 for every seed, (seeds, n, latent)."""
    return _apply_to_seeds(_encode_image, model, variables, seeds, images)


def decode(
    model: LatentVariableModel, variables: Variables, latents: Float[np.ndarray, "seeds n latent"]
) -> UInt8[np.ndarray, "seeds n height width channels"]:
    """Return images 0…255 of latents for every seed."""
    return _apply_to_seeds(decode_latent, model, variables, len(latents), per_seed=latents)


def importance_weighted_bound(
    model: LatentVariableModel, variables: Variables, images: Inputs, keys: Key[Array, " seeds"], samples: int
) -> Float[np.ndarray, "seeds n"]:
    """Return the bound on log p(x) of every image from K samples, in nats; see `losses.importance_weighted_bound`."""
    bound = partial(_bound_image, samples=samples)
    at_once = max(1, DECODINGS_PER_BATCH // samples)
    return _apply_to_seeds(bound, model, variables, len(keys), images, keys=keys, batch_size=at_once)


def evaluation_prng_keys(first_seed: int, seeds: int, purpose: str) -> Key[Array, " seeds"]:
    """Return a key of every seed for one purpose of the evaluation: held out, prior samples, or bound."""
    index = ("held out", "prior samples", "bound").index(purpose)
    numbers = jnp.arange(first_seed, first_seed + seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 100 + index))(numbers)


def take_inputs(model: LatentVariableModel, images: Pixels, labels: np.ndarray | None) -> Inputs:
    """Return what a model takes: images, or with their classes where it is conditional.

    Raises:
        ValueError: The model is conditional, and there are no labels.
    """
    if not isinstance(model, ConditionalModel):
        return images
    return Labeled(images, _require_labels(model, labels))


def take_latents(model: LatentVariableModel, latents: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return what a model's decoder takes: latents (…, n, latent), with classes (n,) behind them if it is conditional.

    Raises:
        ValueError: The model is conditional, and there are no labels.
    """
    if not isinstance(model, ConditionalModel):
        return latents
    given = _require_labels(model, labels)
    classes = np.broadcast_to(np.eye(model.classes, dtype=latents.dtype)[given], (*latents.shape[:-1], model.classes))
    return np.concatenate([latents, classes], axis=-1)


def _require_labels(model: ConditionalModel, labels: np.ndarray | None) -> np.ndarray:
    if labels is None:
        raise ValueError(f"{type(model).__name__} is of images given their class; expected labels")
    return np.asarray(labels, np.int32)


def _batch_of_one(image: Array, *label: Array) -> tuple[Images, Any]:
    """Return pixels in [0, 1], and what the model takes of them."""
    pixels = normalize(image)[None]
    return pixels, Labeled(pixels, label[0][None]) if label else pixels


def _attach(model: LatentVariableModel, latents: Latents, images: Any) -> Float[Array, "batch latent_and_class"]:
    if not (isinstance(images, Labeled) and isinstance(model, ConditionalModel)):
        return latents
    return attach_labels(latents, jnp.broadcast_to(images.labels, len(latents)), model.classes)


def _measure_image(model: LatentVariableModel, variables: Variables, *row: Array) -> dict[str, Array]:
    *image, key_data = row
    (pixels, images), key = _batch_of_one(*image), jax.random.wrap_key_data(key_data)
    mean, log_variance = model.encode(variables, images)
    latent = losses.reparameterize(key, mean, log_variance)
    logits = model.decode(variables, _attach(model, latent, images))
    values = {
        "mean": mean,
        "log_variance": log_variance,
        "latent": latent,
        "kl": losses.gaussian_kl(mean, log_variance),
        "loss": model.loss(variables, images, key, EVALUATION_STEP, train=False).per_example,
        "reconstruction": losses.binary_cross_entropy(logits, pixels),
        "squared_error": losses.squared_error(logits, pixels),
    }
    return {name: value[0] for name, value in values.items()}


def _encode_image(model: LatentVariableModel, variables: Variables, *image: Array) -> Array:
    return model.encode(variables, _batch_of_one(*image)[1])[0][0]


def decode_latent(model: LatentVariableModel, variables: Variables, latent: Array) -> UInt8[Array, "h w c"]:
    """Return the image 0…255 of one latent."""
    return jnp.round(jax.nn.sigmoid(model.decode(variables, latent[None])[0]) * 255).astype(jnp.uint8)


def _bound_image(model: LatentVariableModel, variables: Variables, *row: Array, samples: int) -> Array:
    *image, key_data = row
    (pixels, images), key = _batch_of_one(*image), jax.random.wrap_key_data(key_data)
    mean, log_variance = model.encode(variables, images)

    def decode(latents: Latents) -> Images:
        return model.decode(variables, _attach(model, latents, images))

    return losses.importance_weighted_bound(key, pixels, mean, log_variance, decode, samples)[0]


def _apply_to_seeds(
    function: Callable[..., Any],
    model: LatentVariableModel,
    variables: Variables,
    seeds: int,
    images: Inputs | None = None,
    *,
    per_seed: np.ndarray | None = None,
    keys: Key[Array, " seeds"] | None = None,
    batch_size: int = EXAMPLES_PER_BATCH,
) -> Any:
    """Apply `function(model, variables, *row)` to every row for every seed: results (seeds, n, …).

    A row is an image and, of a conditional model, its class; then that of `per_seed`; then a key's data.
    """
    shared = [] if images is None else list(images) if isinstance(images, Labeled) else [images]
    rows_of_seeds = []
    if per_seed is not None:
        rows_of_seeds.append(np.asarray(per_seed))
    if keys is not None:
        count = len(shared[0])
        rows_of_seeds.append(np.asarray(jax.random.key_data(jax.vmap(lambda key: jax.random.split(key, count))(keys))))
    rows = [*shared, *(rows[0] if seeds == 1 else np.moveaxis(rows, 0, 1) for rows in rows_of_seeds)]
    static = (function, model, seeds, len(shared))
    results = batched_apply(_apply_rows, *rows, batch_size=batch_size, shared=variables, static=static)
    return jax.tree.map(lambda leaf: leaf[None] if seeds == 1 else np.moveaxis(leaf, 1, 0), results)


def _apply_rows(
    function: Callable[..., Any],
    model: LatentVariableModel,
    seeds: int,
    shared_rows: int,
    variables: Variables,
    *rows: Array,
) -> Any:
    def apply_seed(variables: Variables, *rows: Array) -> Any:
        return jax.vmap(partial(function, model, variables))(*rows)

    in_axes = (0, *[None] * shared_rows, *[1] * (len(rows) - shared_rows))
    return map_seeds(apply_seed, seeds, in_axes, 1)(variables, *rows)


def count_active_units(mean: Codes) -> int:
    """Count the latent dimensions whose posterior mean varies over images by more than 0.01 (Burda et al. 2016)."""
    return int(np.sum(np.var(mean, axis=0) > ACTIVE_UNIT_VARIANCE))


def describe_aggregate_posterior(latents: Codes) -> dict[str, object]:
    """Return mean and covariance of all codes, and KL(N(mean, covariance) ‖ N(0, I)) in nats.

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


def score_neighbours(
    train: Codes, train_labels: np.ndarray, test: OtherCodes, test_labels: np.ndarray, neighbours: int = 10
) -> float:
    """Return the accuracy of a k-nearest-neighbour vote among the codes of the training images."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(neighbours, len(train))).fit(train, train_labels)
    return float(classifier.score(test, test_labels))


def score_samples(
    samples: UInt8[np.ndarray, "m height width channels"], real: UInt8[np.ndarray, "n height width channels"]
) -> dict[str, float]:
    """Return Fréchet distance, density and coverage of samples against real images (see the module).

    Args:
        samples: Decoded prior samples, pixels 0…255.
        real: Held-out images; the first as many as there are samples serve for density and coverage.
    """
    from sklearn.decomposition import PCA

    flat_real, flat_samples = (x.reshape(len(x), -1) / 255 for x in (real, samples))
    components = min(PRINCIPAL_COMPONENTS, *flat_real.shape)
    with np.errstate(invalid="ignore"):  # of images that are all the same
        projection = PCA(components, svd_solver="covariance_eigh").fit(flat_real)
    ours, theirs = projection.transform(flat_samples), projection.transform(flat_real)
    density, coverage = density_and_coverage(ours, theirs[: max(len(ours), NEIGHBOURS + 1)])
    return {"frechet_distance": frechet_distance(ours, theirs), "density": density, "coverage": coverage}


def frechet_distance(one: Codes, other: OtherCodes) -> float:
    """Return |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½) of Gaussians fitted to both sets (Heusel et al. 2017).

    It is NaN where a set has one point alone, which has no covariance.
    """
    if min(len(one), len(other)) < 2:
        return math.nan
    shift = one.mean(axis=0) - other.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(points, rowvar=False)) for points in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross)


def density_and_coverage(samples: OtherCodes, real: Codes, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Return density, 1 on average for samples that are like the real points, and coverage in 0…1 (Naeem et al. 2020).

    Args:
        samples: Points (m, d) to judge.
        real: Points (n, d), n > neighbours.
        neighbours: The k whose distance is the radius of the open ball around each real point.
    """
    from scipy.spatial.distance import cdist  # equal points have equal distances, to the bit

    radius = np.partition(cdist(real, real), neighbours, axis=1)[:, neighbours]
    inside = cdist(real, samples) < radius[:, None]
    return float(inside.sum(axis=0).mean() / neighbours), float(inside.any(axis=1).mean())
