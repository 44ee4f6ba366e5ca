"""Read HDF5 files of Keras in a process of its own, because the library that reads them hangs on some damaged files.

It does so in C, beyond the reach of Python (HDFGroup/hdf5#1707). The process has limits of time and memory, and hands
back nothing but arrays and text. `latentlab.storage.keras_weights` tells how the arrays are called.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import ml_dtypes
import numpy as np

from latentlab.errors import first_line
from latentlab.storage import limits

Named = Iterator[tuple[str, np.ndarray]]

SECONDS = 120
MEMORY = 8 * 2**30  # bytes of the process
BATCH_NORMALIZATION = ["gamma", "beta", "moving_mean", "moving_variance"]
KERNEL_LAYER = re.compile(r"(dense|(depthwise_)?conv\dd(_transpose)?)(_\d+)?")
MOST_DEFLATED = 1032  # DEFLATE shrinks no further: an HDF5 data set that stores less was never written whole
OPAQUE_BFLOAT16 = np.dtype("V2")  # as h5py writes a type that HDF5 has not
ROOT = Path(__file__).parents[2]


def read(path: Path) -> Named:
    """Yield the floats of a `.weights.h5`, `.h5` or `.keras` file, in the type they have.

    Raises:
        ValueError: The file is damaged or of another layout, unpacks to too much, or is not read in `SECONDS`.
    """
    arrays = np.load(io.BytesIO(_read_in_process("weights", path)), allow_pickle=False)
    names, halves = json.loads(bytes(arrays["names"]))
    for index, name in enumerate(names):
        array = arrays[str(index)]
        yield name, array.view(ml_dtypes.bfloat16) if index in halves else array


def configuration(path: Path) -> Any:
    """Return the configuration of the model in a `.h5` or `.keras` file, or None; nothing of it is run."""
    with contextlib.suppress(ValueError, RecursionError):  # of damaged files and of other kinds; `read` tells
        return json.loads(_read_in_process("configuration", path))
    return None


def layers_without_weights(path: Path) -> list[str]:
    """Return the names of those layers in a file of weights; in a list of Keras 3 their groups: class and count."""
    with contextlib.suppress(ValueError, RecursionError):  # as `configuration`
        return list(json.loads(_read_in_process("layers", path)))
    return []


def _read_in_process(what: str, path: Path) -> bytes:
    """Return what `main` writes of a file, or raise ValueError with its message."""
    command = [sys.executable, "-P", "-m", "latentlab.storage.hdf5", what, str(path.absolute())]
    search = [str(ROOT), *filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
    try:
        # Neither the folder that the user is in nor that of the file may be searched for modules.
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"HDF5's library is not done with it after {SECONDS} s, so it is damaged") from error
    if done.returncode < 0:
        raise ValueError(f"HDF5's library crashed on it, with signal {-done.returncode}")
    if done.returncode:
        (*_, said) = ["it cannot be read", *done.stderr.decode(errors="replace").splitlines()]
        raise ValueError(said)
    return done.stdout


def main(what: str, path: Path) -> None:
    """Write, as the other process, weights as NPZ, or something of `DESCRIPTIONS` as JSON, to standard output."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # where a system has no such limits
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))
    try:
        content = _pack(path) if what == "weights" else json.dumps(DESCRIPTIONS[what](path)).encode()
    except Exception as error:  # h5py and zipfile raise many types for damaged files
        print(first_line(error), file=sys.stderr)
        raise SystemExit(1) from None
    sys.stdout.buffer.write(content)


def _pack(path: Path) -> bytes:
    names, halves, arrays, size = list[str](), list[int](), dict[str, np.ndarray](), 0
    for name, array in _read_keras(path) if _is_zip(path) else _read_hdf5(path):
        limits.check_bytes(size := size + array.nbytes)
        if array.dtype == ml_dtypes.bfloat16:
            halves.append(len(names))
        elif array.dtype.kind != "f":
            continue
        arrays[str(len(names))] = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
        names.append(name)
    packed = io.BytesIO()
    listed = np.frombuffer(json.dumps([names, halves]).encode(), np.uint8)
    np.savez(packed, names=listed, **arrays)  # type: ignore[arg-type]
    return packed.getvalue()


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _configuration(path: Path) -> Any:
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            limits.check_archive(archive)
            return json.loads(archive.read("config.json"))
    with h5py.File(path, "r") as root:
        return json.loads(root.attrs["model_config"])


def _layers_without_weights(path: Path) -> list[str]:
    with h5py.File(path, "r") as root:
        if names := _strings(root, "layer_names"):
            return [name for name in names if not _strings(_open(root, name), "weight_names")]
        found: list[str] = []

        def note(name: str, item: object) -> None:
            if isinstance(item, h5py.Group) and name.endswith("/vars") and not len(item) and len(item.parent) == 1:
                *_, owner, group, _ = ("", *name.split("/"))
                own_name = item.attrs.get("name") if owner != "layers" else group  # attributes are called anything
                found.extend([str(own_name)] if own_name else [])

        root.visititems(note)
        return found


DESCRIPTIONS: dict[str, Callable[[Path], Any]] = {
    "configuration": _configuration,
    "layers": _layers_without_weights,
}


def _read_hdf5(source: Path | IO[bytes], config: Mapping[str, Any] | None = None) -> Named:
    """Yield the weights of the layouts that Keras has used in HDF5; `config` is that of a `.keras` file."""
    with h5py.File(source, "r") as root:
        if "model_weights" in root:
            yield from _read_layer_groups(_open(root, "model_weights"))
        elif _strings(root, "layer_names"):
            yield from _read_layer_groups(root)
        else:
            yield from _read_object(root, "", (), config or {})


def _read_keras(path: Path) -> Named:
    """Yield the weights of a `.keras` file: a zip of `config.json` and `model.weights.h5`."""
    with zipfile.ZipFile(path) as archive:
        limits.check_archive(archive)
        for member in ("config.json", "model.weights.h5"):
            if member not in archive.namelist():
                raise ValueError(f"a zip without {member}, expected a .keras file with weights in HDF5")
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    yield from _read_hdf5(weights, config)


def _open(group: h5py.Group, path: str) -> Any:
    """Return what a group has at a path; soft and external links are refused, since they may lead out of the file."""
    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name} has no {part}, or only a link to it")
        group = group[part]
    return group


def _array(dataset: h5py.Dataset) -> np.ndarray:
    if dataset.external or dataset.is_virtual or dataset.nbytes > MOST_DEFLATED * dataset.id.get_storage_size():
        raise ValueError(f"{dataset.name} does not hold the {dataset.nbytes} bytes that it announces")
    limits.check_bytes(dataset.nbytes)
    array = dataset[()]
    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16" or array.dtype == OPAQUE_BFLOAT16
    return array.view(ml_dtypes.bfloat16) if is_bfloat16 else array


def _strings(group: h5py.Group, name: str) -> list[str]:
    """Read a list of strings from a group's attributes; Keras splits long ones into name0, name1 and so on."""
    split = sorted((key for key in group.attrs if re.fullmatch(rf"{name}\d+", key)), key=lambda key: (len(key), key))
    values = [value for key in ([name] if name in group.attrs else split) for value in group.attrs[key]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _read_layer_groups(group: h5py.Group) -> Named:
    for layer in [*_strings(group, "layer_names"), *({"top_level_model_weights"} & group.keys())]:
        weights = _open(group, layer)
        for weight in _strings(weights, "weight_names"):
            name = re.sub(r":\d+$", "", weight)
            _, repeated, rest = f"/{name}".partition(f"/{layer}/")
            yield f"{layer}/{rest if repeated else name}", _array(_open(weights, weight))


def _read_object(group: h5py.Group, key: str, path: tuple[str, ...], config: Mapping[str, Any]) -> Named:
    """Yield the variables of an object that Keras 3 saved as the group `key`, and those of all that it holds."""
    if "vars" in group:
        numbered = _open(group, "vars")
        saved = sorted(numbered, key=lambda number: (len(number), number))
        arrays = [_array(_open(numbered, number)) for number in saved]
        names = _variable_names(key, [array.shape for array in arrays]) or saved
        yield from zip(("/".join((*path, name)) for name in names), arrays, strict=True)
    is_list = key == "layers" or ("vars" not in group and path)
    configs = _configs_by_group(config)
    for child_key in sorted(group.keys() - {"vars"} - ({"optimizer"} if not path else set())):
        child = _open(group, child_key)
        if child_key == "layers":
            yield from _read_object(child, child_key, path, config)
        elif isinstance(child, h5py.Group):
            child_config = configs.get(child_key, {})
            own_name = _open(child, "vars").attrs.get("name") if "vars" in child else None
            own_name = own_name or child_config.get("config", {}).get("name")
            yield from _read_object(child, child_key, (*path, (is_list and own_name) or child_key), child_config)


def _configs_by_group(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the configurations of a model's layers by group; Keras 3 names a group by class and count."""
    counts: Counter[str] = Counter()
    configs = {}
    for layer in config.get("config", {}).get("layers", []):
        kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"].rpartition(">")[2])
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
        configs[f"{kind}_{counts[kind]}" if counts[kind] else kind] = layer
        counts[kind] += 1
    return configs


def _variable_names(key: str, shapes: Sequence[tuple[int, ...]]) -> list[str] | None:
    """Names of a layer's variables, where its group and their shapes leave no doubt.

    Four vectors of one length are those of batch normalization. An array, and a vector as long as one of its last two
    dimensions, are kernel and bias. An array alone is a kernel in the group of a dense or convolutional layer.
    """
    if len(shapes) == 4 and len(shapes[0]) == 1 and len(set(shapes)) == 1:
        return BATCH_NORMALIZATION
    if len(shapes) == 2 and len(shapes[0]) > 1 and len(shapes[1]) == 1 and shapes[1][0] in shapes[0][-2:]:
        return ["kernel", "bias"]
    return ["kernel"] if len(shapes) == 1 and len(shapes[0]) > 1 and KERNEL_LAYER.fullmatch(key) else None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
