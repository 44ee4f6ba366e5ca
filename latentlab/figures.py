"""What figures of all experiments share: two colours that stay apart for the colour-blind, curves, tiles, files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from matplotlib import style
from matplotlib.figure import Figure

from latentlab.storage.run_directory import COMPRESSION, atomic

BLUE, ORANGE = "#1f78b4", "#d95f02"
DOTS_PER_INCH = 110
RISE = 1.01
"""How much more than its least a loss is at its end where a legend says that it rises."""
SETTINGS = {"pdf.fonttype": 42, "svg.hashsalt": "latentlab"}
"""TrueType fonts, which journals ask for, and ids in SVG that are the same every time."""
OPTIONS: Mapping[str, dict[str, Any]] = {
    "png": {"pil_kwargs": {"compress_level": COMPRESSION}},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}
"""How each format is written: without a date."""


class Format(NamedTuple):
    """How figures are written.

    Attributes:
        name: png, pdf or svg.
        dots_per_inch: Of a PNG, and of the pictures within the others.
    """

    name: str = "png"
    dots_per_inch: int = DOTS_PER_INCH


PNG = Format()


def save(path: Path, make: Callable[[], Figure], form: Format = PNG) -> Path:
    """Write the figure that `make` draws, atomically, and return its path; the same figure gives the same bytes.

    It is drawn with Matplotlib's own settings, whatever a `matplotlibrc` in the working directory says.

    Args:
        path: The file; its suffix is that of the format.
        make: Draws the figure.
        form: How it is written.

    Raises:
        UserError: The file cannot be written.
    """
    path = path.with_suffix(f".{form.name}") if path.suffix == ".png" else path
    with style.context(["default", SETTINGS], after_reset=True), atomic(path) as file:
        make().savefig(file, dpi=form.dots_per_inch, format=form.name, bbox_inches="tight", **OPTIONS[form.name])
    return path


def file_name(name: str) -> str:
    """Return the name of a picture: letters, digits and _.-~ as they are, all else as %XX, so that none is a path."""
    return f"{quote(name, safe='')}.png"


def by_epoch(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, style: str, colour: str) -> None:
    """Draw the value `key` of one model's rows by epoch: mean over seeds, and a band of one standard deviation.

    Where it rises again after its least, the legend says at which epoch that was.
    """
    epochs, values = _by_epoch([row for row in rows if key in row], key)
    if not len(epochs):
        return
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
    least = int(np.argmin(mean))
    if 0 < least < len(mean) - 1 and mean[-1] > RISE * mean[least]:
        label += f", least at epoch {epochs[least]}, then rising"
    axes.plot(epochs, mean, style, color=colour, label=label, marker="" if len(epochs) > 3 else "o")
    if spread is not None:
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def tile(
    pictures: UInt8[np.ndarray, "n h w channels"], columns: int, gap: int = 0, fill: int = 0
) -> UInt8[np.ndarray, "height width *channels"]:
    """Return pictures side by side, row by row, `gap` pixels of `fill` between them; the last row may be short.

    A single channel, that is a grey picture, loses its axis.
    """
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    spread = ((0, rows * columns - count), (0, gap), (0, gap), (0, 0))
    cells = np.pad(pictures, spread, constant_values=fill).reshape(rows, columns, height + gap, width + gap, channels)
    whole = cells.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    tiled = whole[: len(whole) - gap, : whole.shape[1] - gap]
    return tiled[..., 0] if channels == 1 else tiled


def _by_epoch(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs (n,) and the values of all seeds (n, seeds)."""
    epochs = sorted({row["epoch"] for row in rows})
    values = {(row["epoch"], row["seed"]): row[key] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return np.asarray(epochs), np.asarray([[values[epoch, seed] for seed in seeds] for epoch in epochs])
