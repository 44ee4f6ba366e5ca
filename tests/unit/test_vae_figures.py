"""Figures of the experiment: what they show, and that they can be written."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vae import figures
from vae.figures import Points

GENERATOR = np.random.default_rng(0)


def pictures(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, (*shape, 28, 28, 1)).astype(np.uint8)


def assert_saved(figure: Figure) -> None:
    file = io.BytesIO()
    figure.savefig(file, dpi=20, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(("count", "columns"), [(6, 3), (7, 3), (2, 5), (1, 1)])
def test_tile_places_pictures_row_by_row(count: int, columns: int) -> None:
    """The picture is (row, column) = divmod(number, columns), and what remains of the last row is 0."""
    images = GENERATOR.integers(1, 256, (count, 2, 3, 1)).astype(np.uint8)
    want = np.zeros((-(-count // columns) * 2, columns * 3), np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        for y in range(2):
            for x in range(3):
                want[row * 2 + y, column * 3 + x] = image[y, x, 0]
    np.testing.assert_array_equal(figures.tile(images, columns), want)


def test_latent_space() -> None:
    """Each plane holds all of its points; the wider one shows how large the other is."""
    near = np.asarray([[1.0, 2.0], [-1.0, -2.0]] * 5)
    far = 10 * near
    figure = figures.latent_space({"autoencoder": Points(far, 2), "vae": Points(near, 2)}, np.arange(10))
    left, right = figure.axes
    for axes, side in ((left, 22.0), (right, 2.2)):
        np.testing.assert_allclose([*axes.get_xlim(), *axes.get_ylim()], [-side, side] * 2)
    (frame,) = left.patches
    assert isinstance(frame, Rectangle) and not right.patches
    np.testing.assert_allclose([*frame.get_xy(), frame.get_width(), frame.get_height()], [-2.2, -2.2, 4.4, 4.4])
    assert left.texts[0].get_text() == "VAE's panel"
    assert right.get_title() == "VAE: standard deviations 1.00, 2.00"
    assert_saved(figure)


def test_points_have_the_colour_of_their_digit() -> None:
    points = GENERATOR.normal(size=(10, 2))
    both = {name: Points(points, 2) for name in ("autoencoder", "vae")}
    left, right = figures.latent_space(both, np.arange(10)).axes
    legend: Any = right.get_legend()
    entries = zip(legend.get_texts(), legend.legend_handles, strict=True)
    colours = {text.get_text(): handle.get_facecolor()[0][:3] for text, handle in entries}
    for axes in (left, right):
        dots = axes.collections[0]
        offsets, faces = np.asarray(dots.get_offsets()), np.asarray(dots.get_facecolor())
        for digit, point in enumerate(points):
            (index,) = np.flatnonzero((offsets == point).all(axis=1))
            np.testing.assert_array_equal(faces[index][:3], colours[str(digit)])


def test_pictures() -> None:
    both = {"autoencoder": pictures(12), "vae": pictures(12)}
    scores = {"prior_frechet_distance": {"mean": 12.34}, "prior_density": {"mean": 0.5}, "prior_coverage": {"mean": 0}}
    samples = figures.prior_samples(both, {"autoencoder": scores, "vae": scores})
    assert "12.3, density 0.50, coverage 0%" in samples.axes[0].get_title()
    for figure in (samples, figures.reconstructions(pictures(12), both), figures.manifold(pictures(4, 4))):
        assert_saved(figure)


@pytest.mark.parametrize("seeds", [1, 3])
def test_losses(seeds: int) -> None:
    """The line is the mean over seeds; a band of one standard deviation only if there are several."""
    values = GENERATOR.uniform(1, 2, (4, seeds))
    rows = [
        {"model": model, "epoch": epoch + 1, "seed": seed, key: values[epoch, seed]}
        for model in ("autoencoder", "vae")
        for key, epochs in (("loss", range(4)), ("test_loss", (1, 3)))
        for epoch in epochs
        for seed in range(seeds)
    ]
    figure = figures.losses(rows)
    for axes in figure.axes:
        training, held_out = axes.get_lines()
        np.testing.assert_allclose(np.asarray(training.get_xydata()).T, [[1, 2, 3, 4], values.mean(axis=1)])
        np.testing.assert_allclose(np.asarray(held_out.get_xydata()).T, [[2, 4], values[1::2].mean(axis=1)])
        assert len(axes.collections) == (2 if seeds > 1 else 0)
    assert_saved(figure)


def test_a_held_out_loss_that_rises_is_told() -> None:
    rows = [
        {"model": model, "epoch": epoch, "seed": 0, "loss": 2.0 / epoch, "test_loss": 1.0 + abs(epoch - 3) / 10}
        for model in ("autoencoder", "vae")
        for epoch in range(1, 7)
    ]
    for axes in figures.losses(rows).axes:
        legend: Any = axes.get_legend()
        assert [text.get_text() for text in legend.get_texts()] == [
            "training", "held out, least at epoch 3, then rising",
        ]  # fmt: skip


def test_more_than_two_dimensions_are_named_on_the_axes() -> None:
    points = GENERATOR.normal(size=(10, 2))
    both = {name: Points(points, 8) for name in ("autoencoder", "vae")}
    for axes in figures.latent_space(both, np.arange(10)).axes:
        assert axes.get_xlabel() == "largest variance of 8 latent dimensions"
        assert axes.get_ylabel() == "second largest variance of 8 latent dimensions"
    assert "direction of largest variance" in figures.manifold(pictures(4, 4), 8).axes[0].get_xlabel()
