"""CelebA as a folder and as TFDS prepares it: what is read, what is kept, and every way in which it can be wrong."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
from PIL import Image

from latent_arith.config import Resize
from latent_arith.datasets import celeba
from latent_arith.datasets.batches import read_in_order
from latent_arith.datasets.celeba import CelebA, Decoding, open_folder, open_tfds, read_table
from latent_arith.datasets.synthetic_faces import ATTRIBUTES, paint_faces
from latent_arith.datasets.tables import OWN_TABLES
from latent_arith.directions import Directions, find_directions
from latentlab.decoding import decode_as_tensorflow
from latentlab.errors import UserError
from tests.absent import block_tensorflow
from tests.tfrecords import write_as_tfrecord

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
    faces = open_folder(folder, folder / "cache")
    assert len(faces) == COUNT and faces[[3, 0]].shape == (2, 128, 128, 3) and faces[5].dtype == np.uint8
    for index in range(COUNT):
        resized = np.asarray(Image.fromarray(picture(index)).resize((128, 128), Image.Resampling.BILINEAR))
        assert np.abs(faces[index].astype(int) - resized).mean() < 2  # the loss of the JPEG
    np.testing.assert_array_equal(faces.table.values, VALUES)


def test_later_starts_decode_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_folder(folder, folder / "cache")
    monkeypatch.setattr(celeba, "_decode", pytest.fail)
    again = open_folder(folder, folder / "cache")
    assert again.describe() == first.describe()
    assert first.describe() == json.loads(json.dumps(first.describe()))
    assert first.describe() == {
        "source": f"celeba:{folder}",
        "images": COUNT,
        "sha256": first.sha256,
        "skipped": {},
    }
    np.testing.assert_array_equal(again[:], first[:])


def test_an_interrupted_preparation_goes_on_where_it_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_resumption(lambda cache: open_folder(folder, folder / cache), monkeypatch)


def check_resumption(opened: Callable[[str], CelebA], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the second of three chunks; what comes after decodes that and the third and ends as if nothing was."""
    decode, decoded = celeba._decode, []

    def noted(encoded: Path | bytes, decoding: Any) -> np.ndarray | str:
        decoded.append(encoded)
        return decode(encoded, decoding)

    whole = opened("whole")
    with monkeypatch.context() as patched:
        patched.setattr(celeba, "_decode", noted)
        opened("noted")
    seventh = decoded[6]

    def failing(encoded: Path | bytes, decoding: Any) -> np.ndarray | str:
        if encoded == seventh:
            raise KeyboardInterrupt
        return decode(encoded, decoding)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(celeba, "_decode", failing)
        opened("cache")
    every = decoded.copy()
    decoded.clear()
    monkeypatch.setattr(celeba, "_decode", noted)
    resumed = opened("cache")
    assert set(decoded) == set(every) - set(every[:4]) and len(decoded) == COUNT - 4
    np.testing.assert_array_equal(resumed[:], whole[:])
    assert resumed.sha256 == whole.sha256


def test_bad_images_stop_the_run_unless_they_are_skipped(folder: Path) -> None:
    images = folder / "img_align_celeba"
    Image.fromarray(picture(2)[..., 0]).save(images / IDS[2])
    (images / IDS[9]).write_bytes((images / IDS[9]).read_bytes()[:700])
    with pytest.raises(UserError, match=r"000003\.jpg: has mode L, expected RGB; 2 of 11 images are bad, --skip-bad"):
        open_folder(folder, folder / "cache")
    faces = open_folder(folder, folder / "cache", skip_bad=True)
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
        open_folder(folder, folder / "cache", skip_bad=True)


def test_a_change_of_the_prepared_pixels_is_noticed(folder: Path) -> None:
    open_folder(folder, folder / "cache")
    (stored,) = (folder / "cache").rglob("images.npy")
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1  # of the second of three chunks
    stored.write_bytes(content)
    damaged = open_folder(folder, folder / "cache")
    assert damaged[[0, 9]].shape == (2, 128, 128, 3)
    for _ in range(2):
        with pytest.raises(UserError, match="images from 4 on are not as recorded; delete"):
            damaged[5]
    stored.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"images\.npy: cannot be read"):
        open_folder(folder, folder / "cache")


@pytest.mark.parametrize("fault", ["name", "hash", "json"])
def test_a_change_of_the_record_is_noticed(folder: Path, fault: str) -> None:
    """A bad image that it forgets would come out black."""
    Image.fromarray(picture(2)[..., 0]).save(folder / "img_align_celeba" / IDS[2])
    open_folder(folder, folder / "cache", skip_bad=True)
    (stored,) = (folder / "cache").rglob("prepared.json")
    text, record = stored.read_text(), json.loads(stored.read_text())
    changed = {
        "name": text.replace(IDS[2], IDS[3]),
        "hash": text.replace(record["chunks"][1], record["chunks"][0]),
        "json": text[:-9],
    }
    stored.write_text(changed[fault])
    with pytest.raises(UserError, match=r"prepared\.json:? (is damaged|cannot be read as JSON)"):
        open_folder(folder, folder / "cache", skip_bad=True)


def test_of_two_that_prepare_at_once_one_does_and_the_other_waits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = celeba._decode, []

    def slow(encoded: Path | bytes, decoding: Any) -> np.ndarray | str:
        decoded.append(encoded)
        time.sleep(0.02)
        return decode(encoded, decoding)

    monkeypatch.setattr(celeba, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: open_folder(folder, folder / "cache"), range(2))
    assert len(decoded) == COUNT
    np.testing.assert_array_equal(one[:], other[:])


def replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "list_attr_celeba.txt").write_text(text_table().replace(old, new))


FAULTS: dict[str, Callable[[Path], object]] = {
    r"neither list_attr_celeba\.txt nor list_attr_celeba\.csv": lambda f: (f / "list_attr_celeba.txt").unlink(),
    r"11 of its rows have no image, first 000001\.jpg": lambda f: shutil.rmtree(f / "img_align_celeba"),
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
        open_folder(folder, folder / "cache")
    assert not (folder / "cache").exists()


def test_a_csv_table_without_its_header_or_pictures_is_told(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(csv_table().replace(".jpg", ""))
    with pytest.raises(UserError, match="line 1 begins with 'image_id,Smiling,Eye', expected image_id,NAME"):
        read_table(tmp_path / "table.csv")


def lfw_table() -> str:
    scores = np.random.default_rng(1).uniform(0.1, 2, VALUES.shape) * VALUES
    rows = ["\t".join(["Aaron Eckhart", str(index + 1), *map(str, row)]) for index, row in enumerate(scores)]
    return "\n".join(["# lfw_attributes.txt (73 attributes)", "#\tperson\timagenum\t" + "\t".join(NAMES), *rows])


TABLES = {
    "list_attr_celeba.txt": text_table,
    "list_attr_celeba.csv": csv_table,
    "crlf.txt": lambda: text_table().replace("\n", "\r\n"),
    "bom.csv": lambda: "\ufeff" + csv_table(),
    "index.csv": lambda: "\n".join(f"{n or ''},{line}" for n, line in enumerate(csv_table().splitlines())),
    "any_header.csv": lambda: csv_table().replace("image_id", "filename"),
    "tabs.tsv": lambda: csv_table().replace(",", "\t"),
    "zeros.csv": lambda: csv_table().replace("-1", "0"),
    "zeros.txt": lambda: text_table().replace("-1", "0"),
    "truths.csv": lambda: csv_table().replace("-1", "False").replace(",1", ",True"),
    "floats.csv": lambda: csv_table().replace(",1", ",1.0").replace("-1", "-1.0"),
    "CelebAMask-HQ-attribute-anno.txt": text_table,
    "lfw_attributes.txt": lfw_table,
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_in_all_forms_say_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TABLES[name](), encoding="utf-8", newline="")
    table = read_table(tmp_path / name)
    people = tuple(f"Aaron_Eckhart_{index + 1:04d}.jpg" for index in range(COUNT))
    assert table.ids == (people if name.startswith("lfw") else IDS)
    assert table.names == NAMES
    np.testing.assert_array_equal(table.values, VALUES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,A\na.jpg,1\nb.jpg,0\nc.jpg,-1\nd.jpg,-1", "line 3: A is '0', expected 1 or -1 in all lines, or 1 or 0"),
        ("image,A\na.jpg,2", "line 2: A is '2', expected 1 or -1, or 1 or 0"),
        ("image,A\na.jpg", "line 2 has 0 values, expected 1"),
        ("image,A,A\na.jpg,1,0", "A is the name of several columns"),
        ("#\tperson\timagenum\tA\nX\t1\tnan", "line 2: A is 'nan', expected a number"),
        ("image\na.jpg", "expected the number of images, or a header"),
        ("# a\n#\tperson\tA\nX\t1\t2", "expected #, person, imagenum"),
        ("#\tperson\timagenum\tA\nX\tone\t2", "line 2 is 'X\\\\tone\\\\t2', expected a person, a number and scores"),
        ("#\tperson\timagenum\tA\nX\t1\tno", "line 2: A is 'no', expected a number"),
        ("", "expected the number of images"),
    ],
)
def test_a_malformed_table_is_told_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_table(tmp_path / "table.csv")


def zipped(path: Path, source: Path, *folders: str) -> None:
    """Pack what is in a folder as members below `folders`."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            archive.write(file, "/".join([*folders, file.relative_to(source).as_posix()]))


def arrange(kind: str, folder: Path) -> Path:
    """Pack the folder as some publisher does, and return what a user would name."""
    images, table = folder / "img_align_celeba", folder / "list_attr_celeba.txt"
    if kind == "Kaggle":  # once more in a folder of the same name, and a table with commas
        images.rename(folder / "inner")
        images.mkdir()
        (folder / "inner").rename(images / "img_align_celeba")
        table.unlink()
        (folder / "list_attr_celeba.csv").write_text(csv_table())
    elif kind == "Kaggle's zip":
        arrange("Kaggle", folder)
        (folder / "out").mkdir()
        zipped(folder / "out" / "archive.zip", images, "img_align_celeba")
        with zipfile.ZipFile(folder / "out" / "archive.zip", "a") as archive:
            archive.writestr("list_attr_celeba.csv", csv_table())
            archive.writestr("__MACOSX/img_align_celeba/._000001.jpg", b"")
        return folder / "out" / "archive.zip"
    elif kind == "the authors'":
        (folder / "out" / "Anno").mkdir(parents=True)
        (folder / "out" / "Img").mkdir()
        table.rename(folder / "out" / "Anno" / table.name)
        zipped(folder / "out" / "Img" / "img_align_celeba.zip", images, "img_align_celeba")
        return folder / "out"
    elif kind == "torchvision":
        (folder / "root" / "celeba").mkdir(parents=True)
        for path in (images, table):
            path.rename(folder / "root" / "celeba" / path.name)
        return folder / "root"
    elif kind == "capitals":
        for path in sorted(images.iterdir()):
            path.rename(path.with_suffix(".JPG"))
    elif kind == "links":
        images.rename(folder / "elsewhere")
        (folder / "out").mkdir()
        (folder / "out" / "img_align_celeba").symlink_to(folder / "elsewhere")
        (folder / "out" / "circle").symlink_to(folder / "out")
        table.rename(folder / "out" / table.name)
        return folder / "out"
    return folder


@pytest.mark.parametrize("kind", ["Kaggle", "Kaggle's zip", "the authors'", "torchvision", "capitals", "links"])
def test_a_data_set_is_read_however_it_is_packed(
    kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = open_folder(folder, tmp_path_factory.mktemp("cache"))
    faces = open_folder(arrange(kind, folder), tmp_path_factory.mktemp("cache"))
    np.testing.assert_array_equal(faces[:], plain[:])
    np.testing.assert_array_equal(faces.table.values, VALUES)
    assert faces.sha256 == plain.sha256


def test_a_folder_of_own_pictures_has_a_table_of_any_name_for_its_images(tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / "own" / str(index)).mkdir(parents=True)
        Image.fromarray(picture(index)).save(tmp_path / "own" / str(index) / "me.png")
    (tmp_path / "own" / "attributes.csv").write_text("file,Happy\n0/me.png,1\n1/me.png,0\n2/me.png,1\n")
    faces = open_folder(tmp_path / "own", tmp_path / "cache", names=OWN_TABLES)
    assert faces.source.startswith("folder:") and faces.table.names == ("Happy",)
    np.testing.assert_array_equal(faces.table.values[:, 0], [1, -1, 1])
    resized = Image.fromarray(picture(1)).resize((128, 128), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(faces[1], resized)
    (tmp_path / "own" / "attributes.csv").write_text("file,Happy\nme.png,1\n")
    with pytest.raises(UserError, match=r"me.png is there 3 times, as .*0/me.png and .*1/me.png; expected once"):
        open_folder(tmp_path / "own", tmp_path / "cache", names=OWN_TABLES)
    (tmp_path / "own" / "attributes.csv").unlink()
    bare = open_folder(tmp_path / "own", tmp_path / "cache", names=OWN_TABLES)
    assert bare.table.ids == ("0/me.png", "1/me.png", "2/me.png") and bare.table.values.shape == (3, 0)
    np.testing.assert_array_equal(bare[1], resized)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no pictures, expected files that end in"):
        open_folder(tmp_path / "empty", tmp_path / "cache", names=OWN_TABLES)


def test_folders_with_equal_names_and_sizes_are_not_mixed_up(tmp_path: Path) -> None:
    for place, index in (("one", 0), ("other", 5)):
        (tmp_path / place).mkdir()
        Image.fromarray(picture(index)).save(tmp_path / place / "frame.bmp")
        (tmp_path / place / "attributes.csv").write_text("file,Happy\nframe.bmp,1\n")
    one, other = (open_folder(tmp_path / place, tmp_path / "cache", names=OWN_TABLES) for place in ("one", "other"))
    assert np.abs(one[0].astype(int) - other[0]).max() > 10
    (tmp_path / "one" / "attributes.csv").write_text("file,Happy\nframe.bmp,1\nframe.jpg,0\n")
    with pytest.raises(UserError, match=r"frame.bmp is the picture of 2 rows, first frame.bmp; expected one for each"):
        open_folder(tmp_path / "one", tmp_path / "cache", names=OWN_TABLES)


def test_missing_and_unlisted_images_are_skipped_if_asked(folder: Path) -> None:
    (folder / "img_align_celeba" / IDS[3]).unlink()
    Image.fromarray(picture(0)).save(folder / "img_align_celeba" / "x.jpg")
    with pytest.raises(
        UserError, match=r"first 000004\.jpg; 1 images have no row, first x\.jpg; --skip-bad leaves them out"
    ):
        open_folder(folder, folder / "cache")
    faces = open_folder(folder, folder / "cache", skip_bad=True)
    assert faces.skipped == {IDS[3]: "cannot be read (the image is missing)", "x.jpg": "has no row in the table"}
    assert faces.table.ids == (*IDS[:3], *IDS[4:])


def test_an_image_that_was_repaired_is_read_again(folder: Path, tmp_path: Path) -> None:
    """Of the same size, so that nothing but the content tells."""
    whole = open_folder(folder, tmp_path / "whole")
    path = folder / "img_align_celeba" / IDS[5]
    content = path.read_bytes()
    path.write_bytes(b"\0" * len(content))
    assert set(open_folder(folder, folder / "cache", skip_bad=True).skipped) == {IDS[5]}
    path.write_bytes(content)
    repaired = open_folder(folder, folder / "cache")
    assert repaired.skipped == {} and repaired.sha256 == whole.sha256
    np.testing.assert_array_equal(repaired[:], whole[:])


@pytest.mark.parametrize("zipped", [False, True])
def test_an_image_that_was_edited_is_read_again(zipped: bool, tmp_path: Path) -> None:
    """A BMP, of the same size, in place: the cache has the old pixels, which were good."""
    own, black = tmp_path / "own", np.zeros((218, 178, 3), np.uint8)
    own.mkdir()
    (own / "attributes.csv").write_text("id,Smiling\na.bmp,1\nb.bmp,0\n")
    for name in "ab":
        Image.fromarray(black).save(own / f"{name}.bmp")
    for level in (0, 255):
        Image.fromarray(black + np.uint8(level)).save(own / "a.bmp")
        if zipped:
            shutil.make_archive(str(tmp_path / "packed" / "own"), "zip", own)
        faces = open_folder(tmp_path / "packed" if zipped else own, tmp_path / "cache", names=OWN_TABLES)
        assert faces[0].max() == faces[0].min() == level and faces[1].max() == 0


@pytest.mark.parametrize("resize", get_args(Resize))
def test_images_are_resized_as_keras_does_and_kept_apart(resize: Resize, folder: Path) -> None:
    import keras

    faces = open_folder(folder, folder / "cache", decoding=Decoding(64, resize))
    for row in (0, 7):
        path = folder / "img_align_celeba" / IDS[row]
        theirs = keras.utils.load_img(path, target_size=(64, 64), interpolation=resize)
        np.testing.assert_array_equal(faces[row], np.asarray(theirs))
    other = open_folder(folder, folder / "cache", decoding=Decoding(64, resize, "tensorflow"))
    decoded = Image.fromarray(decode_as_tensorflow(path.read_bytes()))
    np.testing.assert_array_equal(other[7], decoded.resize((64, 64), Image.Resampling[resize.upper()]))
    assert len(list((folder / "cache").iterdir())) == 2
    assert other.sha256 != faces.sha256


PREPARE = """
import io, json, sys
import tensorflow_datasets as tfds

def examples(self, rows):
    features = self.info.features
    for row in rows:
        yield row, {
            "image": io.BytesIO(open(f"{SOURCE}/{row}.jpg", "rb").read()),
            "attributes": {name: (row >> bit) % 2 == 1 for bit, name in enumerate(features["attributes"])},
            "landmarks": dict.fromkeys(features["landmarks"], 0),
            "identity": dict.fromkeys(features["identity"], row),
        }

def splits(self, dl_manager):
    return {split: examples(self, rows) for split, rows in SPLITS.items()}

SPLITS = {"validation": range(6, 9), "test": range(9, 11), "train": range(6)}
builder = tfds.builder_cls("celeb_a")
builder._split_generators = splits
for SOURCE, target in (sys.argv[1:3], sys.argv[3:5]):
    builder(data_dir=target, file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def tfds_directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Data of TFDS's own builder `celeb_a`, sound and with two bad images, and a folder of the sound JPEGs.

    Of the builder only the download is replaced, in a process of its own. Attribute k of image i is bit k of i.
    """
    root = tmp_path_factory.mktemp("tfds")
    for name in ("sound", "bad"):
        (root / name).mkdir()
        for row in range(COUNT):
            Image.fromarray(picture(row)).save(root / name / f"{row}.jpg", quality=95)
    Image.fromarray(picture(2)[..., 0]).save(root / "bad" / "2.jpg")
    (root / "bad" / "9.jpg").write_bytes((root / "sound" / "9.jpg").read_bytes()[:700])
    command = [sys.executable, "-c", PREPARE]
    command += [str(root / name) for name in ("sound", "sound_tfds", "bad", "bad_tfds")]
    subprocess.run(command, check=True, capture_output=True)
    return root / "sound_tfds", root / "bad_tfds", root / "sound"


def numbers_of(faces: CelebA) -> list[int]:
    """Which image each row is, from its attributes."""
    return [sum(1 << bit for bit in range(4) if row[bit] > 0) for row in faces.table.values]


def test_tfds_gives_the_table_and_the_pixels_of_the_folder(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, _, jpegs = tfds_directories
    monkeypatch.setenv("TFDS_DATA_DIR", str(sound))
    block_tensorflow(monkeypatch)
    faces = open_tfds("", tmp_path / "cache")
    ids = [
        f"{split}-{row:06d}" for split, count in (("train", 6), ("validation", 3), ("test", 2)) for row in range(count)
    ]
    assert faces.table.ids == tuple(ids) and len(faces.table.names) == 40 and "Smiling" in faces.table.names
    numbers = numbers_of(faces)
    assert [sorted(numbers[:6]), sorted(numbers[6:9]), sorted(numbers[9:])] == [[*range(6)], [6, 7, 8], [9, 10]]
    expected = [[1 if number >> bit & 1 else -1 for bit in range(40)] for number in numbers]
    np.testing.assert_array_equal(faces.table.values, np.asarray(expected, np.int8))

    folder = tmp_path / "folder"
    shutil.copytree(jpegs, folder / "img_align_celeba")
    rows = [f"{number}.jpg {' '.join(map(str, row))}" for number, row in zip(numbers, expected, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(COUNT), " ".join(faces.table.names), *rows]))
    same = open_folder(folder, tmp_path / "cache")
    np.testing.assert_array_equal(faces[:], same[:])
    np.testing.assert_array_equal(faces.table.values, same.table.values)
    assert faces.sha256 == same.sha256 and (faces.source, same.source) == ("tfds", f"celeba:{folder}")


def test_tfds_in_the_order_of_its_own_reader(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_directories[0]))
    read = tfds.data_source("celeb_a", data_dir=tfds_directories[0], decoders={"image": tfds.decode.SkipDecoding()})
    records = [record for split in ("train", "validation", "test") for record in read[split]]
    faces = open_tfds("celeb_a", tmp_path)
    assert numbers_of(faces) == [record["identity"]["Identity_No"] for record in records]
    for name, column in zip(faces.table.names, faces.table.values.T, strict=True):
        assert [record["attributes"][name] for record in records] == (column > 0).tolist()
    assert faces.source == "tfds:celeb_a"


def test_later_starts_from_tfds_read_no_record(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow_datasets.proto import tf_example_pb2

    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_directories[0]))
    first = open_tfds("", tmp_path)
    monkeypatch.setattr(tf_example_pb2, "Example", None)
    again = open_tfds("", tmp_path)
    assert again.describe() == first.describe() and again.table.ids == first.table.ids
    np.testing.assert_array_equal(again.table.values, first.table.values)


def test_an_interrupted_preparation_from_tfds_goes_on(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_directories[0]))
    monkeypatch.setattr(celeba.os, "cpu_count", lambda: 1)  # so that images are noted in order
    check_resumption(lambda cache: open_tfds("", tmp_path / cache), monkeypatch)


def test_bad_images_of_tfds_are_named_unless_they_are_skipped(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound, bad, _ = tfds_directories
    monkeypatch.setenv("TFDS_DATA_DIR", str(sound))
    whole = open_tfds("", tmp_path)
    numbers = numbers_of(whole)
    names = {number: whole.table.ids[numbers.index(number)] for number in (2, 9)}
    monkeypatch.setenv("TFDS_DATA_DIR", str(bad))
    with pytest.raises(UserError, match=rf"2\.1\.0/{names[2]}: has mode L, expected RGB; 2 of 11 images are bad"):
        open_tfds("", tmp_path)
    faces = open_tfds("", tmp_path, skip_bad=True)
    assert set(faces.skipped) == set(names.values()) and "cannot be decoded" in faces.skipped[names[9]]
    kept = [row for row, number in enumerate(numbers) if number not in (2, 9)]
    assert numbers_of(faces) == [numbers[row] for row in kept]
    np.testing.assert_array_equal(faces[:], whole[kept])


def test_a_tfds_directory_that_is_damaged_or_of_another_format_is_told(
    tfds_directories: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "celeb_a" / "2.1.0"
    shutil.copytree(tfds_directories[0] / "celeb_a" / "2.1.0", version)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (train,) = version.glob("*train.array_record*")
    content = train.read_bytes()
    for damaged in (content[:1000], content[:5000] + bytes(20_000) + content[25_000:]):
        train.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"2\.1\.0: split 'train\+validation\+test' cannot be read \(.*prepare it anew"
        ):
            open_tfds("", tmp_path / "cache")
        assert not (tmp_path / "cache").exists()
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "riegeli"))
    for path in version.glob("*array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "riegeli")))
    with pytest.raises(UserError, match=r"is in riegeli format.*`tfds build celeb_a --file_format=array_record`"):
        open_tfds("", tmp_path / "cache")


def test_tfrecords_of_tfds_give_the_same_pixels_without_tensorflow(
    tfds_directories: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_directories[0]))
    expected = open_tfds("", tmp_path / "cache")
    write_as_tfrecord(tfds_directories[0] / "celeb_a" / "2.1.0", tmp_path / "celeb_a" / "2.1.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    block_tensorflow(monkeypatch)
    faces = open_tfds("", tmp_path / "cache")
    np.testing.assert_array_equal(faces[:], expected[:])
    assert faces.sha256 == expected.sha256 and faces.table.ids == expected.table.ids


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"celeb_a is not prepared under .*; preparing it needs TensorFlow: pip install"),
        ("nonesuch", "nonesuch .*: no such data set; expected e.g. celeb_a"),
        ("cifar10", r"cifar10 has features .*'label'\] and images \(32, 32, 3\), expected image .* and attributes"),
        ("imdb_reviews", "has features .* and images None"),
    ],
)
def test_a_tfds_name_that_is_unsuitable_is_told(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    block_tensorflow(monkeypatch)
    with pytest.raises(UserError, match=message):
        open_tfds(name, tmp_path / "cache")


def test_directions_from_jpegs_are_those_of_the_renders_but_for_the_loss(tmp_path: Path) -> None:
    """The encoder is linear, so the error of a mean latent is the encoded mean of the errors of pixels."""
    images, attributes = (np.asarray(part) for part in paint_faces(jax.random.key(0), np.arange(128))[:2])
    (tmp_path / "img_align_celeba").mkdir()
    for name, image in zip(ids := [f"{row}.jpg" for row in range(128)], images, strict=True):
        Image.fromarray(image).save(tmp_path / "img_align_celeba" / name, quality=95)
    rows = [f"{name} {' '.join(map(str, row))}" for name, row in zip(ids, attributes, strict=True)]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["128", " ".join(ATTRIBUTES), *rows]))
    read = open_folder(tmp_path, tmp_path / "cache")
    projection = np.random.default_rng(0).standard_normal((128 * 128 * 3, 32), np.float32) / 222

    def encode(batch: np.ndarray) -> np.ndarray:
        return batch.reshape(len(batch), -1).astype(np.float32) / 255 @ projection

    def found(source: object) -> Directions:
        weights = np.ones(attributes.shape, np.float32)
        read = read_in_order(source, np.arange(128), 50, attributes, weights[None])
        return find_directions(encode, read, ATTRIBUTES)

    rendered, from_disk = found(images), found(read)
    error = encode(read[:]) - encode(images)
    for name, unit, length in zip(rendered.names, rendered.of("raw"), rendered.distances[0], strict=True):
        has = attributes[:, ATTRIBUTES.index(name)] > 0
        ratio = np.linalg.norm(error[has].mean(axis=0) - error[~has].mean(axis=0)) / length
        cosine = float(unit @ from_disk.vector(name, "raw"))
        assert ratio < 0.15  # the loss of JPEG, which halves the resolution of colour
        assert cosine >= np.sqrt(1 - ratio**2) - 1e-6
