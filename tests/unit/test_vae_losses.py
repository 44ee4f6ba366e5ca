"""Losses against their formulas in float64, and bounds against evidence that is known or integrated.

Where a tolerance is five standard errors, the standard error is that of the average tested.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array
from scipy.integrate import quad
from scipy.special import expit, log_expit
from scipy.stats import norm

from vae import losses

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(0, 5, (3, 4, 5, 2))
IMAGES = GENERATOR.uniform(0, 1, LOGITS.shape)


def single(array: np.ndarray) -> Array:
    return jnp.asarray(array, jnp.float32)


def cross_entropy(logits: np.ndarray, images: np.ndarray) -> np.ndarray:
    return -np.sum(images * log_expit(logits) + (1 - images) * log_expit(-logits), axis=(-3, -2, -1))


def mean_squared(logits: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.mean((expit(logits) - images) ** 2, axis=(-3, -2, -1))


LOSSES = [(losses.binary_cross_entropy, cross_entropy), (losses.squared_error, mean_squared)]


@pytest.mark.parametrize(("ours", "formula"), LOSSES)
def test_reconstruction_losses(ours: Callable, formula: Callable) -> None:
    want = formula(LOGITS, IMAGES)
    np.testing.assert_allclose(jax.jit(ours)(single(LOGITS), single(IMAGES)), want, rtol=1e-5)
    stacked = jax.vmap(ours)(single(np.stack([LOGITS, -LOGITS])), single(np.stack([IMAGES, IMAGES])))
    np.testing.assert_allclose(stacked, [want, formula(-LOGITS, IMAGES)], rtol=1e-5)


@pytest.mark.unchecked
@pytest.mark.parametrize("ours", [loss for loss, _ in LOSSES])
def test_shapes_that_would_broadcast_are_refused(ours: Callable) -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 5, 2\).*\(1, 4, 5, 2\)"):
        ours(single(LOGITS), single(IMAGES[:1]))


def test_losses_of_a_vae_are_summed_over_pixels() -> None:
    pixels = LOGITS[0].size
    for name, want in {"binary_cross_entropy": cross_entropy, "squared_error": mean_squared}.items():
        scale = pixels if name == "squared_error" else 1
        got = losses.RECONSTRUCTIONS[name](single(LOGITS), single(IMAGES))
        np.testing.assert_allclose(got, scale * want(LOGITS, IMAGES), rtol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, 1e4])
@pytest.mark.parametrize("pixel", [0.0, 0.25, 1.0])
def test_cross_entropy_of_extreme_logits(logit: float, pixel: float) -> None:
    """Where σ is 0 or 1 in float32, the loss is |logit| times the error and its gradient the signed error."""
    value, gradient = jax.value_and_grad(
        lambda logits: losses.binary_cross_entropy(logits, jnp.full((1, 1, 1, 1), pixel))[0]
    )(jnp.full((1, 1, 1, 1), logit))
    error = float(logit > 0) - pixel
    assert value == abs(logit * error)
    assert gradient.item() == error


@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.5])
@pytest.mark.parametrize("log_variance", [-4.0, 0.0, 1.5])
def test_kl_is_the_integral(mean: float, log_variance: float) -> None:
    q = norm(mean, np.exp(log_variance / 2))
    want, error = quad(lambda z: q.pdf(z) * (q.logpdf(z) - norm.logpdf(z)), *q.interval(1 - 1e-15))
    got = losses.gaussian_kl(jnp.full((1, 1), mean), jnp.full((1, 1), log_variance))
    np.testing.assert_allclose(got.item(), want, rtol=1e-5, atol=max(error, 1e-7))


@settings(max_examples=50)
@given(st.floats(-20, 20, width=32), st.floats(-20, 10, width=32))
def test_kl_is_not_negative_beyond_rounding(mean: float, log_variance: float) -> None:
    """Rounding: a float32 unit of the largest term of the sum for each of its four operations."""
    kl = losses.gaussian_kl(jnp.full((1, 1), mean), jnp.full((1, 1), log_variance)).item()
    assert kl >= -4 * np.finfo(np.float32).eps * max(1, mean**2, abs(log_variance), np.exp(log_variance))


def test_negative_elbo_weighs_the_kl_and_floors_each_dimension() -> None:
    reconstruction, kl = jnp.asarray([10.0, 20.0]), jnp.asarray([[0.25, 2.0], [1.0, 0.0]])
    np.testing.assert_array_equal(losses.negative_elbo(reconstruction, kl), [12.25, 21.0])
    np.testing.assert_array_equal(losses.negative_elbo(reconstruction, kl, beta=4.0), [19.0, 24.0])
    np.testing.assert_array_equal(losses.negative_elbo(reconstruction, kl, beta=4.0, free_bits=0.5), [20.0, 26.0])
    slope = jax.grad(lambda kl: losses.negative_elbo(reconstruction, kl, 4.0, 0.5).sum())(kl)
    np.testing.assert_array_equal(slope, [[0.0, 4.0], [4.0, 0.0]])


@pytest.mark.parametrize(
    ("step", "warmup_steps", "weight"),
    [
        (0, 0, 2.0),
        (0, 1, 2.0),
        (0, 4, 0.5),
        (2, 4, 1.5),
        (3, 4, 2.0),
        (4, 4, 2.0),
        (10**6, 4, 2.0),
        (2**31 - 1, 4, 2.0),
    ],
)
def test_kl_warmup(step: int, warmup_steps: int, weight: float) -> None:
    schedule = jax.jit(lambda step: losses.warm_up_beta(step, warmup_steps, 2.0))
    assert schedule(jnp.asarray(step, jnp.int32)) == weight


def test_reparameterize() -> None:
    """Z = mean + exp(logvar / 2) ε, so dz/dmean = 1 and dz/dlogvar = (z - mean) / 2; ε is standard normal."""
    mean, log_variance = jnp.asarray([[1.0, -2.0]]), jnp.asarray([[0.5, -3.0]])
    key = jax.random.key(1)
    z, pull = jax.vjp(lambda *posterior: losses.reparameterize(key, *posterior), mean, log_variance)
    by_mean, by_log_variance = pull(jnp.ones_like(z))
    np.testing.assert_array_equal(by_mean, 1.0)
    np.testing.assert_allclose(by_log_variance, (z - mean) / 2, rtol=1e-5)

    count = 5000
    draws = jax.vmap(losses.reparameterize, (0, None, None))(jax.random.split(key, count), mean, log_variance)
    noise = (np.asarray(draws[:, 0], np.float64) - np.asarray(mean)) / np.exp(np.asarray(log_variance) / 2)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(noise, rowvar=False), np.eye(2), atol=5 * np.sqrt(2 / count))


def test_a_posterior_without_width_is_its_mean() -> None:
    mean, point = jnp.asarray([[1.0, -2.0]]), jnp.full((1, 2), -jnp.inf)
    z, pull = jax.vjp(lambda mean: losses.reparameterize(jax.random.key(0), mean, point), mean)
    np.testing.assert_array_equal(z, mean)
    np.testing.assert_array_equal(pull(jnp.ones_like(z))[0], 1.0)


PICTURES = GENERATOR.uniform(0, 1, (3, 2, 2, 1))
WEIGHTS, BIAS = GENERATOR.normal(0, 2, (2, 4)), GENERATOR.normal(0, 1, 4)
MEAN, LOG_VARIANCE = GENERATOR.normal(0, 0.5, (3, 2)), GENERATOR.normal(0, 0.2, (3, 2))


def decode(latents: Array) -> Array:
    return (jnp.tanh(latents) @ single(WEIGHTS) + single(BIAS)[None]).reshape(-1, 2, 2, 1)


def blind(latents: Array) -> Array:
    """Logits that ignore z, so that p(x) = p(x | z)."""
    return jnp.tile(single(BIAS).reshape(1, 2, 2, 1), (len(latents), 1, 1, 1))


def bounds(decode: Callable, samples: int, draws: int, mean: np.ndarray, log_variance: np.ndarray) -> np.ndarray:
    """Independent bounds (draws, images) in float64."""

    @jax.jit
    @jax.vmap
    def bound(key: Array) -> Array:
        return losses.importance_weighted_bound(
            key, single(PICTURES), single(mean), single(log_variance), decode, samples
        )

    return np.asarray(bound(jax.random.split(jax.random.key(samples), draws)), np.float64)


def standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_bound_is_the_evidence_where_the_posterior_is_exact(samples: int) -> None:
    """If z says nothing about x, the prior is the posterior, and every weight is p(x)."""
    zero = np.zeros_like(MEAN)
    want = -cross_entropy(np.broadcast_to(BIAS.reshape(2, 2, 1), PICTURES.shape), PICTURES)
    got = bounds(blind, samples, 4, zero, zero)
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-5)


def test_one_sample_gives_the_elbo_on_average() -> None:
    """With z ignored the ELBO is log p(x) - KL, to five standard errors."""
    evidence = -cross_entropy(np.broadcast_to(BIAS.reshape(2, 2, 1), PICTURES.shape), PICTURES)
    kl = 0.5 * np.sum(MEAN**2 + np.exp(LOG_VARIANCE) - 1 - LOG_VARIANCE, axis=1)
    got = bounds(blind, 1, 5000, MEAN, LOG_VARIANCE)
    assert (np.abs(got.mean(axis=0) - (evidence - kl)) <= 5 * standard_error(got)).all()


def test_bound_grows_to_the_integral_of_the_evidence() -> None:
    """exp(bound) is an unbiased estimate of p(x), and the bound grows with K but on average not beyond log p(x).

    p(x) = ∫ N(z; 0, I) p(x | z) dz by the midpoint rule on a grid of 0.05 over [-8, 8]².
    """
    axis = np.arange(-8, 8, 0.05) + 0.025
    z = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    logits = (np.tanh(z) @ WEIGHTS + BIAS).reshape(-1, 2, 2, 1)
    prior = norm.pdf(z).prod(axis=1) * 0.05**2
    evidence = np.asarray([prior @ np.exp(-cross_entropy(logits, picture)) for picture in PICTURES])

    by_samples = {samples: bounds(decode, samples, 1000, MEAN, LOG_VARIANCE) for samples in (1, 4, 16, 64)}
    for values in by_samples.values():
        ratio = np.exp(values) / evidence
        assert (np.abs(ratio.mean(axis=0) - 1) <= 5 * standard_error(ratio)).all()
        assert (values.mean(axis=0) <= np.log(evidence) + 5 * standard_error(values)).all()
    means = [values.mean(axis=0) for values in by_samples.values()]
    assert (np.diff(means, axis=0) > 0).all()
