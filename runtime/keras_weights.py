"""Weights that Keras or TensorFlow saved, as named arrays, and their way into a tree of Flax variables.

`read` tells the format by the content. It knows no network and builds none, and unpickles or runs nothing from a file.
An array is called by the path of the objects that hold it and the variable's name, `encoder/encoder_conv_0/kernel`:

- Keras 3, `.weights.h5` and `.keras`: an attribute by its name; a layer from a list, or of a functional or sequential
  model, by its own. Where that stands neither in the group's attributes (Keras 2.15 and 3.0 wrote none) nor in
  `config.json`, the group's name stays: class and count, `conv2d_1`. Variables are saved by number, which stays where
  `_variable_names` cannot tell what they are.
- Whole models and weights only in `.h5`: the outermost layer's name, then the variable's without `:0`. Models between
  the two are not in the file.
- TensorFlow object checkpoints: attributes. `layer_with_weights-N` right before the variable becomes the layer's name
  if the object graph tells it; any other, such as that of a model within a functional model, stays.

What stays is for the caller to map by order.

The kernel of a depthwise convolution is `depthwise_kernel` as Keras 2 saved it and `kernel` as Keras 3 did.
"""

import hashlib
import io
import json
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from runtime import limits
from runtime.errors import UserError, first_line

Tree = TypeVar("Tree")
Named = Iterator[tuple[str, np.ndarray]]

FLAX_TO_KERAS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
"""Variables of a BatchNorm."""
BATCH_NORMALIZATION = ["gamma", "beta", "moving_mean", "moving_variance"]
KERNEL_LAYER = re.compile(r"(dense|(depthwise_)?conv\dd(_transpose)?)(_\d+)?")
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
MOST_DEFLATED = 1032  # DEFLATE shrinks no further: an HDF5 data set that stores less was never written whole


def read(path: Path, md5: str | None = None) -> dict[str, np.ndarray]:
    """Reads all weights of a file or checkpoint: floats, in the type they have, of one dimension or more.

    Optimizer slots, counters, seeds and metrics are left out, and with them all integers and scalars.

    Args:
        path: A Keras file (`.weights.h5`, `.keras`, `.h5`), the `.tar.gz` of a TensorFlow object checkpoint, or such a
            checkpoint itself: its folder, or its prefix, which is the name of the `.index` file without `.index`.
        md5: The MD5 that the file must have, in hexadecimal. HDF5 has no checksum: without MD5 a damaged file may give
            wrong numbers, and its library is known to hang on some (HDFGroup/hdf5#1707).

    Raises:
        UserError: The file is missing, damaged, of another kind or MD5, or needs TensorFlow to be read.
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
    return arrays


def assign(template: Tree, arrays: Mapping[str, np.ndarray], names: Mapping[str, str]) -> Tree:
    """Puts every array in its place in a tree, one to one.

    Args:
        template: A tree of arrays or `jax.ShapeDtypeStruct`s, for instance of Flax variables.
        arrays: What `read` returned, after any renaming or transposing.
        names: Path in the tree, `params/encoder/conv_0/kernel`, to the name of the array that belongs there.

    Returns:
        The tree with float32 NumPy arrays as leaves.

    Raises:
        UserError: A weight is missing, extra, wanted twice, or misshapen.
    """
    leaves, structure = jax.tree.flatten(template)
    shapes = dict(zip(paths(template), (leaf.shape for leaf in leaves), strict=True))
    for path, shape in shapes.items():
        name = names.get(path)
        if name is None or name not in arrays:
            raise UserError(f"weights: {path}: missing, expected {name or 'an array'} of shape {shape}")
        if arrays[name].shape != shape:
            raise UserError(f"weights: {path}: {name} has shape {arrays[name].shape}, expected {shape}")
    for path in sorted(names.keys() - shapes.keys()):
        raise UserError(f"weights: {path}: the network has no such weight, but {names[path]} is to go there")
    places = Counter(names.values())
    for name, array in arrays.items():
        if places[name] != 1:
            raise UserError(
                f"weights: {name} of shape {array.shape} has {places[name]} places in the network, expected 1"
            )
    return jax.tree_util.tree_unflatten(structure, [np.asarray(arrays[names[path]], np.float32) for path in shapes])


def paths(tree: Any) -> list[str]:
    """Path of every leaf, `params/encoder/conv_0/kernel`, in the order of the leaves."""
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def configuration(path: Path) -> Any:
    """The configuration of the model in a `.h5` or `.keras` file, of which nothing is run; None where it has none."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                limits.check_archive(archive)
                return json.loads(archive.read("config.json"))
        with h5py.File(path, "r") as root:
            return json.loads(root.attrs["model_config"])
    except Exception:  # of many types, for files that are damaged or of another kind; `read` tells what is wrong
        return None


def read_hdf5(source: Path | IO[bytes], config: Mapping[str, Any] | None = None) -> Named:
    """Yields the weights of the layouts that Keras has used in HDF5; `config` is that of a `.keras` file."""
    with h5py.File(source, "r") as root:
        if "model_weights" in root:
            yield from _read_layer_groups(_open(root, "model_weights"))
        elif _strings(root, "layer_names"):
            yield from _read_layer_groups(root)
        else:
            yield from _read_object(root, "", (), config or {})


def read_keras(path: Path) -> Named:
    """Yields the weights of a `.keras` file: a zip of `config.json` and `model.weights.h5`."""
    with zipfile.ZipFile(path) as archive:
        limits.check_archive(archive)
        for member in ("config.json", "model.weights.h5"):
            if member not in archive.namelist():
                raise ValueError(f"a zip without {member}, expected a .keras file with weights in HDF5")
        config = json.loads(archive.read("config.json"))
        weights = io.BytesIO(archive.read("model.weights.h5"))
    yield from read_hdf5(weights, config)


def read_tar(path: Path) -> Named:
    """Yields the weights of a packed checkpoint, unpacked aside."""
    with tempfile.TemporaryDirectory(prefix="latentlab-") as folder:
        with tarfile.open(path, "r:gz") as archive:
            size = 0
            for member in archive:
                limits.check_bytes(size := size + member.size)
                if not (member.isfile() or member.isdir()):
                    raise ValueError(f"member {member.name} is a link or a device, expected files and folders")
            archive.extractall(folder, filter="data")  # refuses a member that would land elsewhere
        yield from read_checkpoint(Path(folder))


def read_checkpoint(path: Path) -> Named:
    """Yields the weights of a TensorFlow object checkpoint, given by its prefix or a folder that holds it alone."""
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
    for saved in (attribute for node in graph.nodes for attribute in node.attributes):
        key = saved.checkpoint_key
        if types[key].is_floating and not key.startswith("optimizer/") and ".OPTIMIZER_SLOT" not in key:
            yield _checkpoint_name(key, saved.full_name), reader.get_tensor(key)


READERS: dict[bytes, Callable[[Path], Named]] = {
    b"\x89HDF\r\n\x1a\n": read_hdf5,
    b"PK\x03\x04": read_keras,
    b"\x1f\x8b": read_tar,
}


def _reader_of(path: Path, md5: str | None) -> Callable[[Path], Named]:
    if path.is_dir() or Path(f"{path}.index").is_file():
        if md5 is not None:
            raise UserError(f"{path}: an MD5 is that of one file, and this checkpoint is several; expected its .tar.gz")
        return read_checkpoint
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            found = None if md5 is None else hashlib.file_digest(file, "md5").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if md5 is not None and found != md5.lower():
        raise UserError(f"{path}: MD5 {found}, expected {md5.lower()}; fetch it again")
    for signature, reader in READERS.items():
        if start.startswith(signature):
            return reader
    raise UserError(
        f"{path}: begins with {start!r}, expected HDF5 (.weights.h5, .h5), .keras, .tar.gz or a checkpoint's prefix"
    )


def _open(group: h5py.Group, path: str) -> Any:
    """What a group has at a path; soft and external links are refused, since they may lead out of the file."""
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
    return array.view(jnp.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else array


def _strings(group: h5py.Group, name: str) -> list[str]:
    """A list of strings from a group's attributes, which Keras splits into name0, name1, ... where it is long."""
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
    """Yields the variables of an object that Keras 3 saved as the group `key`, and those of all that it holds."""
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
    """Configurations of a model's layers by group, for Keras 3 calls a group by its layer's class and a count."""
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


def _checkpoint_name(key: str, full_name: str) -> str:
    """The key without its suffix, and with the layer's name, which `full_name` tells, in place of its number."""
    *path, layer, variable = ("", *key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").split("/"))
    *_, name, last = ("", *full_name.split("/"))
    if name and last == variable and re.fullmatch(r"layer(_with_weights)?-\d+", layer):
        layer = name
    return "/".join((*path, layer, variable)).strip("/")
