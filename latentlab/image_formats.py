"""Labelled images in the formats in which people have them: idx files, NumPy archives, and folders of pictures."""

import contextlib
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentlab.errors import UserError, first_line
from latentlab.storage import limits

if TYPE_CHECKING:
    from latentlab.storage.image_files import StoredFile

SIDE = 28
READ_BLOCK = 1 << 20  # bytes
GZIP = b"\x1f\x8b"
UNSIGNED_BYTE = 8
IDX_TYPES = {UNSIGNED_BYTE: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
IDX_NAME = re.compile(
    r"(?P<set>.*?)(?P<part>train|t10k|test)[-_](?P<kind>images|labels)[-_.]idx\d[-_](ubyte|int)(\.gz)?", re.I
)
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DIGITS = tuple("0123456789")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MERGED = (*DIGITS, *LETTERS, *"abdefghnqrt")
"""EMNIST's classes where capitals that look like small letters are merged with them."""
EMNIST = {
    "digits": DIGITS,
    "mnist": DIGITS,
    "letters": tuple(LETTERS),
    "balanced": MERGED,
    "bymerge": MERGED,
    "byclass": (*DIGITS, *LETTERS, *LETTERS.lower()),
}
ARRAYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
"""Names in a NumPy archive: those of Keras, and those of MedMNIST."""
ARCHIVES = re.compile(r"(.*?)-?(train|test)-(imgs|labels)\.npz")
PART_FOLDERS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
TEST_SHARE = 5
SPLIT_SEED = 20150101


class Labeled(NamedTuple):
    """Images, their labels, and where both come from, for messages."""

    images: np.ndarray
    labels: np.ndarray
    images_at: str
    labels_at: str


class Parts(NamedTuple):
    """What a format holds: the part to train on, the one that is held out, and the classes; none without labels."""

    train: Labeled
    test: Labeled
    classes: tuple[str, ...] = DIGITS


def read_idx_directory(argument: str) -> Parts:
    """Read the four idx files of MNIST, Fashion-MNIST, KMNIST, QMNIST or EMNIST.

    They may be gzipped, named as any publisher does, and lie at any depth. Of several sets in the folder, as of EMNIST,
    one is chosen by the beginning of its names, `DIR/emnist-letters`. EMNIST's pictures are turned upright, and its
    letters are counted from 0.

    Raises:
        UserError: A file is missing, or not such a file.
    """
    directory, wanted = Path(argument).expanduser(), ""
    if not directory.is_dir() and directory.parent.is_dir():
        directory, wanted = directory.parent, directory.name
    sets = _find_idx_sets(directory, wanted) if directory.is_dir() else {}
    if not directory.is_dir() or (wanted and not sets):
        raise UserError(f"idx: {argument} is not a directory; expected one with the four files of MNIST")
    complete = {name: files for name, files in sets.items() if len(files) == 4}
    if not complete:
        found = [path.name for files in sets.values() for path in files.values()]
        roles = {role for files in sets.values() for role in files}
        lacking = next((name for name in IDX_FILES if _role(IDX_NAME.fullmatch(name)) not in roles), IDX_FILES[0])
        raise UserError(
            f"idx: {directory} has no {lacking}; found {', '.join(sorted(found)) or 'none of its kind'}; looked for "
            f"{lacking}, {lacking}.gz, {lacking.replace('-idx', '.idx')}, {lacking.replace('-idx', '.idx')}.gz"
        )
    if len(complete) > 1:
        names = sorted(f"idx:{folder / start}" for folder, start in complete)
        raise UserError(f"idx: {directory} has {len(complete)} sets of images; expected one of {', '.join(names)}")
    ((_, start), files) = next(iter(complete.items()))
    parts = []
    for part in ("train", "test"):
        images_path, labels_path = files[part, "images"], files[part, "labels"]
        images, labels = read_idx(images_path, 3), _first_column(read_idx(labels_path, 1, 2))
        parts.append(Labeled(images, labels, str(images_path), str(labels_path)))
    if "emnist" not in start.lower():
        return Parts(parts[0], parts[1])
    classes, first = _emnist_classes(start, files["train", "labels"].parent)
    train, test = (
        part._replace(images=part.images.swapaxes(1, 2), labels=part.labels.astype(int) - first) for part in parts
    )
    return Parts(train, test, classes)


def read_idx(path: Path, *ndims: int) -> np.ndarray:
    """Read one idx file, gzipped or not, whose magic number, dimensions and length must agree.

    No more memory is taken than the file has content, whatever its header announces.

    Args:
        path: The file.
        ndims: Numbers of dimensions that it may have, 3 for images, 1 or, of QMNIST, 2 for labels.

    Returns:
        Array of the type that the file names; none of its dimensions is zero. Images are bytes.

    Raises:
        UserError: The file cannot be read or is not such a file.
    """
    expected_magic = 0x0800 | ndims[0]
    try:
        with path.open("rb") as raw, _unpacked(raw) as file:
            start = _read_at_most(file, 4)
            ndim = start[3] if len(start) == 4 and start[3] in ndims else ndims[0]
            header = start + _read_at_most(file, 4 * ndim)
            dtype = np.dtype(IDX_TYPES.get(start[2], "u1") if len(start) == 4 else "u1")
            dimensions = tuple(int(n) for n in np.frombuffer(header[4 : len(header) // 4 * 4], dtype=">u4"))
            expected = math.prod(dimensions) * dtype.itemsize
            whole = len(header) == 4 + 4 * ndim
            content = _read_at_most(file, min(expected, limits.MOST_BYTES) + 1) if whole else b""
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: corrupt gzip file ({error}); expected one that passes `gzip -t`") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    types = [UNSIGNED_BYTE] if 3 in ndims else IDX_TYPES
    is_magic = start[:2] == b"\0\0" and start[2:3] in map(_byte, types) and start[3:4] in map(_byte, ndims)
    if len(start) == 4 and not is_magic:
        raise UserError(f"{path}: magic number 0x{start.hex()}, expected 0x{expected_magic:08x}")
    if not whole:
        raise UserError(f"{path}: truncated, {len(header)} bytes, expected a header of {4 + 4 * ndim}")
    if 0 in dimensions:
        raise UserError(f"{path}: is empty, dimensions {dimensions}, expected none to be 0")
    if len(content) > limits.MOST_BYTES:
        raise UserError(f"{path}: announces {dimensions}, {expected:,} bytes, expected at most {limits.MOST_BYTES:,}")
    if len(content) < expected:
        raise UserError(f"{path}: truncated, {len(content)} bytes after the header, expected {expected} {dimensions}")
    if len(content) > expected:
        raise UserError(f"{path}: too long, more bytes after the header than the expected {expected} {dimensions}")
    array = np.frombuffer(content, dtype).reshape(dimensions)
    return array.astype(dtype.newbyteorder("="))


def read_npz_file(argument: str) -> Parts:
    """Read a NumPy archive as Keras keeps MNIST, or the four of KMNIST in a folder.

    Raises:
        UserError: It cannot be read, or lacks an array.
    """
    path = Path(argument).expanduser()
    if path.is_dir():
        sets: dict[str, dict[tuple[str, str], Path]] = {}
        for file in sorted(path.glob("*.npz")):
            if match := ARCHIVES.fullmatch(file.name):
                sets.setdefault(match[1], {})[match[2], match[3]] = file
        if len(sets) != 1 or len(files := next(iter(sets.values()))) != 4:
            found = ", ".join(f"{len(files)} of {name}" for name, files in sets.items())
            raise UserError(
                f"npz: {path} has {found or 'none'} of its kind, expected NAME-train-imgs.npz, NAME-train-labels.npz, "
                "and the same of test, all of one name"
            )
        arrays = {name: _first_array(file) for name, file in files.items()}
        parts = [(arrays[part, "imgs"], arrays[part, "labels"]) for part in ("train", "test")]
    else:
        stored = _read_archive(path)
        names = next((names for names in ARRAYS if {*names} <= stored.keys()), None)
        if names is None:
            raise UserError(
                f"npz: {path} has {', '.join(stored) or 'no arrays'}; expected {', '.join(ARRAYS[0])} or "
                f"{', '.join(ARRAYS[1])}"
            )
        arrays_of = [stored[name] for name in names]
        parts = [(arrays_of[0], arrays_of[1]), (arrays_of[2], arrays_of[3])]
    at = str(path)
    for _, labels in parts:
        if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (1,)):
            raise UserError(f"{at}: labels are {labels.dtype} {labels.shape}, expected an integer for each image")
    labeled = [Labeled(_without_channel(images), _first_column(labels), at, at) for images, labels in parts]
    most = max(int(part.labels.max(initial=0)) for part in labeled)
    return Parts(labeled[0], labeled[1], tuple(str(label) for label in range(max(most + 1, len(DIGITS)))))


def read_picture_folder(argument: str) -> Parts:
    """Read own pictures as grey ones of 28×28 pixels: `train/CLASS/…` and `test/CLASS/…`, `CLASS/…`, or no classes.

    Zips count as folders, and folders around all the others for nothing. `training`, `testing`, `val` and the like are
    parts too; what is for validation is held out where there is no `test`, and else not read. Without such folders a
    fifth of every class is held out, always the same. Classes are the names of the folders, in the order of text, as
    torchvision's `ImageFolder` has them.

    Raises:
        UserError: There are too few pictures, or one cannot be read.
    """
    from latentlab.storage.image_files import SUFFIXES, list_files

    root = Path(argument).expanduser()
    pictures = [file for file in list_files(root) if file.name.lower().endswith(SUFFIXES)]
    below = [_folders_of(file, root) for file in pictures]
    while below and len({parts[0] for parts in below}) == 1 and all(len(parts) > 2 for parts in below):
        below = [parts[1:] for parts in below]
    part_of = [PART_FOLDERS.get(parts[0].lower(), "") if len(parts) > 1 else "" for parts in below]
    is_split = bool(below) and all(part_of)
    if is_split and "test" in part_of:
        is_read = [part != "validation" for part in part_of]
        pictures, below = list(compress(pictures, is_read)), list(compress(below, is_read))
        part_of = list(compress(part_of, is_read))
    named = [parts[is_split : len(parts) - 1] for parts in below]
    classes = tuple(sorted({parts[0] for parts in named if parts}))
    if classes and not all(named):
        stray = pictures[next(row for row, parts in enumerate(named) if not parts)]
        raise UserError(f"folder: {stray} lies beside the folders of classes, expected it in one of them")
    labels = np.asarray([classes.index(parts[0]) if parts else 0 for parts in named], np.int32)
    is_test = np.zeros(len(labels), bool)
    if is_split:
        is_test[:] = [part != "train" for part in part_of]
    else:
        order = np.random.PCG64(SPLIT_SEED).random_raw(len(labels))
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            is_test[members[np.argsort(order[members], kind="stable")[: len(members) // TEST_SHARE]]] = True
    if not is_test.any() or is_test.all():
        raise UserError(f"folder: {root} has {len(labels)} pictures, expected some to train on and some to hold out")
    images = np.stack([_read_grey(file.read(), str(file)) for file in pictures])
    train, test = (Labeled(images[rows], labels[rows], str(root), str(root)) for rows in (~is_test, is_test))
    return Parts(train, test, classes)


def _folders_of(file: "StoredFile", root: Path) -> list[str]:
    """Return the names on the way to a picture, that of its zip among them."""
    outside = [] if file.place == root else list(file.place.relative_to(root).parts)
    if not file.member:
        return outside
    return [*outside[:-1], *(Path(name).stem for name in outside[-1:]), *file.member.split("/")]


def _read_grey(content: bytes, name: str) -> np.ndarray:
    from PIL import Image

    from latentlab.decoding import make_upright_rgb

    try:
        with Image.open(io.BytesIO(content)) as image:
            limits.check_pixels(*image.size)
            grey = make_upright_rgb(image)[0].convert("L")
            return np.asarray(grey if grey.size == (SIDE, SIDE) else grey.resize((SIDE, SIDE)))
    except Exception as error:  # Pillow raises many types for damaged files
        raise UserError(f"{name}: cannot be decoded ({first_line(error)})") from error


def _find_idx_sets(directory: Path, wanted: str) -> dict[tuple[Path, str], dict[tuple[str, str], Path]]:
    """Return the files of every set by its folder and the beginning of its names; a plain file before a gzipped one.

    With a beginning that is wanted, the folders below are not searched.
    """
    from latentlab.storage.image_files import list_files

    if wanted:
        paths = [path for path in directory.iterdir() if path.name.startswith(wanted) and path.is_file()]
    else:
        paths = [file.place for file in list_files(directory, open_zips=False)]
    sets: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
    for path in sorted(paths, key=lambda path: (path.suffix == ".gz", str(path))):
        if match := IDX_NAME.fullmatch(path.name):
            sets.setdefault((path.parent, match["set"].rstrip("-_")), {}).setdefault(_role(match), path)
    return sets


def _role(match: re.Match[str] | None) -> tuple[str, str]:
    assert match
    return "train" if match["part"].lower() == "train" else "test", match["kind"].lower()


def _emnist_classes(start: str, folder: Path) -> tuple[tuple[str, ...], int]:
    """Return the names of the classes, and the label of the first: as the mapping beside the files has it, if any."""
    kind = start.lower().rpartition("emnist-")[2]
    known = EMNIST.get(kind, DIGITS)
    mapping = folder / f"{start}-mapping.txt"
    if mapping.is_file():
        with contextlib.suppress(OSError, ValueError, IndexError):
            rows = [line.split() for line in mapping.read_text(encoding="ascii").splitlines() if line.split()]
            return tuple(chr(int(row[1])) for row in rows), int(rows[0][0])
    return known, 1 if kind == "letters" else 0


def _first_column(labels: np.ndarray) -> np.ndarray:
    """Return the labels, of which QMNIST has more columns, and MedMNIST one."""
    return labels[:, 0] if labels.ndim == 2 else labels


def _without_channel(images: np.ndarray) -> np.ndarray:
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _first_array(path: Path) -> np.ndarray:
    arrays = _read_archive(path)
    if len(arrays) != 1:
        raise UserError(f"npz: {path} has {len(arrays)} arrays, expected one")
    return next(iter(arrays.values()))


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    from latentlab.storage.run_directory import read_npz

    return read_npz(path)


@contextlib.contextmanager
def _unpacked(file: Any) -> Iterator[Any]:
    """Yield a file, or what is packed in it: its first two bytes tell, for names do not."""
    is_packed = file.read(2) == GZIP
    file.seek(0)
    if not is_packed:
        yield file
        return
    with gzip.open(file, "rb") as unpacked:
        yield unpacked


def _read_at_most(file: Any, limit: int) -> bytes:
    blocks = bytearray()
    while len(blocks) < limit and (block := file.read(min(READ_BLOCK, limit - len(blocks)))):
        blocks += block
    return bytes(blocks)


def _byte(number: int) -> bytes:
    return bytes([number])
