"""Files that unpack to more than anybody wants: refused by what they announce, before memory is taken."""

import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from adversarial import photos
from latent_arith.datasets import celeba
from latentlab.errors import UserError
from latentlab.image_formats import read_idx
from latentlab.storage import hdf5, keras_weights, limits, run_directory
from latentlab.storage.metrics import MetricsLog

ZEROS = bytes(10**6)


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES", 10**5)
    monkeypatch.setattr(limits, "MOST_PIXELS", 10**4)


def npz(path: Path) -> None:
    np.savez_compressed(path, zeros=np.frombuffer(ZEROS, np.uint8))


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", ZEROS)


def keras_configuration(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", ZEROS)


def tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("model.index")
        member.size = len(ZEROS)
        archive.addfile(member, io.BytesIO(ZEROS))


def one_large(path: Path) -> None:
    with h5py.File(path, "w") as root:
        root.create_dataset("layers/dense/vars/0", data=np.zeros((500, 500), np.float32), compression="gzip")


def many_small(path: Path) -> None:
    with h5py.File(path, "w") as root:
        for number in range(20):
            root.create_dataset(f"layers/dense/vars/{number}", data=np.zeros((50, 50), np.float32))


TOO_MUCH = r"unpacks to [\d,]+ bytes, expected at most 100,000"


@pytest.mark.parametrize(("make", "read"), [(npz, run_directory.read_npz), (tar, keras_weights.read)])
def test_what_unpacks_to_too_much_is_refused(
    make: Callable[[Path], None], read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "bomb.npz"
    make(path)
    with pytest.raises(UserError, match=TOO_MUCH):
        read(path)


@pytest.mark.parametrize("make", [keras, one_large, many_small])
def test_what_hdf5_unpacks_to_too_much_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    """Here in this process, where the limit is small; `hdf5.read` calls the same function in another one."""
    path = tmp_path / "bomb.keras"
    make(path)
    with pytest.raises(ValueError, match=TOO_MUCH):
        hdf5._pack(path)


def test_a_file_that_hdf5_hangs_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by fuzzing: two edits of a file of Keras's send the library's reader of attributes around in circles."""
    path = tmp_path / "hangs.h5"
    path.write_bytes(lzma.decompress((Path(__file__).parents[1] / "data" / "hangs.h5.xz").read_bytes()))
    monkeypatch.setattr(hdf5, "SECONDS", 5)
    with pytest.raises(UserError, match=r"hangs.h5: .*HDF5's library is not done with it after 5 s, so it is damaged"):
        keras_weights.read(path)


def test_a_reader_that_crashes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little memory for its libraries, say."""
    keras(tmp_path / "model.keras")
    monkeypatch.setattr(hdf5.sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match="it cannot be read"):
        keras_weights.read(tmp_path / "model.keras")
    killing = tmp_path / "killing"
    killing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killing.chmod(0o755)
    monkeypatch.setattr(hdf5.sys, "executable", str(killing))
    with pytest.raises(UserError, match="HDF5's library crashed on it, with signal 11"):
        keras_weights.read(tmp_path / "model.keras")


def test_a_configuration_that_is_too_large_is_refused(tmp_path: Path) -> None:
    keras_configuration(tmp_path / "bomb.keras")
    with pytest.raises(ValueError, match=TOO_MUCH):
        hdf5._configuration(tmp_path / "bomb.keras")


def test_a_configuration_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04")
    assert hdf5.configuration(tmp_path / "damaged.keras") is None


def test_an_idx_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x01" + (10**6).to_bytes(4, "big") + ZEROS))
    with pytest.raises(UserError, match=r"announces \(1000000,\), 1,000,000 bytes, expected at most 100,000"):
        read_idx(path, 1)


def test_images_of_too_many_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("RGB", (101, 100)).save(path)
    with pytest.raises(UserError, match=r"101×100 pixels, expected at most"):
        photos.read(path, 32)
    assert "101×100 pixels" in str(celeba._decode(path))


def test_nesting_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 10**5)
    with pytest.raises(UserError, match="cannot be read as JSON"):
        run_directory.read_json(path)
    assert MetricsLog(path).rows() == []
