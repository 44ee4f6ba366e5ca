"""Faces with attributes from a folder or from TensorFlow Datasets, decoded once into a memory map.

Of a folder, a zip, or a folder with zips in it, as Kaggle, torchvision and the authors pack them:

    celeba:DIR    pictures at any depth, and one of `tables.TABLES` (CelebA's, CelebA-HQ's, LFW's)
    folder:DIR    pictures at any depth, and an attributes.csv

The first use decodes every picture, resizes it and writes it to `images.npy` in a folder of
the user's cache, in chunks of 256 images by several threads; a chunk that is done is never done
again, so an interrupted preparation goes on, and of several processes one prepares and the others
wait. Later starts read images from disk as they are asked for, and compare every chunk with its
hash when it is first read. Of TensorFlow Datasets the attributes are kept beside the map, so that
later starts read none of its records.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Int, UInt8
from tqdm import tqdm

from latent_arith.config import Resize
from latent_arith.datasets.tables import TABLES, Table, parse_table
from latentlab.config import Decoder
from latentlab.decoding import decode_as_tensorflow
from latentlab.errors import UserError, first_line
from latentlab.storage import limits
from latentlab.storage.image_files import SUFFIXES, StoredFile, find_file, list_files, match_pictures, path_below
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz
from latentlab.storage.tfds import prepared_builder, read_records

SIZE = 128  # pixels; images of this size are in a folder without a size in its name
CHUNK = 256
IMAGES, PREPARED, TABLE, LOCK = "images.npy", "prepared.json", "table.npz", ".lock"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SPLITS = ("train", "validation", "test")


class Decoding(NamedTuple):
    """How pixels are made of files.

    Attributes:
        size: Height and width that images are resized to.
        resize: Pillow's and Keras's name for the interpolation; bilinear is antialiased, nearest is what Keras's
            `load_img` and `flow_from_dataframe` do.
        decoder: Whose pixels a JPEG has.
    """

    size: int = SIZE
    resize: Resize = "bilinear"
    decoder: Decoder = "pillow"

    @property
    def suffix(self) -> str:
        """Ending of the folder of the prepared images, "" for the default."""
        return "".join(f"-{own}" for own, default in zip(self, DEFAULT, strict=True) if own != default)


DEFAULT = Decoding()
Decode = Callable[[int], UInt8[np.ndarray, "size size 3"] | str]
"""Row to the pixels of its image, or to what is wrong with it; called by several threads."""


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


def open_folder(
    root: Path, cache: Path, skip_bad: bool = False, decoding: Decoding = DEFAULT, names: Sequence[str] = TABLES
) -> CelebA:
    """Open the data set in a folder or zip, prepared in `cache`; prepares it where it is not.

    Args:
        root: Folder or zip with the images and the table.
        cache: Folder for all prepared data sets; this one's is named by the folder, the content of the table, the
            sizes and versions of the images, and how they are decoded.
        skip_bad: Leave out images that are missing, not in the table, or cannot be read as RGB, instead of stopping.
        decoding: How pixels are made.
        names: Names that the table may have. Own pictures may have none, and then no attributes.

    Raises:
        UserError: A file is missing, the table is malformed or does not match the images, an image is bad, the
            prepared map is damaged, or the disk is full.
    """
    files = list_files(root)
    kind = "celeba" if names is TABLES else "folder"
    stored = find_file(files, names)
    if stored is None and names is TABLES:
        raise UserError(f"{kind}: {root} has neither {names[0]} nor {names[1]}")
    table = _read_stored_table(stored) if stored else _make_empty_table(files, root)
    matched, unlisted = match_pictures(files, table.ids, root, skip_bad)

    def encoded(row: int) -> Path | bytes:
        file = matched[row]
        if file is None:
            raise OSError("the image is missing")
        return file.read() if file.member else file.place

    pixels_from = [
        (name, file.size if file else -1, file.version if file else 0)
        for name, file in zip(table.ids, matched, strict=True)
    ]
    content = f"{root.resolve()}\n".encode() + table.values.tobytes()  # of two folders sizes and names may be equal
    digest = _fingerprint(content, table.names, pixels_from)
    prepared = cache / f"celeba-{digest[:16]}{decoding.suffix}"
    place = next((file.folder for file in matched if file), str(root))
    opened = _open_prepared(f"{kind}:{root}", table, encoded, prepared, place, skip_bad, decoding)
    return replace(opened, skipped=opened.skipped | unlisted)


def open_tfds(argument: str, cache: Path, skip_bad: bool = False, decoding: Decoding = DEFAULT) -> CelebA:
    """Open a data set of TensorFlow Datasets, prepared in `cache`; prepares it where it is not.

    Its splits train, validation and test stand one after the other, with ids such as `train-000000`.

    Args:
        argument: Name of the data set, "" for `celeb_a`. It is looked for in $TFDS_DATA_DIR or ~/tensorflow_datasets.
        cache: Folder for all prepared data sets; this one's is named by the version of the data set and the names,
            sizes and times of its files, and how images are decoded.
        skip_bad: Leave images out that cannot be read as RGB, instead of stopping at the first.
        decoding: How pixels are made.

    Raises:
        UserError: There is no such data set, it has no colour images with attributes or cannot be read or prepared, or
            as `open_celeba`.
    """
    builder = prepared_builder(argument or "celeb_a", "celeb_a", _check_features)
    path, known = Path(builder.data_path), builder.info.splits
    splits = {split: known[split].num_examples for split in SPLITS if split in known}
    ids = tuple(f"{split}-{index:06d}" for split, count in splits.items() for index in range(count))
    if not ids:
        raise UserError(f"tfds: {path} has splits {sorted(known)}, expected images in {', '.join(SPLITS)}")
    names, joined = tuple(builder.info.features["attributes"]), "+".join(splits)
    records = read_records(builder, joined)

    files = sorted(path.iterdir())
    stats = [(file.name, file.stat()) for file in files]
    versions = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    digest = _fingerprint(builder.info.full_name.encode(), names, versions)
    prepared = cache / f"celeba-{digest[:16]}{decoding.suffix}"
    if not (prepared / TABLE).exists():
        values = np.empty((len(ids), len(names)), np.int8)
        for row in tqdm(range(len(ids)), unit="image", desc="reading attributes", disable=None):
            record = records.features(row)
            values[row] = [record[f"attributes/{name}"].int64_list.value[0] for name in names]
        write_npz(prepared / TABLE, {"values": 2 * values - 1})
    table = Table(ids, names, read_npz(prepared / TABLE)["values"])
    source = f"tfds:{argument}" if argument else "tfds"
    return _open_prepared(source, table, records.image, prepared, str(path), skip_bad, decoding)


def read_table(path: Path) -> Table:
    """Read a table of attributes (`tables.parse_table`).

    Raises:
        UserError: The file is missing or malformed, with the first line that is wrong.
    """
    return _read_stored_table(StoredFile(path, "", 0))


def _make_empty_table(files: Sequence[StoredFile], root: Path) -> Table:
    """Return a table of all pictures without any attribute.

    Raises:
        UserError: There are no pictures.
    """
    ids = tuple(path_below(file, root) for file in files if file.name.lower().endswith(SUFFIXES))
    if not ids:
        raise UserError(f"{root}: holds no pictures, expected files that end in {' '.join(SUFFIXES)}")
    return Table(ids, (), np.zeros((len(ids), 0), np.int8))


def _read_stored_table(stored: StoredFile) -> Table:
    try:
        content = stored.read()
    except (OSError, ValueError) as error:
        raise UserError(f"{stored}: cannot be read ({first_line(error)})") from error
    return parse_table(content, str(stored))


def prepare(
    names: Sequence[str], encoded: Callable[[int], Path | bytes], prepared: Path, decoding: Decoding = DEFAULT
) -> dict[str, Any]:
    """Decode what is not decoded yet, and return the record: `chunks`, a hash each, and `bad`, reasons by name.

    What was bad before is tried again, for it may have been repaired.

    Args:
        names: Of all images.
        encoded: Path or content of the file of a row, or OSError; called by several threads.
        prepared: Folder of the memory map and the record.
        decoding: How pixels are made.

    Raises:
        UserError: The folder cannot be written, for instance for want of disk space, or its record is damaged.
    """
    count = -(-len(names) // CHUNK)
    record = _read_record(prepared)
    if len(record["chunks"]) == count and not record["bad"]:
        return record
    try:
        prepared.mkdir(parents=True, exist_ok=True)
        with FileLock(prepared / LOCK):
            decode = partial(_decode_row, encoded, decoding)
            record = _retry_bad(names, decode, prepared, _read_record(prepared))
            return _decode_rest(names, decode, prepared, record, decoding.size)
    except (OSError, ValueError) as error:
        raise UserError(f"{prepared}: cannot be written ({first_line(error)}); delete it to prepare it anew") from error


def _retry_bad(names: Sequence[str], decode: Decode, prepared: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Decode those images of whole chunks again that were bad, and write those that have been repaired."""
    rows = {name: row for row, name in enumerate(names)}
    tried = [rows[name] for name in record["bad"] if name in rows and rows[name] < len(record["chunks"]) * CHUNK]
    repaired = {row: found for row in tried if not isinstance(found := decode(row), str)}
    if repaired:
        images = np.load(prepared / IMAGES, mmap_mode="r+", allow_pickle=False)
        for row, pixels in repaired.items():
            images[row] = pixels
            del record["bad"][names[row]]
        images.flush()
        for chunk in {row // CHUNK for row in repaired}:
            written = np.ascontiguousarray(images[chunk * CHUNK : (chunk + 1) * CHUNK])
            record["chunks"][chunk] = hashlib.sha256(written.data).hexdigest()
        write_json(prepared / PREPARED, {**record, "sha256": _seal(record)})
    return record


def _decode_rest(
    names: Sequence[str], decode: Decode, prepared: Path, record: dict[str, Any], size: int
) -> dict[str, Any]:
    """Write chunk after chunk to the file, not through a map of it: there, a full disk would kill the process."""
    started, count = len(record["chunks"]), -(-len(names) // CHUNK)
    if started == count:
        return record
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
            for row, decoded in zip(rows, pool.map(decode, rows), strict=True):
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
    place: str,
    skip_bad: bool,
    decoding: Decoding,
) -> CelebA:
    """Return the data set once all is decoded; `place` is where its images are, for messages."""
    record = prepare(table.ids, encoded, prepared, decoding)
    bad = record["bad"]
    if bad and not skip_bad:
        name, reason = next(iter(bad.items()))
        raise UserError(
            f"{place}/{name}: {reason}; {len(bad)} of {len(table.ids)} images are bad, --skip-bad leaves them out"
        )
    images = MemmapImages(prepared / IMAGES, len(table.ids), decoding.size, record["chunks"])
    rows = np.asarray([row for row, name in enumerate(table.ids) if name not in bad], int)
    if not len(rows):
        raise UserError(f"{place}: all {len(table.ids)} images are bad, expected pictures in RGB")
    table = Table(tuple(table.ids[row] for row in rows), table.names, table.values[rows])
    digest = hashlib.sha256("".join(record["chunks"]).encode())
    digest.update("\n".join(table.names).encode() + table.values.tobytes())
    return CelebA(source, images, rows, table, bad, digest.hexdigest())


def _decode_row(
    encoded: Callable[[int], Path | bytes], decoding: Decoding, row: int
) -> UInt8[np.ndarray, "size size 3"] | str:
    try:
        return _decode(encoded(row), decoding)
    except (OSError, ValueError) as error:
        return f"cannot be read ({first_line(error)})"


def _decode(encoded: Path | bytes, decoding: Decoding = DEFAULT) -> UInt8[np.ndarray, "size size 3"] | str:
    """Return pixels of an image, or what is wrong with it."""
    from PIL import Image

    content = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with Image.open(content, formats=FORMATS) as image:
            limits.check_pixels(*image.size)
            if image.mode != "RGB":
                return f"has mode {image.mode}, expected RGB"
            if decoding.decoder == "tensorflow":
                pixels = decode_as_tensorflow(encoded if isinstance(encoded, bytes) else encoded.read_bytes())
            else:
                pixels = np.asarray(image)
        resized = Image.fromarray(pixels).resize((decoding.size,) * 2, Image.Resampling[decoding.resize.upper()])
        return np.asarray(resized)
    except Exception as error:  # Pillow raises many types for damaged files
        return f"cannot be decoded ({first_line(error)})"


def _check_features(builder: Any) -> None:
    features = builder.info.features or {}
    shape = features["image"].shape if "image" in features else None
    attributes: Any = getattr(features["attributes"], "values", tuple)() if "attributes" in features else ()
    if shape is None or shape[2:] != (3,) or {feature.np_dtype for feature in attributes} != {np.bool_}:
        raise UserError(
            f"tfds: {builder.name} has features {sorted(features)} and images {shape}, "
            "expected image (218, 178, 3) and attributes, each true or false"
        )


def _fingerprint(content: bytes, names: Sequence[str], files: Sequence[tuple[str, int, int]]) -> str:
    """Return what tells data sets apart; sizes alone say little, for pictures of BMP all have one."""
    digest = hashlib.sha256(content)
    digest.update("\n".join(names).encode())
    for name, size, version in files:
        digest.update(f"{name} {size} {version}\n".encode())
    return digest.hexdigest()
