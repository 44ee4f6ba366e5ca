"""Figures of the face experiment: arrays in, PNG out. `draw` redraws them all from a run directory.

Pictures are laid out on a canvas whose unit is one of their pixels: rows, columns and captions are where they are said
to be, whatever the fonts. The colours of curves and heat maps stay apart for the colour-blind.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from latent_arith.config import UNITS
from latent_arith.edits import Edit, read_edits
from latentlab.figures import BLUE, ORANGE, PNG, Format, by_epoch, file_name, save, tile
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz

WIDTH = 11.0  # inches
SIDE, GAP = 128, 4  # units of the canvas: of a face, and between faces; at 128×128 they are its pixels
CELL = SIDE + GAP
COLOURS = ("#1f78b4", "#d95f02", "#1b9e77", "#7b5ea7")
KINDS = {"means": "difference of means", "logistic": "logistic regression", "svm": "SVM", "lda": "LDA"}
ESTIMATORS = {"raw": "Raw", "balanced": "Balanced", "orthogonal": "Orthogonal"}

_PICTURES = ("reconstructions", "prior_samples", "edits", "interpolation", "edit_strip")
NAMES_OF_FIGURES = (*_PICTURES, "cosines", "leakage", "dose_response", "estimators", "components", "losses")

Names = Sequence[str]
Faces = UInt8[np.ndarray, "n size size 3"]
Strengths = Float[np.ndarray, " steps"]
Strips = UInt8[np.ndarray, "n steps size size 3"]
Curves = Float[np.ndarray, "targets steps"]
Changes = Float[np.ndarray, "targets attributes"]
Pairs = Bool[np.ndarray, "targets attributes"]


def draw(run_dir: Path, form: Format = PNG) -> list[Path]:
    """Draw every figure of a run from the files in its directory, and return their paths.

    Those are `NAMES_OF_FIGURES`, without `losses` where nothing was trained, and one under `edits/` an attribute; of a
    run that edits a photo, the strip of it.

    Raises:
        UserError: A file of the run is missing or damaged, or a figure cannot be written.
    """
    pictures, kept = read_npz(run_dir / "figures.npz"), read_edits(run_dir / "edit.npz")[:1]
    if "photo" in pictures:
        strip = partial(edited_photo, pictures["photo"], pictures["photo_strip"], kept[0])
        return [save(run_dir / "figures" / "photo.png", strip, form)]
    found, scores = (read_npz(run_dir / f"{name}.npz") for name in ("directions", "scorecard"))
    rows = MetricsLog(run_dir / "metrics.jsonl").rows()
    names, targets, strengths = found["names"].tolist(), scores["targets"].tolist(), scores["factors"]
    far, changes = float(scores["leakage_factor"]), {name: scores[f"leakage_{name}"] for name in ESTIMATORS}
    unit = UNITS[read_json(run_dir / "results.json")["scorecard"]["scale"]]
    reached, low, high = (scores[name] for name in ("reached", "reached_low", "reached_high"))
    figures: dict[str, Callable[[], Figure]] = {
        "reconstructions": lambda: reconstructions(pictures["originals"], pictures["reconstructions"]),
        "prior_samples": lambda: prior_samples(pictures["prior_samples"]),
        "edits": lambda: overview(names, pictures["edits"][:, 0], strengths),
        "interpolation": lambda: interpolation(pictures["interpolation_ends"], pictures["lerp"], pictures["slerp"]),
        "edit_strip": lambda: edit_strips(pictures["edit_strip"][None], kept),
        "cosines": lambda: cosines(
            names, {"raw": found["raw"], "balanced": found["vectors"], "orthogonal": found["orthogonal"]}
        ),
        "leakage": lambda: leakage(targets, scores["attributes"].tolist(), changes, scores["exclusive"], far, unit),
        "dose_response": lambda: dose_response(targets, strengths, reached, low, high, scores.get("accuracies"), unit),
    }
    if (run_dir / "estimators.npz").exists():  # runs of older versions have neither
        compared, components = (read_npz(run_dir / f"{name}.npz") for name in ("estimators", "components"))
        figures["estimators"] = lambda: estimators(compared)
        figures["components"] = lambda: traverse_components(components, pictures["components"], strengths)
    if rows:
        figures["losses"] = lambda: losses(rows)
    paths = [save(run_dir / "figures" / f"{name}.png", make, form) for name, make in figures.items()]
    shares = dict(zip(targets, reached[:, np.argmin(np.abs(strengths - far))], strict=True))
    for name, edits, degrees in zip(names, pictures["edits"], found["standard_error_degrees"], strict=True):
        title = f"{_words(name)}, in {unit}; direction known to ±{degrees:.0f}° (standard error)"
        if name in shares:
            title += f"; found in {shares[name]:.0%} of faces at {_signed(far)}"
        make = partial(edited_faces, title, pictures["edit_originals"], edits, strengths)
        paths.append(save(run_dir / "figures" / "edits" / file_name(name), make, form))
    return paths


def reconstructions(originals: Faces, decoded: Faces) -> Figure:
    """Draw a row of held-out faces over a row of what their mean latents decode to."""
    figure, axes = _canvas(len(originals) * CELL - GAP, 2 * CELL - GAP)
    _place_grid(axes, np.stack([originals, decoded]), len(originals))
    for row, name in enumerate(("Original", "Decoded")):
        axes.text(-12, row * CELL + SIDE / 2, name, ha="right", va="center", fontsize=12)
    return figure


def prior_samples(samples: Faces) -> Figure:
    """Draw decoded samples z ~ N(0, I), ten a row."""
    columns = min(10, len(samples))
    figure, axes = _canvas(columns * CELL - GAP, -(-len(samples) // columns) * CELL - GAP)
    _place_grid(axes, samples, columns)
    axes.set_title("Samples from the prior", fontsize=13, pad=8)
    return figure


def overview(names: Names, edits: Strips, strengths: Strengths) -> Figure:
    """Draw one face moved along every attribute: a row an attribute, in two blocks, and five strengths as columns."""
    shown = np.unique(np.linspace(0, len(strengths) - 1, 5).round().astype(int))
    blocks = 1 if len(names) < 4 else 2
    rows = -(-len(names) // blocks)
    block = CELL * (1 + len(shown)) + 4 * GAP
    figure, axes = _canvas(blocks * block - 5 * GAP, rows * CELL - GAP, WIDTH * blocks / 2)
    for start in range(0, len(names), rows):
        left = start // rows * block + CELL
        _place_grid(axes, edits[start : start + rows, shown], len(shown), left)
        _caption_columns(axes, strengths[shown], left)
        axes.text(left - 10, -8, "strength", ha="right", va="bottom", fontsize=10)
        for row, name in enumerate(names[start : start + rows]):
            lines = map(_line, textwrap.wrap(name.replace("_", " "), 11, max_lines=4, placeholder="…"))
            axes.text(left - 10, row * CELL + SIDE / 2, "\n".join(lines), ha="right", va="center", fontsize=10)
    return figure


def edited_faces(title: str, originals: Faces, edits: Strips, strengths: Strengths) -> Figure:
    """Draw faces moved along one direction: a row a face, the original first and then a column a strength."""
    left = CELL + 4 * GAP
    figure, axes = _canvas(left + len(strengths) * CELL - GAP, len(originals) * CELL - GAP)
    _place_grid(axes, originals, 1)
    _place_grid(axes, edits, len(strengths), left)
    axes.text(SIDE / 2, -8, "original", ha="center", va="bottom", fontsize=11)
    _caption_columns(axes, strengths, left)
    axes.set_title(title, fontsize=13, pad=30)
    return figure


def edited_photo(photo: UInt8[np.ndarray, "size size 3"], strip: Faces, edit: Edit) -> Figure:
    """Draw the face of a photo, and its decodings from the face as it is to the whole edit."""
    left = CELL + 4 * GAP
    figure, axes = _canvas(left + len(strip) * CELL - GAP, SIDE, 8)
    _place_grid(axes, photo[None], 1)
    _place_grid(axes, strip, len(strip), left)
    axes.text(SIDE / 2, -8, "photo", ha="center", va="bottom", fontsize=11)
    shares = np.linspace(0, 100, len(strip))
    for column, share in enumerate(shares):
        text = f"{share:.0f} %" if column else "decoded"
        axes.text(left + column * CELL + SIDE / 2, -8, text, ha="center", va="bottom", fontsize=11)
    axes.set_title(_line(edit.attribute.replace("_", " ")), fontsize=13, pad=30)
    return figure


def interpolation(ends: UInt8[np.ndarray, "2 size size 3"], lerp: Faces, slerp: Faces) -> Figure:
    """Draw the straight path (upper row) and the path along the arc (lower row) between two faces, at its sides."""
    left, steps = 2 * CELL + 4 * GAP, len(lerp)
    right = left + steps * CELL + 4 * GAP
    figure, axes = _canvas(right + 2 * CELL - GAP, 2 * CELL - GAP)
    for x, end in ((0, ends[0]), (right, ends[1])):
        _place(axes, end, x, scale=(2 * CELL - GAP) / len(end))
        axes.text(x + CELL, -8, "original", ha="center", va="bottom", fontsize=11)
    _place_grid(axes, np.stack([lerp, slerp]), steps, left)
    for y, va, name in ((-8, "bottom", "straight path"), (2 * CELL + 4, "top", "path along the arc")):
        axes.text(left + steps * CELL / 2, y, name, ha="center", va=va, fontsize=11)
    return figure


def edit_strips(strips: Strips, edits: Sequence[Edit]) -> Figure:
    """Draw kept edits that share their strengths, redrawn from latents alone: a row an edit, a column a strength."""
    first, steps = edits[0], strips.shape[1]
    figure, axes = _canvas(steps * CELL - GAP, len(edits) * CELL - GAP, min(WIDTH, 1.8 * steps))
    _place_grid(axes, strips, steps)
    _caption_columns(axes, np.asarray(first.strengths))
    for row, edit in enumerate(edits if len(edits) > 1 else ()):
        axes.text(-12, row * CELL + SIDE / 2, _line(edit.image_id), ha="right", va="center", fontsize=11)
    what = "A face" if len(edits) == 1 else f"{len(edits)} faces"
    along = f" along {_words(first.attribute)}" if first.attribute else ""
    axes.set_title(f"{what} moved{along}, from latents of {first.z_start.nbytes} bytes", fontsize=13, pad=30)
    return figure


def cosines(names: Names, directions: Mapping[str, Float[np.ndarray, "attributes latent"]]) -> Figure:
    """Draw cosines between the unit directions of all pairs of attributes, a heat map an estimator, from -1 to 1.

    A title tells for how many attributes the balanced direction stands for an orthogonal one that does not exist.
    """
    panels = {}
    for name, vectors in directions.items():
        title = f"{ESTIMATORS[name]} directions"
        balanced = int(np.sum(np.all(vectors == directions["balanced"], axis=1))) if name == "orthogonal" else 0
        panels[title + (f", {balanced} of {len(vectors)} balanced" if balanced else "")] = vectors @ vectors.T
    return _heat_maps(panels, names, names, 1.0, "cosine between directions", 2)


def leakage(
    targets: Names,
    attributes: Names,
    changes: Mapping[str, Changes],
    exclusive: Pairs,
    strength: float,
    unit: str = UNITS["deviation"],
) -> Figure:
    """Draw what else changes in faces moved by `strength` units: an estimator a heat map, a row a direction.

    `changes` are those of the share of faces with the attribute, in percentage points. Titles tell the mean over rows
    of the mean absolute change of the attributes that are neither the row's own nor `exclusive` with it by definition,
    as `scorecard.mean_leakage` does; nor do those set the scale.
    """
    own = np.asarray(targets)[:, None] == np.asarray(attributes)[None]
    counted, excluded = ~own & ~exclusive, exclusive & ~own
    others = {name: np.where(counted, np.abs(change), 0) for name, change in changes.items()}
    means = {name: (change.sum(axis=1) / counted.sum(axis=1).clip(1)).mean() for name, change in others.items()}
    limit = 10 * math.ceil(max(1, *(change.max() for change in others.values())) / 10)
    label = f"change at {_signed(strength)} {unit}, percentage points (framed: the attribute itself"
    label += "; hatched: excluded by definition)" if excluded.any() else ")"
    panels = {f"{ESTIMATORS[name]}: mean leakage {means[name]:.1f}": change for name, change in changes.items()}
    figure = _heat_maps(panels, targets, attributes, limit, label, 0, ("moved along", "what changes"))
    hatched: dict[str, Any] = {"facecolor": "0.93", "edgecolor": "0.6", "hatch": "/////", "linewidth": 0}
    for axes in figure.axes[: len(panels)]:
        for cells, style in ((excluded, hatched), (own, {"fill": False, "edgecolor": "black"})):
            for row, column in np.argwhere(cells):
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **style))
    return figure


def dose_response(
    targets: Names,
    strengths: Strengths,
    reached: Curves,
    low: Curves,
    high: Curves,
    accuracies: Float[np.ndarray, " targets"] | None = None,
    unit: str = UNITS["deviation"],
) -> Figure:
    """Draw the share 0…1 of faces in which the attribute is found, by strength in units, with its interval as a band.

    Titles tell in what share of unedited faces the classifier is right about the attribute.
    """
    columns = min(5, len(targets))
    rows = -(-len(targets) // columns)
    figure = Figure(figsize=(WIDTH * columns / 5, 1.6 * rows))
    spacing = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.09, "hspace": 0.3}
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=spacing)
    for axes in grid.flat[len(targets) :]:
        axes.set_axis_off()
    for number, axes in enumerate(grid.flat[: len(targets)]):
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axhline(50, color="0.85", linewidth=0.8, zorder=0)
        axes.fill_between(strengths, 100 * low[number], 100 * high[number], color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(strengths, 100 * reached[number], color=BLUE, marker="o", markersize=3)
        worth = f" ({accuracies[number]:.0%})" if accuracies is not None else ""
        axes.set_title(f"{_words(targets[number])}{worth}", fontsize=10)
        axes.set(ylim=(-4, 104), yticks=(0, 50, 100))
        axes.set_xticks(strengths[::2], [_signed(strength) for strength in strengths[::2]])
        axes.tick_params(labelsize=9, labelbottom=number + columns >= len(targets))
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.5, -0.3125 / rows, f"strength along the direction, {unit}", ha="center", fontsize=11)
    note = "Bands: 95 % intervals over faces."
    if accuracies is not None:
        note += " In brackets: in how many unedited faces the classifier is right about the attribute."
    if rows:
        figure.text(0.5, -0.3125 / rows - 0.2 / (1.6 * rows), note, ha="center", va="top", fontsize=9, color="0.35")
    figure.text(-0.25 / columns, 0.5, "faces with the attribute, %", va="center", rotation=90, fontsize=11)
    return figure


def estimators(compared: Mapping[str, np.ndarray]) -> Figure:
    """Draw what an edit costs against how often it succeeds, a curve an estimator, and the angles between estimators.

    `compared` is what `estimators.npz` holds: means over attributes at every strength.
    """
    names = compared["names"].tolist()
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    panels = figure.subplots(1, 3, gridspec_kw={"width_ratios": (1, 1, 0.9)})
    costs = {"leakage": "mean change of other attributes, points", "identity": "identity distance"}
    kinds = list(dict.fromkeys(name.split()[0] for name in names))
    for axes, (cost, label) in zip(panels, costs.items(), strict=False):
        for row, name in enumerate(names):
            kind, variant = name.split()
            style = {"color": COLOURS[kinds.index(kind) % len(COLOURS)], "linestyle": "-" if variant == "raw" else "--"}
            axes.plot(
                100 * compared["mean_success"][row], compared[f"mean_{cost}"][row], marker="o", markersize=3,
                label=f"{KINDS.get(kind, kind)}, {variant}", **style,
            )  # fmt: skip
        axes.set(xlabel="faces with the attribute, %", ylabel=label, ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8.5)
    panels[0].set_title("What an edit costs (lower is better)", fontsize=11, loc="left")
    cosines, labels = compared["mean_cosines"], [name.replace(" ", "\n") for name in names]
    panels[2].imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    panels[2].set_xticks(range(len(names)), labels, rotation=90, fontsize=8)
    panels[2].set_yticks(range(len(names)), [name.replace("balanced", "bal.") for name in names], fontsize=8)
    panels[2].tick_params(length=0)
    panels[2].spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(cosines):
        colour = "white" if abs(value) > 0.6 else "0.2"
        panels[2].text(
            column, row, f"{value:.2f}".replace("0.", "."), ha="center", va="center", color=colour, fontsize=8
        )
    panels[2].set_title("Cosine between directions", fontsize=11, loc="left")
    return figure


def traverse_components(components: Mapping[str, np.ndarray], strips: Strips, strengths: Strengths) -> Figure:
    """Draw a face moved along principal components, a row each, with the factor that each is correlated with most."""
    left = 0
    figure, axes = _canvas(len(strengths) * CELL - GAP, len(strips) * CELL - GAP)
    _place_grid(axes, strips, len(strengths), left)
    _caption_columns(axes, strengths, left)
    names, correlations = components["factors"].tolist(), components["correlations"]
    for row, (found, share) in enumerate(zip(correlations, components["explained"], strict=True)):
        strongest = int(np.argmax(np.abs(found)))
        text = f"{row + 1}: {_words(names[strongest])}\nr = {found[strongest]:.2f}, {share:.1%} of variance"
        axes.text(-12, row * CELL + SIDE / 2, text, ha="right", va="center", fontsize=10)
    return figure


def losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw training and held-out loss by epoch, and the two terms of the loss."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    titles = {"loss": "Loss", "reconstruction": "Cross-entropy, mean over pixels", "kl": "KL, nats per image"}
    for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        by_epoch(axes, rows, name, "training", "-", BLUE)
        by_epoch(axes, rows, f"test_{name}", "held out", "--", ORANGE)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def _canvas(width: float, height: float, inches: float = WIDTH) -> tuple[Figure, Any]:
    """Return a figure whose axes fill it and count pixels of pictures, from 0 at the top left."""
    figure = Figure(figsize=(inches, inches * height / width))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _place(axes: Any, picture: np.ndarray, left: float = 0, top: float = 0, scale: float = 1) -> None:
    """Show a picture with its upper left corner at a point, `scale` units of the canvas a pixel."""
    extent = (left, left + scale * picture.shape[1], top + scale * picture.shape[0], top)
    opaque = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])  # resampled once, and not RGB and A apart
    axes.imshow(opaque, extent=extent, interpolation="hanning", aspect="auto")


def _place_grid(axes: Any, pictures: UInt8[np.ndarray, "*grid h w 3"], columns: int, left: float = 0) -> None:
    """Show pictures of any size row by row, each as `SIDE` units with `GAP` between."""
    size = pictures.shape[-3]
    gap = max(1, round(GAP * size / SIDE))
    tiled = tile(pictures.reshape(-1, *pictures.shape[-3:]), columns, gap, fill=255)
    rows = (tiled.shape[0] + gap) // (size + gap)
    scale = (rows * CELL - GAP) / tiled.shape[0]
    _place(axes, tiled, left, scale=scale)


def _caption_columns(axes: Any, strengths: np.ndarray, left: float = 0) -> None:
    for column, strength in enumerate(strengths):
        axes.text(left + column * CELL + SIDE / 2, -8, _signed(strength), ha="center", va="bottom", fontsize=11)


def _heat_maps(
    panels: Mapping[str, Changes],
    rows: Names,
    columns: Names,
    limit: float,
    label: str,
    digits: int,
    sides: tuple[str, str] = ("", ""),
) -> Figure:
    """Draw heat maps on one scale -limit…limit: side by side, or below one another where there are many columns.

    `sides` say what rows and columns are.
    """
    rows, columns = [_words(name) for name in rows], [_words(name) for name in columns]
    beside = len(panels) * len(columns) <= 60
    width = min(0.5, ((WIDTH - 1.6) / (len(panels) if beside else 1) - 0.12) / len(columns))  # of a cell, in inches
    height = width if beside else 0.15
    font = min(9, 0.8 * 72 * min(width, height))
    across, down, below = width * len(columns), height * len(rows), 0.15 + font / 120 * max(map(len, columns))
    below += 0.2 * bool(sides[1])
    step = (max(across + 0.12, 2.7), 0) if beside else (0, down + below + 0.3)
    size = (across + step[0] * (len(panels) - 1), down + step[1] * (len(panels) - 1))
    figure = Figure(figsize=size)

    def add_axes(left: float, top: float, wide: float, high: float) -> Any:
        return figure.add_axes((left / size[0], 1 - (top + high) / size[1], wide / size[0], high / size[1]))

    for index, (title, values) in enumerate(panels.items()):
        axes = add_axes(index * step[0], index * step[1], across, down)
        image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_title(title, fontsize=12)
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(rows)), rows if index == 0 or not beside else [""] * len(rows))
        axes.set_xlabel(sides[1], fontsize=10)
        axes.set_ylabel(sides[0] if index == 0 or not beside else "", fontsize=10)
        axes.tick_params(length=0, labelsize=font)
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(values) if min(width, height) >= 0.22 else ():
            text = f"{round(float(value), digits) + 0.0:.{digits}f}".replace("0.", ".").replace("-", "−")
            colour = "white" if abs(value) > 0.6 * limit else "0.2"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=min(9, 26 * width))
    beyond = "both" if any(np.abs(values).max() > limit + 1e-6 for values in panels.values()) else "neither"
    bar, ticks = add_axes(size[0] / 2 - 2.2, size[1] + below + 0.1, 4.4, 0.13), np.linspace(-limit, limit, 5)
    figure.colorbar(image, cax=bar, orientation="horizontal", label=label, extend=beyond, ticks=ticks)
    return figure


def _words(name: str) -> str:
    return _line(name.replace("_", " "))


def _line(text: str) -> str:
    """Return text from a user's table, short and without mathematics, which Matplotlib sees between dollars."""
    return (text if len(text) <= 28 else f"{text[:27]}…").replace("\n", " ").replace("$", r"\$")


def _signed(strength: float | np.floating) -> str:
    return f"{strength:+g}".replace("-", "−") if strength else "0"
