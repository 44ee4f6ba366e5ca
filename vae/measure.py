"""What experiment 1 measures of the trained models, and the pictures behind its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from latentlab import parallel
from latentlab.disentanglement import Part, measure_disentanglement
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset
from latentlab.model import ConditionalModel, LatentVariableModel, Variables
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import note_nulls
from vae import evaluate
from vae.config import VaeConfig
from vae.evaluate import evaluation_prng_keys
from vae.planes import Plane, even_grid, find_extent, fit_plane, quantile_grid
from vae.results import VaeResults

RECONSTRUCTIONS = 12
MANIFOLD_SIDE = 20
SHOWN_SAMPLES = 100
SHOWN_POINTS = 2000
SHOWN_STYLES = 10
PLANE_SIDE = 40


@dataclass(frozen=True, eq=False)
class ModelValues:
    """What a trained model gives for the test set and the prior, each array (seeds, …).

    Attributes:
        test: From `evaluate.evaluate_test_set`.
        train_means: Posterior means of the training images.
        prior: Samples from the prior.
        plane: The plane that two-dimensional figures show, of the first seed.
        extent: Half the side of the square that they show.
        decoded: Pictures of `samples`, `reconstructions`, `points`, `manifold` and `plane`; of a conditional model
            samples are of the classes in turn, manifold and plane of the first test image's class, and `styles` has
            a few samples of the prior in all classes.
    """

    test: Mapping[str, np.ndarray]
    train_means: np.ndarray
    prior: np.ndarray
    plane: Plane
    extent: float
    decoded: Mapping[str, np.ndarray]


def measure(
    config: VaeConfig,
    models: Mapping[str, LatentVariableModel],
    variables: Mapping[str, Variables],
    data: Dataset,
    metrics: MetricsLog,
) -> VaeResults:
    """Measure the trained models on held-out images and gather what figures show.

    Raises:
        UserError: The metrics lack the last epoch of a model.
    """
    last = _last_epoch(config, list(models), metrics)
    sampled = sample_test_images(config, len(data.test.images))
    described = {"data": data.describe(), "train_images_used": config.train_images, "seeds": config.seeds}
    measures: dict[str, Any] = described
    latents = {"labels": data.test.labels[sampled].astype(np.int32), "classes": np.asarray(data.classes, str)}
    pictures = {
        "originals": data.test.images[:RECONSTRUCTIONS],
        "point_originals": data.test.images[sampled[:SHOWN_POINTS]],
    }
    for name, model in models.items():
        values = evaluate_model(config, model, variables[name], data, sampled)
        per_seed = [_measure_seed(config, name, values, data, last[name, seed], seed) for seed in range(config.seeds)]
        if name == "vae":
            keys = evaluation_prng_keys(config.seed, config.seeds, "bound")
            images = evaluate.take_inputs(model, *data.test)
            bounds = evaluate.importance_weighted_bound(model, variables[name], images, keys, config.iwae_samples)
            for measured, bound in zip(per_seed, bounds.astype(np.float64), strict=True):
                measured["test_iwae"] = -float(bound.mean())
            pictures["vae_manifold"] = _square(values.decoded["manifold"][0])
            if isinstance(model, ConditionalModel):
                pictures["vae_styles"] = values.decoded["styles"][0].reshape(-1, model.classes, *model.image_shape)
                measures["shown_class"] = data.classes[data.test.labels[0]]
        measures[name] = {key: _summarize_seeds([measured[key] for measured in per_seed]) for key in per_seed[0]}
        latents |= _latent_arrays(name, values, sampled)
        pictures |= _picture_arrays(name, values)
    measures["training_images_as_samples"] = evaluate.score_samples(
        data.train.images[: config.prior_samples], data.test.images
    )
    host = {
        name: jax.tree.map(lambda leaf: leaf if config.seeds > 1 else leaf[None], parallel.gather_to_host(tree))
        for name, tree in variables.items()
    }
    return VaeResults(config, dict(models), host, latents, pictures, note_nulls(measures))


def evaluate_model(
    config: VaeConfig, model: LatentVariableModel, variables: Variables, data: Dataset, sampled: np.ndarray
) -> ModelValues:
    """Return what a trained model gives for the test set, the training images, the prior and the plane."""
    seeds = config.seeds
    test = evaluate.evaluate_test_set(
        model,
        variables,
        evaluate.take_inputs(model, *data.test),
        evaluation_prng_keys(config.seed, seeds, "held out"),
    )
    train = (part[: config.train_images] for part in data.train)
    train_means = evaluate.encode(model, variables, evaluate.take_inputs(model, *train), seeds)
    shape = (config.prior_samples, model.latent_dim)
    keys = evaluation_prng_keys(config.seed, seeds, "prior samples")
    prior = np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))
    codes = test["latent"][0][sampled]
    plane = fit_plane(codes)
    extent = find_extent(plane.project(codes))

    def for_all_seeds(latents: np.ndarray) -> np.ndarray:
        return np.broadcast_to(latents, (seeds, *latents.shape))

    labels, first = data.test.labels, data.test.labels[:1]
    wanted = {
        "samples": (prior, sample_classes(config, data)),
        "reconstructions": (test["mean"][:, :RECONSTRUCTIONS], labels[:RECONSTRUCTIONS]),
        "points": (test["mean"][:, sampled[:SHOWN_POINTS]], labels[sampled[:SHOWN_POINTS]]),
        "manifold": (for_all_seeds(plane.embed(quantile_grid(MANIFOLD_SIDE))), first.repeat(MANIFOLD_SIDE**2)),
        "plane": (for_all_seeds(plane.embed(even_grid(PLANE_SIDE, extent))), first.repeat(PLANE_SIDE**2)),
    }
    if isinstance(model, ConditionalModel):
        styles = prior[:, :SHOWN_STYLES]
        classes = np.tile(np.arange(model.classes), styles.shape[1])
        wanted["styles"] = (styles.repeat(model.classes, axis=1), classes)
    ends = np.cumsum([len(classes) for _, classes in wanted.values()])[:-1]
    codes_and_classes = [evaluate.take_latents(model, *both) for both in wanted.values()]
    everything = evaluate.decode(model, variables, np.concatenate(codes_and_classes, axis=1))
    decoded = dict(zip(wanted, np.split(everything, ends, axis=1), strict=True))
    return ModelValues(test, train_means, prior, plane, extent, decoded)


def sample_classes(config: VaeConfig, data: Dataset) -> np.ndarray:
    """Return the classes of prior samples of a conditional model: each in turn."""
    return np.arange(config.prior_samples) % max(len(data.classes), 1)


def sample_test_images(config: VaeConfig, available: int) -> np.ndarray:
    """Return indices of the held-out images in the scatter plot, with replacement only where there are too few."""
    generator = np.random.default_rng(config.seed)
    return generator.choice(available, config.latent_points, replace=available < config.latent_points)


def _measure_seed(
    config: VaeConfig, name: str, values: ModelValues, data: Dataset, last_epoch: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    test = {key: value[seed] for key, value in values.test.items()}
    train_labels = data.train.labels[: config.train_images]
    quality = evaluate.score_samples(values.decoded["samples"][seed], data.test.images)
    measured = {
        "test_mse": float(np.mean(test["squared_error"], dtype=np.float64)),
        **evaluate.describe_aggregate_posterior(test["latent"]),
        **{f"prior_{key}": value for key, value in quality.items()},
    }
    if len(data.classes) > 1:
        measured["neighbour_accuracy"] = evaluate.score_neighbours(
            values.train_means[seed], train_labels, test["mean"], data.test.labels
        )
    if "styles" in values.decoded:
        # a nearest neighbours' vote among pixels, which knows nothing of the model
        samples, classes = values.decoded["samples"][seed], sample_classes(config, data)
        flat = (images.reshape(len(images), -1) / 255 for images in (data.train.images[: config.train_images], samples))
        train_pixels, sample_pixels = flat
        measured["prior_class_accuracy"] = evaluate.score_neighbours(train_pixels, train_labels, sample_pixels, classes)
    if data.test_factors is not None:
        known = Part(test["mean"], data.test_factors)
        scores = measure_disentanglement(known, is_continuous=True, seed=config.seed + seed)
        measured |= {f"disentanglement_{score}": value for score, value in scores.items()}
    if name == "autoencoder":
        return measured | {"train_mse": last_epoch["loss"]}
    return measured | _likelihood_bounds(test, last_epoch)


def _likelihood_bounds(test: Mapping[str, np.ndarray], last_epoch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the VAE's likelihood bounds in nats per image; the training loss is that of the last epoch, as it ran."""
    kl = test["kl"].mean(axis=0, dtype=np.float64)
    reconstruction = float(test["reconstruction"].mean(dtype=np.float64))
    return {
        "train_negative_elbo": last_epoch["reconstruction"] + last_epoch["kl"],
        "train_reconstruction": last_epoch["reconstruction"],
        "train_kl": last_epoch["kl"],
        "test_negative_elbo": reconstruction + float(kl.sum()),
        "test_reconstruction": reconstruction,
        "test_kl": float(kl.sum()),
        "test_kl_per_dimension": kl.tolist(),
        "active_units": evaluate.count_active_units(test["mean"]),
    }


def _last_epoch(
    config: VaeConfig, names: Sequence[str], metrics: MetricsLog
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Return the last row of every model and seed."""
    rows = [row for row in metrics.rows() if row.get("epoch") == config.epochs and "loss" in row]
    last: dict[tuple[str, int], Mapping[str, Any]] = {(row.get("model", ""), row.get("seed", -1)): row for row in rows}
    for name in names:
        if any((name, seed) not in last for seed in range(config.seeds)):
            raise UserError(f"{metrics.path}: lacks the last epoch of {name}; start again with --overwrite")
    return last


def _latent_arrays(name: str, values: ModelValues, sampled: np.ndarray) -> dict[str, np.ndarray]:
    return {
        f"{name}_z": values.test["latent"][0][sampled].astype(np.float32),
        f"{name}_axes": values.plane.axes,
        f"{name}_extent": np.asarray(values.extent, np.float32),
        "samples_z": values.prior[0][:SHOWN_SAMPLES],
    }


def _picture_arrays(name: str, values: ModelValues) -> dict[str, np.ndarray]:
    return {
        f"{name}_reconstructions": values.decoded["reconstructions"][0],
        f"{name}_samples": values.decoded["samples"][0][:SHOWN_SAMPLES],
        f"{name}_points": values.decoded["points"][0],
        f"{name}_plane": _square(values.decoded["plane"][0]),
    }


def _summarize_seeds(values: Sequence[Any]) -> dict[str, Any]:
    """Return the value of every seed, their mean and, of two or more, their standard deviation (n - 1)."""
    array = np.asarray(values, np.float64)
    summary = {"per_seed": list(values), "mean": array.mean(axis=0).tolist()}
    return summary | ({"standard_deviation": array.std(axis=0, ddof=1).tolist()} if len(values) > 1 else {})


def _square(rows: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(rows))
    return rows.reshape(side, side, *rows.shape[1:])
