"""Pixels are those of TensorFlow, to the bit, for every kind of file that it decodes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from adversarial import photos
from latentlab.decoding import decode_as_tensorflow
from latentlab.errors import UserError

SUBSAMPLINGS = ("444", "422", "420", "440", "411", "Gray")


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth colours with noise, as photos have."""
    draw = np.random.default_rng(height * width)
    small = Image.fromarray(draw.integers(0, 256, (9, 11, 4), np.uint8), "RGBA")
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + draw.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)[..., :channels].copy()


def packed(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def of_tensorflow(content: bytes) -> np.ndarray:
    import tensorflow as tf

    return np.asarray(tf.io.decode_image(content, channels=3, expand_animations=False))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("shape", [(64, 48), (37, 53), (1, 1), (8, 201)])
def test_jpegs_of_every_subsampling_quality_and_size(shape: tuple[int, int], quality: int, subsampling: str) -> None:
    pixels = picture(*shape)
    if subsampling == "Gray":
        content = packed(Image.fromarray(pixels).convert("L"), "JPEG", quality=quality)
    else:
        content = simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling)
    np.testing.assert_array_equal(decode_as_tensorflow(content), of_tensorflow(content))


def files() -> dict[str, bytes]:
    """Files of all formats, and of odd kinds of them."""
    colours, transparent = Image.fromarray(picture(61, 67)), Image.fromarray(picture(61, 67, 4), "RGBA")
    turned = Image.Exif()
    turned[0x112] = 6
    inks = Image.fromarray(picture(61, 67, 4), "CMYK")
    cmyk = packed(inks, "JPEG")
    without_marker = bytearray(cmyk)
    at = cmyk.index(b"\xff\xeeAdobe"[:2])
    length = int.from_bytes(cmyk[at + 2 : at + 4], "big")
    del without_marker[at : at + 2 + length]
    levels = np.random.default_rng(0).integers(0, 2**16, (61, 67)).astype(np.uint16)
    two = {"save_all": True, "append_images": [colours.rotate(9)]}
    return {
        "progressive": packed(colours, "JPEG", progressive=True, quality=80),
        "restart markers": packed(colours, "JPEG", restart_marker_blocks=2),
        "progressive with restart markers": packed(colours, "JPEG", restart_marker_rows=1, progressive=True),
        "RGB without YCbCr": packed(colours, "JPEG", keep_rgb=True),
        "CMYK": cmyk,
        "CMYK without Adobe's marker": bytes(without_marker),
        "turned by EXIF": packed(colours, "JPEG", exif=turned),
        "MPO": packed(colours, "MPO", **two),
        "PNG": packed(colours, "PNG"),
        "transparent PNG": packed(transparent, "PNG"),
        "transparent grey PNG": packed(transparent.convert("LA"), "PNG"),
        "grey PNG": packed(colours.convert("L"), "PNG"),
        "black and white PNG": packed(colours.convert("1"), "PNG"),
        "PNG of a palette": packed(colours.convert("P"), "PNG"),
        "PNG of a transparent palette": packed(colours.convert("P"), "PNG", transparency=3),
        "16-bit PNG": packed(Image.fromarray(levels), "PNG"),
        "moving PNG": packed(colours, "PNG", **two),
        "GIF": packed(colours, "GIF"),
        "moving GIF": packed(colours, "GIF", **two),
        "BMP": packed(colours, "BMP"),
        "grey BMP": packed(colours.convert("L"), "BMP"),
        "transparent BMP": packed(transparent, "BMP"),
        "WebP": packed(colours, "WEBP"),
        "lossless WebP": packed(colours, "WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", files())
def test_files_of_every_kind(kind: str) -> None:
    content = files()[kind]
    np.testing.assert_array_equal(decode_as_tensorflow(content), of_tensorflow(content))


def test_what_tensorflow_misreads_or_does_not_decode_is_refused() -> None:
    colours, transparent = Image.fromarray(picture(61, 67)), Image.fromarray(picture(61, 67, 4), "RGBA")
    palette = packed(colours.convert("P"), "BMP")
    assert np.ptp(of_tensorflow(palette), axis=2).max() == 0, "grey, though the picture is not"
    for content, words in (
        (palette, "palette's indices"),
        (packed(transparent, "WEBP"), "transparent or moves"),
        (packed(colours, "WEBP", save_all=True, append_images=[colours.rotate(9)]), "transparent or moves"),
    ):
        with pytest.raises(ValueError, match=words):
            decode_as_tensorflow(content)


def test_pillow_decodes_otherwise_by_several_grey_levels() -> None:
    """The reason for all this; more than the 2.55 grey levels of ε = 0.01."""
    content = simplejpeg.encode_jpeg(picture(64, 64), 95, "RGB", "444")
    difference = np.abs(decode_as_tensorflow(content).astype(int) - np.asarray(Image.open(io.BytesIO(content))))
    assert difference.mean() > 0.3 and difference.max() >= 3


def test_a_photo_is_read_with_either_decoder(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x112] = 6
    (tmp_path / "a.jpg").write_bytes(packed(Image.fromarray(picture(64, 64)), "JPEG", exif=turned))
    (tmp_path / "a.png").write_bytes(packed(Image.fromarray(picture(64, 64, 4), "RGBA"), "PNG"))
    for name, note in (
        ("a.jpg", "not turned upright, as TensorFlow"),
        ("a.png", "transparency dropped, as TensorFlow"),
    ):
        read = photos.read(tmp_path / name, 64, "tensorflow")
        np.testing.assert_array_equal(read.pixels, of_tensorflow((tmp_path / name).read_bytes()))
        assert note in "; ".join(read.notes)
    assert photos.read(tmp_path / "a.jpg", 64).notes == ("turned upright, as its EXIF says",)
    (tmp_path / "a.tif").write_bytes(packed(Image.fromarray(picture(64, 64)), "TIFF"))
    with pytest.raises(UserError, match=r"a.tif: is no photo, expected one of JPEG, PNG, GIF, BMP, WEBP"):
        photos.read(tmp_path / "a.tif", 64, "tensorflow")
