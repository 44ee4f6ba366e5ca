"""Weights that Keras or TensorFlow saved, as named arrays, and their way into a tree of Flax variables.

`read` tells the format by the content. It knows no network and builds none, and unpickles or runs nothing from a file.
An array is called by the path of the objects that hold it and the variable's name, `encoder/encoder_conv_0/kernel`:

- Keras 3, `.weights.h5` and `.keras`: an attribute by its name; a layer from a list, or of a functional or sequential
  model, by its own. Where that stands neither in the group's attributes (Keras 2.15 and 3.0 wrote none) nor in
  `config.json`, the group's name stays: class and count, `conv2d_1`. Variables are saved by number, which stays where
  `_variable_names` cannot tell what they are.
- Whole models and weights only in `.h5`: the outermost layer's name, then the variable's without `:0`. Models between
  the two are not in the file.
- TensorFlow object checkpoints, also those in a SavedModel: attributes. `layer_with_weights-N` or `_operations/N` right
  before the variable becomes the layer's name if the object graph tells it; any other, such as that of a model within
  a functional model, stays. `variables/N` becomes the layer's and the variable's name.

What stays is for the caller to map by order.

The kernel of a depthwise convolution is `depthwise_kernel` as Keras 2 saved it and `kernel` as Keras 3 did.
"""

import contextlib
import gzip
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from latentlab.errors import UserError, first_line
from latentlab.storage import hdf5, limits
from latentlab.storage.files import read_start

Tree = TypeVar("Tree")
Named = Iterator[tuple[str, np.ndarray]]

FLAX_TO_KERAS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
"""Variables of a BatchNorm."""
OTHER_LISTS = ("trainable_variables", "non_trainable_variables", "_all_variables")
LISTS = ("variables", *OTHER_LISTS)
"""Where `export` and SavedModels keep weights by number; their names are in the object graph."""
TRAINED = "_trainable_variables"
"""Where a checkpoint of Keras 3's optimizer and model has the weights that the optimizer trains."""
HDF5 = b"\x89HDF\r\n\x1a\n"
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
MOST_PROBLEMS = 20
"""Weights that do not fit and are named in one message."""


def read(path: Path, md5: str | None = None) -> dict[str, np.ndarray]:
    """Read all weights of a file or checkpoint: floats, in the type they have, of one dimension or more.

    Optimizer slots, counters, seeds and metrics are left out, and with them all integers and scalars.

    Args:
        path: A Keras file (`.weights.h5`, `.keras`, `.h5`), the `.tar.gz` of a TensorFlow object checkpoint, or such a
            checkpoint itself: its folder, or its prefix, which is the name of the `.index` file without `.index`.
        md5: The MD5 that the file must have, in hexadecimal. HDF5 has no checksum: without MD5 a damaged file may give
            wrong numbers.

    Raises:
        UserError: The file is missing, damaged, of another kind or MD5, has weights that are not finite, or needs
            TensorFlow to be read.
    """
    reader = _reader_of(path, md5)
    arrays: dict[str, np.ndarray] = {}
    size = 0
    try:
        for name, array in reader(path):
            limits.check_bytes(size := size + array.nbytes)
            if array.ndim > 0 and jnp.issubdtype(array.dtype, jnp.floating):
                if name in arrays:
                    raise ValueError(f"two weights are called {name}")
                arrays[name] = array
    except ImportError as error:
        raise UserError(f'{path}: a checkpoint needs TensorFlow ({error}): pip install -e ".[tfds]"') from error
    except Exception as error:  # h5py, zipfile, tarfile and TensorFlow raise many types for damaged files
        raise UserError(f"{path}: no readable weights of Keras or TensorFlow ({first_line(error)})") from error
    if not arrays:
        raise UserError(f"{path}: holds no weights in a layout of Keras, expected those of a saved model")
    check_finite(path, arrays)
    return arrays


def check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Check that weights are finite floats.

    Raises:
        UserError: One of them is not.
    """
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{path}: {name} is {array.dtype}, expected floats")
        if bad := int(np.count_nonzero(~np.isfinite(array))):
            raise UserError(f"{path}: {name} has {bad} entries that are NaN or infinite, expected finite weights")


def assign(template: Tree, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Tree:
    """Put every array in its place in a tree, one to one.

    Args:
        template: A tree of arrays or `jax.ShapeDtypeStruct`s, for instance of Flax variables.
        arrays: What `read` returned, after any renaming or transposing.
        names: Path in the tree, `params/encoder/conv_0/kernel`, to the name of the array that belongs there.

    Returns:
        The tree with float32 NumPy arrays as leaves.

    Raises:
        UserError: Weights are missing, extra, wanted twice, or misshapen; the first `MOST_PROBLEMS` are listed.
    """
    leaves, structure = jax.tree.flatten(template)
    shapes = dict(zip(paths(template), (leaf.shape for leaf in leaves), strict=True))
    places = Counter(names.values())
    missing = {path: shape for path, shape in shapes.items() if names.get(path) not in arrays}
    found = {path: arrays[names[path]].shape for path in shapes.keys() - missing.keys()}
    misshapen = {path: shape for path, shape in shapes.items() if found.get(path, shape) != shape}
    named = {path: names.get(path, "an array") for path in missing}
    extra = {name: array.shape for name, array in arrays.items() if places[name] != 1}
    problems = [
        *(f"{path}: missing, expected {named[path]} of shape {shape}" for path, shape in missing.items()),
        *(f"{path}: {names[path]} has shape {found[path]}, expected {shape}" for path, shape in misshapen.items()),
        *(
            f"{path}: the network has no such weight, but {names[path]} is to go there"
            for path in sorted(names.keys() - shapes.keys())
        ),
        *(
            f"{name} of shape {shape} has {places[name]} places in the network, expected 1"
            for name, shape in extra.items()
        ),
    ]
    if problems:
        rest = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        cause = _guess_cause(missing, extra, misshapen, len(shapes))
        raise UserError("weights: " + "; ".join(problems[:MOST_PROBLEMS] + rest) + cause)
    return jax.tree_util.tree_unflatten(structure, [np.asarray(arrays[names[path]], np.float32) for path in shapes])


def _guess_cause(
    missing: Mapping[str, tuple[int, ...]],
    extra: Mapping[str, tuple[int, ...]],
    misshapen: Mapping[str, tuple[int, ...]],
    count: int,
) -> str:
    """Return what is likely behind weights that do not fit, to end a message with, "" if nothing is."""
    if missing and not misshapen and Counter(missing.values()) == Counter(extra.values()):
        return ". The shapes are those of the network, so its layers are called otherwise"
    if missing and not extra and all("norm" in path or "_BN" in path or "bn_" in path for path in missing):
        return ". All that are missing are of BatchNorm, so it is a network without it, or with it folded"
    if missing and len(missing) == count:
        return ". None is there, so the file is of another network"
    if missing and not extra and not misshapen:
        return ". The others fit, so the file holds a part of the network"
    if misshapen and not missing and not extra:
        return ". All names fit, so it is the same network in another size"
    return ""


def paths(tree: Any) -> list[str]:
    """Path of every leaf, `params/encoder/conv_0/kernel`, in the order of the leaves."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def read_tar(path: Path) -> Named:
    """Yield the weights of a packed checkpoint, unpacked aside."""
    with tempfile.TemporaryDirectory(prefix="latentlab-") as folder:
        with _open_tar(path) as archive:
            size = 0
            for member in archive:
                limits.check_bytes(size := size + member.size)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"member {member.name} is a link or a device, expected files and folders")
            archive.extractall(folder, filter="data")  # refuses a member that would land elsewhere
        yield from read_checkpoint(Path(folder))


def _open_tar(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:gz")
    except tarfile.ReadError as error:
        with contextlib.suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            if file.read(8) == HDF5:
                raise ValueError("HDF5 packed with gzip, expected it unpacked: gunzip it") from error
        raise


def read_checkpoint(path: Path) -> Named:
    """Yield the weights of a TensorFlow object checkpoint, given by its prefix or a folder that holds it alone."""
    indices = sorted(path.rglob("[!.]*.index")) if path.is_dir() else [Path(f"{path}.index")]
    if len(indices) != 1:
        raise ValueError(f"{len(indices)} files end in .index, expected one, or the prefix of a checkpoint")

    import tensorflow as tf
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    reader = tf.train.load_checkpoint(str(indices[0]).removesuffix(".index"))
    if not reader.has_tensor(OBJECT_GRAPH):
        raise ValueError("a checkpoint by names, as TensorFlow 1 wrote it, expected one by objects")
    graph = TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH))
    types = reader.get_variable_to_dtype_map()
    saved = {a.checkpoint_key: a.full_name for node in graph.nodes for a in node.attributes}
    is_listed = any(key.startswith("variables/") for key in saved)  # and then once more in other lists
    for key, full_name in saved.items():
        first, *rest = key.split("/")
        is_weight = first != "optimizer" and ".OPTIMIZER_SLOT" not in rest and not (is_listed and first in OTHER_LISTS)
        if types[key].is_floating and (is_weight or rest[0] == TRAINED):
            yield _checkpoint_name(key, full_name), reader.get_tensor(key)


READERS: dict[bytes, Callable[[Path], Named]] = {
    HDF5: hdf5.read,
    b"PK\x03\x04": hdf5.read,
    b"\x1f\x8b": read_tar,
}


def _reader_of(path: Path, md5: str | None) -> Callable[[Path], Named]:
    if path.is_dir() or Path(f"{path}.index").is_file():
        if md5 is not None:
            raise UserError(f"{path}: an MD5 is that of one file, and this checkpoint is several; expected its .tar.gz")
        return read_checkpoint
    start = read_start(path, md5)
    for signature, reader in READERS.items():
        if start.startswith(signature):
            return reader
    raise UserError(
        f"{path}: begins with {start!r}, expected HDF5 (.weights.h5, .h5), .keras, .tar.gz or a checkpoint's prefix"
    )


def _checkpoint_name(key: str, full_name: str) -> str:
    """Return a key without its suffix, and with the layer's name from `full_name` in place of its number."""
    path = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").removeprefix("model/")  # tf.train.Checkpoint(model=…)
    *models, layer, variable = ("", *path.split("/"))
    if layer in (*LISTS, TRAINED) and variable.isdecimal() and "/" in full_name:
        return full_name
    *_, name, last = ("", *full_name.split("/"))
    is_numbered = re.fullmatch(r"layer(_with_weights)?-\d+", layer) or (
        layer.isdecimal() and models[-1] == "_operations"
    )
    variable = last if variable == f"_{last}" else variable
    if name and last == variable and is_numbered:
        models, layer = models[:-1] if layer.isdecimal() else models, name
    return "/".join((*models, layer, variable)).strip("/")
