"""Figures of the face experiment: what they show, where it stands, and that attribute names cannot harm."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from PIL import Image

from latent_arith import figures
from latent_arith.edits import Edit, write_edits
from latentlab.errors import UserError
from latentlab.figures import tile

GENERATOR = np.random.default_rng(0)
FACTORS = np.arange(-4.0, 5.0, dtype=np.float32)
NAMES = ("Smiling", "../../outside", "1/2 of $x$_{")
FILES = ("figures.npz", "directions.npz", "scorecard.npz", "edit.npz", "results.json")


def faces(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, (*shape, 128, 128, 3)).astype(np.uint8)


def unit(count: int) -> np.ndarray:
    vectors = GENERATOR.normal(size=(count, 200))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def edit(name: str = "000123.jpg") -> Edit:
    start, end = GENERATOR.normal(size=(2, 200)).astype(np.float32)
    return Edit(name, start, end, attribute="Wearing_Hat")


NEWER = ("estimators", "components")
"""Figures that runs of older versions lack."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, n = tmp_path_factory.mktemp("runs") / "one" / "two", len(NAMES)
    path.mkdir(parents=True)
    np.savez(
        path / "figures.npz",
        originals=faces(3),
        reconstructions=faces(3),
        prior_samples=faces(4),
        edits=faces(n, 2, 9),
        edit_originals=faces(2),
        edit_strip=faces(5),
        lerp=faces(9),
        slerp=faces(9),
        interpolation_ends=faces(2),
        components=faces(2, 9),
    )
    kinds, curves = ["means raw", "svm raw", "means balanced", "svm balanced"], {}
    for name in ("success", "leakage", "identity"):
        curves[f"mean_{name}"] = np.sort(GENERATOR.uniform(size=(4, 6)))
    np.savez(path / "estimators.npz", names=np.asarray(kinds), mean_cosines=np.eye(4), **curves)
    factors, correlations = np.asarray(["hair_$x", "smile"]), np.asarray([[0.9, 0.1], [0.2, 0.5]])
    np.savez(path / "components.npz", factors=factors, correlations=correlations, explained=np.asarray([0.5, 0.2]))
    spread = {"distances": np.ones(n), "standard_error_degrees": np.asarray([1.25, np.inf, 3.0])}
    np.savez(
        path / "directions.npz", names=np.asarray(NAMES), vectors=unit(n), raw=unit(n), orthogonal=unit(n), **spread
    )
    scores = {f"leakage_{name}": GENERATOR.normal(size=(n, n)) for name in figures.ESTIMATORS}
    scores |= {name: GENERATOR.uniform(size=(n, 9)) for name in ("reached", "reached_low", "reached_high")}
    scores |= {"targets": np.asarray(NAMES), "attributes": np.asarray(NAMES), "factors": FACTORS}
    np.savez(path / "scorecard.npz", leakage_factor=3.0, exclusive=np.zeros((n, n), bool), **scores)
    write_edits(path / "edit.npz", [edit()])
    (path / "results.json").write_text('{"scorecard": {"scale": "deviation"}}')
    rows = [
        {"model": "face_vae", "epoch": 1, "seed": 0, "loss": 2.0, "reconstruction": 1.0, "kl": 1.0},
        {"model": "face_vae", "epoch": 1, "seed": 0, "test_loss": 3.0},
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_figure_is_drawn_inside_the_run_and_again_to_the_byte(run_dir: Path) -> None:
    before = {path for path in run_dir.parents[2].rglob("*") if path.is_file()}
    paths = figures.draw(run_dir)
    folder = run_dir / "figures"
    edits = ("Smiling.png", "..%2F..%2Foutside.png", "1%2F2%20of%20%24x%24_%7B.png")
    assert paths[: len(figures.NAMES_OF_FIGURES)] == [folder / f"{name}.png" for name in figures.NAMES_OF_FIGURES]
    assert paths[len(figures.NAMES_OF_FIGURES) :] == [folder / "edits" / name for name in edits]
    assert {path for path in run_dir.parents[2].rglob("*") if path.is_file()} == before | set(paths)
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 100
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures.draw(run_dir)] == first


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, run_dir: Path, tmp_path: Path) -> None:
    for other in set(FILES) - {name}:
        shutil.copy(run_dir / other, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / name} is missing"):
        figures.draw(tmp_path)
    assert not (tmp_path / "figures").exists()


def test_a_run_of_an_older_version_has_no_estimators_and_no_components(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "save", lambda path, make, form: path)
    for name in FILES:
        shutil.copy(run_dir / name, tmp_path)
    drawn = {path.stem for path in figures.draw(tmp_path)}
    assert "cosines" in drawn and not {"estimators", "components"} & drawn


def test_curves_of_estimators_and_captions_of_components(run_dir: Path) -> None:
    with np.load(run_dir / "estimators.npz") as stored:
        drawn = figures.estimators(dict(stored))
    left, right, angles = drawn.axes
    with np.load(run_dir / "estimators.npz") as stored:
        for axes, cost in ((left, "mean_leakage"), (right, "mean_identity")):
            for line, success, value in zip(axes.lines, stored["mean_success"], stored[cost], strict=True):
                np.testing.assert_allclose(line.get_xydata().T, [100 * success, value])
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["difference of means, raw", "SVM, raw", "difference of means, balanced", "SVM, balanced"]
    assert len(angles.texts) == 16
    with np.load(run_dir / "components.npz") as stored:
        drawn = figures.traverse_components(dict(stored), faces(2, 9), FACTORS)
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert "1: hair \\$x\nr = 0.90, 50.0% of variance" in texts and "2: smile\nr = 0.50, 20.0% of variance" in texts


def test_a_photo_has_its_strip_and_nothing_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "figures.npz", photo=faces(1)[0], photo_strip=faces(5))
    write_edits(tmp_path / "edit.npz", [edit()])
    assert [path.name for path in figures.draw(tmp_path)] == ["photo.png"]


def test_given_weights_have_no_losses(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save", lambda path, make, form: path)
    for name in FILES:
        shutil.copy(run_dir / name, tmp_path)
    assert {path.stem for path in figures.draw(tmp_path)} >= set(figures.NAMES_OF_FIGURES) - {*NEWER, "losses"}
    assert tmp_path / "figures" / "losses.png" not in figures.draw(tmp_path)


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_file_names_are_names_of_their_own(names: list[str]) -> None:
    one, other = map(figures.file_name, names)
    assert one != other
    assert one.endswith(".png") and not set(one) & set("/\\:\0")


@pytest.mark.parametrize(("count", "columns"), [(6, 3), (7, 3), (2, 5), (1, 1)])
@pytest.mark.parametrize("gap", [0, 2])
def test_tile_places_colour_pictures_row_by_row(count: int, columns: int, gap: int) -> None:
    """Picture (row, column) = divmod(number, columns) begins at its multiple of size and gap; all else is fill."""
    images = GENERATOR.integers(0, 255, (count, 4, 3, 3)).astype(np.uint8)
    rows = -(-count // columns)
    want = np.full((rows * (4 + gap) - gap, columns * (3 + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        for y, x, channel in np.ndindex(image.shape):
            want[row * (4 + gap) + y, column * (3 + gap) + x, channel] = image[y, x, channel]
    np.testing.assert_array_equal(tile(images, columns, gap, 255), want)


def at(axes: Any, x: int, y: int) -> np.ndarray:
    """The 128×128 pixels that axes counted in pixels show at x to the right and y down."""
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        if left <= x and x + 128 <= right and top <= y and y + 128 <= bottom:
            array: np.ndarray = image.get_array()
            assert (array[..., 3] == 255).all()  # opaque
            array = array[..., :3]
            assert array.shape[:2] == (bottom - top, right - left)
            return array[int(y - top) :, int(x - left) :][:128, :128]
    raise AssertionError(f"nothing is drawn at {x}, {y}")


def test_edited_faces_stand_under_their_factors() -> None:
    originals, edits = faces(2), faces(2, 9)
    (axes,) = figures.edited_faces("Smiling", originals, edits, FACTORS).axes
    captions = {text.get_text(): text.get_position()[0] for text in axes.texts}
    assert list(captions) == ["original", "−4", "−3", "−2", "−1", "0", "+1", "+2", "+3", "+4"]
    for face, (column, caption) in itertools.product(range(2), enumerate(captions)):
        want = edits[face, column - 1] if column else originals[face]
        np.testing.assert_array_equal(at(axes, int(captions[caption]) - 64, face * figures.CELL), want)


@pytest.mark.parametrize("count", [1, 5])
def test_the_overview_shows_every_attribute_beside_its_name(count: int) -> None:
    edits, names = faces(count, 9), [f"Name_{number}" for number in range(count)]
    (axes,) = figures.overview(names, edits, FACTORS).axes
    factors = [text for text in axes.texts if text.get_text() == "+2"]
    assert len(factors) == (1 if count == 1 else 2)
    for number in range(count):
        (name,) = (text for text in axes.texts if text.get_text() == f"Name {number}")
        x, y = name.get_position()
        for shown, column in enumerate(range(0, 9, 2)):
            np.testing.assert_array_equal(at(axes, x + 10 + shown * figures.CELL, int(y) - 64), edits[number, column])


def test_kept_edits_tell_their_source() -> None:
    (axes,) = figures.edit_strips(faces(1, 5), [edit()]).axes
    assert axes.get_title() == "A face moved along Wearing Hat, from latents of 800 bytes"
    assert [text.get_text() for text in axes.texts] == ["0", "+1", "+2", "+3", "+4"]
    (axes,) = figures.edit_strips(faces(2, 5), [edit("a_1.jpg"), edit("b_2.jpg")]).axes
    assert [text.get_text() for text in axes.texts[5:]] == ["a_1.jpg", "b_2.jpg"]
    assert "2 faces" in axes.get_title()


def test_leakage_counts_neither_the_attribute_itself_nor_what_it_excludes() -> None:
    """Means are taken over the others of each row, then over rows: (|2| + |4|) / 2 and |-13| give 8."""
    change = np.asarray([[80.0, -30.0, 2.0, 4.0], [-40.0, 90.0, -13.0, 50.0]])
    exclusive = np.asarray([[False, True, False, False], [True, False, False, True]])
    changes = {"raw": change, "balanced": change / 2, "orthogonal": change * 0}
    figure = figures.leakage(["a", "b"], ["a", "b", "c", "d"], changes, exclusive, 3.0)
    panels = figure.axes[:3]
    assert [axes.get_title().rsplit(" ", 1)[1] for axes in panels] == ["8.0", "4.0", "0.0"]
    for axes, values in zip(panels, changes.values(), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert axes.images[0].get_clim() == (-20, 20)
        marked = [(patch.get_y() + 0.5, patch.get_x() + 0.5, bool(patch.get_hatch())) for patch in axes.patches]
        assert marked == [(0, 1, True), (1, 0, True), (1, 3, True), (0, 0, False), (1, 1, False)]


def test_cosines_tell_where_balanced_directions_stand_for_orthogonal_ones() -> None:
    balanced, orthogonal = unit(3), unit(3)
    orthogonal[1] = balanced[1]
    figure = figures.cosines(["a", "b", "c"], {"raw": balanced, "balanced": balanced, "orthogonal": orthogonal})
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["Raw directions", "Balanced directions", "Orthogonal directions, 1 of 3 balanced"]


def test_dose_response_is_in_per_cent() -> None:
    reached = GENERATOR.uniform(size=(7, 9))
    figure = figures.dose_response([f"Name_{n}" for n in range(7)], FACTORS, reached, reached - 0.1, reached + 0.1)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [f"Name {n}" for n in range(7)]
    for axes, curve in zip(shown, reached, strict=True):
        np.testing.assert_allclose(axes.get_lines()[-1].get_xydata(), np.stack([FACTORS, 100 * curve], axis=1))
        band = axes.collections[0].get_paths()[0].vertices
        np.testing.assert_allclose(band[1:10, 1], 100 * (curve - 0.1))


@pytest.mark.parametrize("count", [1, 19, 40])
@pytest.mark.parametrize("kind", ["cosines", "cosines, none orthogonal", "leakage", "overview", "dose_response"])
def test_labels_do_not_overlap(count: int, kind: str) -> None:
    """As many attributes as the synthetic faces and CelebA have, with names as long as theirs."""
    names = [f"Mouth_Slightly_Open {n}"[-19:] for n in range(count)]
    curves, changes = np.zeros((count, 9)), dict.fromkeys(figures.ESTIMATORS, np.zeros((count, count)))
    figure = {
        "cosines": lambda: figures.cosines(names, {name: unit(count) for name in ("raw", "balanced", "orthogonal")}),
        "cosines, none orthogonal": lambda: figures.cosines(
            names, dict.fromkeys(("raw", "balanced", "orthogonal"), unit(count))
        ),
        "leakage": lambda: figures.leakage(names, names, changes, np.zeros((count, count), bool), 3.0),
        "overview": lambda: figures.overview(names, np.zeros((count, 9, 128, 128, 3), np.uint8), FACTORS),
        "dose_response": lambda: figures.dose_response(names, FACTORS, curves, curves, curves),
    }[kind]()
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    texts = list(figure.texts)
    for axes in figure.axes:
        drawn = [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.title]
        texts += [*axes.texts, *(drawn if axes.axison else [axes.title])]
    boxes = [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]
    corners = np.asarray([box.extents for box in boxes])
    low, high = corners[:, None, :2], corners[:, None, 2:]
    overlaps = (np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1)) > 1).all(axis=-1)
    np.fill_diagonal(overlaps, False)
    assert len(boxes) > count and not overlaps.any(), [boxes[i] for i in np.argwhere(overlaps)[0]]
    for axes in figure.axes if kind == "overview" else []:
        pictures: list[Bbox] = [image.get_window_extent() for image in axes.images]
        assert not any(box.overlaps(picture) for box in boxes for picture in pictures)
