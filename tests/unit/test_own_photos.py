"""Own photos: faces are found, turned and cut as a data set has them, and compared with faces that a model knows."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_arith import photos
from latent_arith.config import PRESETS, parse_edit
from latent_arith.population import Population, measure_distances, measure_errors, measure_population
from latentlab.errors import UserError

ASTRONAUT = Path(__file__).parents[1] / "data" / "photos" / "astronaut.jpg"
EYES = ((112.0, 101.0), (157.0, 103.0))  # of the photo, by eye
SQUARE = photos.Frame(1.0, ((0.3, 0.4), (0.7, 0.4)))


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return np.asarray(Image.open(ASTRONAUT))


def dots(eyes: tuple[tuple[float, float], ...], side: int = 200) -> np.ndarray:
    """A grey picture with a red dot where the left eye is and a green one where the right is."""
    pixels = np.full((side, side, 3), 90, np.uint8)
    rows, columns = np.mgrid[:side, :side]
    for channel, (x, y) in enumerate(eyes):
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < 9, channel] = 255
    return pixels


def places(pixels: np.ndarray) -> np.ndarray:
    """Middles of the red and the green dot, as shares of width and height."""
    found = []
    for channel in (0, 1):
        weights = np.maximum(pixels[..., channel].astype(float) - 90, 0)
        rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
        found.append([(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()])
    return np.asarray(found) / [pixels.shape[1], pixels.shape[0]]


@pytest.mark.parametrize("frame", [SQUARE, photos.CELEBA, photos.FRAMES["synthetic"]])
@pytest.mark.parametrize(
    "eyes", [((80, 90), (120, 90)), ((80, 100), (118, 80)), ((90, 80), (110, 110)), ((10, 20), (50, 25))]
)
def test_eyes_come_to_lie_where_the_frame_has_them(frame: photos.Frame, eyes: tuple) -> None:
    aligned = photos.align(dots(eyes), eyes, frame)
    assert aligned.shape[0] / aligned.shape[1] == pytest.approx(frame.aspect, rel=0.03)
    np.testing.assert_allclose(places(aligned), frame.eyes, atol=1.5 / aligned.shape[1])


def test_a_face_is_found_with_its_eyes(astronaut: np.ndarray) -> None:
    (face,) = photos.find_faces(astronaut)
    np.testing.assert_allclose(face.eyes, EYES, atol=4)
    assert 80 < face.side < 120
    aligned = photos.read_face(ASTRONAUT, None, SQUARE, 64, "bilinear")
    assert aligned.pixels.shape == (64, 64, 3)
    assert aligned.notes[-1].startswith("face at ")


@pytest.mark.parametrize("angle", [-12, -8, 15])
def test_a_tilted_face_is_turned_upright(astronaut: np.ndarray, angle: int) -> None:
    tilted = np.asarray(Image.fromarray(astronaut).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(190, 180, 180)))
    straight, turned = (photos.read_face(one, None, SQUARE, 64, "bilinear").pixels for one in (astronaut, tilted))
    middle = slice(12, 52)
    difference = np.abs(straight[middle, middle].astype(int) - turned[middle, middle]).mean()
    plain = np.asarray(Image.fromarray(straight).rotate(angle))[middle, middle]
    assert difference < 0.75 * np.abs(straight[middle, middle].astype(int) - plain).mean()


def test_of_a_group_the_largest_face_is_taken_and_it_is_said(astronaut: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(astronaut).resize((160, 160)))
    group = np.full((260, 430, 3), 180, np.uint8)
    group[:, :260], group[60:220, 265:425] = astronaut, small
    assert [face.left < 200 for face in photos.find_faces(group)] == [True, False]
    found = photos.read_face(group, None, SQUARE, 32, "bilinear")
    assert "the largest of 2 faces" in found.notes[-1] and "--crop X Y SIDE" in found.notes[-1]


def test_a_large_photo_has_the_same_face(astronaut: np.ndarray) -> None:
    large = np.asarray(Image.fromarray(astronaut).resize((2600, 2600), Image.Resampling.BICUBIC))
    (face,) = photos.find_faces(large)
    np.testing.assert_allclose(np.asarray(face.eyes) / 10, EYES, atol=5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((300, 400, 3), 128, np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8),
        np.full((40, 3000, 3), 9, np.uint8),
    ],
    ids=["grey", "noise", "strip"],
)
def test_a_photo_without_a_face_is_refused_with_a_way_out(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"photo: no face that looks at the camera .*--crop X Y SIDE"):
        photos.read_face(pixels, None, SQUARE, 64, "bilinear")


def test_a_crop_is_cut_as_the_frame_is(astronaut: np.ndarray) -> None:
    cut = photos.read_face(astronaut, (10, 20, 64), SQUARE, 64, "nearest").pixels
    np.testing.assert_array_equal(cut, astronaut[20:84, 10:74])
    tall = photos.read_face(astronaut, (10, 20, 64), photos.CELEBA, 64, "bilinear").pixels
    expected = Image.fromarray(astronaut[20:98, 10:74]).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(tall, expected)


@pytest.mark.parametrize("crop", [(-1, 0, 50), (0, 0, 261), (220, 0, 50), (0, 250, 50), (0, 0, 0)])
def test_a_crop_beyond_the_photo_is_refused(astronaut: np.ndarray, crop: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"photo: a crop of .* is not within its 260×260; expected --crop X Y SIDE"):
        photos.read_face(astronaut, crop, SQUARE, 64, "bilinear")


def test_without_opencv_a_crop_is_asked_for(astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"finding a face needs OpenCV 4 .*pip install.*or give --crop X Y SIDE"):
        photos.read_face(astronaut, None, SQUARE, 64, "bilinear")
    assert photos.read_face(astronaut, (0, 0, 260), SQUARE, 64, "bilinear").pixels.shape == (64, 64, 3)


@pytest.mark.unchecked
@pytest.mark.parametrize("pixels", [np.zeros((5, 5)), np.zeros((5, 5, 3)), np.zeros((0, 5, 3), np.uint8)])
def test_pixels_of_another_kind_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"photo: is .* expected uint8 \(height, width, 3\)"):
        photos.check_pixels(pixels)


def test_edits_are_parsed() -> None:
    assert parse_edit(("Smiling=3", "Eyeglasses=-2.5")) == {"Smiling": 3.0, "Eyeglasses": -2.5}
    for words, message in (
        (("Smiling",), "expected ATTRIBUTE=STRENGTH"),
        (("=3",), "expected ATTRIBUTE=STRENGTH"),
        (("Smiling=much",), "expected ATTRIBUTE=STRENGTH"),
        (("Smiling=inf",), "expected ATTRIBUTE=STRENGTH"),
        (("Smiling=1", "Smiling=2"), "names Smiling twice"),
        (("Smiling=0",), "are 0"),
    ):
        with pytest.raises(UserError, match=message):
            parse_edit(words)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "a.jpg", "weights": "runs/1"}, "image is given, but no edit"),
        ({"image": "a.jpg", "edit": ("Smiling=3",), "weights": ""}, "image is given, but no weights"),
        ({"edit": ("Smiling=3",)}, "edit is given, but no image"),
        ({"crop": (0, 0, 9)}, "crop is given, but no image"),
        ({"weights": "runs/1", "train": True}, "train is given, and so is weights"),
    ],
)
def test_options_that_need_others_say_so(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(PRESETS["demo"], **fields)


def test_the_demo_trains_only_where_training_would_differ() -> None:
    demo = PRESETS["demo"]
    assert not demo.trains
    assert not replace(demo, scored_faces=9, seed=3).trains
    for fields in ({"train": True}, {"epochs": 3}, {"size": 64}, {"data": "folder:x"}, {"latent_dim": 9}):
        assert replace(demo, **fields).trains
    assert PRESETS["quick"].trains and PRESETS["original"].trains
    assert not replace(PRESETS["original"], weights="packaged").trains


def test_distances_are_mahalanobis_and_percentiles_count_held_out_faces() -> None:
    generator = np.random.default_rng(0)
    root = np.diag([1.0, 10.0, 0.1])
    train, held_out = generator.normal(size=(4000, 3)) @ root, generator.normal(size=(1000, 3)) @ root
    images = generator.integers(0, 256, (1000, 4, 4, 3)).astype(np.uint8)
    decoded = np.clip(images.astype(int) + 3, 0, 255).astype(np.uint8)
    population = measure_population(train, held_out, images, lambda latents: decoded[: len(latents)])
    expected = np.sqrt(((held_out / [1, 10, 0.1]) ** 2).sum(axis=1))
    assert np.corrcoef(population.distances, expected)[0, 1] > 0.9  # shrinkage widens the narrow one
    np.testing.assert_allclose(population.errors, measure_errors(images, decoded))
    middle = population.describe(np.zeros(3), images[0], images[0])
    assert middle["latent_percentile"] < 2 and middle["reconstruction_percentile"] == 0
    far = population.describe(np.asarray([9.0, 0, 0]), images[0], 255 - images[0])
    assert far["latent_percentile"] == 100 and far["reconstruction_percentile"] == 100
    stored = Population(**population.arrays())
    assert stored.describe(np.zeros(3), images[0], images[0]) == pytest.approx(middle, abs=1e-4)
    np.testing.assert_allclose(measure_distances(np.eye(2), np.zeros(2), np.diag([4.0, 9.0])), [2, 3])
