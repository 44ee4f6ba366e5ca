"""A folder in CelebA's layout: what is read, what is kept, and every way in which it can be wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latent_arith import celeba
from latent_arith.celeba import open_celeba, read_table
from runtime.errors import UserError

COUNT = 11
NAMES = ("Smiling", "Eyeglasses", "Bangs")
VALUES = np.where(np.random.default_rng(0).random((COUNT, len(NAMES))) < 0.5, 1, -1).astype(np.int8)
IDS = tuple(f"{index + 1:06d}.jpg" for index in range(COUNT))


def picture(index: int) -> np.ndarray:
    """A smooth picture of 218×178 pixels, different for every index."""
    rows, columns = np.mgrid[0:1:218j, 0:1:178j]
    channels = [rows, columns, (rows + columns + index / COUNT) / 3]
    return np.round(np.stack(channels, axis=-1) * (100 + 10 * index)).astype(np.uint8)


def text_table() -> str:
    rows = [f"{name}  {'  '.join(map(str, row))}" for name, row in zip(IDS, VALUES, strict=True)]
    return "\n".join([str(COUNT), " ".join(NAMES), *rows]) + "\n"


def csv_table() -> str:
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(IDS, VALUES, strict=True)]
    return "\n".join([",".join(("image_id", *NAMES)), *rows]) + "\n"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celeba, "CHUNK", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "img_align_celeba").mkdir()
    for index, name in enumerate(IDS):
        Image.fromarray(picture(index)).save(tmp_path / "img_align_celeba" / name, quality=95)
    (tmp_path / "list_attr_celeba.txt").write_text(text_table())
    return tmp_path


def test_both_tables_say_the_same(tmp_path: Path) -> None:
    for suffix, text in (("txt", text_table()), ("csv", csv_table())):
        (tmp_path / f"table.{suffix}").write_text(text)
        table = read_table(tmp_path / f"table.{suffix}")
        assert (table.ids, table.names) == (IDS, NAMES)
        np.testing.assert_array_equal(table.values, VALUES)


def test_images_are_resized_and_stand_beside_their_attributes(folder: Path) -> None:
    faces = open_celeba(folder, folder / "cache")
    assert len(faces) == COUNT and faces[[3, 0]].shape == (2, 128, 128, 3) and faces[5].dtype == np.uint8
    for index in range(COUNT):
        resized = np.asarray(Image.fromarray(picture(index)).resize((128, 128), Image.Resampling.BILINEAR))
        assert np.abs(faces[index].astype(int) - resized).mean() < 2  # the loss of the JPEG
    np.testing.assert_array_equal(faces.table.values, VALUES)


def test_later_starts_decode_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_celeba(folder, folder / "cache")
    monkeypatch.setattr(celeba, "_decode", pytest.fail)
    again = open_celeba(folder, folder / "cache")
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again[:], first[:])


def test_an_interrupted_preparation_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, decoded = celeba._decode, []

    def failing(path: Path) -> np.ndarray | str:
        decoded.append(path.name)
        if path.name == IDS[6]:
            raise KeyboardInterrupt
        return decode(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(celeba, "_decode", failing)
        open_celeba(folder, folder / "cache")
    assert IDS[0] in decoded

    def noted(path: Path) -> np.ndarray | str:
        decoded.append(path.name)
        return decode(path)

    decoded.clear()
    monkeypatch.setattr(celeba, "_decode", noted)
    resumed = open_celeba(folder, folder / "cache")
    assert sorted(decoded) == sorted(IDS[4:])
    whole = open_celeba(folder, folder / "other")
    np.testing.assert_array_equal(resumed[:], whole[:])
    assert resumed.sha256 == whole.sha256


def test_bad_images_stop_the_run_unless_they_are_skipped(folder: Path) -> None:
    images = folder / "img_align_celeba"
    Image.fromarray(picture(2)[..., 0]).save(images / IDS[2])
    (images / IDS[9]).write_bytes((images / IDS[9]).read_bytes()[:700])
    with pytest.raises(UserError, match=r"000003\.jpg: has mode L, expected RGB; 2 of 11 images are bad, --skip-bad"):
        open_celeba(folder, folder / "cache")
    faces = open_celeba(folder, folder / "cache", skip_bad=True)
    assert set(faces.skipped) == {IDS[2], IDS[9]} and "cannot be decoded" in faces.skipped[IDS[9]]
    kept = [index for index in range(COUNT) if index not in (2, 9)]
    assert faces.table.ids == tuple(IDS[index] for index in kept) and len(faces) == COUNT - 2
    np.testing.assert_array_equal(faces.table.values, VALUES[kept])
    resized = np.asarray(Image.fromarray(picture(10)).resize((128, 128), Image.Resampling.BILINEAR))
    assert np.abs(faces[8].astype(int) - resized).mean() < 2


def test_a_folder_of_bad_images_only_is_told(folder: Path) -> None:
    for name in IDS:
        (folder / "img_align_celeba" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match="all 11 images are bad"):
        open_celeba(folder, folder / "cache", skip_bad=True)


def test_a_change_of_the_prepared_pixels_is_noticed(folder: Path) -> None:
    open_celeba(folder, folder / "cache")
    (stored,) = (folder / "cache").rglob("images.npy")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(content)
    with pytest.raises(UserError, match="not as recorded; delete"):
        open_celeba(folder, folder / "cache")
    stored.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"images\.npy: cannot be read"):
        open_celeba(folder, folder / "cache")


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "list_attr_celeba.txt").write_text(text_table().replace(old, new))


FAULTS: dict[str, Callable[[Path], object]] = {
    r"neither list_attr_celeba\.txt nor list_attr_celeba\.csv": lambda f: (f / "list_attr_celeba.txt").unlink(),
    "not a directory": lambda f: (f / "img_align_celeba").rename(f / "elsewhere"),
    r"11 rows, the folder 10 images: 1 of its rows have no image, first 000004\.jpg": (
        lambda f: (f / "img_align_celeba" / IDS[3]).unlink()
    ),
    r"1 images have no row, first x\.jpg": lambda f: (f / "img_align_celeba" / "x.jpg").write_bytes(b""),
    "line 1 announces 12 images, the table has 11": replaced(f"{COUNT}\n", "12\n"),
    r"000002\.jpg stands in it 2 times": replaced("000001.jpg", "000002.jpg"),
    "line 3: Smiling is '0', expected 1 or -1": replaced(f"000001.jpg  {VALUES[0, 0]}", "000001.jpg  0"),
    "line 3 has 4 values, expected 3": replaced("000001.jpg", "000001.jpg  1"),
    "expected the number of images": replaced(f"{COUNT}\n", "eleven\n"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_folder_that_is_wrong_is_told_in_one_line(message: str, folder: Path) -> None:
    FAULTS[message](folder)
    with pytest.raises(UserError, match=message):
        open_celeba(folder, folder / "cache")
    assert not (folder / "cache").exists()


def test_a_csv_table_without_its_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(csv_table().replace("image_id", "id"))
    with pytest.raises(UserError, match="line 1 begins with 'id,Smiling,Eyeglasse', expected image_id,NAME"):
        read_table(tmp_path / "table.csv")
