"""Weights that PyTorch saved, as named arrays, without PyTorch and without running anything from the file.

`read` tells the format by the content: safetensors; the zip of `torch.save` («.pth»); or what it wrote before PyTorch
1.6, pickles with the numbers after them, which `_use_new_zipfile_serialization=False` still writes. In the last two a
pickle tells names, shapes and where the numbers are. It is not unpickled: `pickletools` takes it apart into
instructions, and `_interpret` builds dictionaries, lists, plain values and tensors of those. What a file names, a class
or a function, is text.
"""

import contextlib
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from latentlab.errors import UserError, first_line
from latentlab.storage import limits
from latentlab.storage.files import read_start
from latentlab.storage.keras_weights import check_finite

ZIP = b"PK\x03\x04"
TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")
"""One of these is first in the tar that PyTorch wrote before version 0.2."""
SIGNATURE_BYTES = 16
MAGIC_NUMBER, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MOST_PICKLE_BYTES = 2**22
"""Of a pickle; that of a ResNet-152 has 150,000."""
MOST_AXES = 8
DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model", "net", "module")
"""Under which training scripts save the weights."""
NAME_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers of modules put before every name."""

REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
DICTIONARY = "collections.OrderedDict"

Arrays = Mapping[str, np.ndarray]


class Global(NamedTuple):
    """A class or function that a pickle names."""

    name: str


class Opaque(NamedTuple):
    """What a pickle would make by calling something that is not read here."""

    name: str


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
        UserError: The file is missing, damaged, of another kind or MD5, holds no weights by name, or weights that are
            not finite.
    """
    start = read_start(path, md5, SIGNATURE_BYTES)
    try:
        read_format = _choose_reader(start)
        arrays = read_format(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # zipfile, pickletools and safetensors raise many types for damaged files
        raise UserError(f"{path}: no readable weights of PyTorch ({first_line(error)})") from error
    weights = {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    if not weights:
        raise UserError(f"{path}: holds no weights, expected those of a module, model.state_dict()")
    check_finite(path, weights)
    return _remove_prefixes(weights)


def is_torch(path: Path) -> bool:
    """Return whether a file is one of safetensors or of those that `torch.save` writes; Keras's are zips too.

    Raises:
        UserError: The file cannot be read.
    """
    start = read_start(path, count=SIGNATURE_BYTES)
    if start.startswith(ZIP):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
        return False
    return _is_safetensors(start) or _is_legacy(start) or start.startswith(TAR_MEMBERS)


def _choose_reader(start: bytes) -> Callable[[Path], Arrays]:
    if _is_safetensors(start):
        return _read_safetensors
    if start.startswith(ZIP):
        return _read_zip
    if _is_legacy(start):
        return _read_legacy
    if start.startswith(TAR_MEMBERS):
        raise UserError(
            "is a tar, as PyTorch wrote before version 0.2; expected it loaded with PyTorch and saved again, "
            "torch.save(model.state_dict(), …)"
        )
    raise UserError(f"begins with {start[:8]!r}, expected safetensors or what torch.save writes")


def _is_safetensors(start: bytes) -> bool:
    """Return whether a file begins with the length of a header and its JSON."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**28


def _is_legacy(start: bytes) -> bool:
    """Return whether a file begins with the pickle of the magic number."""
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and b"\x8a\x0a" in start[2:16]


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import safe_open

    limits.check_bytes(path.stat().st_size)
    with safe_open(path, framework="numpy") as file:
        arrays: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return arrays


def _read_zip(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        limits.check_archive(archive)
        pickles = [member for member in archive.infolist() if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"has {len(pickles)} members data.pkl, expected one, as torch.save writes")
        if pickles[0].file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"a pickle of {pickles[0].file_size:,} bytes, expected at most {MOST_PICKLE_BYTES:,}")
        root = pickles[0].filename.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in archive.namelist() else "little"
        tensors = _find_tensors(_interpret(archive.read(pickles[0])))
        return _view_all(tensors, lambda storage: archive.read(f"{root}data/{storage.key}"), order)


def _read_legacy(path: Path) -> Arrays:
    limits.check_bytes(path.stat().st_size)
    with path.open("rb") as file:
        magic, protocol, system = (_interpret(file) for _ in range(3))
        if magic != MAGIC_NUMBER or protocol != PROTOCOL:
            raise ValueError("another magic number or protocol than those of torch.save")
        storages: dict[str, Storage] = {}
        tensors = _find_tensors(_interpret(file, storages))
        parts: dict[str, bytes] = {}
        for key in _interpret(file):
            size = int.from_bytes(file.read(8), "little")
            if size != storages[key].size:
                raise ValueError(f"storage {key} has {size} numbers, expected {storages[key].size}")
            parts[key] = file.read(size * np.dtype(storages[key].dtype).itemsize)
        is_big = isinstance(system, dict) and system.get("little_endian") is False
        return _view_all(tensors, lambda storage: parts[storage.key], "big" if is_big else "little")


def _interpret(pickle: bytes | IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Return what a pickle describes, built of dictionaries, lists, tuples, plain values, `Tensor` and `Opaque`.

    A pickle is a program for a machine with a stack and a memory. Its instructions that call something (REDUCE, NEWOBJ,
    BUILD) make a tensor or an empty dictionary where it is PyTorch's function or OrderedDict that they name, and else
    something opaque. Dictionaries take only text and integers as keys.

    Args:
        pickle: The pickle, or a file that stands at its beginning and then stands behind its end.
        storages: Where storages are put by their keys.

    Raises:
        ValueError: An instruction is not known here, or the pickle is too long.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memory: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    begun = 0 if isinstance(pickle, bytes) else pickle.tell()
    for instruction, argument, at in pickletools.genops(pickle):
        if (at or 0) - begun > MOST_PICKLE_BYTES:
            raise ValueError(f"a pickle of more than {MOST_PICKLE_BYTES:,} bytes")
        name = instruction.name
        if name == "STOP":
            return stack.pop()
        if name in PLAIN:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memory[int(argument or 0)] = stack[-1]
        elif name == "MEMOIZE":
            memory[len(memory)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memory[int(argument or 0)])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            if name != "TUPLE":
                marks.append(len(stack) - int(name[-1]))
            stack.append(tuple(pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = pop_to_mark() if name == "APPENDS" else [stack.pop()]
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            if name == "SETITEM":
                marks.append(len(stack) - 2)
            items = pop_to_mark()
            pairs = zip(items[::2], items[1::2], strict=True)
            if isinstance(stack[-1], dict):
                stack[-1].update((key, value) for key, value in pairs if isinstance(key, str | int))
        elif name == "GLOBAL":
            stack.append(Global(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            last, module = stack.pop(), stack.pop()
            stack.append(Global(f"{module}.{last}" if isinstance(module, str) and isinstance(last, str) else "?"))
        elif name == "BINPERSID":
            storage = _make_storage(stack.pop())
            stack.append(storage)
            if storages is not None:
                storages[storage.key] = storage
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, called = stack.pop(), stack.pop()
            stack.append(_imitate_call(called, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of what is below
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"an instruction {name}, which torch.save does not write")
    raise ValueError("a pickle without an end")


PLAIN = frozenset({
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT",
    "LONG", "BINFLOAT", "FLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING",
})  # fmt: skip
"""Instructions whose argument is the value."""
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip


def _make_storage(reference: Any) -> Storage:
    """Return the storage that a pickle refers to by («storage», its type, its key, a device, its size).

    Raises:
        ValueError: The reference is another one.
    """
    match reference:
        case ("storage", Global(name), str(key), _, int(size), *view) if not any(map(bool, view)):
            module, _, kind = name.rpartition(".")
            if module == "torch" and kind in DTYPES:
                return Storage(DTYPES[kind], key, size)
            raise ValueError(f"numbers of type {name[:80]}, expected one of {', '.join(DTYPES)}")
    raise ValueError("a reference to something else than a storage")


def _imitate_call(called: Any, arguments: Any) -> Any:
    """Return what PyTorch's functions make of their arguments, and what is opaque for all others."""
    name = called.name if isinstance(called, Global) else "?"
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if name in REBUILD_TENSOR:
            if len(shape) > MOST_AXES or not all(isinstance(side, int) for side in (*shape, *strides)):
                raise ValueError(f"a tensor of {len(shape)} axes, expected at most {MOST_AXES}, of whole numbers")
            return Tensor(storage, offset, shape, strides)
        case (Tensor() as tensor, *_) if name in REBUILD_PARAMETER:
            return tensor
        case () if name == DICTIONARY:
            return {}
    return Opaque(name)


def _find_tensors(saved: Any) -> dict[str, Tensor]:
    """Return the tensors of a module by name, out of what was saved.

    Raises:
        UserError: There are none.
    """
    parts = [saved.get(key) for key in CHECKPOINT_KEYS] if isinstance(saved, dict) else []
    for part in (*parts, saved):
        if isinstance(part, dict):
            tensors = {str(key): value for key, value in part.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    held = f"holds a {saved.name[:80]}" if isinstance(saved, Opaque) else "holds no tensors by name"
    raise UserError(f"{held}, expected weights alone, torch.save(model.state_dict(), …)")


def _view_all(tensors: Mapping[str, Tensor], read_bytes: Callable[[Storage], bytes], order: str) -> Arrays:
    """Return the arrays of tensors.

    Raises:
        ValueError: A tensor is larger than its storage, that than the file says, or all together are too large.
    """
    flat: dict[str, np.ndarray] = {}
    arrays, size = {}, 0
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage.key not in flat:
            numbers = np.frombuffer(read_bytes(storage), np.dtype(storage.dtype))
            if len(numbers) < storage.size:
                raise ValueError(f"{name} has a storage of {len(numbers)} numbers, expected {storage.size}")
            flat[storage.key] = numbers.byteswap() if order == "big" else numbers
        arrays[name] = _view(name, tensor, flat[storage.key])
        limits.check_bytes(size := size + arrays[name].nbytes)
    return arrays


def _view(name: str, tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    shape, strides, size = tensor.shape, tensor.strides, int(np.prod(tensor.shape, dtype=object))
    is_whole = len(shape) == len(strides) and min((tensor.offset, *shape, *strides), default=0) >= 0
    last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=False))
    if not is_whole or size > len(numbers) or (size and last >= len(numbers)):
        raise ValueError(f"{name} of shape {shape} does not fit into its storage of {len(numbers)} numbers")
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], shape, steps, writeable=False)


def _remove_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays without what wrappers put before all names, `_orig_mod.module.` for instance."""
    for prefix in NAME_PREFIXES * len(NAME_PREFIXES):
        if all(name.startswith(prefix) for name in arrays):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return arrays
