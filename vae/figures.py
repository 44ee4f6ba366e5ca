"""Figures of the MNIST experiment: arrays in, PNG out. `draw` redraws them all from a run directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from runtime.figures import BLUE, ORANGE, save
from runtime.run_directory import Metrics, read_json, read_npz

EXTENT = 12.5
NAMES = {"autoencoder": "Autoencoder", "vae": "VAE"}
COLOURS = {"autoencoder": ORANGE, "vae": BLUE}
DIGITS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#6b6b6b", "#a9a61c", "#17becf")

NAMES_OF_FIGURES = ("latent_space", "reconstructions", "manifold", "prior_samples", "losses")

Picture = UInt8[np.ndarray, "n 28 28 1"]


def draw(run_dir: Path) -> list[Path]:
    """Draws every figure of a run from the files in its directory; returns their paths.

    Raises:
        UserError: A file of the run is missing or damaged, or a figure cannot be written.
    """
    latents, pictures = read_npz(run_dir / "latents.npz"), read_npz(run_dir / "figures.npz")
    results = read_json(run_dir / "results.json")
    rows = Metrics(run_dir / "metrics.jsonl").rows()
    figures = {
        "latent_space": lambda: latent_space(latents["autoencoder_z"], latents["vae_z"], latents["labels"]),
        "reconstructions": lambda: reconstructions(
            pictures["originals"], {name: pictures[f"{name}_reconstructions"] for name in NAMES}
        ),
        "manifold": lambda: manifold(pictures["vae_manifold"]),
        "prior_samples": lambda: prior_samples(
            {name: pictures[f"{name}_samples"] for name in NAMES}, {name: results[name] for name in NAMES}
        ),
        "losses": lambda: losses(rows),
    }
    return [save(run_dir / "figures" / f"{name}.png", make) for name, make in figures.items()]


def latent_space(
    autoencoder_z: Float[np.ndarray, "n 2"], vae_z: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"]
) -> Figure:
    """Scatter plots of held-out images in both latent spaces, coloured by digit, on the same axes -12.5…12.5."""
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    shuffled = np.random.default_rng(0).permutation(len(labels))
    for axes, latents, name in ((left, autoencoder_z, "Autoencoder"), (right, vae_z, "VAE")):
        colours = np.asarray(DIGITS)[labels[shuffled]]
        axes.scatter(*latents[shuffled].T, c=colours, s=5, alpha=0.6, linewidths=0)
        outside = int((np.abs(latents) > EXTENT).any(axis=1).sum())
        deviation = ", ".join(f"{value:.2f}" for value in latents.std(axis=0))
        note = f"; {outside} of {len(latents):,} points outside" if outside else ""
        axes.set_title(f"{name}: standard deviations {deviation}{note}", fontsize=11)
        axes.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xlabel="$z_1$", aspect="equal")
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("$z_2$")
    handles = [right.scatter([], [], c=colour, s=40, label=str(digit)) for digit, colour in enumerate(DIGITS)]
    right.legend(handles=handles, title="digit", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def reconstructions(originals: Picture, by_model: Mapping[str, Picture]) -> Figure:
    """A row of held-out digits, and a row of reconstructions for each model."""
    rows = {"Original": originals, **{NAMES[name]: pictures for name, pictures in by_model.items()}}
    figure = Figure(figsize=(11, 1.05 * len(rows)), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        _show(axes, tile(pictures, len(pictures)))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
    return figure


def manifold(pictures: UInt8[np.ndarray, "n n 28 28 1"]) -> Figure:
    """Decoded grid over the quantiles of the prior; rows from high to low z₂, columns from low to high z₁."""
    figure = Figure(figsize=(8, 8.3), layout="constrained")
    axes = figure.subplots()
    side = len(pictures)
    _show(axes, tile(pictures.reshape(-1, *pictures.shape[2:]), side))
    ticks = (np.arange(side) + 0.5)[:: max(1, side // 5)]
    labels = [f"{tick / side:.1%}" for tick in ticks]
    axes.set_xticks(ticks * 28 - 0.5, labels)
    axes.set_yticks((side - ticks) * 28 - 0.5, labels)
    axes.set(xlabel="quantile of $z_1$ under the prior", ylabel="quantile of $z_2$ under the prior")
    axes.set_title("VAE: what the latent plane decodes to", fontsize=12)
    return figure


def prior_samples(samples: Mapping[str, Picture], results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Decoded samples z ~ N(0, I) of each model, with the measures of their quality."""
    figure = Figure(figsize=(11, 5.9), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(1, len(samples)), samples.items(), strict=True):
        _show(axes, tile(pictures, 10))
        scores = [results[name][f"prior_{key}"]["mean"] for key in ("frechet_distance", "density", "coverage")]
        title = "{}: samples from the prior\nFréchet distance {:.1f}, density {:.2f}, coverage {:.0%}"
        axes.set_title(title.format(NAMES[name], *scores), fontsize=12)
    return figure


def losses(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Training and held-out loss by epoch; the line is the mean over seeds, the band one standard deviation."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    titles = {"autoencoder": "squared error (mean over pixels)", "vae": "objective (nats per image)"}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        seeds = len({row["seed"] for row in rows if row["model"] == name})
        for key, label, style in (("loss", "training", "-"), ("test_loss", "held out", "--")):
            by_epoch(axes, [row for row in rows if row["model"] == name], key, label, style, COLOURS[name])
        settled = [row["loss"] for row in rows if row["model"] == name and "loss" in row and row["epoch"] > 2]
        if settled:
            axes.set_ylim(top=1.05 * max(settled))
        axes.set_title(f"{NAMES[name]}, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=12)
        axes.set(xlabel="epoch", ylabel=title)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def by_epoch(axes: Any, rows: Sequence[Mapping[str, Any]], key: str, label: str, style: str, colour: str) -> None:
    """Draws the value `key` of one model's rows by epoch: mean over seeds, and a band of one standard deviation."""
    epochs, values = _by_epoch([row for row in rows if key in row], key)
    if not len(epochs):
        return
    mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
    axes.plot(epochs, mean, style, color=colour, label=label, marker="" if len(epochs) > 3 else "o")
    if spread is not None:
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def tile(
    pictures: UInt8[np.ndarray, "n h w channels"], columns: int, gap: int = 0, fill: int = 0
) -> UInt8[np.ndarray, "height width *channels"]:
    """Pictures side by side, row by row, `gap` pixels of `fill` between them; the last row may be short.

    A single channel, that is a grey picture, loses its axis.
    """
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    spread = ((0, rows * columns - count), (0, gap), (0, gap), (0, 0))
    cells = np.pad(pictures, spread, constant_values=fill).reshape(rows, columns, height + gap, width + gap, channels)
    whole = cells.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    tiled = whole[: len(whole) - gap, : whole.shape[1] - gap]
    return tiled[..., 0] if channels == 1 else tiled


def _show(axes: Any, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _by_epoch(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs (n,) and the values of all seeds (n, seeds)."""
    epochs = sorted({row["epoch"] for row in rows})
    values = {(row["epoch"], row["seed"]): row[key] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return np.asarray(epochs), np.asarray([[values[epoch, seed] for seed in seeds] for epoch in epochs])
