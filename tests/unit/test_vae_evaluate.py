"""Measures of a trained model against direct computation, closed forms and brute force."""

from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from scipy.linalg import sqrtm

from latentlab.model import LatentVariableModel, normalize
from vae import evaluate, losses
from vae.model import Autoencoder, Vae

pytestmark = pytest.mark.unoptimized

MODELS = {
    "autoencoder": Autoencoder(),
    "vae": Vae(beta=2.0, free_bits=0.25, warmup_steps=100),
}
BOTH = pytest.mark.parametrize("name", MODELS)
SEEDS = 2
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (7, 28, 28, 1), np.uint8)
KEYS = jax.random.split(jax.random.key(1), SEEDS)


def parameters(model: LatentVariableModel) -> Any:
    """Weights of two seeds, stacked, of a size at which latents matter to the decoder."""
    shapes = jax.eval_shape(model.init, KEYS[0])
    return jax.tree.map(lambda leaf: jnp.asarray(GENERATOR.normal(0, 0.06, (SEEDS, *leaf.shape)), jnp.float32), shapes)


def of_seed(params: Any, seed: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[seed], params)


def assert_close(got: Any, want: Any) -> None:
    """Agreement to 1e-5 of the largest finite entry wanted."""
    assert got.shape == want.shape
    scale = float(np.abs(want[np.isfinite(want)]).max(initial=0))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 3, so that the 7 images make two and a rest."""
    apply = evaluate.batched_apply
    monkeypatch.setattr(
        evaluate, "batched_apply", lambda *rows, **settings: apply(*rows, **settings | {"batch_size": 3})
    )


@BOTH
def test_evaluation_is_the_model_applied_to_each_image(name: str, small_batches: None) -> None:
    """All values follow from the sampled latents by the model's own functions, one image at a time."""
    model = MODELS[name]
    params = parameters(model)
    got = evaluate.evaluate_test_set(model, params, IMAGES, KEYS)

    @jax.jit
    def directly(params: Any, image: Array, latent: Array) -> dict[str, Array]:
        pixels = normalize(image)[None]
        mean, log_variance = model.encode(params, pixels)
        logits = model.decode(params, latent[None])
        reconstruction = losses.binary_cross_entropy(logits, pixels)
        squared_error = losses.squared_error(logits, pixels)
        kl = losses.gaussian_kl(mean, log_variance)
        vae_loss = reconstruction + 2.0 * jnp.sum(jnp.maximum(kl, 0.25), axis=-1)
        values = {
            "mean": mean,
            "log_variance": log_variance,
            "latent": latent[None],
            "kl": kl,
            "loss": vae_loss if name == "vae" else squared_error,
            "reconstruction": reconstruction,
            "squared_error": squared_error,
        }
        return {quantity: value[0] for quantity, value in values.items()}

    for seed in range(SEEDS):
        each = [directly(of_seed(params, seed), *pair) for pair in zip(IMAGES, got["latent"][seed], strict=True)]
        for quantity, values in got.items():
            assert_close(values[seed], np.stack([one[quantity] for one in each]))


def test_noise_of_held_out_images_is_standard_normal_and_independent() -> None:
    """Of 400 copies of one image and two seeds: mean and covariance to five standard errors."""
    model, count = MODELS["vae"], 400
    got = evaluate.evaluate_test_set(model, parameters(model), np.repeat(IMAGES[:1], count, axis=0), KEYS)
    noise = (got["latent"] - got["mean"]) / np.exp(got["log_variance"] / 2)
    by_image = noise.transpose(1, 0, 2).reshape(count, -1)
    np.testing.assert_allclose(by_image.mean(axis=0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(by_image, rowvar=False), np.eye(4), atol=5 * np.sqrt(2 / count))


@BOTH
def test_encode_and_decode_are_the_models(name: str) -> None:
    model = MODELS[name]
    params = parameters(model)
    latents = GENERATOR.normal(size=(SEEDS, 5, 2)).astype(np.float32)
    codes, pictures = evaluate.encode(model, params, IMAGES, SEEDS), evaluate.decode(model, params, latents)
    assert codes.shape == (SEEDS, 7, 2)
    assert pictures.shape == (SEEDS, 5, 28, 28, 1)
    assert pictures.dtype == np.uint8
    for seed in range(SEEDS):
        own = of_seed(params, seed)
        assert_close(codes[seed], jax.jit(model.encode)(own, normalize(jnp.asarray(IMAGES)))[0])
        grey = 255 * jax.nn.sigmoid(jax.jit(model.decode)(own, latents[seed]))
        assert np.abs(np.asarray(pictures[seed], np.float32) - grey).max() <= 0.5 + 255e-5


def test_importance_weighted_bound_is_above_the_elbo() -> None:
    """On average over images and seeds, by more than five standard errors of 280 where latents matter."""
    model = Vae()
    params, images = parameters(model), np.repeat(IMAGES, 20, axis=0)
    params["params"]["decoder"] = jax.tree.map(lambda leaf: 1.5 * leaf, params["params"]["decoder"])
    bound = np.asarray(evaluate.importance_weighted_bound(model, params, images, KEYS, 16), np.float64)
    test = evaluate.evaluate_test_set(model, params, images, KEYS)
    gap = (bound + test["reconstruction"] + test["kl"].sum(axis=-1)).ravel()
    assert bound.shape == (SEEDS, len(images))
    assert gap.mean() > 5 * gap.std(ddof=1) / np.sqrt(len(gap))


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 50) -> np.ndarray:
    """Points whose sample mean and covariance are these to rounding."""
    points = GENERATOR.normal(size=(count, len(mean)))
    points -= points.mean(axis=0)
    whitener = np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False)))
    return points @ whitener.T @ np.linalg.cholesky(covariance).T + mean


def test_aggregate_posterior_of_a_known_gaussian() -> None:
    """KL is that of independent Gaussians of deviations 2 and ½ and means 1 and -3, turned by 30 degrees."""
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.asarray([[cosine, -sine], [sine, cosine]])
    deviations, means = np.asarray([2.0, 0.5]), np.asarray([1.0, -3.0])
    covariance = turn @ np.diag(deviations**2) @ turn.T
    points = with_moments(turn @ means, covariance)
    got: dict[str, Any] = evaluate.describe_aggregate_posterior(points)
    np.testing.assert_allclose(got["aggregate_mean"], turn @ means)
    np.testing.assert_allclose(got["aggregate_covariance"], covariance)
    np.testing.assert_allclose(got["latent_standard_deviation"], np.sqrt(np.diag(covariance)))
    assert got["largest_absolute_latent"] == np.abs(points).max()
    kl = 0.5 * np.sum(means**2 + deviations**2 - 1 - np.log(deviations**2))
    np.testing.assert_allclose(got["aggregate_kl_to_prior"], kl)


def test_active_units() -> None:
    """Variances 1, 0.0025, 0.04 against the threshold 0.01."""
    assert evaluate.count_active_units(with_moments(np.zeros(3), np.diag([1.0, 0.0025, 0.04]))) == 2


def test_frechet_distance_of_given_moments() -> None:
    roots = GENERATOR.normal(size=(2, 6, 6))
    first, second = roots @ roots.swapaxes(1, 2)
    means = GENERATOR.normal(size=(2, 6))
    want = np.sum((means[0] - means[1]) ** 2) + np.trace(first + second - 2 * sqrtm(first @ second).real)
    got = evaluate.frechet_distance(with_moments(means[0], first), with_moments(means[1], second))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("count", [4, 50])
def test_frechet_distance_of_moved_and_scaled_points(count: int) -> None:
    """0 to itself, |t|² after a shift by t, (c - 1)² tr Σ after scaling by c; with fewer points than dimensions too."""
    points = GENERATOR.normal(size=(count, 6))
    centred, shift = points - points.mean(axis=0), np.arange(6.0)
    trace = np.trace(np.cov(points, rowvar=False))
    for other, want in ((points, 0), (points + shift, shift @ shift), (3 * centred + points.mean(axis=0), 4 * trace)):
        np.testing.assert_allclose(evaluate.frechet_distance(points, other), want, rtol=1e-6, atol=1e-6 * trace)


def test_frechet_distance_of_points_on_a_line() -> None:
    """Of Gaussians in one dimension it is (μ₁ - μ₂)² + (σ₁ - σ₂)²."""
    one, other = GENERATOR.normal(size=(50, 1)), GENERATOR.normal(3, 2, (60, 1))
    want = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    np.testing.assert_allclose(evaluate.frechet_distance(one, other), want, rtol=1e-9)


def discs(count: int) -> np.ndarray:
    """Pictures of blurred discs whose centres lie anywhere in the middle: few degrees of freedom, as in digits."""
    centres = GENERATOR.uniform(8, 20, (count, 2, 1, 1))
    rows, columns = np.mgrid[:28, :28]
    distance = np.hypot(rows - centres[:, 0], columns - centres[:, 1])
    return np.round(255 / (1 + np.exp(distance - 5))).astype(np.uint8)[..., None]


def test_density_and_coverage_by_brute_force() -> None:
    real, samples = GENERATOR.normal(size=(30, 3)), GENERATOR.normal(1, 1, (20, 3))
    balls = np.zeros((30, 20))
    for i, centre in enumerate(real):
        radius = sorted(np.linalg.norm(centre - other) for j, other in enumerate(real) if j != i)[3]
        for j, sample in enumerate(samples):
            balls[i, j] = np.linalg.norm(centre - sample) <= radius
    density, coverage = evaluate.density_and_coverage(samples, real, neighbours=4)
    np.testing.assert_allclose(density, balls.sum() / 4 / 20)
    np.testing.assert_allclose(coverage, np.mean([row.max() for row in balls]))


@pytest.mark.parametrize(
    ("dimensions", "scale", "shift"), [(1, 1, 0), (2, 1, 0), (50, 1, 0), (3, 1e-3, 10), (8, 1e6, 0)]
)
def test_points_are_as_dense_as_themselves(dimensions: int, scale: float, shift: float) -> None:
    """An open ball to the k-th neighbour holds k points, its centre among them, so density is 1 exactly, as in prdc."""
    points = shift + scale * GENERATOR.normal(size=(300, dimensions))
    assert evaluate.density_and_coverage(points.copy(), points) == (1, 1)
    shuffled = GENERATOR.permutation(points)
    assert evaluate.density_and_coverage(shuffled, points) == (1, 1)


def test_density_and_coverage_of_more_of_the_same() -> None:
    """For n real points and m samples of one distribution, whichever it is, to five standard errors of 300 trials.

    A sample is one of the k nearest to a real point with probability k / n, so density is 1 on average.
    A ball is empty if the k nearest of all other points are real: with probability C(n-1, k) / C(n-1+m, k).
    """
    n, m, k = 40, 30, 3
    points = GENERATOR.normal(size=(300, n + m, 2)) ** 3
    trials = np.asarray([evaluate.density_and_coverage(trial[n:], trial[:n], k) for trial in points])
    want = [1, 1 - comb(n - 1, k) / comb(n - 1 + m, k)]
    error = trials.std(axis=0, ddof=1) / np.sqrt(len(trials))
    assert (np.abs(trials.mean(axis=0) - want) <= 5 * error).all()


def test_sample_quality_is_measured_along_principal_components() -> None:
    """Of discs of which every second is moved, projected by a singular value decomposition of the real ones."""
    real, samples = discs(60), discs(40)
    samples[::2] = np.roll(samples[::2], 9, axis=1)
    flat_real, flat_samples = (pictures.reshape(len(pictures), -1) / 255 for pictures in (real, samples))
    mean = flat_real.mean(axis=0)
    axes = np.linalg.svd(flat_real - mean, full_matrices=False)[2][:50]
    theirs, ours = (flat_real - mean) @ axes.T, (flat_samples - mean) @ axes.T
    got = evaluate.score_samples(samples, real)
    np.testing.assert_allclose(got["frechet_distance"], evaluate.frechet_distance(ours, theirs), rtol=1e-6)
    assert (got["density"], got["coverage"]) == evaluate.density_and_coverage(ours, theirs[:40])


def test_sample_quality_tells_real_pictures_from_noise() -> None:
    real, others = discs(200), discs(200)
    noise = GENERATOR.integers(0, 256, real.shape).astype(np.uint8)
    good, bad = evaluate.score_samples(others, real), evaluate.score_samples(noise, real)
    assert good["coverage"] > 0.9
    assert (bad["density"], bad["coverage"]) == (0, 0)
    assert good["frechet_distance"] < bad["frechet_distance"] / 10


@pytest.mark.parametrize("per_cluster", [2, 20])
def test_neighbour_accuracy(per_cluster: int) -> None:
    """1 on clusters far apart, and 0 if the labels are exchanged."""
    labels = np.repeat(np.arange(2), per_cluster)
    train_codes, codes = GENERATOR.normal(size=(2, len(labels), 2)) * 0.1 + 100 * labels[:, None]
    neighbours = min(10, per_cluster)
    assert evaluate.score_neighbours(train_codes, labels, codes, labels, neighbours) == 1
    assert evaluate.score_neighbours(train_codes, labels, codes, 1 - labels, neighbours) == 0


def test_neighbour_accuracy_of_few_training_images() -> None:
    """Four images all vote, whatever is asked: the majority's label wins everywhere."""
    codes, labels = np.arange(8.0).reshape(4, 2), np.asarray([3, 3, 3, 7])
    assert evaluate.score_neighbours(codes, labels, codes, labels) == 0.75


@pytest.mark.parametrize("seed", range(SEEDS))
def test_one_seed_without_an_axis_gives_what_it_gives_beside_others(seed: int) -> None:
    model = MODELS["vae"]
    params = parameters(model)
    together = evaluate.evaluate_test_set(model, params, IMAGES, KEYS)
    alone = evaluate.evaluate_test_set(model, of_seed(params, seed), IMAGES, KEYS[seed : seed + 1])
    for quantity, values in together.items():
        assert_close(alone[quantity][0], values[seed])
