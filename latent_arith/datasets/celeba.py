"""CelebA from its folder or from TensorFlow Datasets: JPEGs and ±1 attributes, decoded once into a memory map.

    DIR/img_align_celeba/*.jpg
    DIR/list_attr_celeba.txt    two header lines (count, names), then an image id and its values a line; or
    DIR/list_attr_celeba.csv    a header `image_id,NAME,…`, then the same with commas

The first use decodes every JPEG, resizes it to 128×128 and writes it to `images.npy` in a folder of
the user's cache, in chunks of 256 images by several threads; a chunk that is done is never done
again, so an interrupted preparation goes on, and of several processes one prepares and the others
wait. Later starts read images from disk as they are asked for, and compare every chunk with its
hash when it is first read. Of TensorFlow Datasets the attributes are kept beside the map, so that
later starts read none of its records.
"""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int, Int8, UInt8
from tqdm import tqdm

from latentlab.errors import UserError, first_line
from latentlab.storage import limits
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz
from latentlab.storage.tfds import prepared_builder, reading

SIZE = 128  # pixels; images of this size are in a folder without a size in its name
CHUNK = 256
IMAGES, PREPARED, TABLE, LOCK = "images.npy", "prepared.json", "table.npz", ".lock"
FORMATS = ("JPEG", "PNG")
SPLITS = ("train", "validation", "test")


class Table(NamedTuple):
    """Attributes of images, in the order of the file."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Int8[np.ndarray, "n attributes"]  # +1 or -1


class MemmapImages:
    """Pixels 0…255 of all images, read from disk when they are indexed and compared with their chunk's hash once."""

    def __init__(self, path: Path, count: int, size: int, hashes: Sequence[str]) -> None:
        """Open the map.

        Raises:
            UserError: It cannot be read, or has another shape.
        """
        self.path, self.hashes, self._checked = path, hashes, np.zeros(len(hashes), bool)
        self._again = f"delete {path.parent} to prepare it anew"
        try:
            self._images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)}); {self._again}") from error
        if self._images.shape != (count, size, size, 3) or self._images.dtype != np.uint8:
            found = f"{self._images.dtype} {self._images.shape}"
            raise UserError(f"{path}: is {found}, expected {count} images; {self._again}")

    def __getitem__(self, rows: Any) -> UInt8[np.ndarray, "*rows size size 3"]:
        """Return pixels of the images in some rows.

        Raises:
            UserError: They are not those that were written.
        """
        for chunk in np.unique(np.asarray(rows) // CHUNK):
            if not self._checked[chunk]:
                pixels = self._images[chunk * CHUNK : (chunk + 1) * CHUNK]
                if hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest() != self.hashes[chunk]:
                    raise UserError(f"{self.path}: images from {chunk * CHUNK} on are not as recorded; {self._again}")
                self._checked[chunk] = True
        return self._images[rows]


@dataclass(frozen=True, eq=False)
class CelebA:
    """Decoded images with their attributes: a random-access source whose images are read from disk when indexed.

    Attributes:
        source: Where the data come from, as on the command line.
        images: All images, those that are skipped too.
        rows: Rows of the map that count, in order.
        table: Attributes of those.
        skipped: Reason by id of images that could not be read and were left out.
        sha256: Of the hashes of all chunks, so of every pixel, and of the attributes.
    """

    source: str
    images: MemmapImages
    rows: Int[np.ndarray, " n"]
    table: Table
    skipped: dict[str, str]
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> UInt8[np.ndarray, "*index size size 3"]:
        """Return pixels of one image, or of several for an array of indices or a slice."""
        return self.images[self.rows[index]]

    def describe(self) -> dict[str, Any]:
        """Return what `results.json` says of the data."""
        return {"source": self.source, "images": len(self), "sha256": self.sha256, "skipped": self.skipped}


def open_celeba(directory: Path, cache: Path, skip_bad: bool = False, size: int = SIZE) -> CelebA:
    """Open the data set in `directory`, prepared in `cache`; prepares it where it is not.

    Args:
        directory: Folder with the images and the table.
        cache: Folder for all prepared data sets; this one's is named by the content of the table and the names and
            sizes of the images.
        skip_bad: Leave images out that cannot be read as RGB, instead of stopping at the first.
        size: Height and width that images are resized to.

    Raises:
        UserError: A file is missing, the table is malformed or does not match the images, an image is bad, the
            prepared map is damaged, or the disk is full.
    """
    table = read_table(_table_path(directory))
    folder = directory / "img_align_celeba"
    paths = _match_images(folder, table.ids)
    prepared = cache / _folder_name(_fingerprint(table.values.tobytes(), table.names, paths), size)
    return _open_prepared(f"celeba:{directory}", table, paths.__getitem__, prepared, folder, skip_bad, size)


def open_tfds(argument: str, cache: Path, skip_bad: bool = False, size: int = SIZE) -> CelebA:
    """Open a data set of TensorFlow Datasets, prepared in `cache`; prepares it where it is not.

    Its splits train, validation and test stand one after the other, with ids such as `train-000000`.

    Args:
        argument: Name of the data set, "" for `celeb_a`. It is looked for in $TFDS_DATA_DIR or ~/tensorflow_datasets.
        cache: Folder for all prepared data sets; this one's is named by the version of the data set and the names,
            sizes and times of its files.
        skip_bad: Leave images out that cannot be read as RGB, instead of stopping at the first.
        size: Height and width that images are resized to.

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
    prepared = cache / _folder_name(_fingerprint(f"{builder.info.full_name} {times}".encode(), names, files), size)
    if not (prepared / TABLE).exists():
        values = np.empty((len(ids), len(names)), np.int8)
        with reading(builder, joined):
            for row in tqdm(range(len(ids)), unit="image", desc="reading attributes", disable=None):
                record = features(row)
                values[row] = [record[f"attributes/{name}"].int64_list.value[0] for name in names]
        write_npz(prepared / TABLE, {"values": 2 * values - 1})
    table = Table(ids, names, read_npz(prepared / TABLE)["values"])
    source = f"tfds:{argument}" if argument else "tfds"
    return _open_prepared(source, table, encoded, prepared, path, skip_bad, size)


def read_table(path: Path) -> Table:
    """Read either form of the attribute table.

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


def prepare(
    names: Sequence[str], encoded: Callable[[int], Path | bytes], prepared: Path, size: int = SIZE
) -> dict[str, Any]:
    """Decode what is not decoded yet, and return the record: `chunks`, a hash each, and `bad`, reasons by name.

    Args:
        names: Of all images.
        encoded: Path or content of the JPEG of a row; called by several threads.
        prepared: Folder of the memory map and the record.
        size: Height and width of the images in the map.

    Raises:
        UserError: The folder cannot be written, for instance for want of disk space, or its record is damaged.
    """
    count = -(-len(names) // CHUNK)
    record = _read_record(prepared)
    if len(record["chunks"]) == count:
        return record
    try:
        prepared.mkdir(parents=True, exist_ok=True)
        with FileLock(prepared / LOCK):
            return _decode_rest(names, encoded, prepared, _read_record(prepared), size)
    except (OSError, ValueError) as error:
        raise UserError(f"{prepared}: cannot be written ({first_line(error)}); delete it to prepare it anew") from error


def _decode_rest(
    names: Sequence[str], encoded: Callable[[int], Path | bytes], prepared: Path, record: dict[str, Any], size: int
) -> dict[str, Any]:
    """Write chunk after chunk to the file, not through a map of it: there, a full disk would kill the process."""
    started, count = len(record["chunks"]), -(-len(names) // CHUNK)
    with (
        (prepared / IMAGES).open("r+b" if started else "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(names), initial=started * CHUNK, unit="image", desc="decoding", disable=None) as bar,
    ):
        shape = (len(names), size, size, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.seek(started * CHUNK * size * size * 3, os.SEEK_CUR)
        for index in range(started, count):
            rows = range(index * CHUNK, min((index + 1) * CHUNK, len(names)))
            chunk = np.zeros((len(rows), size, size, 3), np.uint8)
            for row, decoded in zip(rows, pool.map(lambda row: _decode(encoded(row), size), rows), strict=True):
                if isinstance(decoded, str):
                    record["bad"][names[row]] = decoded
                else:
                    chunk[row - rows.start] = decoded
            file.write(chunk.data)
            file.flush()
            os.fsync(file.fileno())
            record["chunks"].append(hashlib.sha256(chunk.data).hexdigest())
            write_json(prepared / PREPARED, {**record, "sha256": _seal(record)})
            bar.update(len(rows))
    return record


def _read_record(prepared: Path) -> dict[str, Any]:
    """Return the hashes of the chunks that are decoded, `chunks`, and what was wrong with images, `bad`."""
    path = prepared / PREPARED
    if not path.exists():
        return {"chunks": [], "bad": {}}
    found = read_json(path)
    record = {name: found.get(name) for name in ("chunks", "bad")} if isinstance(found, dict) else {}
    if not record or found.get("sha256") != _seal(record):
        raise UserError(f"{path}: is damaged, or of another version; delete {prepared} to prepare it anew")
    return record


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _open_prepared(
    source: str,
    table: Table,
    encoded: Callable[[int], Path | bytes],
    prepared: Path,
    place: Path,
    skip_bad: bool,
    size: int,
) -> CelebA:
    """Return the data set once all is decoded; `place` is where its images are, for messages."""
    record = prepare(table.ids, encoded, prepared, size)
    bad = record["bad"]
    if bad and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"{place / name}: {reason}; {len(bad)} of {len(table.ids)} images are bad, --skip-bad leaves them out"
        )
    images = MemmapImages(prepared / IMAGES, len(table.ids), size, record["chunks"])
    rows = np.asarray([row for row, name in enumerate(table.ids) if name not in bad], int)
    if not len(rows):
        raise UserError(f"{place}: all {len(table.ids)} images are bad, expected RGB JPEGs")
    table = Table(tuple(table.ids[row] for row in rows), table.names, table.values[rows])
    digest = hashlib.sha256("".join(record["chunks"]).encode())
    digest.update("\n".join(table.names).encode() + table.values.tobytes())
    return CelebA(source, images, rows, table, bad, digest.hexdigest())


def _decode(encoded: Path | bytes, size: int) -> UInt8[np.ndarray, "size size 3"] | str:
    """Return pixels of an image, or what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, formats=FORMATS) as image:
            limits.check_pixels(*image.size)
            if image.mode != "RGB":
                return f"has mode {image.mode}, expected RGB"
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow raises many types for damaged files
        return f"cannot be decoded ({first_line(error)})"


def _table_path(directory: Path) -> Path:
    candidates = [directory / f"list_attr_celeba.{suffix}" for suffix in ("txt", "csv")]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"celeba: {directory} has neither {candidates[0].name} nor {candidates[1].name}")


def _match_images(folder: Path, ids: Sequence[str]) -> list[Path]:
    """Return the paths of all images of the table, which must be all images of the folder."""
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


def _folder_name(fingerprint: str, size: int) -> str:
    return f"celeba-{fingerprint[:16]}" + ("" if size == SIZE else f"-{size}")


def _fingerprint(content: bytes, names: Sequence[str], paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(content)
    digest.update("\n".join(names).encode())
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
