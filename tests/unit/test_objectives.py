"""Objectives of the digits' VAE: the decomposition of its KL on cases that can be summed, and the bound of IWAE."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from latentlab.errors import UserError
from latentlab.labeled_images import Dataset, LabeledImages
from latentlab.model import Labeled, LatentVariableModel, attach_labels
from vae import evaluate, experiment, losses
from vae.config import PRESETS
from vae.model import ConditionalVae, ImportanceWeightedVae, TotalCorrelationVae, Vae

pytestmark = pytest.mark.unoptimized

GENERATOR = np.random.default_rng(0)
MEAN, LOG_VARIANCE = GENERATOR.normal(size=(6, 3)), GENERATOR.normal(-1, 0.5, size=(6, 3))
LATENTS = MEAN + np.exp(LOG_VARIANCE / 2) * GENERATOR.normal(size=(6, 3))
IMAGES = jnp.asarray(GENERATOR.uniform(size=(4, 28, 28, 1)), jnp.float32)
KEY = jax.random.key(3)


def terms(latents: np.ndarray, mean: np.ndarray, log_variance: np.ndarray, size: int) -> list[np.ndarray]:
    arrays = (jnp.asarray(array, jnp.float32) for array in (latents, mean, log_variance))
    return [np.asarray(term) for term in losses.decompose_kl(*arrays, size)]


def test_the_terms_are_those_of_the_aggregate_posterior_of_the_whole_data() -> None:
    """With all N data in the batch, 1/N Σ q(z | x) is exact, and the estimate differs by its known factor 1/N."""
    n, dim = MEAN.shape
    pairs = norm.logpdf(LATENTS[:, None], MEAN[None], np.exp(LOG_VARIANCE / 2)[None])
    log_joint = logsumexp(pairs.sum(axis=2), axis=1) - np.log(n)
    log_product = (logsumexp(pairs, axis=1) - np.log(n)).sum(axis=1)
    log_posterior = norm.logpdf(LATENTS, MEAN, np.exp(LOG_VARIANCE / 2)).sum(axis=1)
    information, correlation, dimension_wise = terms(LATENTS, MEAN, LOG_VARIANCE, n)
    np.testing.assert_allclose(information - np.log(n), log_posterior - log_joint, atol=1e-4)
    np.testing.assert_allclose(correlation - (dim - 1) * np.log(n), log_joint - log_product, atol=1e-4)
    log_prior = norm.logpdf(LATENTS).sum(axis=1)
    np.testing.assert_allclose(dimension_wise + dim * np.log(n), log_product - log_prior, atol=1e-4)


@pytest.mark.parametrize("size", [6, 1000])
def test_the_terms_add_up_to_the_kl_of_the_sample(size: int) -> None:
    log_posterior = norm.logpdf(LATENTS, MEAN, np.exp(LOG_VARIANCE / 2)).sum(axis=1)
    want = log_posterior - norm.logpdf(LATENTS).sum(axis=1)
    np.testing.assert_allclose(sum(terms(LATENTS, MEAN, LOG_VARIANCE, size)), want, atol=1e-4)


def test_total_correlation_grows_with_correlation_and_not_with_that_of_a_single_posterior() -> None:
    shared = GENERATOR.normal(size=(400, 1))
    alone = GENERATOR.normal(size=(400, 2))
    log_variance = np.full((400, 2), -2.0)
    together = np.repeat(shared, 2, axis=1)
    found = [terms(mean, mean, log_variance, 400)[1].mean() for mean in (together, alone)]
    assert found[0] > found[1] + 0.5


@pytest.fixture(scope="module")
def variables() -> dict:
    return Vae().init(jax.random.key(0))


def test_beta_of_one_is_the_evidence_bound_whatever_the_batch(variables: dict) -> None:
    model = TotalCorrelationVae(dataset_size=1000)
    both = model.loss(variables, IMAGES, KEY, 0, train=True)
    mean, log_variance = model.encode(variables, IMAGES)
    latents = np.asarray(losses.reparameterize(KEY, mean, log_variance))
    sample = norm.logpdf(latents, mean, np.exp(log_variance / 2)).sum(axis=1) - norm.logpdf(latents).sum(axis=1)
    np.testing.assert_allclose(both.per_example, both.parts["reconstruction"] + sample, rtol=1e-5)


def test_beta_weighs_the_total_correlation_alone(variables: dict) -> None:
    model = TotalCorrelationVae(dataset_size=1000)
    one, six = (
        replace(model, beta=beta).loss(variables, IMAGES, KEY, 0, train=True).per_example for beta in (1.0, 6.0)
    )
    mean, log_variance = model.encode(variables, IMAGES)
    latents = losses.reparameterize(KEY, mean, log_variance)
    np.testing.assert_allclose(six - one, 5 * losses.decompose_kl(latents, mean, log_variance, 1000)[1], atol=1e-2)


def test_evaluation_of_tcvae_is_that_of_a_vae(variables: dict) -> None:
    found = TotalCorrelationVae(beta=6.0).loss(variables, IMAGES, KEY, 0, train=False)
    plain = Vae().loss(variables, IMAGES, KEY, 0, train=False)
    np.testing.assert_allclose(found.per_example, plain.per_example, rtol=1e-6)


def test_the_loss_of_iwae_is_the_bound_that_is_measured(variables: dict) -> None:
    model = ImportanceWeightedVae(samples=7)
    for index in range(3):
        pixels = jnp.round(255 * IMAGES[index : index + 1]).astype(jnp.uint8)
        key = jax.random.fold_in(KEY, index)
        measured = evaluate._bound_image(model, variables, pixels[0], jax.random.key_data(key), samples=7)
        loss = model.loss(variables, pixels.astype(jnp.float32) / 255, key, 0, train=False).per_example
        np.testing.assert_allclose(-loss[0], measured, rtol=1e-5)


def test_more_samples_give_a_tighter_bound_and_one_is_a_sample_of_the_evidence_bound(variables: dict) -> None:
    loud = jax.tree.map(lambda leaf: leaf, variables)
    loud["params"]["decoder"]["dense"]["kernel"] = 20 * variables["params"]["decoder"]["dense"]["kernel"]
    means = []
    for samples in (1, 50):
        model = ImportanceWeightedVae(samples=samples)
        found = [model.loss(loud, IMAGES, jax.random.key(seed), 0, train=True).per_example for seed in range(8)]
        means.append(np.mean(found))
    assert means[1] < means[0] - 1
    one = ImportanceWeightedVae(samples=1).loss(variables, IMAGES, KEY, 0, train=True)
    mean, log_variance = Vae().encode(variables, IMAGES)
    latents = np.asarray(mean + jnp.exp(log_variance / 2) * jax.random.normal(KEY, (1, *mean.shape))[0])
    sample = norm.logpdf(latents, mean, np.exp(log_variance / 2)).sum(axis=1) - norm.logpdf(latents).sum(axis=1)
    np.testing.assert_allclose(one.per_example, one.parts["reconstruction"] + sample, rtol=1e-4)


def test_the_configuration_names_the_objective() -> None:
    quick = PRESETS["quick"]
    assert type(experiment.make_vae(quick)) is Vae
    tcvae = experiment.make_vae(replace(quick, objective="tcvae", beta=6.0))
    assert isinstance(tcvae, TotalCorrelationVae) and (tcvae.beta, tcvae.dataset_size) == (6.0, quick.train_images)
    iwae = experiment.make_vae(replace(quick, objective="iwae", objective_samples=9))
    assert isinstance(iwae, ImportanceWeightedVae) and iwae.samples == 9
    conditional = experiment.make_vae(replace(quick, objective="conditional"), classes=47)
    assert isinstance(conditional, ConditionalVae) and conditional.classes == 47
    assert all(isinstance(model, LatentVariableModel) for model in (tcvae, iwae, conditional))


def test_batches_of_tcvae_have_no_padding() -> None:
    config = replace(PRESETS["quick"], objective="tcvae", train_images=100, batch_size=32)
    schedule = experiment.make_schedule(config)
    assert schedule.drop_remainder and schedule.steps_per_epoch == 3
    assert experiment.make_schedule(replace(config, objective="elbo")).steps_per_epoch == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "iwae", "beta": 2.0},
        {"objective": "iwae", "kl_warmup_epochs": 2},
        {"objective": "iwae", "reconstruction": "squared_error"},
        {"objective": "tcvae", "free_bits": 0.1},
        {"objective": "tcvae", "batch_size": 64, "train_images": 32},
    ],
)
def test_settings_that_an_objective_does_not_have_are_refused(fields: dict) -> None:
    with pytest.raises(UserError, match=r"objective|batch_size"):
        replace(PRESETS["quick"], **fields)


LABELS = np.array([3, 0, 9, 3])


@pytest.fixture(scope="module")
def conditional() -> tuple[ConditionalVae, dict]:
    model = ConditionalVae(classes=10)
    return model, model.init(jax.random.key(0))


def test_conditional_loss_is_the_bound_given_the_class(conditional: tuple[ConditionalVae, dict]) -> None:
    model, variables = conditional
    found = model.loss(variables, Labeled(IMAGES, jnp.asarray(LABELS)), KEY, 0, train=True)
    mean, log_variance = (np.asarray(part, np.float64) for part in model.encode(variables, Labeled(IMAGES, LABELS)))
    latents = np.asarray(losses.reparameterize(KEY, jnp.float32(mean), jnp.float32(log_variance)))
    logits = np.asarray(
        model.decode(variables, np.concatenate([latents, np.eye(10, dtype=np.float32)[LABELS]], axis=1)), np.float64
    )
    images = np.asarray(IMAGES, np.float64)
    cross_entropy = (np.logaddexp(0, logits) - images * logits).sum(axis=(1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1)
    np.testing.assert_allclose(found.per_example, cross_entropy + kl, rtol=1e-5)


def test_the_class_matters_to_both_networks_and_those_of_others_do_not(
    conditional: tuple[ConditionalVae, dict],
) -> None:
    model, variables = conditional
    other = LABELS.copy()
    other[1] = 5
    means = [model.encode(variables, Labeled(IMAGES, labels))[0] for labels in (LABELS, other)]
    moved = np.abs(np.asarray(means[0] - means[1])).max(axis=1)
    assert moved[1] > 1e-3 and not moved[[0, 2, 3]].any()
    codes = np.zeros((4, 2), np.float32)
    pictures = [model.decode(variables, attach_labels(codes, labels, 10)) for labels in (LABELS, other)]
    moved = np.abs(np.asarray(pictures[0] - pictures[1])).max(axis=(1, 2, 3))
    assert moved[1] > 1e-4 and not moved[[0, 2, 3]].any()


def test_weights_without_the_class_give_the_vae(variables: dict, conditional: tuple[ConditionalVae, dict]) -> None:
    """Where the weights of the class are cut off, what is left is a VAE of the same numbers."""
    model, full = conditional
    encoder, decoder = full["params"]["encoder"], full["params"]["decoder"]
    silent = {
        "encoder": encoder
        | {"conv_0": encoder["conv_0"] | {"kernel": encoder["conv_0"]["kernel"].at[:, :, 1:].set(0)}},
        "decoder": decoder | {"dense": decoder["dense"] | {"kernel": decoder["dense"]["kernel"].at[2:].set(0)}},
    }
    cut = {
        "encoder": encoder | {"conv_0": encoder["conv_0"] | {"kernel": encoder["conv_0"]["kernel"][:, :, :1]}},
        "decoder": decoder | {"dense": decoder["dense"] | {"kernel": decoder["dense"]["kernel"][:2]}},
    }
    found = model.loss({"params": silent, "batch_stats": {}}, Labeled(IMAGES, LABELS), KEY, 0, train=True)
    want = Vae().loss({"params": cut, "batch_stats": {}}, IMAGES, KEY, 0, train=True)
    np.testing.assert_allclose(found.per_example, want.per_example, rtol=1e-5)


def test_evaluation_of_a_conditional_model_gives_every_image_its_class(
    conditional: tuple[ConditionalVae, dict],
) -> None:
    model, variables = conditional
    pixels = np.asarray(jnp.round(255 * IMAGES), np.uint8)
    inputs = evaluate.take_inputs(model, pixels, LABELS)
    keys = jax.random.split(KEY, 1)
    measured = evaluate.evaluate_test_set(model, variables, inputs, keys)
    floats = Labeled(jnp.asarray(pixels, jnp.float32) / 255, jnp.asarray(LABELS))
    mean, log_variance = model.encode(variables, floats)
    np.testing.assert_allclose(measured["mean"][0], mean, atol=1e-5)
    latents = attach_labels(jnp.asarray(measured["latent"][0]), floats.labels, 10)
    logits = model.decode(variables, latents)
    np.testing.assert_allclose(
        measured["reconstruction"][0], losses.binary_cross_entropy(logits, floats.images), rtol=1e-5
    )
    many = evaluate.importance_weighted_bound(model, variables, inputs, keys, 64)[0]
    for index, one in enumerate(jax.random.split(keys[0], 4)):
        label = jnp.full(64, LABELS[index])
        bound = losses.importance_weighted_bound(
            one, floats.images[index : index + 1], mean[index : index + 1], log_variance[index : index + 1],
            lambda z, label=label: model.decode(variables, attach_labels(z, label, 10)), 64,
        )  # fmt: skip
        np.testing.assert_allclose(many[index], bound[0], rtol=1e-5)
    with pytest.raises(ValueError, match="expected labels"):
        evaluate.take_inputs(model, pixels, None)
    with pytest.raises(ValueError, match="expected labels"):
        evaluate.take_latents(model, np.zeros((1, 4, 2), np.float32), None)


def test_a_conditional_model_learns_what_a_class_is() -> None:
    """Bars that stand or lie, of any brightness: the class asked for is the class that is drawn."""
    generator = np.random.default_rng(0)
    labels = (np.arange(256) % 2).astype(np.int32)
    images = np.zeros((256, 28, 28, 1), np.uint8)
    for image, label, brightness in zip(images, labels, generator.integers(80, 256, 256), strict=True):
        height, width = ((12, 4), (4, 12))[label]
        image[8 : 8 + height, 8 : 8 + width] = brightness
    parts = LabeledImages(images, labels)
    config = replace(
        PRESETS["quick"], objective="conditional", network="keras_io", train_images=256, epochs=25,
        epochs_per_checkpoint=25, learning_rate=2e-3, latent_points=50, prior_samples=100,
    )  # fmt: skip
    data = Dataset("bars", parts, parts, ("stands", "lies"))
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers
        results = experiment.run(config, data=data, log=lambda line: None)
    assert results.measures["vae"]["prior_class_accuracy"]["mean"] > 0.9
    assert results.measures["shown_class"] == "stands"
    codes = results.encode(images[:6], labels=labels[:6])
    for label, sign in ((0, 1), (1, -1)):
        drawn = results.decode(codes, labels=np.full(6, label)).astype(float)[..., 0]
        heights, widths = drawn.sum(axis=1).max(axis=1), drawn.sum(axis=2).max(axis=1)
        assert (sign * (heights - widths) > 0).all()
    assert results.pictures["vae_styles"].shape == (10, 2, 28, 28, 1)


def test_a_conditional_model_wants_classes() -> None:
    parts = LabeledImages(np.zeros((40, 28, 28, 1), np.uint8), np.zeros(40, np.int32))
    config = replace(PRESETS["quick"], objective="conditional", train_images=40)
    with pytest.raises(UserError, match="conditional is given classes, of which pictures has 0"):
        experiment.run(config, data=Dataset("pictures", parts, parts, ()))
