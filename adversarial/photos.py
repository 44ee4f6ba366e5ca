"""Photos from anywhere as square RGB pixels of one size, and the class that a path tells.

A photo is resized as TensorFlow's `tf.image.resize` does by default: bilinearly between the four nearest pixels, with
half-pixel centres and no antialiasing, and with no regard to its proportions; or as torchvision does: its shorter side
with antialiasing, after which the square in its middle is cut out.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8
from PIL import Image

from adversarial.pixels import GREY_LEVELS
from latentlab.config import Decoder
from latentlab.decoding import read_pixels
from latentlab.errors import UserError
from latentlab.storage import limits
from latentlab.storage.image_files import list_files

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
WORDNET = re.compile(r"(?<![a-zA-Z0-9])n\d{8}(?!\d)")
THREADS = 8


class Photo(NamedTuple):
    """A square photo, and what had to be done to make it one of 8-bit RGB; or black, and why it could not be read."""

    pixels: UInt8[np.ndarray, "size size 3"]
    notes: tuple[str, ...]
    fault: str = ""


class FoundPhotos(NamedTuple):
    """Photos below a directory, and the other files there, which are left out; both sorted."""

    paths: list[Path]
    others: list[Path]


def find(directory: Path) -> FoundPhotos:
    """Find all photos below a directory, by their suffix or their first bytes, also through symbolic links.

    Hidden files and directories are passed over.

    Raises:
        UserError: It is no directory, or holds no photo.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: is no directory, expected one of photos")
    files = [file.place for file in list_files(directory, open_zips=False)]
    paths = [path for path in files if path.suffix.lower() in SUFFIXES or _begins_like_a_photo(path)]
    if not paths:
        raise UserError(f"{directory}: holds no photos, expected files that end in {' '.join(SUFFIXES)}")
    return FoundPhotos(sorted(paths), sorted({*files} - {*paths}))


def _begins_like_a_photo(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def label_of(path: Path, root: Path, classes: Sequence[tuple[str, str]], by_number: bool = False) -> int:
    """Return the index of a photo's class by its path.

    That is what the folder that it lies in is called: a class's name, WordNet id or index. Otherwise it is the WordNet
    id in the folder's name, `n02099601-golden_retriever`, or in its own, `n02099601_7.jpg`, as ImageNet has them. No
    other number in a file's name is a label, unless it is asked for.

    Args:
        path: A photo at any depth below `root`.
        root: Where all photos are.
        classes: WordNet id and name of every class, in the network's order.
        by_number: Take the index after the last `_` of its name, as in `imagenet_00_243.jpg`.

    Raises:
        UserError: The path tells no class, or one that the network does not have.
    """
    folder = "" if path.parent == root else path.parent.name
    if by_number:
        return _check_index(
            path,
            path.stem.rpartition("_")[2],
            classes,
            "its name; expected its index before the suffix, as in dog_7.jpg",
        )
    indices = [index for index, names in enumerate(classes) if folder and folder in names]
    if len(indices) > 1:
        those = " and ".join(map(str, indices))
        raise UserError(f"{path}: classes {those} are called {folder}, expected a WordNet id or index")
    if indices:
        return indices[0]
    for word in (folder, path.stem):
        if match := WORDNET.search(word):
            known = [index for index, (identifier, _) in enumerate(classes) if identifier == match[0]]
            if not known:
                raise UserError(f"{path}: {match[0]} is a class of WordNet that the network does not have")
            return known[0]
    where = "its folder or name" if folder else "its name"
    expected = (
        "expected a folder called by a class's name, WordNet id or index, a WordNet id in the name, or --labels numbers"
    )
    if folder.isdecimal() and len(classes) > 10 and all(name.startswith("class_") for _, name in classes):
        raise UserError(
            f"{path}: its folder is called by a number, and the network's classes have no names; Keras and torchvision "
            "count classes in the order of text, 0, 1, 10, 11, 2; expected --names with a name for each class"
        )
    return _check_index(path, folder, classes, f"{where}; {expected}")


def _check_index(path: Path, word: str, classes: Sequence[Any], expected: str) -> int:
    if not (word.isascii() and word.isdecimal()):
        raise UserError(f"{path}: no class can be told from {expected}")
    if int(word) >= len(classes):
        raise UserError(f"{path}: class {word}, but the network has {len(classes)} (0 to {len(classes) - 1})")
    return int(word)


def read(path: Path, size: int, decoder: Decoder = "pillow", resize: float = 0.0) -> Photo:
    """Read a photo as `size` × `size` pixels of 8-bit RGB, rounded to the nearest grey level.

    It is turned upright as its EXIF says, laid on white where it is transparent, and of several frames the first; or
    it is what TensorFlow decodes (`latentlab.decoding`).

    Args:
        path: A photo.
        size: Height and width of the square that it becomes.
        decoder: Whose pixels it has.
        resize: Length of its shorter side before the square is cut out of its middle, as a multiple of `size`; 0 to
            make the whole photo a square.

    Raises:
        UserError: The file cannot be read, is damaged or of another format, or its sides are not within the limits.
    """
    pixels, notes = read_pixels(path, decoder)
    try:
        return Photo(_make_square(pixels, size, resize), tuple(notes))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def read_ahead(
    paths: Sequence[Path],
    size: int,
    ahead: int,
    decoder: Decoder = "pillow",
    skip_bad: bool = False,
    resize: float = 0.0,
) -> Iterator[Photo]:
    """Yield what `read` makes of photos, in their order; threads read up to `ahead` of them before they are asked for.

    Raises:
        UserError: As `read`, when it is the photo's turn; with `skip_bad` the photo has a `fault` instead.
    """
    import grain  # slow to import

    options = grain.ReadOptions(num_threads=min(THREADS, ahead), prefetch_buffer_size=ahead)
    read_photo = partial(_read_or_fault if skip_bad else read, size=size, decoder=decoder, resize=resize)
    found: Iterator[Photo] = iter(grain.MapDataset.source(paths).map(read_photo).to_iter_dataset(options))
    return found


def _read_or_fault(path: Path, size: int, decoder: Decoder, resize: float) -> Photo:
    try:
        return read(path, size, decoder, resize)
    except UserError as error:
        return Photo(np.zeros((size, size, 3), np.uint8), (), str(error).removeprefix(f"{path}: "))


def from_pixels(pixels: UInt8[np.ndarray, "h w 3"], size: int, resize: float = 0.0) -> Photo:
    """Return pixels 0…255 as a photo of `size` × `size`; `resize` is that of `read`.

    Raises:
        UserError: They are not uint8 (h, w, 3), or too long for their width.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"photo: is {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 3)")
    try:
        return Photo(_make_square(pixels, size, resize), ())
    except ValueError as error:
        raise UserError(f"photo: {error}") from error


def _make_square(pixels: UInt8[np.ndarray, "h w 3"], size: int, multiple: float) -> UInt8[np.ndarray, "size size 3"]:
    if multiple:
        return resize_and_crop(pixels, round(multiple * size), size)
    levels = resize(pixels, size)
    levels *= GREY_LEVELS
    return np.rint(levels, out=levels).astype(np.uint8)


def resize_and_crop(pixels: UInt8[np.ndarray, "h w 3"], shorter: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the square in the middle of a photo, whose shorter side is first made `shorter` pixels.

    It is interpolated bilinearly with antialiasing, and sides are rounded, as torchvision does for a Pillow image.

    Raises:
        ValueError: It becomes larger than `limits.MOST_PIXELS`.
    """
    height, width = pixels.shape[:2]
    longer = int(shorter * max(height, width) / min(height, width))
    sides = (shorter, longer) if width <= height else (longer, shorter)
    limits.check_pixels(*sides)
    resized = Image.fromarray(pixels).resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in sides)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def resize(pixels: UInt8[np.ndarray, "h w 3"], size: int) -> Float32[np.ndarray, "size size 3"]:
    """Return pixels divided by 255 and interpolated bilinearly at size × size points, in [0, 1].

    Point i of a side of n pixels lies at (i + ½) · n / size - ½ between its two neighbours there, the outermost pixels
    going on beyond the edge. As in TensorFlow that is reckoned in float32.

    NumPy rather than `jax.image.resize`, which takes a third of a second to compile for each new shape of photo.
    """
    (top, bottom, down), (left, right, across) = (_neighbours(side, size) for side in pixels.shape[:2])
    used, places = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    one, other = (pixels[used].take(side, axis=1) / np.float32(GREY_LEVELS) for side in (left, right))
    rows = _interpolate(one, other, across[:, None])
    return _interpolate(rows[places[:size]], rows[places[size:]], down[:, None, None])


def _interpolate(
    one: Float32[np.ndarray, "*shape"], other: Float32[np.ndarray, "*shape"], share: Float32[np.ndarray, "..."]
) -> Float32[np.ndarray, "*shape"]:
    """Return one + (other - one) · share, in the memory of `other`: fresh memory takes longer than the arithmetic."""
    other -= one
    other *= share
    other += one
    return other


def _neighbours(
    side: int, size: int
) -> tuple[Int[np.ndarray, " size"], Int[np.ndarray, " size"], Float32[np.ndarray, " size"]]:
    """For each point of a side, the pixels before and after it, and how far it is from the first to the second."""
    half = np.float32(0.5)
    points = (np.arange(size, dtype=np.float32) + half) * (np.float32(side) / np.float32(size)) - half
    before = np.floor(points)
    first, second = np.maximum(before, 0).astype(int), np.minimum(np.ceil(points), side - 1).astype(int)
    return first, second, points - before
