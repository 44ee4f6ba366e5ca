"""Experiment 1: train an autoencoder and a VAE on the same digits, then compare their latent spaces.

Both see the same images in the same batches and are trained with Adam, all seeds at once. On held-out images we
measure reconstruction, the evidence bound and its importance-weighted form, how the codes are distributed, whether
neighbours in latent space share a label, and how good samples from the prior are. The figures show both latent planes
side by side, reconstructions, the plane decoded, prior samples and the losses by epoch.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jaxtyping import Key

from latentlab import parallel
from latentlab.arrays import compute_in_float32
from latentlab.errors import UserError
from latentlab.experiment import finish_run, start_run
from latentlab.labeled_images import CLASSES, Dataset, LabeledImages, check_dataset, open_dataset
from latentlab.model import LatentVariableModel, Variables, check_model
from latentlab.storage.check import ArraySpec, Manifest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json
from latentlab.training.loop import (
    LoopSchedule,
    init_states,
    resident_steps_per_dispatch,
    resident_train_steps,
)
from latentlab.training.optimizer import adam
from latentlab.training.resume import train_with_checkpoints
from latentlab.training.state import TrainState
from vae import evaluate, figures, keras_io, losses, mlp
from vae.config import VaeConfig
from vae.measure import MANIFOLD_SIDE, PLANE_SIDE, measure
from vae.model import IMAGE_SHAPE, Autoencoder, ConditionalVae, ImportanceWeightedVae, TotalCorrelationVae, Vae
from vae.results import VaeResults

LABELS = ("autoencoder", "vae")
"""Models in the order of their keys: that of seed s and model i is `fold_in(key(s), i)`."""


@compute_in_float32
def run(
    config: VaeConfig,
    run_dir: Path | None = None,
    *,
    model: LatentVariableModel | None = None,
    data: Dataset | None = None,
    log: Callable[[str], None] = print,
) -> VaeResults:
    """Run the experiment, or go on with it where the checkpoints in `run_dir` end.

    Args:
        config: Settings.
        run_dir: Where checkpoints, results and figures are written; None to write nothing.
        model: Model in the place of the VAE, beside which the autoencoder of the configuration is trained.
        data: Images in the place of those that the configuration names, such as `Dataset.from_arrays` makes.
        log: Called with lines that say what is going on.

    Raises:
        UserError: The data cannot be read, model and data do not go together, the loss diverged, a file could not be
            written, or `run_dir` has a run with another configuration.
        Interrupted: The command line caught SIGINT or SIGTERM; training goes on from a checkpoint.
    """
    data = open_dataset(config.data) if data is None else check_dataset(data)
    if model is not None:
        check_model(model, data.image_shape)
    if len(data.train.images) < config.train_images:
        raise UserError(
            f"train_images is {config.train_images}, but {data.source} has {len(data.train.images)} training images; "
            "expected at most as many"
        )
    if len(data.test.images) <= evaluate.NEIGHBOURS:
        raise UserError(
            f"{data.source} has {len(data.test.images)} held-out images, expected more than {evaluate.NEIGHBOURS}, the "
            "neighbours that density and coverage go by"
        )
    if config.objective == "tcvae" and config.batch_size % parallel.device_count():
        raise UserError(
            f"batch_size is {config.batch_size}, expected a multiple of the {parallel.device_count()} devices with the "
            "objective tcvae, whose loss an example of padding would change"
        )
    if config.objective == "conditional" and len(data.classes) < 2:
        raise UserError(f"the objective conditional is given classes, of which {data.source} has {len(data.classes)}")
    models = make_models(config, data.image_shape, model, len(data.classes))
    start_run(run_dir, "vae", config)
    measured = data.binarize() if config.binarize else data
    metrics = MetricsLog(run_dir and run_dir / "metrics.jsonl")
    log(f"vae: {config.train_images:,} training and {len(data.test.images):,} held-out images from {data.source}")
    variables = {
        label: train(config, label, model, data.train, measured.test, metrics, run_dir, log).variables
        for label, model in models.items()
    }
    log("vae: measuring on held-out images")
    results = measure(config, models, variables, measured, metrics)
    if run_dir:
        results.save(run_dir)
        figures.draw(run_dir)
        finish_run(run_dir, "vae", results)
    log(results.summary())
    return results


def load(run_dir: Path, config: VaeConfig, model: LatentVariableModel | None = None) -> VaeResults:
    """Read the results of a run of the models that the configuration names; `model` takes the place of the VAE.

    Raises:
        UserError: A file is missing or damaged, or the weights are those of other models.
    """
    described = read_json(run_dir / "results.json")["data"]
    shape = tuple(described["image_shape"])
    return VaeResults.load(run_dir, config, make_models(config, shape, model, len(described["classes"])))


def manifest(config: VaeConfig) -> Manifest:
    """Return what `run` leaves behind, for `check`."""
    points = ArraySpec((config.latent_points, config.latent_dim), "float32")
    plane = ArraySpec((PLANE_SIDE, PLANE_SIDE, None, None, None), "uint8")
    return Manifest(
        deliverables={"ans03": points},
        arrays={
            "latents.npz": {
                "autoencoder_z": points,
                "vae_z": points,
                "labels": ArraySpec((config.latent_points,), "int32"),
            },
            "figures.npz": {
                "vae_manifold": ArraySpec((MANIFOLD_SIDE, MANIFOLD_SIDE, None, None, None), "uint8"),
                "autoencoder_plane": plane,
                "vae_plane": plane,
                "point_originals": ArraySpec((None, None, None, None), "uint8"),
            },
            "weights.npz": {},
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
        figures=tuple(
            f"{name}.png"
            for name in (*figures.NAMES_OF_FIGURES, *(["styles"] if config.objective == "conditional" else []))
        ),
    )


def make_models(
    config: VaeConfig,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
    model: LatentVariableModel | None = None,
    classes: int = CLASSES,
) -> dict[str, LatentVariableModel]:
    """Return the autoencoder and the VAE that a configuration names; `model` takes the place of the VAE."""
    networks = make_networks(config, image_shape, Autoencoder.heads)
    autoencoder = Autoencoder(config.latent_dim, image_shape, *networks, precision=config.precision)
    return {"autoencoder": autoencoder, "vae": model or make_vae(config, image_shape, classes)}


def make_vae(config: VaeConfig, image_shape: tuple[int, int, int] = IMAGE_SHAPE, classes: int = CLASSES) -> Vae:
    """Return the VAE that a configuration names."""
    kinds: dict[str, Callable[..., Vae]] = {
        "elbo": Vae,
        "tcvae": partial(TotalCorrelationVae, dataset_size=config.train_images),
        "iwae": partial(ImportanceWeightedVae, samples=config.objective_samples),
        "conditional": partial(ConditionalVae, classes=classes),
    }
    return kinds[config.objective](
        config.latent_dim,
        image_shape,
        *make_networks(config, image_shape, Vae.heads),
        precision=config.precision,
        reconstruction=config.reconstruction,
        beta=config.beta,
        warmup_steps=config.kl_warmup_epochs * make_schedule(config).steps_per_epoch,
        free_bits=config.free_bits,
    )


def make_networks(config: VaeConfig, image_shape: tuple[int, int, int], heads: tuple[str, ...]) -> tuple[Any, Any]:
    """Return encoder and decoder as Flax modules, None for those of the models themselves."""
    if config.network == "original":
        return None, None
    networks = {"keras_io": keras_io, "mlp": mlp}[config.network]
    return networks.Encoder(heads, config.latent_dim), networks.Decoder(image_shape)


def make_schedule(config: VaeConfig) -> LoopSchedule:
    """Return how long to train."""
    whole_batches = config.objective == "tcvae"  # whose loss an example of padding would change
    steps = config.train_images // config.batch_size + (
        0 if whole_batches else config.train_images % config.batch_size > 0
    )
    return LoopSchedule(
        examples=config.train_images,
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps_per_dispatch=resident_steps_per_dispatch(steps, config.epochs_per_dispatch, config.seeds),
        epochs_per_checkpoint=config.epochs_per_checkpoint,
        drop_remainder=whole_batches,
    )


def make_optimizer(config: VaeConfig) -> optax.GradientTransformation:
    """Return Adam, with a learning rate that falls at the milestones if there are any."""
    steps = make_schedule(config).steps_per_epoch
    drops = {epoch * steps: config.learning_rate_factor for epoch in config.learning_rate_milestones}
    rate = optax.piecewise_constant_schedule(config.learning_rate, drops) if drops else config.learning_rate
    return adam(rate, config.adam_epsilon)


def initial_states(config: VaeConfig, model: LatentVariableModel, label: str) -> TrainState:
    """Return the states of all seeds before training; a seed gives the same state however many train beside it."""

    def key_of_seed(seed: Array) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.key(seed), LABELS.index(label))

    seeds = range(config.seed, config.seed + config.seeds)
    return init_states(key_of_seed, seeds, model.init, make_optimizer(config), config.shard_optimizer)


def train(
    config: VaeConfig,
    label: str,
    model: LatentVariableModel,
    train_images: LabeledImages,
    test_images: LabeledImages,
    metrics: MetricsLog,
    run_dir: Path | None,
    log: Callable[[str], None],
) -> TrainState:
    """Train one model on all seeds, or go on where the checkpoints in `run_dir` end, and return its last state.

    Args:
        config: Settings.
        label: Of `LABELS`; it decides the keys, and names the model's rows of metrics.
        model: Model.
        train_images: Training images, of which the first `train_images` are used.
        test_images: Images of the held-out loss.
        metrics: Where losses are noted.
        run_dir: Where checkpoints are kept; None for none.
        log: Called with lines that say what is going on.

    Raises:
        UserError: The loss diverged.
        Interrupted: The command line caught SIGINT or SIGTERM; training goes on from a checkpoint.
    """
    schedule = make_schedule(config)
    keys = evaluate.evaluation_prng_keys(config.seed, config.seeds, "held out")

    def evaluate_loss(variables: Variables) -> dict[str, np.ndarray]:
        measured = evaluate.evaluate_test_set(model, variables, evaluate.take_inputs(model, *test_images), keys)
        return {"loss": np.mean(measured["loss"], axis=1)}

    loss = partial(model.loss, train=True)
    train_steps = resident_train_steps(
        parallel.put_replicated(evaluate.take_inputs(model, *(part[: config.train_images] for part in train_images))),
        schedule,
        loss=losses.binarize_images(loss) if config.binarize else loss,
        optimizer=make_optimizer(config),
        seeds=config.seeds,
        shard_optimizer=config.shard_optimizer,
    )
    return train_with_checkpoints(
        initial_states(config, model, label),
        train_steps,
        schedule,
        label=label,
        metrics=metrics,
        evaluate=evaluate_loss,
        checkpoint_dir=run_dir and run_dir / "checkpoints" / label,
        log=log,
    )
