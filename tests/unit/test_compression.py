"""Bytes and quality of faces that are kept as floats and as JPEG."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from latent_arith import compression
from latent_arith.datasets import synthetic_faces as faces

IMAGES = np.asarray(faces.paint_faces(jax.random.key(0), np.arange(3))[0])
COARSE = 8  # pixels a side of the blocks whose mean colours are the toy latents


def encode(images: np.ndarray) -> np.ndarray:
    """Means of blocks, 768 floats."""
    blocks = images.reshape(len(images), 128 // COARSE, COARSE, 128 // COARSE, COARSE, 3)
    return blocks.mean(axis=(2, 4)).reshape(len(images), -1).astype(np.float32)


def decode(latents: np.ndarray) -> np.ndarray:
    grid = latents.reshape(len(latents), 128 // COARSE, 128 // COARSE, 3)
    return np.rint(grid).astype(np.uint8).repeat(COARSE, axis=1).repeat(COARSE, axis=2)


def test_psnr_is_that_of_its_definition() -> None:
    """One grey level everywhere is 20 log10(255) decibels, and half the error 6.02 more."""
    one = np.full((4, 4, 3), 100, np.uint8)
    assert compression.psnr(one, one + np.uint8(1)) == pytest.approx(20 * np.log10(255))
    assert compression.psnr(one, one + np.uint8(2)) == pytest.approx(20 * np.log10(255) - 6.0206, abs=1e-4)
    assert compression.psnr(one, one) == np.inf
    assert compression.psnr(np.uint8([0]), np.uint8([255])) == 0


def test_every_way_is_as_large_and_as_good_as_it_says() -> None:
    told = compression.compare_compressions(encode, decode, IMAGES)
    floats = encode(IMAGES)
    assert told["float32"]["bytes"] == floats[0].nbytes == 2 * told["float16"]["bytes"]
    expected = np.mean([compression.psnr(*pair) for pair in zip(IMAGES, decode(floats), strict=True)])
    assert told["float32"]["psnr_decibels"] == pytest.approx(expected)
    assert told["float16"]["psnr_decibels"] == pytest.approx(expected, abs=0.1)
    assert told["jpeg_same_size"]["bytes"] <= told["float32"]["bytes"]
    assert told["jpeg_same_psnr"]["psnr_decibels"] >= told["float32"]["psnr_decibels"]


def test_the_best_jpeg_of_a_size_is_the_best_that_pillow_writes() -> None:
    """By hand, over every quality and side."""
    limit = encode(IMAGES)[0].nbytes
    best = []
    for image in IMAGES:
        found = []
        for side in (128, 96, 64, 48, 32):
            for quality in compression.QUALITIES:
                file = io.BytesIO()
                small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
                small.save(file, "JPEG", quality=quality, optimize=True)
                back = Image.open(file).convert("RGB").resize((128, 128), Image.Resampling.BICUBIC)
                found.append((len(file.getvalue()), compression.psnr(image, np.asarray(back))))
        best.append(max(psnr for size, psnr in found if size <= limit))
    told = compression.compare_compressions(encode, decode, IMAGES)
    assert told["jpeg_same_size"]["psnr_decibels"] == pytest.approx(np.mean(best))
