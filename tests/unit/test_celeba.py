"""CelebA as a folder and as TFDS prepares it: what is read, what is kept, and every way in which it can be wrong."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from latent_arith.datasets import celeba
from latent_arith.datasets.batches import read_in_order
from latent_arith.datasets.celeba import CelebA, open_celeba, open_tfds, read_table
from latent_arith.datasets.synthetic_faces import ATTRIBUTES, paint_faces
from latent_arith.directions import Directions, find_directions
from latentlab.errors import UserError
from tests.absent import block_tensorflow

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
    check_resumption(lambda cache: open_celeba(folder, folder / cache), monkeypatch)


def check_resumption(opened: Callable[[str], CelebA], monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the second of three chunks; what comes after decodes that and the third and ends as if nothing was."""
    decode, decoded = celeba._decode, []

    def noted(encoded: Path | bytes, size: int) -> np.ndarray | str:
        decoded.append(encoded)
        return decode(encoded, size)

    whole = opened("whole")
    with monkeypatch.context() as patched:
        patched.setattr(celeba, "_decode", noted)
        opened("noted")
    seventh = decoded[6]

    def failing(encoded: Path | bytes, size: int) -> np.ndarray | str:
        if encoded == seventh:
            raise KeyboardInterrupt
        return decode(encoded, size)

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
    content[len(content) // 2] ^= 1  # of the second of three chunks
    stored.write_bytes(content)
    damaged = open_celeba(folder, folder / "cache")
    assert damaged[[0, 9]].shape == (2, 128, 128, 3)
    for _ in range(2):
        with pytest.raises(UserError, match="images from 4 on are not as recorded; delete"):
            damaged[5]
    stored.write_bytes(content[:-5])
    with pytest.raises(UserError, match=r"images\.npy: cannot be read"):
        open_celeba(folder, folder / "cache")


@pytest.mark.parametrize("fault", ["name", "hash", "json"])
def test_a_change_of_the_record_is_noticed(folder: Path, fault: str) -> None:
    """A bad image that it forgets would come out black."""
    Image.fromarray(picture(2)[..., 0]).save(folder / "img_align_celeba" / IDS[2])
    open_celeba(folder, folder / "cache", skip_bad=True)
    (stored,) = (folder / "cache").rglob("prepared.json")
    text, record = stored.read_text(), json.loads(stored.read_text())
    changed = {
        "name": text.replace(IDS[2], IDS[3]),
        "hash": text.replace(record["chunks"][1], record["chunks"][0]),
        "json": text[:-9],
    }
    stored.write_text(changed[fault])
    with pytest.raises(UserError, match=r"prepared\.json:? (is damaged|cannot be read as JSON)"):
        open_celeba(folder, folder / "cache", skip_bad=True)


def test_of_two_that_prepare_at_once_one_does_and_the_other_waits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = celeba._decode, []

    def slow(encoded: Path | bytes, size: int) -> np.ndarray | str:
        decoded.append(encoded)
        time.sleep(0.02)
        return decode(encoded, size)

    monkeypatch.setattr(celeba, "_decode", slow)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: open_celeba(folder, folder / "cache"), range(2))
    assert len(decoded) == COUNT
    np.testing.assert_array_equal(one[:], other[:])


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
    same = open_celeba(folder, tmp_path / "cache")
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
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    for path in version.glob("*array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(UserError, match=r"is in tfrecord format.*`tfds build celeb_a --file_format=array_record`"):
        open_tfds("", tmp_path / "cache")


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
    read = open_celeba(tmp_path, tmp_path / "cache")
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
