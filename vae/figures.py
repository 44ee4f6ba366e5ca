"""Figures of the MNIST experiment: arrays in, PNG out. `draw` redraws them all from a run directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from latentlab.figures import BLUE, ORANGE, PNG, Format, by_epoch, save, tile
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz

NAMES = {"autoencoder": "Autoencoder", "vae": "VAE"}
COLOURS = {"autoencoder": ORANGE, "vae": BLUE}
DIGITS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#6b6b6b", "#a9a61c", "#17becf")

CLASSES_IN_COLUMN = 20  # of a legend
NAMES_OF_FIGURES = ("latent_space", "reconstructions", "manifold", "prior_samples", "losses")

Picture = UInt8[np.ndarray, "n height width channels"]


class Points(NamedTuple):
    """Latents as points of the plane that figures show.

    Attributes:
        coordinates: In the plane.
        latent_dim: Latent dimensions; with more than 2 the plane is that of largest variance.
    """

    coordinates: Float[np.ndarray, "n 2"]
    latent_dim: int

    def axis_name(self, axis: int) -> str:
        """Return the label of an axis."""
        if self.latent_dim <= 2:
            return f"$z_{axis + 1}$"
        return f"{('largest', 'second largest')[axis]} variance of {self.latent_dim} latent dimensions"


def draw(run_dir: Path, form: Format = PNG) -> list[Path]:
    """Draw every figure of a run from the files in its directory, and return their paths.

    Raises:
        UserError: A file of the run is missing or damaged, or a figure cannot be written.
    """
    latents, pictures = read_npz(run_dir / "latents.npz"), read_npz(run_dir / "figures.npz")
    results = read_json(run_dir / "results.json")
    rows = MetricsLog(run_dir / "metrics.jsonl").rows()
    figures = {
        "latent_space": lambda: latent_space(
            {name: _project(latents, name) for name in NAMES}, latents["labels"], read_classes(latents)
        ),
        "reconstructions": lambda: reconstructions(
            pictures["originals"], {name: pictures[f"{name}_reconstructions"] for name in NAMES}
        ),
        "manifold": lambda: manifold(
            pictures["vae_manifold"], latents["vae_z"].shape[1], results.get("shown_class", "")
        ),
        "prior_samples": lambda: prior_samples(
            {name: pictures[f"{name}_samples"] for name in NAMES}, {name: results[name] for name in NAMES}
        ),
        "losses": lambda: losses(rows),
    }
    if "vae_styles" in pictures:
        figures["styles"] = lambda: styles(pictures["vae_styles"], read_classes(latents))
    return [save(run_dir / "figures" / f"{name}.png", make, form) for name, make in figures.items()]


def read_classes(latents: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of the classes of a run; runs of before have digits and no names."""
    names: list[str] = latents["classes"].tolist() if "classes" in latents else [str(digit) for digit in range(10)]
    return names


def pick_colours(count: int) -> list[str]:
    """Return a colour for each class: those of the digits, or as many hues as there are classes."""
    if count <= len(DIGITS):
        return list(DIGITS[: max(count, 1)])
    return [matplotlib.colors.to_hex(matplotlib.colormaps["hsv"](index / count)) for index in range(count)]


def latent_space(
    points_of: Mapping[str, Points], labels: Int[np.ndarray, " n"], classes: Sequence[str] = tuple("0123456789")
) -> Figure:
    """Draw scatter plots of held-out images in both latent spaces, coloured by class, on axes that hold all points.

    A dashed square in the wider panel is the other panel.

    Args:
        points_of: Model to coordinates in its plane and the name of its first coordinate, `z` or `PC`.
        labels: Indices of classes.
        classes: Their names.
    """
    columns = max(1, -(-len(classes) // CLASSES_IN_COLUMN))
    figure = Figure(figsize=(10 + columns, 5.4), layout="constrained")
    shuffled = np.random.default_rng(0).permutation(len(labels))
    palette = pick_colours(len(classes))
    colours = np.asarray(palette)[labels[shuffled]]
    both = figure.subplots(1, 2)
    squares = [_enclose(points.coordinates) for points in points_of.values()]
    narrow = int(np.argmin([side for *_, side in squares]))
    left, bottom, side = squares[narrow]
    frame = Rectangle((left, bottom), side, side, fill=False, linestyle="--", edgecolor="0.3")
    both[1 - narrow].add_patch(frame)
    name = f"{[NAMES[model] for model in points_of][narrow]}'s panel"
    both[1 - narrow].annotate(name, (left, bottom + side), (0, 2), textcoords="offset points", fontsize=9)
    for axes, (left, bottom, side), (model, points) in zip(both, squares, points_of.items(), strict=True):
        coordinates = points.coordinates
        axes.scatter(*coordinates[shuffled].T, c=colours, s=5, alpha=0.6, linewidths=0)
        deviation = ", ".join(f"{value:.2f}" for value in coordinates.std(axis=0))
        axes.set_title(f"{NAMES[model]}: standard deviations {deviation}", fontsize=11)
        limits = {"xlim": (left, left + side), "ylim": (bottom, bottom + side)}
        axes.set(**limits, xlabel=points.axis_name(0), aspect="equal")
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel(points.axis_name(1) if axes is both[0] or points.latent_dim > 2 else "")
    if classes:
        handles = [
            both[1].scatter([], [], c=colour, s=40, label=name) for name, colour in zip(classes, palette, strict=True)
        ]
        title = "digit" if list(classes) == [str(digit) for digit in range(10)] else "class"
        both[1].legend(
            handles=handles,
            title=title,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            ncols=columns,
        )
    return figure


def _enclose(points: Float[np.ndarray, "n 2"]) -> tuple[float, float, float]:
    """Return left, bottom and side of a square that holds points with a margin."""
    low, high = points.min(axis=0).astype(float), points.max(axis=0).astype(float)
    side = 1.1 * max(float((high - low).max()), 1e-6)
    left, bottom = (low + high - side) / 2
    return float(left), float(bottom), side


def reconstructions(originals: Picture, by_model: Mapping[str, Picture]) -> Figure:
    """Draw a row of held-out digits, and a row of reconstructions for each model."""
    rows = {"Original": originals, **{NAMES[name]: pictures for name, pictures in by_model.items()}}
    figure = Figure(figsize=(11, 1.05 * len(rows)), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        _show(axes, tile(pictures, len(pictures)))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
    return figure


def manifold(
    pictures: UInt8[np.ndarray, "n n height width channels"], latent_dim: int = 2, given_class: str = ""
) -> Figure:
    """Draw the decoded grid over the quantiles of the prior; rows from high to low z₂, columns from low to high z₁.

    Args:
        pictures: The grid.
        latent_dim: Latent dimensions.
        given_class: Class that a conditional model is given.
    """
    one, other = ("$z_1$", "$z_2$") if latent_dim <= 2 else ("the direction of largest variance", "the second largest")
    height, width = pictures.shape[2:4]
    figure = Figure(figsize=(8, 8.3), layout="constrained")
    axes = figure.subplots()
    side = len(pictures)
    _show(axes, tile(pictures.reshape(-1, *pictures.shape[2:]), side))
    ticks = (np.arange(side) + 0.5)[:: max(1, side // 5)]
    labels = [f"{tick / side:.1%}" for tick in ticks]
    axes.set_xticks(ticks * width - 0.5, labels)
    axes.set_yticks((side - ticks) * height - 0.5, labels)
    axes.set(xlabel=f"quantile of {one} under the prior", ylabel=f"quantile of {other} under the prior")
    given = f", given the class {given_class}" if given_class else ""
    axes.set_title(f"VAE: what the latent plane decodes to{given}", fontsize=12)
    return figure


def styles(pictures: UInt8[np.ndarray, "samples classes height width channels"], classes: Sequence[str]) -> Figure:
    """Draw samples of the prior decoded as every class by a conditional model: a row a sample, a column a class."""
    count, columns, _, width, _ = pictures.shape
    figure = Figure(figsize=(max(4, 0.6 * columns), 0.6 * count + 0.8), layout="constrained")
    axes = figure.subplots()
    _show(axes, tile(pictures.reshape(-1, *pictures.shape[2:]), columns))
    axes.set_xticks((np.arange(columns) + 0.5) * width - 0.5, classes, rotation=0 if columns <= 10 else 90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set_ylabel("samples from the prior")
    axes.set_title("class given to the VAE", fontsize=12)
    return figure


def prior_samples(samples: Mapping[str, Picture], results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw decoded samples z ~ N(0, I) of each model, with the measures of their quality."""
    figure = Figure(figsize=(11, 5.9), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(1, len(samples)), samples.items(), strict=True):
        _show(axes, tile(pictures, 10))
        scores = [results[name][f"prior_{key}"]["mean"] for key in ("frechet_distance", "density", "coverage")]
        title = "{}: samples from the prior\nFréchet distance {:.1f}, density {:.2f}, coverage {:.0%}"
        axes.set_title(title.format(NAMES[name], *scores), fontsize=12)
    return figure


def losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw training and held-out loss by epoch; the line is the mean over seeds, the band one standard deviation."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    titles = {"autoencoder": "squared error (mean over pixels)", "vae": "objective (nats per image)"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        seeds = len({row["seed"] for row in rows if row["model"] == name})
        for key, label, style in (("loss", "training", "-"), ("test_loss", "held out", "--")):
            by_epoch(axes, [row for row in rows if row["model"] == name], key, label, style, COLOURS[name])
        settled = [row["loss"] for row in rows if row["model"] == name and "loss" in row and row["epoch"] > 2]
        if settled:
            axes.set_ylim(top=1.05 * max(settled))
        spread = f", {seeds} seeds (bands: one standard deviation)" if seeds > 1 else ""
        axes.set_title(NAMES[name] + spread, fontsize=12)
        axes.set(xlabel="epoch", ylabel=title)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _project(latents: Mapping[str, np.ndarray], name: str) -> Points:
    codes = latents[f"{name}_z"]
    axes = latents.get(f"{name}_axes", np.eye(2, dtype=np.float32))  # runs of before had two dimensions
    return Points(codes @ axes.T, codes.shape[1])


def _show(axes: Any, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
