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

from adversarial import photos
from adversarial.config import AdversarialConfig
from latent_arith import edits
from latent_arith.datasets import celeba
from latentlab.errors import UserError
from latentlab.experiment import Run
from latentlab.storage import hdf5, keras_weights, run_directory
from latentlab.storage.metrics import MetricsLog
from vae.image_formats import read_idx

KERAS = Path(__file__).parents[1] / "data" / "keras"
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
    "table of CelebA": Reader(celeba.read_table, _table, ".txt"),
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
