"""Experiment 2: a VAE of faces, directions of their attributes in its latent space, and what adding them does.

A VAE is trained on 128×128 faces, or its weights are read. One pass over the training images gives
the mean latent of those with and without every attribute; the difference, scaled to length 1, is
the attribute's direction, once as it is (raw), once as if attributes did not go together
(balanced), and once orthogonal to all others. Held-out faces are moved along them, and a
classifier that knows nothing of the VAE tells how often the attribute appears and what else
changes. One edit is kept as 400 floats, from which `redraw` makes it again.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Float

from latent_arith import batches, compression, directions, edits, figures, models, scorecard, weights
from latent_arith.config import LatentArithConfig
from latent_arith.data import FaceData, open_data
from latent_arith.directions import Batch, Directions
from latent_arith.edits import Edit
from latent_arith.models import FaceVae
from latent_arith.nets import LATENT_DIM
from latent_arith.scorecard import Estimate
from runtime import mesh, processes
from runtime.check import ArrayForm, Expected
from runtime.checkpoints import Checkpoints, digest
from runtime.errors import UserError
from runtime.figures import save
from runtime.run_directory import Metrics, write_json, write_npz
from vae import train
from vae.train import Parameters, TrainState

LABEL = "face_vae"
FACTORS = np.arange(-4.0, 5.0, dtype=np.float32)
RECONSTRUCTIONS, PRIOR_SAMPLES, SHOWN_FACES, INTERPOLATION_STEPS = 12, 40, 5, 9
PAIR = ("Smiling", "Eyeglasses")  # faces are moved along both at once, where both directions are found
PROBED = 2000  # training images of the linear probes
CONTRASTS = ("raw", "balanced")
SCORED = (*CONTRASTS, "orthogonal")
HALVES = tuple(f"{contrast} half {half}" for contrast in CONTRASTS for half in (0, 1))


def run(config: LatentArithConfig, run_dir: Path, say: Callable[[str], None] = print) -> None:
    """Runs the experiment, or goes on with it where the checkpoints in `run_dir` end.

    Writes `metrics.jsonl`, `weights.npz`, `directions.npz`, `scorecard.npz`, `edit.npz`, `figures.npz`,
    `deliverables.npz`, `results.json` and `figures/*.png`.

    Raises:
        UserError: Data or weights cannot be read, the loss diverged, or a file could not be written.
        Interrupted: SIGINT or SIGTERM came; training goes on from a checkpoint.
    """
    given = weights.load(Path(config.weights), config.weights_md5) if config.weights else None
    data = open_data(config)
    say(
        f"latent-arith: {len(data.train):,} training and {len(data.held_out):,} held-out images from {config.data}; "
        f"loss = {config.reconstruction_weight:,.0f} · mean cross-entropy + KL, "
        f"as β = {models.equivalent_beta(config.reconstruction_weight):.3g} with a summed one"
    )
    params = given or _train(config, data, run_dir, say)
    Metrics(run_dir / "metrics.jsonl").rewind(LABEL, config.epochs)
    weights.save(run_dir / weights.WEIGHTS, params)
    encode, decode = models.encoder(params), models.decoder(params)

    say("latent-arith: one pass over the training images for all directions")
    found = find_directions(config, data, encode)
    latents = encode(data.source[data.held_out])
    steps = {contrast: step_lengths(config, latents, found[contrast]) for contrast in SCORED}
    write_npz(run_dir / "directions.npz", {**direction_arrays(found), "step_lengths": steps["balanced"]})

    say("latent-arith: editing held-out faces")
    moves = {contrast: steps[contrast][:, None] * found[contrast].vectors for contrast in SCORED}
    pictures, edit = _edits(config, data, params, found["balanced"], moves["balanced"])
    edits.write_edits(run_dir / "edit.npz", [edit])
    write_npz(run_dir / "figures.npz", pictures)

    say("latent-arith: scoring them with an independent classifier")
    scores, measured = _scores(config, data, params, found["balanced"].names, latents, moves)
    write_npz(run_dir / "scorecard.npz", scores)
    results = {
        "data": data.description,
        "equivalent_beta": models.equivalent_beta(config.reconstruction_weight),
        **_held_out_losses(config, data, params),
        "directions": _described(found),
        "scorecard": measured,
        "face_in_800_bytes": compression.compared(encode, decode, data.source[data.held_out[: config.scored_faces]]),
    }
    write_npz(
        run_dir / "deliverables.npz",
        {"ans09": np.asarray(edit.image_id), "ans10": edit.z_start, "ans11": edit.z_end},
    )
    write_json(run_dir / "results.json", results)
    figures.draw(run_dir)
    say(summary(results))


def expected(config: LatentArithConfig) -> Expected:
    """What `run` leaves behind, for `check`."""
    latent, unit = ArrayForm((LATENT_DIM,), "float32"), ArrayForm((None, LATENT_DIM), "float32")
    return Expected(
        deliverables={"ans09": ArrayForm((), "str"), "ans10": latent, "ans11": latent},
        arrays={
            "directions.npz": {"names": ArrayForm((None,), "str"), "vectors": unit, "raw": unit, "orthogonal": unit},
            "edit.npz": {"image_ids": ArrayForm((1,), "str"), "z_start": ArrayForm((1, LATENT_DIM), "float32")},
            "scorecard.npz": {
                "targets": ArrayForm((None,), "str"),
                "reached": ArrayForm((None, len(FACTORS)), "float32"),
            },
            "figures.npz": {"edits": ArrayForm((None, SHOWN_FACES, len(FACTORS), 128, 128, 3), "uint8")},
            weights.WEIGHTS: {"encoder/mu/bias": latent},
        },
        results=("held_out_loss", "held_out_kl", "scorecard.classifier_accuracy", "scorecard.mean_leakage.balanced"),
        figures=tuple(f"{name}.png" for name in figures.NAMES_OF_FIGURES if not (config.weights and name == "losses")),
    )


def summary(results: Mapping[str, Any]) -> str:
    """What came out, in a few lines for the terminal."""
    card, factor = results["scorecard"], results["scorecard"]["factor"]
    unit = {
        "deviation": "standard deviations",
        "means": "half distances of the means",
        "unit": "units of latent space",
    }[card["scale"]]
    shares = {name: target["reached"]["balanced"][0] for name, target in card["targets"].items()}
    reached = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    leakage = ", ".join(f"{contrast} {mean:.1f}" for contrast, mean in card["mean_leakage"].items())
    size = results["face_in_800_bytes"]
    return "\n".join(
        [
            f"held-out loss {results['held_out_loss']:,.1f} (KL {results['held_out_kl']:.1f} nats)",
            f"attribute found in faces moved by +{factor} {unit}: {reached}",
            f"mean change of other attributes, percentage points: {leakage}",
            f"a face in {size['float32']['bytes']:.0f} bytes: {size['float32']['psnr_decibels']:.1f} dB",
        ]
    )


def redraw(edit: Path, weights_path: Path, md5: str, out: Path, any_weights: bool = False) -> None:
    """Draws the steps of all edits in a file again, from its latents and the weights alone.

    Raises:
        UserError: A file is missing or damaged, or the edits were made with other weights.
    """
    found = edits.read_edits(edit)
    params = weights.load(weights_path, md5)
    for one in found:
        if len(one.z_start) != LATENT_DIM:
            raise UserError(f"{edit}: latents have {len(one.z_start)} dimensions, expected {LATENT_DIM}")
        if not any_weights:
            one.refuse_other_weights(digest(params))
    strips = edits.decode_all(models.decoder(params), np.stack([one.latents() for one in found]))
    save(out, lambda: figures.edit_strips(strips, found))


def initial_state(config: LatentArithConfig) -> TrainState:
    """State before training, stacked with one seed."""
    model = _model(config)

    def init(seed: Array) -> TrainState:
        return train.init_state(jax.random.key(seed), model.init, optimizer(config))

    return jax.jit(jax.vmap(init, spmd_axis_name=mesh.SEED))(jnp.asarray([config.seed]))


def optimizer(config: LatentArithConfig) -> optax.GradientTransformation:
    """Adam as Keras computes it, with a constant learning rate or one that falls along a cosine."""
    constant = optax.constant_schedule(config.learning_rate)
    cosine = optax.cosine_decay_schedule(config.learning_rate, config.epochs * config.steps_per_epoch)
    return train.adam(cosine if config.cosine_decay else constant, config.adam_epsilon, config.shard_optimizer)


def find_directions(
    config: LatentArithConfig, data: FaceData, encode: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Directions]:
    """Directions of every contrast from one pass over the training images.

    With the rule `all` the raw and balanced ones are found in both halves of the images too, so that their agreement
    can be told.
    """
    names = [config.label] if config.label else list(data.table.names)
    table = data.table.values[data.train]
    columns = [data.table.names.index(name) for name in names]
    balance = directions.inverse_propensity_weights(table)[:, columns]
    contrasts = (*CONTRASTS, *HALVES) if config.rule == "all" else CONTRASTS
    size = models.rows_at_once()
    read = batches.in_order(data.source, data.train, size, table[:, columns], balance, mine=mesh.share(size))
    divided = ((mesh.Portion(images, len(has), size), has, weight) for images, has, weight in read)
    every = directions.find(
        encode,
        _contrasted(divided, halves=config.rule == "all"),
        [f"{contrast}: {name}" for contrast in contrasts for name in names],
        config.rule,
        config.stderr_degrees,
    )
    found = {contrast: every.of({f"{contrast}: {name}": name for name in names}) for contrast in contrasts}
    kept = [names.index(name) for name in found["balanced"].names]
    exclusive = scorecard.exclusive_pairs(table[:, columns])[np.ix_(kept, kept)]
    return found | {"orthogonal": _orthogonal(found["balanced"], exclusive)}


def step_lengths(
    config: LatentArithConfig, latents: Float[np.ndarray, "n latent"], found: Directions
) -> Float[np.ndarray, " attributes"]:
    """How far a factor of 1 moves along each unit vector, as `scale` has it.

    By the standard deviation of the latents along it, by half the distance between the two means along it (from the
    middle between them, +1 is the mean of those with the attribute), or by 1.
    """
    if config.scale == "deviation":
        return np.std(latents @ found.vectors.T, axis=0)
    if config.scale == "means":
        return (found.distances / 2).astype(np.float32)
    return np.ones(len(found.vectors), np.float32)


def direction_arrays(found: Mapping[str, Directions]) -> dict[str, np.ndarray]:
    """What `directions.npz` holds: the balanced directions with their statistics, and the vectors of the others."""
    others = {contrast: found[contrast].vectors for contrast in ("raw", "orthogonal")}
    return {**found["balanced"].arrays(), **others}


def _contrasted(read: Iterable[Batch], halves: bool) -> Iterator[Batch]:
    """Batches with the columns of every contrast side by side, in the order of `CONTRASTS` and `HALVES`."""
    start = 0
    for images, attributes, balance in read:
        columns = [(attributes, np.ones_like(balance)), (attributes, balance)]
        if halves:
            even = ((start + np.arange(len(images))) % 2 == 0)[:, None]
            columns += [(attributes * half, weight) for _, weight in columns for half in (even, ~even)]
        start += len(images)
        yield images, np.hstack([a for a, _ in columns]), np.hstack([w for _, w in columns])


def _orthogonal(found: Directions, exclusive: np.ndarray) -> Directions:
    """Every direction made orthogonal to all others, except to those of attributes that it excludes.

    Its distance is what is left along it of the distance between the means.
    """
    vectors = []
    for row, vector in enumerate(found.vectors):
        others = ~exclusive[row] & (np.arange(len(found.vectors)) != row)
        vectors.append(directions.orthogonal_to(vector, found.vectors[others]) if others.any() else vector)
    left = np.stack(vectors)
    return dataclasses.replace(found, vectors=left, distances=found.distances * np.sum(left * found.vectors, axis=1))


def _model(config: LatentArithConfig) -> FaceVae:
    return FaceVae(config.dropout, config.reconstruction_weight, config.precision)


def _train(config: LatentArithConfig, data: FaceData, run_dir: Path, say: Callable[[str], None]) -> Parameters:
    checkpoints, metrics = Checkpoints(run_dir / weights.CHECKPOINTS), Metrics(run_dir / "metrics.jsonl")
    on_device = _on_device(config, data)
    if on_device is None:
        mine = mesh.share(config.batch_size)
        read = batches.image_batches(data.source, data.train, config.batch_size, config.seed, mine=mine)
    else:
        read = batches.shuffled(len(data.train), config.batch_size, config.seed)
    state = initial_state(config)
    restored = checkpoints.restore(state, warn=lambda line: say(f"{LABEL}: {line}"), position=read)
    if restored:
        state = restored.state
        say(f"{LABEL}: resuming after {train.told(restored.step, config.steps_per_epoch)} of {config.epochs}")
    metrics.rewind(LABEL, int(state.epoch[0]))
    run = train.steps_on_batches(
        read,
        config.steps_per_epoch,
        batch_size=config.batch_size,
        loss=_model(config).loss,
        optimizer=optimizer(config),
        images=on_device,
    )

    def validate(params: Parameters) -> dict[str, np.ndarray]:
        return {"loss": np.asarray([_held_out_losses(config, data, _of_seed(params))["held_out_loss"]])}

    state = train.fit(
        state,
        run,
        examples=config.steps_per_epoch * config.batch_size,
        epochs=config.epochs,
        batch_size=config.batch_size,
        steps_per_dispatch=train.few_steps(config.steps_per_epoch),
        epochs_per_checkpoint=config.epochs_per_checkpoint,
        validate=validate,
        checkpoints=checkpoints,
        metrics=metrics,
        label=LABEL,
        position=read,
        unfinished=restored and restored.kept,
    )
    checkpoints.close()
    return _of_seed(state.params)


def _of_seed(stacked: Parameters) -> Parameters:
    params: Parameters = jax.tree.map(lambda leaf: leaf[0], mesh.fetched(stacked))
    return params


def _on_device(config: LatentArithConfig, data: FaceData) -> Array | None:
    """All training images as uint8 on the device, or None where they are streamed."""
    if config.resident == "auto":
        stats = jax.local_devices()[0].memory_stats() or {}  # a CPU tells nothing of its memory
        free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
        short = 2 * len(data.train) * models.PIXELS > free
        wanted = isinstance(data.source, np.ndarray) or not any(processes.exchanged(short))
    else:
        wanted = config.resident == "always"
    return mesh.everywhere(data.source[data.train]) if wanted else None


def _held_out_losses(config: LatentArithConfig, data: FaceData, params: Parameters) -> dict[str, float]:
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    images = mesh.everywhere(data.source[data.held_out])
    losses = models.held_out_losses(params, images, key, config.reconstruction_weight)
    return {f"held_out_{name}": float(value) for name, value in losses.items()}


def _edits(
    config: LatentArithConfig, data: FaceData, params: Parameters, found: Directions, moves: directions.Vectors
) -> tuple[dict[str, np.ndarray], Edit]:
    """The pictures behind the figures, of faces moved by factors of `moves`, and the edit that is kept."""
    encode, decode = models.encoder(params), models.decoder(params)
    originals = data.source[data.held_out[:RECONSTRUCTIONS]]
    latents = encode(originals)
    strips = [edits.along(latents[:SHOWN_FACES], move[None], FACTORS[:, None]) for move in moves]
    prior = jax.random.normal(jax.random.fold_in(jax.random.key(config.seed), 2), (PRIOR_SAMPLES, LATENT_DIM))
    edit = _kept_edit(config, data, encode, found, digest(params))
    pictures = {
        "originals": originals,
        "reconstructions": decode(latents),
        "prior_samples": decode(np.asarray(prior)),
        "edit_originals": originals[:SHOWN_FACES],
        "edits": edits.decode_all(decode, np.stack(strips)),
        **_pair_edits(decode, latents[:SHOWN_FACES], found.names, moves),
        "edit_strip": decode(edit.latents()),
        "interpolation_ends": originals[:2],
        "lerp": decode(edits.lerp(latents[0], latents[1], INTERPOLATION_STEPS)),
        "slerp": decode(edits.slerp(latents[0], latents[1], INTERPOLATION_STEPS)),
    }
    return pictures, edit


def _pair_edits(
    decode: models.Decode, latents: np.ndarray, names: Sequence[str], moves: directions.Vectors
) -> dict[str, np.ndarray]:
    """Faces moved along both of `PAIR` at once, (faces, factors, factors, 128, 128, 3), if there are both."""
    if not set(PAIR) <= set(names):
        return {}
    factors = np.stack(np.meshgrid(FACTORS, FACTORS, indexing="ij"), axis=-1)
    moved = edits.along(latents, moves[[names.index(name) for name in PAIR]], factors.reshape(-1, len(PAIR)))
    pictures = edits.decode_all(decode, moved.reshape(len(latents), *factors.shape[:2], -1))
    return {"pair": np.asarray(PAIR), "pair_edits": pictures}


def _kept_edit(
    config: LatentArithConfig, data: FaceData, encode: models.Encode, found: Directions, fingerprint: str
) -> Edit:
    """The first held-out face without the attribute `label`, Smiling unless told otherwise, moved by 4 along it."""
    preferred = config.label or "Smiling"
    name = preferred if preferred in found.names else found.names[0]
    lacking = data.table.values[data.held_out, data.table.names.index(name)] < 0
    row = data.held_out[int(np.argmax(lacking))]
    (start,) = encode(data.source[np.asarray([row])])
    end = (start + edits.FACTORS[-1] * found.vector(name)).astype(np.float32)
    source = data.description["source"]
    return Edit(data.table.ids[row], start, end, attribute=name, dataset=source, fingerprint=fingerprint)


def _scores(
    config: LatentArithConfig,
    data: FaceData,
    params: Parameters,
    names: Sequence[str],
    latents: Float[np.ndarray, "held_out latent"],
    moves: Mapping[str, directions.Vectors],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `scorecard.npz` holds, and what `results.json` tells of it.

    Args:
        config: Settings.
        data: Images and their attributes.
        params: The network.
        names: The T targets.
        latents: Posterior means of the held-out images.
        moves: What a factor of 1 adds, (T, latent), for every contrast.
    """
    encode, decode, part = models.encoder(params), models.decoder(params), data.classifier
    classifier = scorecard.train_classifier(
        jax.random.fold_in(jax.random.key(config.seed), 3),
        part.images,
        part.attributes,
        part.factors,
        data.table.names,
        epochs=config.classifier_epochs,
    )
    held_out, attributes = data.source[data.held_out], data.table.values[data.held_out]
    accuracies = scorecard.accuracy(classifier.predict(held_out)[0], attributes)
    targets = np.asarray([data.table.names.index(name) for name in names])
    exclusive = scorecard.exclusive_pairs(data.table.values)[targets]

    scored, steps = latents[: config.scored_faces], np.asarray([0, config.score_factor], np.float32)
    seen, factors = scorecard.dose_response(classifier.predict, decode, scored, moves["balanced"], FACTORS)
    zero, at = (int(np.flatnonzero(value == FACTORS)[0]) for value in (0, config.score_factor))
    by_contrast = {"balanced": seen[:, [zero, at]]}
    for contrast in ("raw", "orthogonal"):
        moved, _ = scorecard.dose_response(classifier.predict, decode, scored, moves[contrast], steps[1:])
        by_contrast[contrast] = np.concatenate([seen[:, [zero]], moved], axis=1)
    changes = {contrast: scorecard.changes(both, steps, config.score_factor) for contrast, both in by_contrast.items()}
    leakage = {contrast: scorecard.leakage(change) for contrast, change in changes.items()}
    means = {contrast: scorecard.mean_leakage(change, targets, exclusive) for contrast, change in changes.items()}
    shares = {contrast: scorecard.reached(both, targets) for contrast, both in by_contrast.items()}
    reached = scorecard.reached(seen, targets)
    if data.factors:
        values, defining, deviations = factors, data.defining(names), classifier.factor_deviation
    else:
        values = scorecard.logits(seen)
        defining = exclusive | (np.arange(len(data.table.names)) == targets[:, None])
        deviations = scorecard.logits(classifier.predict(held_out)[0]).std(axis=0)
    identity = scorecard.identity_distance(values, FACTORS, defining, deviations)
    probed = data.train[:PROBED]
    areas = scorecard.probe_auc(
        encode(data.source[probed]), data.table.values[probed][:, targets], latents, attributes[:, targets]
    )

    def per_target(estimates: Mapping[str, Estimate], step: Any = ...) -> list[dict[str, list[float]]]:
        """Value and interval of every contrast, for every target."""
        told = {contrast: np.stack(estimate)[:, :, step] for contrast, estimate in estimates.items()}
        return [{contrast: told[contrast][:, row].tolist() for contrast in told} for row in range(len(names))]

    arrays = {
        "targets": np.asarray(names),
        "attributes": np.asarray(data.table.names),
        "factors": FACTORS,
        "reached": reached.value.astype(np.float32),
        "reached_low": reached.low,
        "reached_high": reached.high,
        "exclusive": exclusive,
        "identity": identity.value,
        "leakage_factor": np.asarray(config.score_factor),
        **{f"leakage_{contrast}": leakage[contrast].value for contrast in leakage},
        **{f"leakage_{contrast}_low": leakage[contrast].low for contrast in leakage},
        **{f"leakage_{contrast}_high": leakage[contrast].high for contrast in leakage},
    }
    ends = per_target(shares, step=1)
    compatible = per_target({contrast: mean.compatible for contrast, mean in means.items()})
    everything = per_target({contrast: mean.all_others for contrast, mean in means.items()})
    measured = {
        "factor": config.score_factor,
        "scale": config.scale,
        "faces": len(scored),
        "classifier_accuracy": float(accuracies.mean()),
        "classifier_accuracies": dict(zip(data.table.names, accuracies.tolist(), strict=True)),
        "mean_leakage": {contrast: float(mean.compatible.value.mean()) for contrast, mean in means.items()},
        "mean_leakage_all_others": {contrast: float(mean.all_others.value.mean()) for contrast, mean in means.items()},
        "targets": {
            name: {
                "reached": ends[row],
                "mean_leakage": compatible[row],
                "mean_leakage_all_others": everything[row],
                "identity_distance": float(identity.value[row, at]),
                "probe_auc": areas[row],
            }
            for row, name in enumerate(names)
        },
    }
    return arrays, measured


def _described(found: Mapping[str, Directions]) -> dict[str, Any]:
    """Each direction in numbers: of the balanced one unless told otherwise."""
    balanced, raw = found["balanced"], found["raw"]
    described: dict[str, Any] = {"left_out": list(balanced.left_out)}
    for row, name in enumerate(balanced.names):
        described[name] = {
            "distance": float(balanced.distances[row]),
            "distance_raw": float(raw.distances[row]),
            "standard_error_degrees": float(balanced.standard_error_degrees[row]),
            "standard_error_degrees_raw": float(raw.standard_error_degrees[row]),
            "positives": int(balanced.n_positive[row]),
            "negatives": int(balanced.n_negative[row]),
            "cosine_raw": float(balanced.vector(name) @ raw.vector(name)),
            "cosine_orthogonal": float(balanced.vector(name) @ found["orthogonal"].vector(name)),
        }
        for contrast in CONTRASTS:
            halves = [found.get(f"{contrast} half {half}") for half in (0, 1)]
            if all(half is not None and name in half.names for half in halves):
                one, other = (half.vector(name) for half in halves if half)
                described[name][f"cosine_of_halves_{contrast}"] = float(one @ other)
    return described
