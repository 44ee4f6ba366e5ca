"""Files that are damaged in every way a few edits allow, given to everything that reads files.

python -m tests.faults.fuzz [--inputs 20000] [--seed 0] [--readers NAME …] tries so many for every reader, each in a
process of its own with 4 GiB of memory, and prints a table; `test_fuzz` tries a few. What may come out is a result or
a `UserError`. Anything else is a crash: another exception, a process that dies, more memory, or more than 20 seconds.

Hypothesis draws the edits: bits flipped, numbers replaced by extreme ones, pieces cut out, repeated or swapped, the
rest cut off. Compressed formats are edited before they are compressed, too, so that the edits reach what is inside.
"""

import argparse
import dataclasses
import faulthandler
import gzip
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from adversarial import keras_model, photos
from adversarial.config import AdversarialConfig
from latent_arith import edits
from latent_arith.datasets import celeba
from latentlab.errors import UserError
from latentlab.experiment import Run
from latentlab.image_formats import read_idx
from latentlab.labeled_images import open_dataset
from latentlab.storage import hdf5, image_files, keras_weights, run_directory, torch_weights
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.tfds import TfRecords

KERAS = Path(__file__).parents[1] / "data" / "keras"
TORCH = Path(__file__).parents[1] / "data" / "torch"
MEMORY = 4 * 2**30
SECONDS = 20
EXTREMES = (
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x00\x00\x00",
    b"\x00\x00\x00\x80",
)
ROOT = Path(__file__).parents[2]


class Reader(NamedTuple):
    """What reads, and the whole files that inputs are made of; `inside` edits what a sample packs."""

    read: Callable[[Path], object]
    samples: Callable[[], list[bytes]]
    suffix: str
    pack: Callable[[bytes], bytes] | None = None


@st.composite
def edited(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample after one to six edits."""
    content = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["flip", "byte", "extreme", "cut", "repeat", "end", "swap", "text"]))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 512]))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif kind == "extreme":
            extreme = draw(st.sampled_from(EXTREMES))
            content[at : at + len(extreme)] = extreme
        elif kind == "cut":
            del content[at : at + length]
        elif kind == "repeat":
            content[at:at] = content[at : at + length] * draw(st.sampled_from([1, 2, 50]))
        elif kind == "end":
            del content[at:]
        elif kind == "swap":
            other = draw(st.integers(0, max(0, len(content) - 1)))
            content[at : at + length], content[other : other + length] = (
                content[other : other + length],
                content[at : at + length],
            )
        else:
            content[at:at] = draw(
                st.sampled_from([b"null", b"[[", b'{"a":', b"1e999", b"-", b"NaN", b"\\u0000", b"..", b"/"])
            )
    return bytes(content)


def attempt(reader: Reader, path: Path, content: bytes) -> bool:
    """Whether a file was refused; raises whatever but a UserError comes out."""
    path.write_bytes(content)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        reader.read(path)
    except UserError:
        return True
    finally:
        faulthandler.cancel_dump_traceback_later()
    return False


def fuzz(name: str, inputs: int, seed: int) -> int:
    """Tries so many inputs and returns how many were refused."""
    reader, refused = READERS[name], 0
    samples = reader.samples()
    strategy = edited(samples)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (reader.suffix.lstrip("/") if "/" in reader.suffix else f"input{reader.suffix}")
        for whole in samples:
            assert not attempt(reader, path, reader.pack(whole) if reader.pack else whole), (
                f"{name}: a whole file is refused"
            )

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        @hypothesis.given(strategy)
        def one(content: bytes) -> None:
            nonlocal refused
            refused += attempt(reader, path, reader.pack(content) if reader.pack else content)

        one()
    return refused


def _npz(**arrays: np.ndarray) -> bytes:
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def _image(format: str) -> list[bytes]:
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    found = []
    for mode in ("RGB", "L", "P") if format == "PNG" else ("RGB", "L", "CMYK"):
        packed = io.BytesIO()
        Image.fromarray(colours).resize((40, 36)).convert(mode).save(packed, format)
        found.append(packed.getvalue())
    return found


def _from_tar(name: str, suffixes: tuple[str, ...]) -> list[bytes]:
    with tarfile.open(KERAS / name) as archive:
        members = [member for member in archive if member.isfile() and member.name.endswith(suffixes)]
        return [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]


def _hdf5() -> list[bytes]:
    return _from_tar("keras.tar.xz", (".h5",))


def _config() -> list[bytes]:
    config = {"experiment": "adversarial", "config": dataclasses.asdict(AdversarialConfig())}
    return [json.dumps(config).encode()]


def _read_config(path: Path) -> object:
    return Run(path.parent)


def _keras(inside: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", inside)
        archive.writestr("model.weights.h5", WEIGHTS[0])
    return packed.getvalue()


def _keras_configs() -> list[bytes]:
    found = []
    for content in _from_tar("keras.tar.xz", (".keras",)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found.append(archive.read("config.json"))
            WEIGHTS[:] = [archive.read("model.weights.h5")]
    return found[-1:]


def _read_keras(path: Path) -> object:
    hdf5.SECONDS = SECONDS // 4  # a file that takes longer is refused, by both of these
    hdf5.configuration(path)
    return keras_weights.read(path)


def _table() -> list[bytes]:
    rows = "".join(f"{index:06d}.jpg  1 -1\n" for index in range(9))
    return [f"9\nSmiling Male\n{rows}".encode()]


def _metrics(path: Path) -> object:
    metrics = MetricsLog(path)
    return [(row.get("model"), row.get("epoch")) for row in metrics.rows()]


def _decoded(path: Path) -> object:
    return celeba._decode(path)


def _csv() -> list[bytes]:
    rows = "".join(f"{index:06d}.jpg,1,-1\n" for index in range(9))
    return [f"image_id,Smiling,Male\n{rows}".encode()]


def _lfw() -> list[bytes]:
    rows = "".join(f"Aaron Eckhart\t{index}\t1.5\t-0.25\n" for index in range(9))
    return [f"# attributes\n#\tperson\timagenum\tSmiling\tMale\n{rows}".encode()]


def _zip() -> list[bytes]:
    found = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", compression) as archive:
            for index, content in enumerate(_image("JPEG")):
                archive.writestr(f"img_align_celeba/{index:06d}.jpg", content)
        found.append(packed.getvalue())
    return found


def _read_zip(path: Path) -> object:
    files = image_files.list_files(path)
    read = [celeba._decode_row(lambda row: files[row].read(), celeba.DEFAULT, row) for row in range(len(files))]
    faults = [reason for reason in read if isinstance(reason, str) and "mode" not in reason]
    if faults:
        raise UserError(faults[0])
    return read


def _tfrecord() -> list[bytes]:
    record = b"record" * 20
    return [(len(record).to_bytes(8, "little") + b"size" + record + b"data") * 3]


def _read_tfrecord(path: Path) -> object:
    try:
        records = TfRecords([path])
    except ValueError as error:
        raise UserError(str(error)) from error
    return [records[row] for row in range(len(records))]


def _keras_models() -> list[bytes]:
    """Configurations of a sequential and a functional classifier, as Keras 3 and Keras 2 wrote them."""
    here = {"module": "keras.layers", "registered_name": None}
    convolution = {"name": "c", "filters": 4, "kernel_size": [3, 3], "strides": [1, 1], "padding": "valid"}
    stack = [
        ("InputLayer", {"batch_shape": [None, 32, 32, 3], "name": "i"}),
        ("Rescaling", {"name": "r", "scale": 0.1, "offset": 0.0}),
        ("Conv2D", {**convolution, "dilation_rate": [1, 1], "groups": 1, "activation": "relu", "use_bias": True}),
        ("BatchNormalization", {"name": "b", "axis": -1, "epsilon": 0.001, "center": True, "scale": True}),
        ("GlobalAveragePooling2D", {"name": "p", "keepdims": False}),
        ("Dense", {"name": "d", "units": 3, "activation": "softmax", "use_bias": True}),
    ]
    layers = [{**here, "class_name": kind, "config": config} for kind, config in stack]
    names = [config["name"] for _, config in stack]
    old = [
        {"class_name": kind, "name": name, "config": config, "inbound_nodes": [[[before, 0, 0, {}]]] if before else []}
        for (kind, config), name, before in zip(stack, names, ["", *names[:-1]], strict=True)
    ]
    ends = {"input_layers": [["i", 0, 0]], "output_layers": [["d", 0, 0]]}
    sequential = {"class_name": "Sequential", "config": {"name": "s", "layers": layers}}
    functional = {"class_name": "Functional", "config": {"name": "f", "layers": old, **ends}}
    return [json.dumps(sequential).encode(), json.dumps(functional).encode()]


def _read_keras_model(path: Path) -> object:
    shapes = {"c/kernel": (3, 3, 3, 4), "c/bias": (4,), "d/kernel": (4, 3), "d/bias": (3,)}
    shapes |= {f"b/{name}": (4,) for name in hdf5.BATCH_NORMALIZATION}
    config = run_directory.read_json(path)
    if not isinstance(config, dict):  # `keras_model.load` then takes the file for one of weights alone
        raise UserError("no configuration")
    return keras_model.interpret(config, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def _digits() -> list[bytes]:
    images, labels = np.zeros((2, 28, 28), np.uint8), np.arange(2)
    return [_npz(x_train=images, y_train=labels, x_test=images, y_test=labels)]


def _torch(*names: str) -> list[bytes]:
    return [(TORCH / name).read_bytes() for name in names]


def _torch_pickle() -> list[bytes]:
    with zipfile.ZipFile(TORCH / "plain.pth") as archive:
        return [archive.read(next(member for member in archive.namelist() if member.endswith("/data.pkl")))]


def _torch_zip(inside: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(TORCH / "plain.pth") as whole, zipfile.ZipFile(packed, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, inside if name.endswith("/data.pkl") else whole.read(name))
    return packed.getvalue()


IDX = b"\x00\x00\x08\x03" + b"\x00\x00\x00\x02" + b"\x00\x00\x00\x1c" * 2 + bytes(range(196)) * 8
EDIT = {"image_ids": np.asarray(["a"]), "z_start": np.zeros((1, 5), np.float32), "z_end": np.ones((1, 5), np.float32)}
WEIGHTS: list[bytes] = []
READERS = {
    "JSON": Reader(run_directory.read_json, lambda: [b'{"a": [1, 2.5, null, "b"], "c": {"d": true}}'], ".json"),
    "config.json": Reader(_read_config, _config, "/config.json"),
    "metrics.jsonl": Reader(_metrics, lambda: [b'{"model": "vae", "epoch": 1, "loss": 0.5}\n' * 3], ".jsonl"),
    "idx": Reader(lambda path: read_idx(path, 3), lambda: [IDX], ".idx"),
    "idx, packed": Reader(
        lambda path: read_idx(path, 3), lambda: [IDX], ".gz", lambda inside: gzip.compress(inside, 1)
    ),
    "idx.gz": Reader(lambda path: read_idx(path, 3), lambda: [gzip.compress(IDX)], ".gz"),
    "NPZ": Reader(run_directory.read_npz, lambda: [_npz(a=np.arange(6.0).reshape(2, 3), b=np.asarray("x"))], ".npz"),
    "edit.npz": Reader(edits.read_edits, lambda: [_npz(**EDIT)], ".npz"),
    "PNG": Reader(lambda path: photos.read(path, 32), lambda: _image("PNG"), ".png"),
    "JPEG": Reader(lambda path: photos.read(path, 32), lambda: _image("JPEG"), ".jpg"),
    "JPEG of CelebA": Reader(_decoded, lambda: _image("JPEG")[:1], ".jpg"),
    "PNG, as TensorFlow": Reader(lambda path: photos.read(path, 32, "tensorflow"), lambda: _image("PNG"), ".png"),
    "JPEG, as TensorFlow": Reader(lambda path: photos.read(path, 32, "tensorflow"), lambda: _image("JPEG"), ".jpg"),
    "table of CelebA": Reader(celeba.read_table, _table, ".txt"),
    "table, CSV": Reader(celeba.read_table, _csv, ".csv"),
    "table of LFW": Reader(celeba.read_table, _lfw, ".txt"),
    "zip of pictures": Reader(_read_zip, _zip, ".zip"),
    "NPZ of digits": Reader(lambda path: open_dataset(f"npz:{path}"), _digits, ".npz"),
    "TFRecord": Reader(_read_tfrecord, _tfrecord, ".tfrecord"),
    "model of Keras": Reader(_read_keras_model, _keras_models, ".json"),
    "safetensors": Reader(torch_weights.read, lambda: _torch("plain.safetensors"), ".safetensors"),
    ".pth": Reader(torch_weights.read, lambda: _torch("plain.pth", "parameters.pth", "wrapped.pth"), ".pth"),
    ".pth, its pickle": Reader(torch_weights.read, _torch_pickle, ".pth", _torch_zip),
    ".pth before PyTorch 1.6": Reader(torch_weights.read, lambda: _torch("legacy.pth", "wrapped_legacy.pth"), ".pth"),
    "HDF5 of Keras": Reader(_read_keras, _hdf5, ".h5"),
    ".keras": Reader(_read_keras, lambda: _from_tar("keras.tar.xz", (".keras",)), ".keras"),
    ".keras, config": Reader(_read_keras, _keras_configs, ".keras", _keras),
}


def main() -> None:
    """Tries every reader and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", default=list(READERS))
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    if options.alone:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        print(fuzz(options.readers[0], options.inputs, options.seed))
        return
    print("| reader | inputs | refused | crashes |\n| --- | --- | --- | --- |")
    for name in options.readers:
        command = [sys.executable, "-m", "tests.faults.fuzz", "--alone", "--readers", name]
        command += ["--inputs", str(options.inputs), "--seed", str(options.seed)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        crashed = done.returncode != 0
        print(
            f"| {name} | {options.inputs:,} | {'' if crashed else done.stdout.strip()} | {int(crashed)} |", flush=True
        )
        if crashed:
            print(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}", file=sys.stderr)


if __name__ == "__main__":
    main()
