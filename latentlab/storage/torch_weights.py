"""Weights that PyTorch saved, as named arrays, without PyTorch and without running anything from the file.

`read` tells the format by the content: safetensors; the zip of `torch.save` («.pth»); or what it wrote before PyTorch
1.6, pickles with the numbers after them, which `_use_new_zipfile_serialization=False` still writes. In the last two a
pickle tells names, shapes and where the numbers are. Of it only dictionaries, tensors and plain values are built.
"""

import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from latentlab.errors import UserError, first_line
from latentlab.storage import limits
from latentlab.storage.files import read_start
from latentlab.storage.keras_weights import check_finite

ZIP = b"PK\x03\x04"
START = 16
"""Bytes that tell the format."""
MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
WITHIN = ("state_dict", "model_state_dict", "model", "net", "module")
"""Where training scripts put the weights within what they save."""
AROUND = ("module.", "_orig_mod.", "model.")
"""What wrappers write before every name."""


class Storage(NamedTuple):
    """Numbers of a file: their type, by what key they are found, and how many there are."""

    dtype: Any
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage: where it begins, its shape, and how far apart neighbours along its axes are."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path, md5: str | None = None) -> dict[str, np.ndarray]:
    """Read the weights of a module's `state_dict`: floats, in the type that they have, by PyTorch's names.

    Counters (`num_batches_tracked`) and other integers are left out. What wrappers and training scripts put around the
    names and the weights, `module.` and `{"state_dict": …}`, is taken away.

    Args:
        path: A file of safetensors, or one that `torch.save` wrote.
        md5: The MD5 that the file must have, in hexadecimal.

    Raises:
        UserError: The file is missing, damaged, of another kind or MD5, holds more than weights, or weights that are
            not finite.
    """
    start = read_start(path, md5, START)
    try:
        read_format = _reader_of(start)
        arrays = read_format(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # pickle, zipfile and safetensors raise many types for damaged files
        raise UserError(f"{path}: no readable weights of PyTorch ({first_line(error)})") from error
    weights = {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    if not weights:
        raise UserError(f"{path}: holds no weights, expected those of a module, model.state_dict()")
    check_finite(path, weights)
    return _without_wrappers(weights)


def is_torch(path: Path) -> bool:
    """Return whether a file is one of safetensors or of those that `torch.save` writes; Keras's are zips too.

    Raises:
        UserError: The file cannot be read.
    """
    start = read_start(path, count=START)
    if start.startswith(ZIP):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
        return False
    return _is_safetensors(start) or _is_legacy(start)


def _reader_of(start: bytes) -> Callable[[Path], Mapping[str, np.ndarray]]:
    if _is_safetensors(start):
        return _read_safetensors
    if start.startswith(ZIP):
        return _read_zip
    if _is_legacy(start):
        return _read_legacy
    raise UserError(f"begins with {start[:8]!r}, expected safetensors or what torch.save writes")


def _is_safetensors(start: bytes) -> bool:
    """Return whether a file begins with the length of a header and its JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**28


def _is_legacy(start: bytes) -> bool:
    """Return whether a file begins with the pickle of the magic number."""
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and b"\x8a\x0a" in start[2:16]


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    from safetensors import safe_open

    limits.check_bytes(path.stat().st_size)
    with safe_open(path, framework="numpy") as file:
        arrays: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return arrays


def _read_zip(path: Path) -> Mapping[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        limits.check_archive(archive)
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"has {len(pickles)} members data.pkl, expected one, as torch.save writes")
        root = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in archive.namelist() else "little"
        tensors = _tensors_of(_Unpickler(io.BytesIO(archive.read(pickles[0]))).load())
        return _view(tensors, lambda storage: archive.read(f"{root}data/{storage.key}"), order)


def _read_legacy(path: Path) -> Mapping[str, np.ndarray]:
    limits.check_bytes(path.stat().st_size)
    with path.open("rb") as file:
        magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
        if magic != MAGIC_NUMBER or protocol != PROTOCOL:
            raise UserError(f"magic number {magic!r} and protocol {protocol!r}, expected those of torch.save")
        unpickler = _Unpickler(file)
        tensors = _tensors_of(unpickler.load())
        parts: dict[str, bytes] = {}
        for key in _Unpickler(file).load():
            storage = unpickler.storages[key]
            count = int.from_bytes(file.read(8), "little")
            if count != storage.size:
                raise ValueError(f"storage {key} has {count} numbers, expected {storage.size}")
            parts[key] = file.read(count * np.dtype(storage.dtype).itemsize)
        order = "little" if system.get("little_endian", True) else "big"
        return _view(tensors, lambda storage: parts[storage.key], order)


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, text and tensors; any other class that a file names is refused."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name of PyTorch's."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _make_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise UserError(
            f"holds a {module}.{name}, which only running code could build; expected weights alone, "
            "torch.save(model.state_dict(), …)"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a pickle refers to."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or any(view):
            raise ValueError(f"refers to {pid!r}, expected a storage")
        found = self.storages[str(key)] = Storage(dtype, str(key), int(count))
        return found


def _make_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _tensors_of(found: Any) -> dict[str, Tensor]:
    """Return the tensors of a module by name, out of what was saved.

    Raises:
        UserError: There are none.
    """
    for name in ("", *WITHIN):
        part = found.get(name) if name and isinstance(found, Mapping) else found
        if isinstance(part, Mapping):
            tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    raise UserError("holds no tensors by name, expected torch.save(model.state_dict(), …)")


def _view(tensors: Mapping[str, Tensor], read_bytes: Callable[[Storage], bytes], order: str) -> dict[str, np.ndarray]:
    """Return the arrays of tensors.

    Raises:
        ValueError: A tensor is larger than its storage, or that than the file says.
    """
    flat: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in flat:
            dtype = np.dtype(storage.dtype)
            numbers = np.frombuffer(read_bytes(storage), dtype)
            if len(numbers) < storage.size:
                raise ValueError(f"{name} has a storage of {len(numbers)} numbers, expected {storage.size}")
            flat[storage.key] = numbers.byteswap() if order == "big" else numbers
        arrays[name] = _view_tensor(name, tensor, flat[storage.key])
    return arrays


def _view_tensor(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    shape, strides, size = tensor.shape, tensor.strides, int(np.prod(tensor.shape, dtype=object))
    is_whole = len(shape) == len(strides) and min((tensor.offset, *shape, *strides), default=0) >= 0
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=False))
    if not is_whole or size > len(numbers) or (size and last >= len(numbers)):
        raise ValueError(f"{name} of shape {shape} does not fit into its storage of {len(numbers)} numbers")
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps, writeable=False)


def _without_wrappers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays without what wrappers write before all names."""
    for prefix in AROUND:
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays
