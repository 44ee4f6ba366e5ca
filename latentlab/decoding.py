"""Pixels of image files, as a person sees them or as TensorFlow decodes them.

`tf.image.decode_image` decodes JPEGs with libjpeg's fast integer cosine transform, Pillow with the accurate one. Their
pixels differ by about 1 grey level on average and by 20 and more at most, which moves the results of attacks.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from latentlab.config import Decoder
from latentlab.errors import UserError, first_line
from latentlab.storage import limits

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
"""What TensorFlow decodes; Pillow decodes TIFF too."""
SHORTEST_SIDE = 32  # pixels
BYTE = 8
GREY_LEVELS, SIXTEEN_BITS = 2**8 - 1, 2**16 - 1
TURNED = range(2, 9)  # EXIF orientations other than upright
KINDS = {"1": "black and white", "L": "grey", "LA": "grey", "La": "grey", "P": "palette", "PA": "palette"}
"""Pillow's modes, by what a person calls them; others are called as Pillow does."""


def read_pixels(path: Path, decoder: Decoder = "pillow") -> tuple[UInt8[np.ndarray, "h w 3"], list[str]]:
    """Return the pixels of a photo in 8-bit RGB, and what had to be done for that.

    With Pillow it is as a person sees it (`make_upright_rgb`), else as TensorFlow decodes it.

    Raises:
        UserError: The file cannot be read, is damaged or of another format, or its sides are not within the limits.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file:
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty, expected a photo")
        formats = FORMATS if decoder == "tensorflow" else (*FORMATS, "TIFF")
        try:
            image = Image.open(file, formats=formats)
            _check_sides(path, image)
            rgb, notes = _read_as_tensorflow(path, image) if decoder == "tensorflow" else make_upright_rgb(image)
            return np.asarray(rgb), notes
        except UserError:
            raise
        except Image.UnidentifiedImageError as error:
            raise UserError(f"{path}: is no photo, expected one of {', '.join(formats)}") from error
        except Image.DecompressionBombError as error:
            raise UserError(
                f"{path}: is too large, expected at most {limits.MOST_PIXELS // 10**6} megapixels"
            ) from error
        except Exception as error:  # Pillow's readers raise many types for damaged files
            raise UserError(f"{path}: is damaged or of a kind that cannot be read ({first_line(error)})") from error


def decode_as_tensorflow(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of `tf.image.decode_image(content, channels=3, expand_animations=False)`, to the bit.

    Transparency is dropped, EXIF's orientation is not applied, 16 bits lose the lower half, and of several frames the
    first is taken. Keras's `load_img` does the same but for the cosine transform of JPEGs.

    Raises:
        ValueError: The content is damaged, or of a kind that TensorFlow does not decode or misreads.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.format in ("JPEG", "MPO"):
            return _decode_jpeg(content, image)
        if image.format == "WEBP" and (image.mode != "RGB" or getattr(image, "n_frames", 1) > 1):
            raise ValueError("TensorFlow decodes no WebP that is transparent or moves")
        if image.format == "BMP" and image.mode == "P":
            raise ValueError("TensorFlow takes the palette's indices of a BMP for grey levels")
        if image.mode.startswith("I"):
            levels = (np.asarray(image) >> BYTE).astype(np.uint8)
            return np.repeat(levels[..., None], 3, axis=2)
        return np.asarray(image.convert("RGB"))


def _decode_jpeg(content: bytes, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    import simplejpeg

    if image.mode != "CMYK":
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", fastdct=True, fastupsample=False)
        return pixels
    # Adobe's marker says that the inks are stored inverted.
    inks = simplejpeg.decode_jpeg(content, "CMYK", fastdct=True, fastupsample=False).astype(np.int32)
    inks = inks if "adobe" in image.info else 255 - inks
    return (inks[..., :3] * inks[..., 3:] // 255).astype(np.uint8)


def make_upright_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return a picture as a person sees it, in 8-bit RGB, and what had to be done for it.

    It is turned upright as its EXIF says, laid on white where it is transparent, and of several frames the first.

    Raises:
        ValueError: Its pixels are floats, or outside 16 bits.
    """
    notes = []
    # Of 16-bit RGB, which Pillow decodes as 8-bit, only the tiles tell, and only until EXIF is asked for.
    if image.mode.startswith("I") or ";16" in str(getattr(image, "tile", "")):
        notes.append("16-bit, reduced to 8")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    if image.getexif().get(ExifTags.Base.Orientation) in TURNED:
        notes.append("turned upright, as its EXIF says")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    kind = KINDS.get(image.mode, image.mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (GREY_LEVELS, GREY_LEVELS):
            notes.append("transparent, laid on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if kind not in ("RGB", "RGBA"):
        notes.append(f"{kind}, made RGB")
    return image.convert("RGB"), notes


def _eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if image.mode == "F":
        raise ValueError("pixels are floats, expected 8 or 16 bits")
    if levels.min() < 0 or levels.max() > SIXTEEN_BITS:
        raise ValueError(f"grey levels from {levels.min()} to {levels.max()}, expected 0 to {SIXTEEN_BITS}")
    return Image.fromarray(np.rint(levels * (GREY_LEVELS / SIXTEEN_BITS)).astype(np.uint8))


def _check_sides(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < SHORTEST_SIDE:
        raise UserError(f"{path}: {width}×{height} pixels, expected at least {SHORTEST_SIDE} on either side")
    try:
        limits.check_pixels(width, height)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _read_as_tensorflow(path: Path, image: Image.Image) -> tuple[UInt8[np.ndarray, "h w 3"], list[str]]:
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"the first of {frames} frames")
    if image.getexif().get(ExifTags.Base.Orientation) in TURNED:
        notes.append("not turned upright, as TensorFlow has it")
    if image.has_transparency_data:
        notes.append("transparency dropped, as TensorFlow has it")
    return decode_as_tensorflow(path.read_bytes()), notes
