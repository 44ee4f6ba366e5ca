"""CelebA from its folder or from TensorFlow Datasets: JPEGs and ±1 attributes, decoded once into a memory map.

    DIR/img_align_celeba/*.jpg
    DIR/list_attr_celeba.txt    two header lines (count, names), then an image id and its values a line; or
    DIR/list_attr_celeba.csv    a header `image_id,NAME,…`, then the same with commas

The first use decodes every JPEG, resizes it to 128×128 and writes it to `images.npy` in a folder of
the user's cache, in chunks of 256 images by several threads; a chunk that is done is never done
again, so an interrupted preparation goes on. Later starts check the size of the map and the
hashes of a few chunks, and read images from disk as they are asked for. Of TensorFlow Datasets the
attributes are kept beside the map, so that later starts read none of its records.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int8, UInt8
from tqdm import tqdm

from runtime.errors import UserError, first_line
from runtime.run_directory import read_json, read_npz, write_json, write_npz
from runtime.tfds import prepared_builder, reading

SIZE = 128
CHUNK = 256
CHECKED_CHUNKS = 8
IMAGES, PREPARED, TABLE = "images.npy", "prepared.json", "table.npz"
SPLITS = ("train", "validation", "test")


class Table(NamedTuple):
    """Attributes of images, in the order of the file."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Int8[np.ndarray, "n attributes"]  # +1 or -1


@dataclass(frozen=True, eq=False)
class CelebA:
    """Decoded images with their attributes: a random-access source whose images are read from disk when indexed.

    Attributes:
        source: Where the data come from, as on the command line.
        images: Memory map of pixels 0…255 of all images, those that are skipped too.
        rows: Rows of the map that count, in order.
        table: Attributes of those.
        skipped: Reason by id of images that could not be read and were left out.
        sha256: Of the hashes of all chunks, so of every pixel, and of the attributes.
    """

    source: str
    images: UInt8[np.ndarray, "all 128 128 3"]
    rows: Int[np.ndarray, " n"]
    table: Table
    skipped: dict[str, str]
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "*index 128 128 3"]:
        """Pixels of one image, or of several for an array of indices or a slice."""
        return self.images[self.rows[index]]

    def describe(self) -> dict[str, Any]:
        """What `results.json` says of the data."""
        return {"source": self.source, "images": len(self), "sha256": self.sha256, "skipped": self.skipped}


def open_celeba(directory: Path, cache: Path, skip_bad: bool = False) -> CelebA:
    """Opens the data set in `directory`, prepared in `cache`; prepares it where it is not.

    Args:
        directory: Folder with the images and the table.
        cache: Folder for all prepared data sets; this one's is named by the content of the table and the names and
            sizes of the images.
        skip_bad: Leave images out that cannot be read as RGB, instead of stopping at the first.

    Raises:
        UserError: A file is missing, the table is malformed or does not match the images, an image is bad, the
            prepared map is damaged, or the disk is full.
    """
    table = read_table(_table_path(directory))
    folder = directory / "img_align_celeba"
    paths = _matched(folder, table.ids)
    prepared = cache / f"celeba-{_fingerprint(table.values.tobytes(), table.names, paths)[:16]}"
    return _opened(f"celeba:{directory}", table, paths.__getitem__, prepared, folder, skip_bad)


def open_tfds(argument: str, cache: Path, skip_bad: bool = False) -> CelebA:
    """Opens a data set of TensorFlow Datasets, prepared in `cache`; prepares it where it is not.

    Its splits train, validation and test stand one after the other, with ids such as `train-000000`.

    Args:
        argument: Name of the data set, "" for `celeb_a`. It is looked for in $TFDS_DATA_DIR or ~/tensorflow_datasets.
        cache: Folder for all prepared data sets; this one's is named by the version of the data set and the names,
            sizes and times of its files.
        skip_bad: Leave images out that cannot be read as RGB, instead of stopping at the first.

    Raises:
        UserError: There is no such data set, it has no colour images with attributes or cannot be read or prepared, or
            as `open_celeba`.
    """
    builder = prepared_builder(argument or "celeb_a", "celeb_a", _check_features)
    from tensorflow_datasets import decode
    from tensorflow_datasets.proto import tf_example_pb2

    path, known = Path(builder.data_path), builder.info.splits
    splits = {split: known[split].num_examples for split in SPLITS if split in known}
    ids = tuple(f"{split}-{index:06d}" for split, count in splits.items() for index in range(count))
    if not ids:
        raise UserError(f"tfds: {path} has splits {sorted(known)}, expected images in {', '.join(SPLITS)}")
    names, joined = tuple(builder.info.features["attributes"]), "+".join(splits)
    with reading(builder, joined):
        records = builder.as_data_source(split=joined, deserialize_method=decode.DeserializeMethod.RAW_BYTES)

    def features(row: int) -> Any:  # of the Example itself: decoding all features takes TFDS a millisecond an image
        return tf_example_pb2.Example.FromString(records[row]).features.feature

    def encoded(row: int) -> bytes:
        with reading(builder, joined):
            return features(row)["image"].bytes_list.value[0]

    files = sorted(path.iterdir())
    times = [file.stat().st_mtime_ns for file in files]  # for sizes say little: array_record fills up 64 KiB
    prepared = cache / f"celeba-{_fingerprint(f'{builder.info.full_name} {times}'.encode(), names, files)[:16]}"
    if not (prepared / TABLE).exists():
        values = np.empty((len(ids), len(names)), np.int8)
        with reading(builder, joined):
            for row in tqdm(range(len(ids)), unit="image", desc="reading attributes", disable=None):
                record = features(row)
                values[row] = [record[f"attributes/{name}"].int64_list.value[0] for name in names]
        write_npz(prepared / TABLE, {"values": 2 * values - 1})
    table = Table(ids, names, read_npz(prepared / TABLE)["values"])
    return _opened(f"tfds:{argument}" if argument else "tfds", table, encoded, prepared, path, skip_bad)


def read_table(path: Path) -> Table:
    """Reads either form of the attribute table.

    Raises:
        UserError: The file is missing or malformed, with the first line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    lines = text.splitlines()
    if path.suffix == ".csv":
        rows = list(csv.reader(lines))
        header = 1
        names = tuple(name.strip() for name in rows[0][1:]) if rows else ()
        if not rows or rows[0][0].strip() != "image_id":
            raise UserError(f"{path}: line 1 begins with {(lines or [''])[0][:20]!r}, expected image_id,NAME,…")
    else:
        rows = [line.split() for line in lines]
        header = 2
        if len(rows) < 2 or len(rows[0]) != 1 or not rows[0][0].isdecimal():
            raise UserError(f"{path}: line 1 is {(lines or [''])[0][:20]!r}, expected the number of images")
        names = tuple(rows[1])
    body = [(number, row) for number, row in enumerate(rows[header:], header + 1) if row]
    if header == 2 and int(rows[0][0]) != len(body):
        raise UserError(f"{path}: line 1 announces {rows[0][0]} images, the table has {len(body)}")
    if not names or not body:
        raise UserError(f"{path}: {len(names)} attributes of {len(body)} images, expected at least one of each")
    values = np.empty((len(body), len(names)), np.int8)
    for index, (number, row) in enumerate(body):
        if len(row) != 1 + len(names):
            raise UserError(f"{path}: line {number} has {len(row) - 1} values, expected {len(names)}")
        for column, value in enumerate(row[1:]):
            if value.strip() not in ("1", "-1"):
                raise UserError(f"{path}: line {number}: {names[column]} is {value.strip()!r}, expected 1 or -1")
            values[index, column] = int(value)
    ids = tuple(row[0].strip() for _, row in body)
    name, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path}: {name} stands in it {times} times, expected once")
    return Table(ids, names, values)


def prepare(names: Sequence[str], encoded: Callable[[int], Path | bytes], prepared: Path) -> dict[str, Any]:
    """Decodes what is not decoded yet and returns the record: `chunks`, a hash each, and `bad`, reasons by name.

    Args:
        names: Of all images.
        encoded: Path or content of the JPEG of a row; called by several threads.
        prepared: Folder of the memory map and the record.

    Raises:
        UserError: The folder cannot be written, for instance for want of disk space.
    """
    record_path = prepared / PREPARED
    count = -(-len(names) // CHUNK)
    record: dict[str, Any] = read_json(record_path) if record_path.exists() else {"chunks": [], "bad": {}}
    if len(record["chunks"]) == count:
        return record
    try:
        prepared.mkdir(parents=True, exist_ok=True)
        mode = "r+" if record["chunks"] else "w+"
        images = np.lib.format.open_memmap(prepared / IMAGES, mode, np.uint8, (len(names), SIZE, SIZE, 3))
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(
                total=len(names), initial=len(record["chunks"]) * CHUNK, unit="image", desc="decoding", disable=None
            ) as bar,
        ):
            for index in range(len(record["chunks"]), count):
                rows = range(index * CHUNK, min((index + 1) * CHUNK, len(names)))
                for row, decoded in zip(rows, pool.map(lambda row: _decode(encoded(row)), rows), strict=True):
                    if isinstance(decoded, str):
                        record["bad"][names[row]] = decoded
                    else:
                        images[row] = decoded
                images.flush()
                record["chunks"].append(_chunk_hash(images, index))
                write_json(record_path, record)
                bar.update(len(rows))
    except (OSError, ValueError) as error:
        raise UserError(f"{prepared}: cannot be written ({first_line(error)}); delete it to prepare it anew") from error
    return record


def _opened(
    source: str, table: Table, encoded: Callable[[int], Path | bytes], prepared: Path, place: Path, skip_bad: bool
) -> CelebA:
    """The data set once all is decoded; `place` is where its images are, for messages."""
    record = prepare(table.ids, encoded, prepared)
    bad = record["bad"]
    if bad and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"{place / name}: {reason}; {len(bad)} of {len(table.ids)} images are bad, --skip-bad leaves them out"
        )
    images = _checked_map(prepared, len(table.ids), record)
    rows = np.asarray([row for row, name in enumerate(table.ids) if name not in bad], int)
    if not len(rows):
        raise UserError(f"{place}: all {len(table.ids)} images are bad, expected RGB JPEGs")
    table = Table(tuple(table.ids[row] for row in rows), table.names, table.values[rows])
    digest = hashlib.sha256("".join(record["chunks"]).encode())
    digest.update("\n".join(table.names).encode() + table.values.tobytes())
    return CelebA(source, images, rows, table, bad, digest.hexdigest())


def _decode(encoded: Path | bytes) -> UInt8[np.ndarray, "128 128 3"] | str:
    """Pixels of an image, or what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
            if image.mode != "RGB":
                return f"has mode {image.mode}, expected RGB"
            return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow raises many types for damaged files
        return f"cannot be decoded ({first_line(error)})"


def _table_path(directory: Path) -> Path:
    candidates = [directory / f"list_attr_celeba.{suffix}" for suffix in ("txt", "csv")]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"celeba: {directory} has neither {candidates[0].name} nor {candidates[1].name}")


def _matched(folder: Path, ids: Sequence[str]) -> list[Path]:
    """Paths of all images of the table, which must be all images of the folder."""
    if not folder.is_dir():
        raise UserError(f"celeba: {folder} is not a directory; expected one with the aligned JPEGs")
    found = {entry.name for entry in os.scandir(folder) if entry.name.lower().endswith((".jpg", ".jpeg"))}
    missing = [name for name in ids if name not in found]
    unlisted = sorted(found.difference(ids))
    if missing or unlisted:
        told = [f"{len(missing)} of its rows have no image, first {missing[0]}"] if missing else []
        told += [f"{len(unlisted)} images have no row, first {unlisted[0]}"] if unlisted else []
        raise UserError(f"{folder}: the table has {len(ids)} rows, the folder {len(found)} images: {'; '.join(told)}")
    return [folder / name for name in ids]


def _check_features(builder: Any) -> None:
    features = builder.info.features or {}
    shape = features["image"].shape if "image" in features else None
    attributes: Any = getattr(features["attributes"], "values", tuple)() if "attributes" in features else ()
    if shape is None or shape[2:] != (3,) or {feature.np_dtype for feature in attributes} != {np.bool_}:
        raise UserError(
            f"tfds: {builder.name} has features {sorted(features)} and images {shape}, "
            "expected image (218, 178, 3) and attributes, each true or false"
        )


def _fingerprint(content: bytes, names: Sequence[str], paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(content)
    digest.update("\n".join(names).encode())
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _checked_map(prepared: Path, count: int, record: dict[str, Any]) -> np.ndarray:
    """The memory map, read-only, once its shape and the hashes of a few chunks have been checked."""
    again = f"delete {prepared} to prepare it anew"
    try:
        images = np.load(prepared / IMAGES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{prepared / IMAGES}: cannot be read ({first_line(error)}); {again}") from error
    if images.shape != (count, SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise UserError(f"{prepared / IMAGES}: is {images.dtype} {images.shape}, expected {count} images; {again}")
    for index in np.unique(np.linspace(0, len(record["chunks"]) - 1, CHECKED_CHUNKS).astype(int)):
        if _chunk_hash(images, index) != record["chunks"][index]:
            raise UserError(f"{prepared / IMAGES}: images from {index * CHUNK} on are not as recorded; {again}")
    return images


def _chunk_hash(images: np.ndarray, index: int) -> str:
    return hashlib.sha256(images[index * CHUNK : (index + 1) * CHUNK].tobytes()).hexdigest()
