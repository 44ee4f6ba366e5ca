"""What figures of all experiments share: two colours that stay apart for the colour-blind, and their way to disk."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from matplotlib import style
from matplotlib.figure import Figure

from runtime.run_directory import atomic

BLUE, ORANGE = "#1f78b4", "#d95f02"
DOTS_PER_INCH = 110


def save(path: Path, make: Callable[[], Figure]) -> Path:
    """Writes the figure that `make` draws as a PNG, atomically; the same figure gives the same bytes.

    It is drawn with Matplotlib's own settings, whatever a `matplotlibrc` in the working directory says.

    Raises:
        UserError: The file cannot be written.
    """
    with style.context("default", after_reset=True), atomic(path) as file:
        make().savefig(file, dpi=DOTS_PER_INCH, format="png", bbox_inches="tight")
    return path


def file_name(name: str) -> str:
    """Name of a picture: letters, digits and _.-~ as they are, all else as %XX, so that none is a path."""
    return f"{quote(name, safe='')}.png"
