"""Photos of every kind become the same square RGB pixels, and every damaged one is told in one line."""

import functools
import io
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from adversarial import photos
from latentlab import command_process
from latentlab.errors import UserError

SIZE = 32  # of photos that need no resizing, and the least that is read
CLASSES = [
    ("n02085620", "Chihuahua"),
    ("n02099601", "golden_retriever"),
    ("n02012849", "crane"),
    ("n03126707", "crane"),
]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def packed(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(500, 400), (333, 501), (33, 32), (20, 47), (224, 99), (1, 1), (40, 3001)])
@pytest.mark.parametrize("size", [160, 224])
def test_resizing_is_that_of_tensorflow(shape: tuple[int, int], size: int) -> None:
    import tensorflow as tf

    pixels = noise(*shape, 3)
    ours = photos.resize(pixels, size)
    assert ours.dtype == np.float32 and ours.shape == (size, size, 3) and ours.min() >= 0 and ours.max() <= 1
    theirs = tf.image.resize(tf.cast(pixels, tf.float32) / 255, (size, size)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_rgb_of_the_right_size_is_kept_as_it_is(tmp_path: Path, suffix: str) -> None:
    pixels = noise(SIZE, SIZE, 3)
    read = photos.read(saved(tmp_path / f"a{suffix}", Image.fromarray(pixels)), SIZE)
    assert read.pixels.dtype == np.uint8 and read.notes == ()
    np.testing.assert_array_equal(read.pixels, pixels)


def test_pixels_are_the_nearest_grey_levels_of_the_resized(tmp_path: Path) -> None:
    pixels = noise(90, 70, 3)
    read = photos.read(saved(tmp_path / "a.png", Image.fromarray(pixels)), SIZE).pixels
    assert np.abs(read / 255 - photos.resize(pixels, SIZE)).max() <= 0.5 / 255 + 1e-6


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: functools.partial(np.rot90, k=2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: functools.partial(np.rot90, k=1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: functools.partial(np.rot90, k=-1),
}
"""How a camera that was held so lays an upright picture into the file."""


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_photos_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = noise(48, 48, 3)[:40]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    laid = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    read = photos.read(saved(tmp_path / f"a{suffix}", laid, exif=exif, **options), SIZE)
    expected = photos.read(saved(tmp_path / "upright.png", Image.fromarray(upright)), SIZE)
    np.testing.assert_allclose(read.pixels.astype(int), expected.pixels, rtol=0, atol=4 if suffix == ".jpg" else 0)
    assert read.notes == (() if orientation == 1 else ("turned upright, as its EXIF says",))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_reduced_to_8(tmp_path: Path, suffix: str) -> None:
    levels = np.random.default_rng(0).integers(0, 2**16, (SIZE, SIZE), np.uint16)
    read = photos.read(saved(tmp_path / f"a{suffix}", Image.fromarray(levels)), SIZE)
    assert read.notes == ("16-bit, reduced to 8", "grey, made RGB")
    np.testing.assert_array_equal(read.pixels, np.repeat(np.rint(levels / 257)[..., None], 3, -1))


def test_16_bit_rgb_which_pillow_reads_as_8_bit_is_told(tmp_path: Path) -> None:
    import tensorflow as tf

    levels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint16) * 257
    path = tmp_path / "a.png"
    path.write_bytes(tf.io.encode_png(levels).numpy())
    read = photos.read(path, SIZE)
    assert read.notes == ("16-bit, reduced to 8",)
    np.testing.assert_array_equal(read.pixels, levels // 257)


def test_32_bits_are_refused(tmp_path: Path) -> None:
    for level, message in (
        (np.int32(70000), "grey levels from 70000 to 70000, expected 0 to 65535"),
        (np.int32(-1), "grey levels from -1 to -1"),
        (np.float32(0.5), "pixels are floats, expected 8 or 16 bits"),
    ):
        path = saved(tmp_path / "a.tif", Image.fromarray(np.full((40, 40), level)))
        with pytest.raises(UserError, match=rf"^{path}: is damaged or of a kind that cannot be read \({message}"):
            photos.read(path, SIZE)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = noise(SIZE, SIZE)
    read = photos.read(saved(tmp_path / "a.png", Image.fromarray(grey)), SIZE)
    assert read.notes == ("grey, made RGB",)
    np.testing.assert_array_equal(read.pixels, np.repeat(grey[..., None], 3, -1))
    read = photos.read(saved(tmp_path / "b.png", Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)), SIZE)
    assert read.notes == ("black and white, made RGB",)
    np.testing.assert_array_equal(read.pixels[..., 1], np.where(grey >= 128, 255, 0))


@pytest.mark.parametrize("channels", [4, 2])
def test_transparent_pixels_are_laid_on_white(tmp_path: Path, channels: int) -> None:
    image = noise(SIZE, SIZE, channels)
    color, alpha = image[..., :-1].astype(float), image[..., -1:] / 255
    read = photos.read(saved(tmp_path / "a.png", Image.fromarray(image)), SIZE)
    assert read.notes[0] == "transparent, laid on white" and len(read.notes) == 1 + (channels == 2)
    assert np.abs(read.pixels - (alpha * color + (1 - alpha) * 255)).max() <= 1


def test_an_opaque_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    pixels = noise(SIZE, SIZE, 3)
    opaque = np.concatenate([pixels, np.full((SIZE, SIZE, 1), 255, np.uint8)], -1)
    read = photos.read(saved(tmp_path / "a.png", Image.fromarray(opaque)), SIZE)
    assert read.notes == ()
    np.testing.assert_array_equal(read.pixels, pixels)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palettes_are_looked_up_and_their_transparent_color_is_white(tmp_path: Path, suffix: str) -> None:
    indices = noise(SIZE, SIZE) % 4
    image = Image.fromarray(indices).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]])
    read = photos.read(saved(tmp_path / f"a{suffix}", image), SIZE)
    assert read.notes == ("palette, made RGB",)
    np.testing.assert_array_equal(read.pixels, palette[indices])
    palette[2] = 255
    read = photos.read(saved(tmp_path / f"b{suffix}", image, transparency=2), SIZE)
    assert read.notes == ("transparent, laid on white", "palette, made RGB")
    np.testing.assert_array_equal(read.pixels, palette[indices])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    inks = {"cyan": (255, 0, 0, 0), "yellow": (0, 0, 255, 0), "black": (0, 0, 0, 255), "white": (0, 0, 0, 0)}
    colors = {"cyan": (0, 255, 255), "yellow": (255, 255, 0), "black": (0, 0, 0), "white": (255, 255, 255)}
    for name, ink in inks.items():
        read = photos.read(saved(tmp_path / f"{name}.jpg", Image.new("CMYK", (40, 40), ink), quality=95), SIZE)
        assert read.notes == ("CMYK, made RGB",)
        assert np.abs(read.pixels.astype(int) - colors[name]).max() <= 3


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    red, blue = (Image.new("RGB", (40, 40), color) for color in ("red", "blue"))
    path = saved(tmp_path / f"a{suffix}", red, save_all=True, append_images=[blue, red])
    read = photos.read(path, SIZE)
    assert read.notes[0] == "the first of 3 frames"
    assert np.abs(read.pixels.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # the command line hides it
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 1), r"1×1 pixels, expected at least 32 on either side"),
        ((400, 31), r"400×31 pixels, expected at least 32 on either side"),
        ((10_000, 10_000), r"10000×10000 pixels, expected at most 50 megapixels"),
        ((20_000, 20_000), r"is too large, expected at most 50 megapixels"),
    ],
)
def test_sides_have_limits(tmp_path: Path, size: tuple[int, int], message: str) -> None:
    path = saved(tmp_path / "a.png", Image.new("1", size))
    with pytest.raises(UserError, match=rf"^{path}: {message}$"):
        photos.read(path, SIZE)


def test_what_is_no_photo_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "drawing.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in {
        "empty": "is empty, expected a photo",
        "text": "is no photo, expected one of JPEG, PNG",
        "drawing": "is no photo, expected one of JPEG, PNG",
        "folder": r"cannot be read \(Is a directory\)",
        "missing": r"cannot be read \(No such file or directory\)",
    }.items():
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name}.jpg: {message}"):
            photos.read(tmp_path / f"{name}.jpg", SIZE)


def test_a_path_that_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.png: cannot be read \(File name too long\)"):
        photos.read(tmp_path / f"{'a' * 300}.png", SIZE)


SOUND = {
    "jpeg": packed(Image.fromarray(noise(40, 50, 3)), "JPEG"),
    "progressive": packed(Image.fromarray(noise(40, 50, 3)), "JPEG", progressive=True),
    "png": packed(Image.fromarray(noise(40, 50, 3)), "PNG"),
    "transparent": packed(Image.fromarray(noise(40, 50, 4)), "PNG"),
    "palette": packed(Image.fromarray(noise(40, 50)).convert("P"), "GIF", transparency=3),
    "webp": packed(Image.fromarray(noise(40, 50, 3)), "WEBP"),
    "bmp": packed(Image.fromarray(noise(40, 50, 3)), "BMP"),
    "tiff": packed(Image.fromarray(noise(40, 50, 3)), "TIFF"),
    "deflated tiff": packed(Image.fromarray(noise(40, 50, 3)), "TIFF", compression="tiff_adobe_deflate"),
}


def reads_or_says_why(content: bytes) -> photos.Photo | None:
    command_process.hide_warnings_of_pillow()  # else they would be errors here
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        path.write_bytes(content)
        try:
            read = photos.read(path, SIZE)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            return None
    assert read.pixels.shape == (SIZE, SIZE, 3) and read.pixels.dtype == np.uint8
    return read


@pytest.mark.parametrize("kind", SOUND)
def test_truncated_photos(kind: str) -> None:
    sound = SOUND[kind]
    assert reads_or_says_why(sound)
    lengths = {*range(0, 64), *range(64, len(sound), max(1, len(sound) // 60)), len(sound) - 1}
    whole = [length for length in sorted(lengths) if reads_or_says_why(sound[:length])]
    assert not whole or whole[0] > len(sound) // 2


@given(content=st.binary(max_size=300), start=st.sampled_from([0, 4, 30, 200]), kind=st.sampled_from(sorted(SOUND)))
@settings(max_examples=300)
def test_random_bytes(content: bytes, start: int, kind: str) -> None:
    reads_or_says_why(SOUND[kind][:start] + content)


@given(kind=st.sampled_from(sorted(SOUND)), data=st.data())
@settings(max_examples=400)
def test_flipped_bits(kind: str, data: st.DataObject) -> None:
    damaged = bytearray(SOUND[kind])
    anywhere = st.integers(0, 8 * len(damaged) - 1)
    for bit in data.draw(st.lists(st.integers(0, 8 * 700) | anywhere, min_size=1, max_size=6)):
        damaged[bit // 8] ^= 1 << bit % 8
    reads_or_says_why(bytes(damaged))


def test_photos_are_read_ahead_by_threads_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [saved(tmp_path / f"{index}.png", Image.fromarray(noise(40, 50, 3))) for index in range(30)]
    paths[9].write_text("no photo")
    read, threads = photos.read, []

    def record(path: Path, size: int, decoder: Any, resize: float) -> photos.Photo:
        threads.append(threading.current_thread())
        return read(path, size, decoder, resize)

    monkeypatch.setattr(photos, "read", record)
    coming = photos.read_ahead(paths, SIZE, ahead=4)
    for path in paths[:9]:
        np.testing.assert_array_equal(next(coming).pixels, read(path, SIZE).pixels)
    with pytest.raises(UserError, match=rf"^{paths[9]}: is no photo, expected one of JPEG"):
        next(coming)
    assert threading.main_thread() not in threads and len(threads) <= 9 + 1 + 4


def test_photos_are_found_at_any_depth_but_hidden_ones(tmp_path: Path) -> None:
    shown = ["b.JPG", "c/a.jpeg", "c/d/e.webp", "c/d/f.TIF", "a.png"]
    for name in [*shown, ".a.jpg", ".hidden/a.jpg", "c/._a.jpg", "notes.txt", "jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = photos.find(tmp_path)
    assert found.paths == sorted(tmp_path / name for name in shown)
    assert found.others == [tmp_path / "jpg", tmp_path / "notes.txt"]


def test_photos_are_found_by_their_content_and_through_links(tmp_path: Path) -> None:
    root, away = tmp_path / "photos", tmp_path / "away"
    root.mkdir()
    away.mkdir()
    for name, kind in (("a.jfif", "JPEG"), ("b", "PNG"), ("c.txt", "WEBP"), ("d.png", "JPEG")):
        saved(away / name, Image.fromarray(noise(SIZE, SIZE, 3)), format=kind)
    (away / "e.txt").write_text("no photo")
    (root / "golden_retriever").symlink_to(away)
    (away / "circle").symlink_to(away)
    found = photos.find(root)
    assert [path.name for path in found.paths] == ["a.jfif", "b", "c.txt", "d.png"]
    assert [path.name for path in found.others] == ["e.txt"]
    for path in found.paths:
        assert photos.read(path, SIZE).pixels.shape == (SIZE, SIZE, 3)
        assert photos.label_of(path, root, CLASSES) == 1


def test_photos_are_looked_for_even_below_a_hidden_directory(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.jpg").touch()
    assert photos.find(tmp_path / ".cache").paths == [tmp_path / ".cache" / "a.jpg"]


def test_a_directory_must_be_one_and_hold_photos(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=rf"^{tmp_path}: holds no photos, expected files that end in .jpg .jpeg"):
        photos.find(tmp_path)
    for name in ("missing", "notes.txt"):
        with pytest.raises(UserError, match=rf"{name}: is no directory, expected one of photos"):
            photos.find(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("golden_retriever/a.jpg", 1),
        ("n02085620/a_3.jpg", 0),
        ("n02012849/a.jpg", 2),
        ("3/a.jpg", 3),
        ("dogs/Chihuahua/a.jpg", 0),
        ("n02099601-golden_retriever/n02099601_7.jpg", 1),
        ("n02099601_7.jpg", 1),
        ("train/n02099601_10074.JPEG", 1),
    ],
)
def test_a_path_tells_the_class(path: str, label: int) -> None:
    assert photos.label_of(Path("photos") / path, Path("photos"), CLASSES) == label


@pytest.mark.parametrize(
    ("path", "label"), [("imagenet_00_2.jpg", 2), ("3.jpg", 3), ("dog_003.jpg", 3), ("dogs/Chihuahua/a_1.jpg", 1)]
)
def test_a_number_at_the_end_of_the_name_is_the_class_if_it_is_asked_for(path: str, label: int) -> None:
    assert photos.label_of(Path("photos") / path, Path("photos"), CLASSES, by_number=True) == label


@pytest.mark.parametrize(
    ("path", "by_number", "message"),
    [
        ("a.jpg", True, "no class can be told from its name; expected its index before the suffix, as in dog_7.jpg"),
        ("dog_-1.jpg", True, "no class can be told from its name; expected its index"),
        ("dog_².jpg", True, "no class can be told from its name; expected its index"),
        ("imagenet_00_243.jpg", True, r"class 243, but the network has 4 \(0 to 3\)"),
        ("cats/a_1.jpg", False, "no class can be told from its folder or name; expected a folder called by a class's"),
        ("dog_3.jpg", False, "no class can be told from its name; expected .*, or --labels numbers"),
        ("ILSVRC2012_val_00000003.JPEG", False, "no class can be told from its name"),
        ("n01440764_3.JPEG", False, "n01440764 is a class of WordNet that the network does not have"),
        ("crane/a.jpg", False, "classes 2 and 3 are called crane, expected a WordNet id or index"),
        ("4/a.jpg", False, r"class 4, but the network has 4 \(0 to 3\)"),
    ],
)
def test_a_path_that_tells_no_class_is_one_line(path: str, by_number: bool, message: str) -> None:
    with pytest.raises(UserError, match=rf"^photos/{path}: {message}"):
        photos.label_of(Path("photos") / path, Path("photos"), CLASSES, by_number)


def test_numbers_of_classes_without_names_are_refused_where_orders_differ() -> None:
    path, root = Path("photos/2/a.jpg"), Path("photos")
    eleven = [("", f"class_{index}") for index in range(11)]
    assert photos.label_of(path, root, eleven[:10]) == 2
    with pytest.raises(UserError, match="in the order of text, 0, 1, 10, 11, 2; expected --names with a name"):
        photos.label_of(path, root, eleven)
