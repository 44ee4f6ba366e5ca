"""Values of a section as JSON: pictures as sprites, many of one size in one WebP or PNG, and numbers."""

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from latentlab.figures import tile

QUALITY = 82  # of WebP


def sprite(
    images: UInt8[np.ndarray, "n height width channels"], columns: int = 0, lossless: bool = False
) -> dict[str, Any]:
    """Return pictures, grey or RGB, in one file, in rows of `columns` each; 0 for about as many as rows."""
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    image = Image.fromarray(tile(images, columns))
    packed = io.BytesIO()
    kind, options = ("png", {"optimize": True}) if lossless else ("webp", {"quality": QUALITY, "method": 4})
    image.save(packed, kind, **options)
    uri = f"data:image/{kind};base64,{base64.b64encode(packed.getvalue()).decode()}"
    return {"uri": uri, "columns": columns, "width": width, "height": height}


def flatten_grid(
    grid: UInt8[np.ndarray, "*grid height width channels"],
) -> UInt8[np.ndarray, "n height width channels"]:
    """Return the pictures of a grid one after another."""
    return grid.reshape(-1, *grid.shape[-3:])


def round_numbers(values: np.ndarray, digits: int = 3) -> Any:
    """Return an array as lists of numbers with `digits` decimal places."""
    return np.round(values.astype(float), digits).tolist()


def to_floats(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return named numbers as floats; None stays."""
    return {key: None if value is None else float(value) for key, value in values.items()}
