"""Experiment 2: a VAE of faces, directions of their attributes in its latent space, and what adding them does.

A VAE is trained on faces, or its weights are read. One pass over the training images gives the mean latent of those
with and without every attribute; the difference, scaled to length 1, is the attribute's direction, once as it is
(raw), once as if attributes did not go together (balanced), and once orthogonal to all others. Held-out faces are
moved along them, and a classifier that knows nothing of the VAE measures how often the attribute appears and what else
changes. One edit is kept as 400 floats, from which `redraw` makes it again.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from PIL import Image

from latent_arith import compression, edits, figures, weights
from latent_arith.comparison import compare_estimators
from latent_arith.config import AUTO, LatentArithConfig
from latent_arith.datasets import batches
from latent_arith.datasets.face_data import FaceData, check_label, open_data
from latent_arith.directions import Batch, Directions, find_directions, inverse_propensity_weights
from latent_arith.editor import POPULATION, SHARES, EditedPhoto, edit_photo
from latent_arith.model import (
    Encode,
    FaceVae,
    equivalent_beta,
    evaluate_test_set,
    global_batch_size,
    make_decode,
    make_encode,
    make_model,
)
from latent_arith.pictures import SHOWN_FACES, STRENGTHS, make_pictures, move_along_components
from latent_arith.population import measure_population
from latent_arith.representation import find_components, known_factors
from latent_arith.results import SCORES, LatentArithResults, describe_directions, step_lengths
from latent_arith.scorecard import find_exclusive_pairs
from latent_arith.scoring import score_directions, train_judge
from latentlab import parallel
from latentlab.arrays import compute_in_float32
from latentlab.disentanglement import measure_disentanglement
from latentlab.errors import UserError
from latentlab.experiment import finish_run, start_run
from latentlab.figures import save
from latentlab.model import LatentVariableModel, Variables, check_model
from latentlab.parallel import LocalRows
from latentlab.storage.check import ArraySpec, Manifest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import atomic, note_nulls, read_json
from latentlab.training.loop import (
    LoopSchedule,
    init_states,
    streaming_steps_per_dispatch,
    streaming_train_steps,
)
from latentlab.training.optimizer import adam
from latentlab.training.resume import train_with_checkpoints
from latentlab.training.state import TrainState

COMMAND, LABEL = "latent-arith", "face_vae"
ESTIMATORS = ("raw", "balanced")
HALVES = tuple(f"{estimator} half {half}" for estimator in ESTIMATORS for half in (0, 1))


@compute_in_float32
def run(
    config: LatentArithConfig,
    run_dir: Path | None = None,
    *,
    model: LatentVariableModel | None = None,
    data: FaceData | None = None,
    log: Callable[[str], None] = print,
) -> LatentArithResults | EditedPhoto:
    """Run the experiment, or go on with it where the checkpoints in `run_dir` end; or edit a photo with another run.

    Args:
        config: Settings.
        run_dir: Where checkpoints, weights, results and figures are written; None to write nothing.
        model: Model in the place of the face VAE.
        data: Faces in the place of those that the configuration names.
        log: Called with lines that say what is going on.

    Raises:
        UserError: Data or weights cannot be read, the loss diverged, or a file could not be written.
        Interrupted: The command line caught SIGINT or SIGTERM; training goes on from a checkpoint.
    """
    if config.image:
        edited = edit_photo(config, run_dir, log)
        start_run(run_dir, COMMAND, config)
        if run_dir:
            figures.draw(run_dir)
            finish_run(run_dir, COMMAND, edited)
        return edited
    if config.weights == AUTO and (model or data):  # the packaged weights are of another model, or of other faces
        config = replace(config, train=True)
    if data is not None and not isinstance(data, FaceData):
        raise UserError(
            f"data is of type {type(data).__name__}, expected FaceData, such as "
            "FaceData.from_arrays(images, attributes, names, config)"
        )
    own_model = model
    model, given = open_model(config, model, log)
    data = data or open_data(config)
    if own_model is not None:
        check_model(own_model, (config.size, config.size, 3))
    check_label(config, data)
    start_run(run_dir, COMMAND, config)
    beta = equivalent_beta(config.reconstruction_weight, model.image_shape)
    log(_describe_setting(config, data, beta))
    metrics = MetricsLog(run_dir and run_dir / "metrics.jsonl")
    variables = given or train(config, model, data, metrics, run_dir, log)
    metrics.rewind(LABEL, config.epochs)
    if run_dir:
        weights.save(run_dir / weights.WEIGHTS, model, variables)
    encode, decode = make_encode(model, variables), make_decode(model, variables)

    data = data if data.table.names else label_by_components(config, data, encode, log)
    log("latent-arith: one pass over the training images for all directions")
    found = find_all_directions(config, data, encode)
    if found.without_orthogonal:
        log(_describe_substitutes(found, model.latent_dim))
    latents = encode(data.source[data.held_out])
    lengths = {name: step_lengths(config, latents, found, name) for name in (*ESTIMATORS, "orthogonal")}
    moves = {name: lengths[name][:, None] * found.of(name) for name in lengths}

    log("latent-arith: editing held-out faces")
    pictures, edit = make_pictures(
        config, data, encode, decode, found, moves["balanced"], weights.fingerprint(variables)
    )

    log("latent-arith: scoring them with an independent classifier")
    judge = train_judge(config, data)
    scorecard = score_directions(config, data, judge, encode, decode, found.names, latents, moves)
    log("latent-arith: comparing estimators of directions: difference of means, logistic regression, SVM, LDA")
    rows = data.train[: config.compared_images]
    train_latents = encode(data.source[rows])
    comparison = compare_estimators(
        judge, decode, train_latents, data.table.values[rows], found.names, latents[: config.compared_faces],
        resamples=config.bootstrap_resamples, seed=config.seed,
    )  # fmt: skip
    log("latent-arith: principal components and disentanglement")
    known, factors = known_factors(data, encode)
    components = find_components(train_latents, known, factors)
    disentanglement = measure_disentanglement(known, bool(data.factors), config.seed)
    held_out = data.source[data.held_out]
    population = measure_population(train_latents, latents, held_out, decode)
    pictures["components"] = move_along_components(decode, latents[0], components)
    measures = {
        "data": data.description,
        **({} if config.trains else {"weights": _describe_weights(config, variables)}),
        "equivalent_beta": beta,
        **_evaluate(config, model, variables, data),
        "directions": describe_directions(found),
        "scorecard": scorecard.describe(),
        "estimators": comparison.describe(),
        "components": components.describe(),
        "disentanglement": disentanglement,
        "face_in_800_bytes": compression.compare_compressions(encode, decode, held_out[: config.scored_faces]),
    }
    scores = dict(zip(SCORES, (scorecard.arrays(), comparison.arrays(), components.arrays()), strict=True))
    results = LatentArithResults(
        config, model, variables, found, lengths["balanced"], population, edit, pictures, scores, note_nulls(measures)
    )
    if run_dir:
        results.save(run_dir)
        figures.draw(run_dir)
        finish_run(run_dir, COMMAND, results)
    log(results.summary())
    return results


def load(run_dir: Path, config: LatentArithConfig) -> LatentArithResults | EditedPhoto:
    """Read the results of a run of the model that the configuration names, or of a photo that was edited.

    Raises:
        UserError: A file is missing or damaged, or the weights are those of another model.
    """
    if config.image:
        return EditedPhoto.load(run_dir)
    model, _ = weights.fit_model(run_dir / weights.WEIGHTS, make_model(config))
    return LatentArithResults.load(run_dir, config, model)


def manifest(config: LatentArithConfig) -> Manifest:
    """Return what `run` leaves behind, for `check`."""
    dim, size = config.latent_dim, config.size
    latent, unit = ArraySpec((dim,), "float32"), ArraySpec((None, dim), "float32")
    ends = {"ans09": ArraySpec((), "str"), "ans10": latent, "ans11": latent}
    kept = {"image_ids": ArraySpec((1,), "str"), "z_start": ArraySpec((1, dim), "float32")}
    if config.image:  # the model is the other run's, whose dimensions this configuration does not say
        whole = ArraySpec((None,), "float32")
        return Manifest(
            deliverables={"ans09": ends["ans09"], "ans10": whole, "ans11": whole},
            arrays={
                "edit.npz": {"image_ids": kept["image_ids"], "z_start": ArraySpec((1, None), "float32")},
                "figures.npz": {"photo_strip": ArraySpec((len(SHARES), None, None, 3), "uint8")},
            },
            results=(),
            figures=("photo.png",),
            files=("config.json",),
        )
    shown = min(SHOWN_FACES, config.held_out_images)
    edited = ArraySpec((None, shown, len(STRENGTHS), size, size, 3), "uint8")
    return Manifest(
        deliverables=ends,
        arrays={
            "directions.npz": {"names": ArraySpec((None,), "str"), "vectors": unit, "raw": unit, "orthogonal": unit},
            "edit.npz": kept,
            "scorecard.npz": {
                "targets": ArraySpec((None,), "str"),
                "reached": ArraySpec((None, len(STRENGTHS)), "float32"),
            },
            "estimators.npz": {"names": ArraySpec((None,), "str"), "vectors": ArraySpec((None, None, dim), "float32")},
            POPULATION: {"mean": latent, "precision": ArraySpec((dim, dim), "float32")},
            "components.npz": {"vectors": unit, "factors": ArraySpec((None,), "str")},
            "figures.npz": {"edits": edited},
            weights.WEIGHTS: {},
        },
        results=(
            "held_out_loss",
            "held_out_kl",
            "scorecard.classifier_accuracy",
            "scorecard.mean_leakage.balanced",
            "estimators.images",
        ),
        figures=tuple(f"{name}.png" for name in figures.NAMES_OF_FIGURES if config.trains or name != "losses"),
    )


def redraw(edit: Path, weights_path: Path, md5: str, out: Path, any_weights: bool = False) -> None:
    """Draw the steps of all edits in a file again, or the face of a bare latent, from latents and the weights alone.

    Raises:
        UserError: A file is missing or damaged, or the edits were made with other weights.
    """
    is_bare = edit.suffix in edits.BARE
    found = [] if is_bare else edits.read_edits(edit)
    latents = edits.read_bare(edit)[None] if is_bare else np.stack([one.latents() for one in found])
    weights_path = weights.locate(str(weights_path))
    size = weights.image_size(weights_path, md5)
    model, _ = weights.fit_model(weights_path, FaceVae(latents.shape[-1], (size, size, 3)), md5)
    variables = weights.load(weights_path, model, md5)
    for one in found if not any_weights else ():
        one.check_weights(weights.fingerprint(variables))
    pictures = edits.decode_all(make_decode(model, variables), latents)
    if is_bare:
        with atomic(out) as file:
            Image.fromarray(pictures[0]).save(file, "png")
        return
    save(out, lambda: figures.edit_strips(pictures, found))


def open_model(
    config: LatentArithConfig, model: LatentVariableModel | None, log: Callable[[str], None]
) -> tuple[LatentVariableModel, Variables | None]:
    """Return the model, and its variables where the configuration names weights, whose filters the model then has.

    Raises:
        UserError: The weights are missing, damaged, or of another model.
    """
    if config.trains:
        return model or make_model(config), None
    path = weights.locate(config.weights)
    if path == weights.PRETRAINED:
        log(f"latent-arith: the VAE is the packaged one, {describe_pretrained()}; --train trains one")
    if model is None:
        model, assumed = weights.fit_model(path, make_model(config), config.weights_md5)
        if assumed:
            log(f"latent-arith: {path} has no names of layers: {assumed}")
    return model, weights.load(path, model, config.weights_md5)


def describe_pretrained() -> str:
    """Return how the packaged VAE was made."""
    about = read_json(weights.PRETRAINED / "about.json")
    return f"trained for {about['steps']:,} steps of {about['batch_size']} faces on {about['date']}"


def make_optimizer(config: LatentArithConfig) -> optax.GradientTransformation:
    """Return Adam as Keras computes it, with a constant learning rate or one that falls along a cosine."""
    constant = optax.constant_schedule(config.learning_rate)
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.epochs * config.steps_per_epoch)
    return adam(cosine if config.cosine_decay else constant, config.adam_epsilon)


def make_schedule(config: LatentArithConfig) -> LoopSchedule:
    """Return how long to train."""
    return LoopSchedule(
        examples=config.steps_per_epoch * config.batch_size,
        batch_size=config.batch_size,
        epochs=config.epochs,
        steps_per_dispatch=streaming_steps_per_dispatch(config.steps_per_epoch),
        epochs_per_checkpoint=config.epochs_per_checkpoint,
    )


def initial_state(config: LatentArithConfig, model: LatentVariableModel) -> TrainState:
    """Return the state before training."""
    return init_states(jax.random.key, [config.seed], model.init, make_optimizer(config), config.shard_optimizer)


def train(
    config: LatentArithConfig,
    model: LatentVariableModel,
    data: FaceData,
    metrics: MetricsLog,
    run_dir: Path | None = None,
    log: Callable[[str], None] = print,
) -> Variables:
    """Train the model, from the newest checkpoint where there is one, and return its variables on the host."""
    resident = _put_resident(config, data)
    if resident is None:
        mine = parallel.local_rows(config.batch_size)
        read = batches.stream_images(data.source, data.train, config.batch_size, config.seed, mine=mine)
    else:
        read = batches.shuffle_indices(len(data.train), config.batch_size, config.seed)
    schedule = make_schedule(config)
    train_steps = streaming_train_steps(
        read,
        schedule,
        loss=partial(model.loss, train=True),
        optimizer=make_optimizer(config),
        resident=resident,
        shard_optimizer=config.shard_optimizer,
    )
    state = train_with_checkpoints(
        initial_state(config, model),
        train_steps,
        schedule,
        label=LABEL,
        metrics=metrics,
        evaluate=lambda variables: {"loss": np.asarray(_evaluate(config, model, variables, data)["held_out_loss"])},
        checkpoint_dir=run_dir and run_dir / weights.CHECKPOINTS,
        batches=read,
        log=log,
    )
    return parallel.gather_to_host(state.variables)


def label_by_components(
    config: LatentArithConfig, data: FaceData, encode: Encode, log: Callable[[str], None]
) -> FaceData:
    """Return the data with principal components of the latents in the place of attributes, and say so."""
    labeled = data.label_by_components(encode)
    log(
        f"latent-arith: {config.data} has no attributes, so {len(labeled.table.names)} principal components of the "
        "latents stand for them"
    )
    return labeled


def find_all_directions(config: LatentArithConfig, data: FaceData, encode: Encode) -> Directions:
    """Find directions by every estimator in one pass over the training images.

    With the rule `all` the raw and balanced ones are found in both halves of the images too, so that their agreement
    can be measured.
    """
    names = [config.label] if config.label else list(data.table.names)
    table = data.table.values[data.train]
    columns = [data.table.names.index(name) for name in names]
    balanced = inverse_propensity_weights(table)[:, columns]
    estimators: tuple[str, ...] = ESTIMATORS
    image_weights = np.stack([np.ones_like(balanced), balanced])
    if config.rule == "all":
        even = (np.arange(len(table)) % 2 == 0)[:, None]
        halves = [weight * half for weight in image_weights for half in (even, ~even)]
        estimators, image_weights = (*ESTIMATORS, *HALVES), np.concatenate([image_weights, np.stack(halves)])
    rows = global_batch_size()
    read = batches.read_in_order(
        data.source, data.train, rows, table[:, columns], image_weights, mine=parallel.local_rows(rows)
    )

    def as_local_rows() -> Iterator[Batch]:
        for images, attributes, part in read:
            yield LocalRows(images, len(attributes)), attributes, part

    found = find_directions(encode, as_local_rows(), names, estimators, config.rule, config.stderr_degrees)
    if not found.names:
        raise UserError(f"{config.data}: no attribute has images with and without it, so there is no direction")
    kept = [names.index(name) for name in found.names]
    return found.with_orthogonal(find_exclusive_pairs(table[:, columns])[np.ix_(kept, kept)])


def _describe_setting(config: LatentArithConfig, data: FaceData, beta: float) -> str:
    return (
        f"latent-arith: {len(data.train):,} training and {len(data.held_out):,} held-out images from "
        f"{data.description['source']}; loss = {config.reconstruction_weight:,.0f} · mean cross-entropy + KL, "
        f"as β = {beta:.3g} with a summed one"
    )


def _describe_weights(config: LatentArithConfig, variables: Variables) -> dict[str, Any]:
    path = weights.locate(config.weights)
    about = read_json(path / "about.json") if path == weights.PRETRAINED else {"path": config.weights}
    return {**about, "fingerprint": weights.fingerprint(variables)}


def _describe_substitutes(found: Directions, latent_dim: int) -> str:
    return (
        f"latent-arith: of {len(found.without_orthogonal)} of {len(found.names)} attributes nothing is orthogonal "
        f"to all others in {latent_dim} dimensions; their balanced directions stand for the orthogonal ones"
    )


def _put_resident(config: LatentArithConfig, data: FaceData) -> Array | None:
    """Return all training images as uint8 on the device, or None where they are streamed."""
    if config.resident == "auto":
        height, width, channels = data.source[data.train[:1]].shape[1:]
        short = 2 * len(data.train) * height * width * channels > parallel.free_device_bytes()
        wanted = isinstance(data.source, np.ndarray) or not any(parallel.all_gather(short))
    else:
        wanted = config.resident == "always"
    return parallel.put_replicated(data.source[data.train]) if wanted else None


def _evaluate(
    config: LatentArithConfig, model: LatentVariableModel, variables: Variables, data: FaceData
) -> dict[str, float]:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    found = evaluate_test_set(model, variables, data.source[data.held_out], key)
    return {f"held_out_{name}": value for name, value in found.items()}
