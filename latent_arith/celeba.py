"""CelebA from its folder: aligned JPEGs and a table of ±1 attributes, decoded once into a memory map.

    DIR/img_align_celeba/*.jpg
    DIR/list_attr_celeba.txt    two header lines (count, names), then an image id and its values a line; or
    DIR/list_attr_celeba.csv    a header `image_id,NAME,…`, then the same with commas

The first use decodes every JPEG, resizes it to 128×128 and writes it to `images.npy` in a folder of
the user's cache, in chunks of 256 images by several threads; a chunk that is done is never done
again, so an interrupted preparation goes on. Later starts check the size of the map and the
hashes of a few chunks, and read images from disk as they are asked for.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int8, UInt8
from tqdm import tqdm

from runtime.errors import UserError, first_line
from runtime.run_directory import read_json, write_json

SIZE = 128
CHUNK = 256
CHECKED_CHUNKS = 8
IMAGES, PREPARED = "images.npy", "prepared.json"


class Table(NamedTuple):
    """Attributes of images, in the order of the file."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Int8[np.ndarray, "n attributes"]  # +1 or -1


@dataclass(frozen=True, eq=False)
class CelebA:
    """Decoded images with their attributes: a random-access source whose images are read from disk when indexed.

    Attributes:
        images: Memory map of pixels 0…255 of all images, those that are skipped too.
        rows: Rows of the map that count, in order.
        table: Attributes of those.
        skipped: Reason by id of images that could not be read and were left out.
        sha256: Of the hashes of all chunks, so of every pixel.
    """

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
    paths = _matched(directory / "img_align_celeba", table.ids)
    prepared = cache / f"celeba-{_fingerprint(table, paths)[:16]}"
    record = prepare(paths, prepared)
    bad = record["bad"]
    if bad and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"{directory / 'img_align_celeba' / name}: {reason}; {len(bad)} of {len(paths)} images are bad, "
            f"--skip-bad leaves them out"
        )
    images = _checked_map(prepared, len(paths), record)
    rows = np.asarray([row for row, name in enumerate(table.ids) if name not in bad], int)
    if not len(rows):
        raise UserError(f"{directory / 'img_align_celeba'}: all {len(paths)} images are bad, expected RGB JPEGs")
    table = Table(tuple(table.ids[row] for row in rows), table.names, table.values[rows])
    digest = hashlib.sha256("".join(record["chunks"]).encode()).hexdigest()
    return CelebA(images, rows, table, bad, digest)


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


def prepare(paths: Sequence[Path], prepared: Path) -> dict[str, Any]:
    """Decodes what is not decoded yet and returns the record: `chunks`, a hash each, and `bad`, reasons by name.

    Raises:
        UserError: The folder cannot be written, for instance for want of disk space.
    """
    record_path = prepared / PREPARED
    count = -(-len(paths) // CHUNK)
    record: dict[str, Any] = read_json(record_path) if record_path.exists() else {"chunks": [], "bad": {}}
    if len(record["chunks"]) == count:
        return record
    try:
        prepared.mkdir(parents=True, exist_ok=True)
        mode = "r+" if record["chunks"] else "w+"
        images = np.lib.format.open_memmap(prepared / IMAGES, mode, np.uint8, (len(paths), SIZE, SIZE, 3))
        with (
            ThreadPoolExecutor(os.cpu_count()) as pool,
            tqdm(
                total=len(paths), initial=len(record["chunks"]) * CHUNK, unit="image", desc="decoding", disable=None
            ) as bar,
        ):
            for index in range(len(record["chunks"]), count):
                part = paths[index * CHUNK : (index + 1) * CHUNK]
                for row, (path, decoded) in enumerate(zip(part, pool.map(_decode, part), strict=True), index * CHUNK):
                    if isinstance(decoded, str):
                        record["bad"][path.name] = decoded
                    else:
                        images[row] = decoded
                images.flush()
                record["chunks"].append(_chunk_hash(images, index))
                write_json(record_path, record)
                bar.update(len(part))
    except (OSError, ValueError) as error:
        raise UserError(f"{prepared}: cannot be written ({first_line(error)}); delete it to prepare it anew") from error
    return record


def _decode(path: Path) -> UInt8[np.ndarray, "128 128 3"] | str:
    """Pixels of an image, or what is wrong with it."""
    from PIL import Image

    try:
        with Image.open(path) as image:
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


def _fingerprint(table: Table, paths: Sequence[Path]) -> str:
    digest = hashlib.sha256(table.values.tobytes())
    digest.update("\n".join(table.names).encode())
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
