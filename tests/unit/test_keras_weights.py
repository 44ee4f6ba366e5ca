"""Weights that Keras saved: one set of arrays from every format, and one line about whatever is wrong with a file."""

import contextlib
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlab.errors import UserError
from latentlab.storage.keras_weights import assign, read

MADE = Path(__file__).parents[1] / "data" / "keras"  # by make.py there
EXPECTED = dict(np.load(MADE / "expected.npz"))
HDF5_FILES = ("keras3_subclassed.weights.h5", "keras3_functional.weights.h5", "keras3_whole.h5")
HDF5_FILES += ("keras2_whole.h5", "keras2_weights_only.h5", "keras2_subclassed.h5")
KERAS_FILES = ("keras3_subclassed.keras", "keras3_functional.keras")
saved_by_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # on NumPy 2
CHECKPOINTS = ("weights", "weights/checkpoint", "weights.tar.gz")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the files that Keras 3 and Keras 2 saved."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("keras.tar.xz", "tf_keras.tar.xz"):
        with tarfile.open(MADE / name) as archive:
            archive.extractall(folder, filter="data")
    return folder


def assert_same(arrays: dict[str, np.ndarray], expected: dict[str, np.ndarray] = EXPECTED) -> None:
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def message_of(path: Path, **arguments: str) -> str:
    """Returns the one line that reading the file says, which names the file."""
    with pytest.raises(UserError) as caught:
        read(path, **arguments)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def without_names(source: Path, target: Path) -> Path:
    """Copies an HDF5 file as the first releases of Keras 3 wrote it, without the layers' names."""
    shutil.copy(source, target)
    with h5py.File(target, "r+") as file:
        file.visititems(lambda path, entry: entry.attrs.pop("name", None) and None)
        file["vars"].attrs.pop("name", None)
    return target


@pytest.mark.parametrize("file", HDF5_FILES + KERAS_FILES)
def test_every_format_gives_the_same_arrays_under_the_same_names(saved, file):
    assert_same(read(saved / file))


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_tensorflow_checkpoint_gives_the_same_arrays_under_the_same_names(saved, path):
    """As a folder, by its prefix, and packed."""
    assert_same(read(saved / path))


def test_keras_file_without_names_in_hdf5_takes_them_from_its_configuration(saved, tmp_path):
    target = tmp_path / "old.keras"
    with zipfile.ZipFile(saved / "keras3_functional.keras") as new, zipfile.ZipFile(target, "w") as old:
        new.extract("model.weights.h5", tmp_path)
        old.write(without_names(tmp_path / "model.weights.h5", tmp_path / "old.h5"), "model.weights.h5")
        old.writestr("config.json", new.read("config.json"))
    assert_same(read(target))


def test_weights_without_names_keep_the_groups_of_keras(saved, tmp_path):
    groups = {
        "encoder_conv_0": "conv2d",
        "encoder_conv_1": "conv2d_1",
        "encoder_norm_0": "batch_normalization",
        "mu": "dense",
        "log_var": "dense_1",
        "decoder_dense": "dense",
        "decoder_conv_t0": "conv2d_transpose",
        "decoder_conv_t1": "conv2d_transpose_1",
        "decoder_norm_0": "batch_normalization",
    }
    expected = {}
    for name, array in EXPECTED.items():
        model, layer, variable = name.split("/")
        expected[f"{model}/{groups[layer]}/{variable}"] = array
    assert_same(read(without_names(saved / HDF5_FILES[0], tmp_path / "old.weights.h5")), expected)


@saved_by_keras
def test_layers_of_other_kinds_keep_their_numbers_and_attributes_their_names(tmp_path):
    import keras

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.project = keras.layers.Dense(3, name="by_another_name")
            self.scales = [
                keras.layers.LayerNormalization(name="scale"),
                keras.layers.Dense(2, use_bias=False, name="last"),
            ]

        def call(self, x):
            for layer in (self.project, *self.scales):
                x = layer(x)
            return x

    with jax.numpy_rank_promotion("allow"):
        keras.Sequential([keras.Input((4,)), Block()]).save_weights(tmp_path / "w.weights.h5")
    arrays = read(tmp_path / "w.weights.h5")
    assert {name: array.shape for name, array in arrays.items()} == {
        "block/project/kernel": (4, 3),
        "block/project/bias": (3,),
        "block/scales/scale/0": (3,),
        "block/scales/scale/1": (3,),
        "block/scales/last/kernel": (3, 2),
    }


@saved_by_keras
def test_bfloat16_is_read_as_such(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype="bfloat16", name="half")])
    model.save_weights(tmp_path / "w.weights.h5")
    kernel = read(tmp_path / "w.weights.h5")["half/kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, np.asarray(model.layers[0].kernel))


def test_long_lists_of_names_continue_in_numbered_attributes(tmp_path):
    """As Keras writes them where they pass the 64 KB that an HDF5 attribute may have."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for number in range(11):
            file.attrs[f"layer_names{number}"] = [f"block/layer_{number}".encode()]
            group = file.create_group(f"block/layer_{number}")
            group.attrs["weight_names"] = [b"kernel_1:0"]
            group["kernel_1:0"] = np.full(2, number, np.float32)
    assert {name: array[0] for name, array in read(tmp_path / "w.h5").items()} == {
        f"block/layer_{number}/kernel_1": number for number in range(11)
    }


def test_reading_keras_files_imports_neither_keras_nor_tensorflow(saved):
    script = (
        "import sys; from pathlib import Path; from latentlab.storage.keras_weights import read; "
        f"[read(Path({str(saved)!r}) / name) for name in {HDF5_FILES + KERAS_FILES}]; "
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("path", CHECKPOINTS)
def test_without_tensorflow_a_checkpoint_says_what_to_install(saved, monkeypatch, path):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    message = message_of(saved / path)
    assert "a checkpoint needs TensorFlow" in message and 'pip install -e ".[tfds]"' in message


def test_md5_is_checked_where_it_is_given(saved, tmp_path):
    path = saved / "keras2_weights_only.h5"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    assert_same(read(path, md5=md5.upper()))
    assert f"MD5 {md5}, expected {'0' * 32}" in message_of(path, md5="0" * 32)
    assert "No such file" in message_of(tmp_path / "none.h5", md5=md5)
    for path in CHECKPOINTS[:2]:
        assert "an MD5 is that of one file" in message_of(saved / path, md5=md5)


FOREIGN = {
    "text.h5": (b"not weights", r"begins with b'not weig', expected HDF5"),
    "empty.h5": (b"", r"begins with b'', expected"),
    "short.h5": (b"\x89HDF\r\n\x1a\n", r"truncated|Unable"),
    "cut.keras": (b"PK\x03\x04" + bytes(50), r"not a zip file"),
    "cut.tar.gz": (b"\x1f\x8b" + bytes(50), r"method|gzip|file"),
}


@pytest.mark.parametrize(("name", "content", "words"), [(name, *rest) for name, rest in FOREIGN.items()], ids=FOREIGN)
def test_foreign_file_is_told_with_its_path(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message_of(tmp_path / name)
    with pytest.raises(UserError, match=words):
        read(tmp_path / name)


def test_missing_file_and_empty_folder_are_told(tmp_path):
    assert "No such file" in message_of(tmp_path / "none.h5")
    assert "0 files end in .index, expected one, or the prefix" in message_of(tmp_path)


def test_other_contents_of_hdf5_and_zip_are_told(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.zeros((3, 4), np.float32)
    assert "holds no weights in a layout of Keras" in message_of(tmp_path / "other.h5")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    assert "a zip without config.json" in message_of(tmp_path / "other.npz")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.npz", b"")
    assert "a zip without model.weights.h5" in message_of(tmp_path / "other.keras")


@pytest.mark.parametrize("name", HDF5_FILES + KERAS_FILES)
@settings(max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_told_with_its_path(saved, tmp_path_factory, name, share):
    content = (saved / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / name
    path.write_bytes(content[: int(share * len(content))])
    message_of(path)


@settings(max_examples=20)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_archive_is_told_unless_only_padding_is_gone(saved, tmp_path_factory, share):
    content = (saved / "weights.tar.gz").read_bytes()
    path = tmp_path_factory.mktemp("cut") / "weights.tar.gz"
    path.write_bytes(content[: int(share * len(content))])
    if share < 0.95:
        message_of(path)
    else:
        with contextlib.suppress(UserError):
            assert_same(read(path))


def test_hdf5_that_leads_out_of_the_file_or_announces_what_it_lacks_is_refused(tmp_path):
    def layer(path, fill):
        with h5py.File(path, "w") as file:
            fill(file.create_group("dense/vars"))
        return path

    np.zeros(4, np.float32).tofile(tmp_path / "raw")
    secret = layer(tmp_path / "secret.h5", lambda group: group.create_dataset("0", data=np.ones((2, 2), np.float32)))
    assert read(secret)["dense/kernel"].shape == (2, 2)

    external = h5py.ExternalLink(str(secret), "/dense/vars/0")
    linked = layer(tmp_path / "linked.h5", lambda group: group.__setitem__("0", external))
    assert "only a link" in message_of(linked)

    def announced(group):
        group.create_dataset("0", (1 << 20, 1 << 20), np.float32, chunks=(64, 64))

    def elsewhere(group):
        group.create_dataset("0", (2, 2), np.float32, external=[(str(tmp_path / "raw"), 0, 16)])

    for number, fill in enumerate((announced, elsewhere)):
        assert "does not hold" in message_of(layer(tmp_path / f"{number}.h5", fill))


def test_two_weights_of_one_name_are_told(saved, tmp_path):
    shutil.copy(saved / HDF5_FILES[0], tmp_path / "twice.h5")
    with h5py.File(tmp_path / "twice.h5", "r+") as file:
        file["encoder/layers/conv2d_1/vars"].attrs["name"] = "encoder_conv_0"
    assert "two weights are called encoder/encoder_conv_0/kernel" in message_of(tmp_path / "twice.h5")


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        with h5py.File(tmp_path / "spoilt.h5", "w") as file:
            file.create_group("dense/vars").create_dataset("0", data=np.float32([[1, value]]))
        assert "kernel has 1 entries that are NaN or infinite" in message_of(tmp_path / "spoilt.h5")


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (member("../escaped"), "outside the destination"),
        (member("a/../../escaped"), "outside the destination"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "member link is a link or a device"),
        (member("link", tarfile.LNKTYPE, "../escaped"), "is a link or a device"),
        (member("null", tarfile.CHRTYPE), "is a link or a device"),
        (member("pipe", tarfile.FIFOTYPE), "is a link or a device"),
    ],
)
def test_archive_that_reaches_out_of_its_folder_is_refused_and_nothing_is_left(tmp_path, monkeypatch, entry, words):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    assert words in message_of(tar_of(tmp_path / "w.tar.gz", member("checkpoint"), entry))
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["unpacked", "w.tar.gz"]


def test_missing_shard_or_index_is_named(saved, tmp_path):
    shutil.copytree(saved / "weights", tmp_path, dirs_exist_ok=True)
    shard = tmp_path / "checkpoint.data-00000-of-00001"
    shard.unlink()
    for path in (tmp_path, tmp_path / "checkpoint"):
        assert f"{shard}; No such file" in message_of(path)
    (tmp_path / "checkpoint.index").unlink()
    assert "0 files end in .index" in message_of(tmp_path)


@pytest.mark.parametrize("file", ["checkpoint.index", "checkpoint.data-00000-of-00001"])
@pytest.mark.parametrize("at", [0.02, 0.5, 0.9])
def test_damaged_checkpoint_is_told_with_its_path(saved, tmp_path, file, at):
    """TensorFlow keeps a checksum of every block and tensor."""
    shutil.copytree(saved / "weights", tmp_path, dirs_exist_ok=True)
    content = bytearray((tmp_path / file).read_bytes())
    content[int(at * len(content))] ^= 0xFF
    (tmp_path / file).write_bytes(content)
    assert "no readable weights" in message_of(tmp_path)


def test_one_of_several_checkpoints_is_to_be_chosen_by_its_prefix(saved, tmp_path):
    shutil.copytree(saved / "weights", tmp_path, dirs_exist_ok=True)
    (tmp_path / "._checkpoint.index").touch()  # macOS packs such files
    assert_same(read(tmp_path))
    (tmp_path / "other.index").touch()
    assert "2 files end in .index, expected one, or the prefix of a checkpoint" in message_of(tmp_path)
    assert_same(read(tmp_path / "checkpoint"))


def test_checkpoint_of_tensorflow_1_is_told(tmp_path):
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("w", [2], use_resource=False)
        session.run(variable.initializer)
        tf.compat.v1.train.Saver([variable]).save(session, str(tmp_path / "model"), write_meta_graph=False)
    assert "a checkpoint by names, as TensorFlow 1 wrote it" in message_of(tmp_path / "model")


def network() -> tuple[dict, dict[str, np.ndarray], dict[str, str]]:
    template = {
        "params": {"conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 2), jnp.float32), "bias": jnp.zeros(2)}},
        "batch_stats": {"norm": {"mean": jnp.zeros(2)}},
    }
    arrays = {
        "c/kernel": np.arange(18, dtype=np.float64).reshape(3, 3, 1, 2),
        "c/bias": np.ones(2, np.float16),
        "n/moving_mean": np.full(2, 3, np.float32),
    }
    names = {
        "params/conv/kernel": "c/kernel",
        "params/conv/bias": "c/bias",
        "batch_stats/norm/mean": "n/moving_mean",
    }
    return template, arrays, names


def test_assign_puts_every_array_in_its_place_as_float32():
    template, arrays, names = network()
    tree = assign(template, arrays, names)
    assert jax.tree.structure(tree) == jax.tree.structure(template)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tree["params"]["conv"]["kernel"], arrays["c/kernel"])
    np.testing.assert_array_equal(tree["params"]["conv"]["bias"], arrays["c/bias"])
    np.testing.assert_array_equal(tree["batch_stats"]["norm"]["mean"], arrays["n/moving_mean"])


BIJECTION = {
    "missing array": (
        lambda arrays, names: arrays.pop("c/bias"),
        "weights: params/conv/bias: missing, expected c/bias of shape (2,)",
    ),
    "missing name": (
        lambda arrays, names: names.pop("params/conv/bias"),
        "weights: params/conv/bias: missing, expected an array of shape (2,)",
    ),
    "misshapen": (
        lambda arrays, names: arrays.update({"c/kernel": np.zeros((3, 3, 2, 1))}),
        "weights: params/conv/kernel: c/kernel has shape (3, 3, 2, 1), expected (3, 3, 1, 2)",
    ),
    "extra array": (
        lambda arrays, names: arrays.update({"d/bias": np.zeros(5)}),
        "weights: d/bias of shape (5,) has 0 places in the network, expected 1",
    ),
    "extra name": (
        lambda arrays, names: names.update({"params/dense/bias": "c/bias"}),
        "weights: params/dense/bias: the network has no such weight, but c/bias is to go there",
    ),
    "wanted twice": (
        lambda arrays, names: names.update({"params/conv/bias": "n/moving_mean"}),
        "weights: c/bias of shape (2,) has 0 places in the network, expected 1",
    ),
    "wanted twice, for want of it": (
        lambda arrays, names: (names.update({"params/conv/bias": "n/moving_mean"}), arrays.pop("c/bias")),
        "weights: n/moving_mean of shape (2,) has 2 places in the network, expected 1",
    ),
}


@pytest.mark.parametrize(("spoil", "words"), BIJECTION.values(), ids=BIJECTION)
def test_whatever_is_no_bijection_is_told_with_path_and_shapes(spoil, words):
    template, arrays, names = network()
    spoil(arrays, names)
    with pytest.raises(UserError) as caught:
        assign(template, arrays, names)
    assert words in str(caught.value)


def test_all_that_does_not_fit_is_listed():
    template, arrays, names = network()
    del arrays["c/bias"]
    arrays["extra"] = np.zeros(3)
    arrays["c/kernel"] = np.zeros((1, 1))
    with pytest.raises(UserError) as caught:
        assign(template, arrays, names)
    told = str(caught.value).removeprefix("weights: ").split("; ")
    assert len(told) == 3
    for words in ("has shape (1, 1)", "missing, expected c/bias", "extra of shape (3,)"):
        assert any(words in line for line in told), words


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda arrays: {f"{name}_": array for name, array in arrays.items()}, "its layers are called otherwise"),
        (lambda arrays: {name: a for name, a in arrays.items() if "norm" not in name}, "so it is a network without it"),
        (lambda arrays: {"other": np.zeros(7)}, "None is there, so the file is of another network"),
        (lambda arrays: {name: a for name, a in arrays.items() if "dense" not in name}, "holds a part of the network"),
        (
            lambda arrays: {name: np.zeros((*a.shape, 2)) for name, a in arrays.items()},
            "the same network in another size",
        ),
    ],
)
def test_the_cause_of_weights_that_do_not_fit_is_guessed(change, cause):
    arrays = {"conv/kernel": np.zeros((3, 3)), "norm/gamma": np.zeros(3), "dense/kernel": np.zeros((4, 2))}
    template = {name: jax.ShapeDtypeStruct(array.shape, np.float32) for name, array in arrays.items()}
    tree = {"conv": {"kernel": 0}, "norm": {"gamma": 0}, "dense": {"kernel": 0}}
    template = jax.tree.map_with_path(lambda path, _: template["/".join(key.key for key in path)], tree)
    with pytest.raises(UserError, match=cause):
        assign(template, change(arrays), {name: name for name in arrays})


def test_hdf5_packed_with_gzip_is_told(tmp_path, saved):
    packed = tmp_path / "model.h5.gz"
    packed.write_bytes(gzip.compress((saved / HDF5_FILES[0]).read_bytes()))
    assert "HDF5 packed with gzip, expected it unpacked: gunzip it" in message_of(packed)
