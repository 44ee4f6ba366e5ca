"""The figure of the side-by-side timings: how many times as long as ours the others take."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from latentlab import figures
from latentlab.errors import UserError

LABELS = {
    "mnist_epoch": "digit VAE, an epoch\n1,000 images",
    "face_step": "face VAE, a step\n32 images, 128×128",
    "face_encode": "face VAE, encoding\n500 images",
    "gradient_1": "FGSM, MobileNetV2\n1 image, 224×224",
    "gradient_16": "FGSM, MobileNetV2\n16 images",
    "gradient_64": "FGSM, MobileNetV2\n64 images",
    "sweep": "FGSM, 10 ε × 4 objectives\n16 images",
    "pgd": "PGD, 10 steps\n4 images",
}
"""Parts that are drawn, in their order from the top."""

FRAMEWORKS = {
    "torch": ("PyTorch", "#d95f02", "o"),
    "torch_compiled": ("PyTorch, torch.compile", "#d95f02", "D"),
    "tensorflow": ("Keras on TensorFlow", "#1b9e77", "s"),
    "keras_jax": ("Keras on JAX", "#1b9e77", "^"),
    "flax": ("plain Flax", "#7570b3", "v"),
    "foolbox": ("foolbox", "#666666", "P"),
}
"""Title, colour and marker of the contestants that are drawn."""


def draw(parts: Mapping[str, Any], path: Path) -> Path:
    """Write the figure of results that `side_by_side.read` read.

    A mark is the median over the rounds, and its line reaches from the lowest to the highest round.

    Raises:
        UserError: There is none of the parts that can be drawn.
    """
    drawn = [name for name in LABELS if name in parts and not parts[name]["quick"]]
    if not drawn:
        raise UserError(
            f"the results have the parts {', '.join(parts) or 'none'}, quick ones not counted; "
            f"expected one of {', '.join(LABELS)}"
        )
    return figures.save(path, lambda: _figure({name: parts[name] for name in drawn}))


def _figure(parts: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 1.2 + 0.72 * len(parts)))
    axes = figure.subplots()
    for row, part in enumerate(parts.values()):
        found = {name: one for name, one in part["contestants"].items() if name in FRAMEWORKS and "ratio" in one}
        for place, name in enumerate(sorted(found, key=list(FRAMEWORKS).index)):
            title, colour, marker = FRAMEWORKS[name]
            low, middle, high = (1 / found[name]["ratio"][which] for which in ("max", "median", "min"))
            y = row + 0.66 * ((place + 0.5) / len(found) - 0.5)
            axes.plot([low, high], [y, y], color=colour, linewidth=1.5, alpha=0.5, solid_capstyle="round")
            axes.plot(middle, y, marker, color=colour, markersize=6, label=title)
        if row:
            axes.axhline(row - 0.5, color="0.9", linewidth=0.8)
    axes.axvline(1, color=figures.BLUE, linewidth=2.5)
    axes.text(1, -0.58, "latentlab", color=figures.BLUE, ha="center", va="bottom", weight="bold")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), high)
    ticks = [tick for exponent in range(-1, 2) for tick in (1 * 10.0**exponent, 2 * 10.0**exponent, 5 * 10.0**exponent)]
    axes.set_xticks([tick for tick in ticks if axes.get_xlim()[0] <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time, as a multiple of latentlab's in the same round (right of the line: slower)")
    axes.set_yticks(range(len(parts)), [LABELS[name] for name in parts])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    marks: dict[str, Any] = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        marks.setdefault(label, handle)
    columns = math.ceil(len(marks) / 2) if len(marks) > 3 else max(len(marks), 1)
    figure.legend(marks.values(), marks, loc="lower center", bbox_to_anchor=(0.5, -0.1), ncols=columns, frameon=False)
    devices = {_device(part["machine"]) for part in parts.values()}
    axes.set_title("; ".join(sorted(devices)), fontsize=9, color="0.35", loc="right", pad=20)
    return figure


def _device(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cpu_count']} virtual cores, {machine['date'][:10]}"
