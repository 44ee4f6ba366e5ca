"""A face in 800 bytes: how good the picture is that a latent gives back, beside JPEGs of the same size and quality.

Quality is the peak signal-to-noise ratio, PSNR = 10 log₁₀(255² / mean squared error) in decibels over all pixels and
channels, averaged over faces.
"""

import io
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from latent_arith.model import Decode, Encode

QUALITIES = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 55, 75, 90, 95)
SCALES = (1, 0.75, 0.5, 0.375, 0.25)

Pixels = UInt8[np.ndarray, "size size 3"]


def compare_compressions(
    encode: Encode, decode: Decode, images: UInt8[np.ndarray, "n size size 3"]
) -> dict[str, dict[str, float]]:
    """Return mean bytes and PSNR of four ways to keep a face.

    `float32` and `float16` are the latent's floats as they are. `jpeg_same_size` is the best JPEG of at most as many
    bytes as the float32, of the picture or of a smaller copy, enlarged again; `jpeg_same_psnr` is the smallest JPEG
    that is at least as good as the decoded float32.
    """
    latents = encode(images)
    ways: dict[str, list[tuple[int, float]]] = {
        name: [] for name in ("float32", "float16", "jpeg_same_size", "jpeg_same_psnr")
    }
    for image, latent, full, half in zip(
        images, latents, decode(latents), decode(latents.astype(np.float16).astype(np.float32)), strict=True
    ):
        jpegs = list(_compress(image))
        size, quality = latent.astype(np.float32).nbytes, psnr(image, full)
        ways["float32"].append((size, quality))
        ways["float16"].append((size // 2, psnr(image, half)))
        ways["jpeg_same_size"].append(max((j for j in jpegs if j[0] <= size), key=lambda j: j[1], default=min(jpegs)))
        ways["jpeg_same_psnr"].append(min((j for j in jpegs if j[1] >= quality), default=max(jpegs)))
    return {
        name: dict(zip(("bytes", "psnr_decibels"), np.mean(found, axis=0).tolist(), strict=True))
        for name, found in ways.items()
    }


def psnr(image: UInt8[np.ndarray, "*shape"], other: UInt8[np.ndarray, "*shape"]) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinite for equal images."""
    error = np.mean((image.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _compress(image: Pixels) -> Iterator[tuple[int, float]]:
    """Yield bytes and PSNR of JPEGs of the image and of smaller copies, at all qualities."""
    original = Image.fromarray(image)
    for scale in SCALES:
        side = round(scale * len(image))
        small = original.resize((side, side), Image.Resampling.LANCZOS) if side < len(image) else original
        for quality in QUALITIES:
            file = io.BytesIO()
            small.save(file, "JPEG", quality=quality, optimize=True)
            with Image.open(file) as decoded:
                back = np.asarray(decoded.convert("RGB").resize(original.size, Image.Resampling.BICUBIC))
            yield file.tell(), psnr(image, back)
