"""Experiment 1: train an autoencoder and a VAE on the same digits, then compare their latent spaces.

Both see the same images in batches of 32 and are trained with Adam, all seeds at once. On
held-out images we measure reconstruction, the evidence bound and its importance-weighted form,
how the codes are distributed, whether neighbours in latent space share a label, and how good
samples from the prior are. The figures show both latent planes side by side, reconstructions,
the plane decoded, prior samples and the course of the losses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.stats import norm
from jaxtyping import Key

from runtime import mesh
from runtime.check import ArrayForm, Expected
from runtime.checkpoints import Checkpoints
from runtime.errors import UserError
from runtime.run_directory import Metrics, write_json, write_npz
from vae import evaluate, figures, models, train
from vae.config import VaeConfig
from vae.data import Dataset, open_dataset
from vae.models import Model
from vae.train import TrainState

RECONSTRUCTIONS = 12
MANIFOLD_SIDE = 20
SHOWN_SAMPLES = 100
SHOWN_POINTS = 2000
PLANE_SIDE = 40
COMPARED = {
    "squared error, held out": "test_mse",
    "neighbour accuracy in latent space": "neighbour_accuracy",
    "KL of the codes to N(0, I), nats": "aggregate_kl_to_prior",
    "Fréchet distance, prior samples": "prior_frechet_distance",
    "density of prior samples": "prior_density",
    "coverage of prior samples": "prior_coverage",
    "negative ELBO, training, nats": "train_negative_elbo",
    "negative ELBO, held out, nats": "test_negative_elbo",
    "negative IWAE bound, held out, nats": "test_iwae",
}
"""What a person reads to what `results.json` calls it."""


def run(config: VaeConfig, run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Runs the experiment, or goes on with it where the checkpoints in `run_dir` end.

    Writes `metrics.jsonl`, `latents.npz`, `figures.npz`, `deliverables.npz`, `results.json`
    and `figures/*.png`.

    Raises:
        UserError: The data cannot be read, the loss diverged, or a file could not be written.
        Interrupted: SIGINT or SIGTERM came; training goes on from a checkpoint.
    """
    dataset = open_dataset(config.data)
    if len(dataset.train.images) < config.train_images:
        raise UserError(
            f"train_images is {config.train_images}, but {config.data} has {len(dataset.train.images)} training images"
        )
    images = mesh.everywhere(dataset.train.images[: config.train_images])
    steps = train.steps_per_epoch(len(images), config.batch_size)
    compared = {
        "autoencoder": models.autoencoder(config.precision),
        "vae": models.variational_autoencoder(config, config.kl_warmup_epochs * steps),
    }
    say(f"vae: {len(images):,} training and {len(dataset.test.images):,} held-out images from {config.data}")
    states = {
        name: _train(name, model, index, images, dataset, config, run_dir, say)
        for index, (name, model) in enumerate(compared.items())
    }
    say("vae: measuring on held-out images")
    results, arrays = _evaluate(compared, states, dataset, config, run_dir)
    write_npz(run_dir / "latents.npz", arrays["latents"])
    write_npz(run_dir / "figures.npz", arrays["figures"])
    write_npz(run_dir / "deliverables.npz", {"ans03": arrays["latents"]["vae_z"]})
    write_json(run_dir / "results.json", results)
    figures.draw(run_dir)
    say(summary(results))


def expected(config: VaeConfig) -> Expected:
    """What `run` leaves behind, for `check`."""
    points = ArrayForm((config.latent_points, 2), "float32")
    return Expected(
        deliverables={"ans03": points},
        arrays={
            "latents.npz": {
                "autoencoder_z": points,
                "vae_z": points,
                "labels": ArrayForm((config.latent_points,), "int32"),
            },
            "figures.npz": {
                "vae_manifold": ArrayForm((MANIFOLD_SIDE, MANIFOLD_SIDE, 28, 28, 1), "uint8"),
                "autoencoder_plane": ArrayForm((PLANE_SIDE, PLANE_SIDE, 28, 28, 1), "uint8"),
                "vae_plane": ArrayForm((PLANE_SIDE, PLANE_SIDE, 28, 28, 1), "uint8"),
                "point_originals": ArrayForm((None, 28, 28, 1), "uint8"),
            },
        },
        results=(
            "autoencoder.train_mse",
            "autoencoder.test_mse",
            "vae.train_negative_elbo",
            "vae.test_negative_elbo",
            "vae.test_reconstruction",
            "vae.test_kl",
            "vae.test_iwae",
        ),
        figures=tuple(f"{name}.png" for name in figures.NAMES_OF_FIGURES),
    )


def summary(results: Mapping[str, Any]) -> str:
    """The comparison in a few lines for the terminal."""

    def number(model: str, name: str) -> str:
        if name not in results[model]:  # an autoencoder has no likelihood
            return ""
        value = results[model][name]
        spread = f" ± {value['standard_deviation']:.3g}" if "standard_deviation" in value else ""
        return f"{value['mean']:.4g}{spread}"

    lines = [f"{'':36}{'autoencoder':>18}{'VAE':>18}"]
    lines += [f"{label:36}{number('autoencoder', key):>18}{number('vae', key):>18}" for label, key in COMPARED.items()]
    return "\n".join(lines)


def initial_states(model: Model, index: int, config: VaeConfig) -> TrainState:
    """States of all seeds before training, stacked; a seed gives the same state however many train beside it."""
    seeds = jnp.arange(config.seed, config.seed + config.seeds)

    def init(seed: Array) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), index)
        return train.init_state(key, model.init, optimizer(config))

    return jax.jit(jax.vmap(init, spmd_axis_name=mesh.SEED))(seeds)


def optimizer(config: VaeConfig) -> optax.GradientTransformation:
    """Adam as Keras computes it."""
    return train.adam(config.learning_rate, config.adam_epsilon, config.shard_optimizer)


def _train(
    name: str,
    model: Model,
    index: int,
    images: Array,
    dataset: Dataset,
    config: VaeConfig,
    run_dir: Path,
    say: Callable[[str], None],
) -> TrainState:
    checkpoints, metrics = Checkpoints(run_dir / "checkpoints" / name), Metrics(run_dir / "metrics.jsonl")
    state = initial_states(model, index, config)
    steps = train.steps_per_epoch(len(images), config.batch_size)
    restored = checkpoints.restore(state, warn=lambda line: say(f"{name}: {line}"))
    if restored:
        state = restored.state
        say(f"{name}: resuming after {train.told(restored.step, steps)} of {config.epochs}")
    metrics.rewind(name, int(state.epoch[0]))
    held_out_images = mesh.everywhere(dataset.test.images)

    def validate(params: train.Parameters) -> dict[str, Array]:
        measured = evaluate.held_out(model, params, held_out_images, _keys(config, "held out"))
        return {"loss": jnp.mean(measured["loss"], axis=1)}

    state = train.fit(
        state,
        train.steps_on_images(images, batch_size=config.batch_size, loss=model.loss, optimizer=optimizer(config)),
        examples=len(images),
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps_per_dispatch=train.many_steps(steps, config.epochs_per_dispatch, config.seeds),
        epochs_per_checkpoint=config.epochs_per_checkpoint,
        validate=validate,
        checkpoints=checkpoints,
        metrics=metrics,
        label=name,
        unfinished=restored and restored.kept,
    )
    checkpoints.close()
    return state


def _evaluate(
    compared: Mapping[str, Model],
    states: Mapping[str, TrainState],
    dataset: Dataset,
    config: VaeConfig,
    run_dir: Path,
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    rows = Metrics(run_dir / "metrics.jsonl").rows()
    last = {
        (row.get("model"), row.get("seed")): row for row in rows if row.get("epoch") == config.epochs and "loss" in row
    }
    missing = [name for name in compared for seed in range(config.seeds) if (name, seed) not in last]
    if missing:
        raise UserError(
            f"{run_dir / 'metrics.jsonl'}: lacks the last epoch of {missing[0]}; start again with --overwrite"
        )
    train_images, test_images = (
        mesh.everywhere(dataset.train.images[: config.train_images]),
        mesh.everywhere(dataset.test.images),
    )
    train_labels = dataset.train.labels[: config.train_images]
    results: dict[str, Any] = {
        "data": dataset.describe(),
        "train_images_used": len(train_images),
        "seeds": config.seeds,
    }
    chosen = _draw_with_replacement(len(test_images), config)
    latents: dict[str, np.ndarray] = {"labels": dataset.test.labels[chosen].astype(np.int32)}
    shown_points = chosen[:SHOWN_POINTS]
    pictures: dict[str, np.ndarray] = {
        "originals": dataset.test.images[:RECONSTRUCTIONS],
        "point_originals": dataset.test.images[shown_points],
    }
    for name, model in compared.items():
        params = states[name].params
        test = mesh.fetched(evaluate.held_out(model, params, test_images, _keys(config, "held out")))
        train_means = mesh.fetched(evaluate.encode(model, params, train_images))
        noise = jax.vmap(lambda key: jax.random.normal(key, (config.prior_samples, models.LATENT_DIM)))
        prior = mesh.fetched(noise(_keys(config, "prior samples")))
        extent = _extent(test["latent"][0][chosen])
        wanted: dict[str, Any] = {
            "samples": prior,
            "reconstructions": test["mean"][:, :RECONSTRUCTIONS],
            "points": test["mean"][:, shown_points],
            "manifold": _of_every_seed(config, _quantiles()),
            "plane": _of_every_seed(config, _plane(extent)),
        }
        ends = np.cumsum([rows.shape[1] for rows in wanted.values()])[:-1]
        everything = evaluate.decode(model, params, jnp.concatenate(list(wanted.values()), axis=1))
        decoded = dict(zip(wanted, np.split(mesh.fetched(everything), ends, axis=1), strict=True))
        per_seed = []
        for seed in range(config.seeds):
            quality = evaluate.sample_quality(decoded["samples"][seed], dataset.test.images)
            measured = {
                "test_mse": float(np.mean(test["squared_error"][seed], dtype=np.float64)),
                "neighbour_accuracy": evaluate.neighbour_accuracy(
                    train_means[seed], train_labels, test["mean"][seed], dataset.test.labels
                ),
                **evaluate.aggregate_posterior(test["latent"][seed]),
                **{f"prior_{key}": value for key, value in quality.items()},
            }
            if name == "autoencoder":
                measured["train_mse"] = last[name, seed]["loss"]
            else:
                measured |= _evidence({key: value[seed] for key, value in test.items()}, last[name, seed])
            per_seed.append(measured)
        if name == "vae":
            bounds = evaluate.importance_weighted_bound(
                model, params, test_images, _keys(config, "bound"), config.iwae_samples
            )
            for measured, bound in zip(per_seed, mesh.fetched(bounds).astype(np.float64), strict=True):
                measured["test_iwae"] = -float(bound.mean())
            pictures["vae_manifold"] = _square(decoded["manifold"][0])
        latents[f"{name}_z"] = test["latent"][0][chosen].astype(np.float32)
        latents |= {f"{name}_extent": np.asarray(extent, np.float32), "samples_z": np.asarray(prior[0][:SHOWN_SAMPLES])}
        pictures |= {
            f"{name}_reconstructions": decoded["reconstructions"][0],
            f"{name}_samples": decoded["samples"][0][:SHOWN_SAMPLES],
            f"{name}_points": decoded["points"][0],
            f"{name}_plane": _square(decoded["plane"][0]),
        }
        results[name] = {key: _over_seeds([measured[key] for measured in per_seed]) for key in per_seed[0]}
    results["training_images_as_samples"] = evaluate.sample_quality(
        dataset.train.images[: config.prior_samples], dataset.test.images
    )
    return results, {"latents": latents, "figures": pictures}


def _evidence(test: Mapping[str, np.ndarray], row: Mapping[str, float]) -> dict[str, Any]:
    """The VAE's likelihood bounds in nats per image; the training loss is that of the last epoch, as it ran."""
    kl = test["kl"].mean(axis=0, dtype=np.float64)
    reconstruction = float(test["reconstruction"].mean(dtype=np.float64))
    return {
        "train_negative_elbo": row["reconstruction"] + row["kl"],
        "train_reconstruction": row["reconstruction"],
        "train_kl": row["kl"],
        "test_negative_elbo": reconstruction + float(kl.sum()),
        "test_reconstruction": reconstruction,
        "test_kl": float(kl.sum()),
        "test_kl_per_dimension": kl.tolist(),
        "active_units": evaluate.active_units(test["mean"]),
    }


def _over_seeds(values: Sequence[Any]) -> dict[str, Any]:
    """Value of every seed, their mean and, of two or more, their standard deviation (n - 1)."""
    array = np.asarray(values, np.float64)
    summary = {"per_seed": list(values), "mean": array.mean(axis=0).tolist()}
    return summary | ({"standard_deviation": array.std(axis=0, ddof=1).tolist()} if len(values) > 1 else {})


def _draw_with_replacement(available: int, config: VaeConfig) -> np.ndarray:
    """Indices of the held-out images in the scatter plot; with replacement only where there are too few."""
    generator = np.random.default_rng(config.seed)
    return generator.choice(available, config.latent_points, replace=available < config.latent_points)


def _quantiles() -> np.ndarray:
    """Grid over the inverse normal CDF, (side², 2), from high to low z₂; cell centres, so no infinite ends."""
    return _grid(np.asarray(norm.ppf((jnp.arange(MANIFOLD_SIDE) + 0.5) / MANIFOLD_SIDE)))


def _extent(latents: np.ndarray) -> float:
    """Half the side of the square around 0 that holds all points but one in 500, rounded up."""
    return float(max(1, np.ceil(np.quantile(np.abs(latents).max(axis=1), 0.998))))


def _plane(extent: float) -> np.ndarray:
    """Even grid of cell centres over ±extent, (side², 2), from high to low z₂."""
    return _grid(((np.arange(PLANE_SIDE) + 0.5) / PLANE_SIDE * 2 - 1) * extent)


def _grid(along: np.ndarray) -> np.ndarray:
    z1, z2 = np.meshgrid(along, along[::-1])
    return np.stack([z1.ravel(), z2.ravel()], axis=1).astype(np.float32)


def _of_every_seed(config: VaeConfig, latents: np.ndarray) -> np.ndarray:
    return np.broadcast_to(latents, (config.seeds, *latents.shape))


def _square(rows: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(rows))
    return rows.reshape(side, side, *rows.shape[1:])


def _keys(config: VaeConfig, purpose: str) -> Key[Array, " seeds"]:
    """A key of every seed for one purpose of the evaluation."""
    index = ("held out", "prior samples", "bound").index(purpose)
    seeds = jnp.arange(config.seed, config.seed + config.seeds)
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 100 + index))(seeds)
