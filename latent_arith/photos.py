"""Own photos as the faces that a model was trained on: the face is found, turned upright and cut out as theirs are.

Pictures of a data set have the eyes at the same place. A face of a photo is found by OpenCV's cascades (Viola & Jones
2001), which come with `pip install opencv-python-headless`, and its eyes as well if they can be; otherwise they are
taken to be where they are in most faces. The photo is then turned and cut so that the eyes lie where the data set has
them. Without OpenCV a crop says where the face is.
"""

from collections.abc import Sequence
from math import atan2, ceil, degrees, hypot
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from latent_arith.config import Crop, Resize
from latentlab.decoding import read_pixels
from latentlab.errors import UserError

Pixels = UInt8[np.ndarray, "h w 3"]
Cut = UInt8[np.ndarray, "rows columns 3"]
Point = tuple[float, float]
Whole = Literal["whole"]

SEARCHED_SIDE = 1024
"""Longer side of a photo, in pixels, in which faces are searched."""
SMALLEST_FACE = 1 / 12
"""Of the shorter side of the photo."""
EYES_IN_FACE = ((0.28, 0.38), (0.72, 0.38))
"""Where eyes are in the square that a cascade finds, as shares of its side."""
MOST_TILT = 30.0  # degrees
EXTRA = "pip install -e '.[photos]' in the checkout, or pip install 'opencv-python-headless<5'"


class Frame(NamedTuple):
    """How pictures of a data set were cut: height over width, and the eyes as shares of width and height."""

    aspect: float
    eyes: tuple[Point, Point]


CELEBA = Frame(218 / 178, ((69 / 178, 111 / 218), (108 / 178, 111 / 218)))
"""CelebA's aligned pictures, 178 × 218, which are resized to a square."""
FRAMES = {
    "synthetic": Frame(1.0, ((0.375, 0.53), (0.625, 0.53))),
    "celeba": CELEBA,
    "tfds": CELEBA,
    "folder": Frame(1.0, ((0.376, 0.469), (0.625, 0.469))),  # as FFHQ and CelebA-HQ
}
"""Frames by the kind of data that a model was trained on."""


class Face(NamedTuple):
    """A face in a photo, in its pixels: the square that was found, and the eyes, the left one of the picture first."""

    left: float
    top: float
    side: float
    eyes: tuple[Point, Point]


class FacePhoto(NamedTuple):
    """A photo as a face of a model's size, and what was done for it."""

    pixels: UInt8[np.ndarray, "size size 3"]
    notes: tuple[str, ...]


def read_face(photo: Path | Pixels, crop: Crop | Whole | None, frame: Frame, size: int, resize: Resize) -> FacePhoto:
    """Return the face of a photo as a model wants it.

    Args:
        photo: A file, or pixels.
        crop: Left and upper edge and width of what is cut out, in pixels; its height is that of the frame. "whole" to
            take all of the photo, whatever its proportions; None to find the face.
        frame: How the pictures that the model was trained on are cut.
        size: Height and width of the result.
        resize: Interpolation.

    Raises:
        UserError: The file cannot be read, the crop is not within the photo, there is no face, or no OpenCV.
    """
    name = str(photo) if isinstance(photo, Path) else "photo"
    pixels, notes = read_pixels(photo) if isinstance(photo, Path) else (check_pixels(photo), [])
    if crop == "whole":
        return FacePhoto(_resize(pixels, size, resize), tuple(notes))
    if crop:
        return FacePhoto(_resize(_cut(name, pixels, crop, frame.aspect), size, resize), tuple(notes))
    faces = find_faces(pixels)
    if not faces:
        height, width = pixels.shape[:2]
        raise UserError(
            f"{name}: no face that looks at the camera is found in its {width}×{height} pixels; say where it is: "
            "--crop X Y SIDE"
        )
    face = faces[0]
    where = f"face at {face.left:.0f}, {face.top:.0f}, {face.side:.0f} pixels wide"
    if len(faces) > 1:
        where = f"the largest of {len(faces)} faces, at {face.left:.0f}, {face.top:.0f}; --crop X Y SIDE takes another"
    return FacePhoto(_resize(align(pixels, face.eyes, frame), size, resize), (*notes, where))


def check_pixels(pixels: Any) -> Pixels:
    """Return pixels 0…255, or raise UserError where they are not uint8 (height, width, 3)."""
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(f"photo: is {pixels.dtype} {pixels.shape}, expected uint8 (height, width, 3)")
    return pixels


def find_faces(pixels: Pixels) -> list[Face]:
    """Return the faces of a photo that look at the camera, the largest first.

    Raises:
        UserError: OpenCV is not installed.
    """
    try:
        import cv2

        cascades = [_load_cascade(cv2, name) for name in ("frontalface_default", "eye")]
    except (ImportError, AttributeError) as error:
        raise UserError(f"finding a face needs OpenCV 4 ({error}): {EXTRA}; or give --crop X Y SIDE") from error
    shrink = min(1.0, SEARCHED_SIDE / max(pixels.shape[:2]))
    shape = [max(1, round(side * shrink)) for side in pixels.shape[1::-1]]
    grey = cv2.cvtColor(cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    smallest = max(24, round(SMALLEST_FACE * min(shape)))
    boxes = cascades[0].detectMultiScale(grey, 1.1, 6, minSize=(smallest, smallest))
    found = sorted(([float(value) for value in box] for box in boxes), key=lambda box: (-box[2], box))
    return [
        Face(
            left / shrink,
            top / shrink,
            side / shrink,
            tuple((x / shrink, y / shrink) for x, y in _find_eyes(cascades[1], grey, left, top, side)),  # type: ignore[arg-type]
        )
        for left, top, side, _ in found
    ]


def align(pixels: Pixels, eyes: tuple[Point, Point], frame: Frame) -> UInt8[np.ndarray, "height width 3"]:
    """Return what lies in the frame whose eyes are those of a photo; beyond the photo its edge goes on."""
    (left_x, left_y), (right_x, right_y) = eyes
    (frame_left, frame_y), (frame_right, _) = frame.eyes
    apart = hypot(right_x - left_x, right_y - left_y)
    across = ((right_x - left_x) / apart, (right_y - left_y) / apart)
    width = apart / (frame_right - frame_left)
    height = width * frame.aspect
    right = (0.5 - (frame_left + frame_right) / 2) * width
    down = (0.5 - frame_y) * height
    centre = (
        (left_x + right_x) / 2 + right * across[0] - down * across[1],
        (left_y + right_y) / 2 + right * across[1] + down * across[0],
    )
    half = ceil(hypot(width, height) / 2) + 1
    region = _take(pixels, round(centre[0]) - half, round(centre[1]) - half, 2 * half, 2 * half)
    angle = degrees(atan2(across[1], across[0]))
    middle = (half + centre[0] - round(centre[0]), half + centre[1] - round(centre[1]))
    turned = Image.fromarray(region).rotate(angle, Image.Resampling.BICUBIC, center=middle)
    sides = round(width), round(height)
    x, y = (round(at - side / 2) for at, side in zip(middle, sides, strict=True))
    return np.asarray(turned.crop((x, y, x + sides[0], y + sides[1])))


def _load_cascade(cv2: Any, name: str) -> Any:
    return cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")


def _find_eyes(cascade: Any, grey: np.ndarray, left: float, top: float, side: float) -> tuple[Point, Point]:
    """Return the eyes of a face, where most faces have them unless one is found on either side, not too far off."""
    usual = tuple((left + x * side, top + y * side) for x, y in EYES_IN_FACE)
    x, y, span = (int(value) for value in (left, top, side))
    upper = grey[y : y + round(0.6 * span), x : x + span]
    boxes = cascade.detectMultiScale(upper, 1.05, 5, minSize=(max(8, span // 8),) * 2, maxSize=(span // 2,) * 2)
    middles = [(left + box[0] + box[2] / 2, top + box[1] + box[3] / 2) for box in boxes]
    sides: Sequence[list[Point]] = [
        [point for point in middles if hypot(point[0] - eye[0], point[1] - eye[1]) < 0.15 * side] for eye in usual
    ]
    if any(len(found) != 1 for found in sides):
        return usual[0], usual[1]
    (one,), (other,) = sides
    tilt = degrees(atan2(other[1] - one[1], other[0] - one[0]))
    return (one, other) if abs(tilt) < MOST_TILT else (usual[0], usual[1])


def _cut(name: str, pixels: Pixels, crop: Crop, aspect: float) -> Cut:
    left, top, width = crop
    height, (rows, columns) = round(width * aspect), pixels.shape[:2]
    if left < 0 or top < 0 or width < 1 or left + width > columns or top + height > rows:
        shape = f"{width}×{height}" if aspect != 1 else f"{width}×{width}"
        raise UserError(
            f"{name}: a crop of {shape} pixels at {left}, {top} is not within its {columns}×{rows}; expected "
            "--crop X Y SIDE, the left and upper edge and the width"
        )
    return pixels[top : top + height, left : left + width]


def _take(pixels: Pixels, left: int, top: int, width: int, height: int) -> Cut:
    """Return a rectangle that may reach beyond the photo, where the nearest pixel of its edge stands."""
    rows = np.clip(np.arange(top, top + height), 0, pixels.shape[0] - 1)
    columns = np.clip(np.arange(left, left + width), 0, pixels.shape[1] - 1)
    return pixels[rows[:, None], columns]


def _resize(pixels: Pixels, size: int, resize: Resize) -> UInt8[np.ndarray, "size size 3"]:
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling[resize.upper()]))
