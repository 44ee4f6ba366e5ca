"""A run directory: what a run leaves behind, each file whole or absent.

A run directory holds `config.json`, `metrics.jsonl`, `results.json`, weights and arrays as `*.npz`, `figures/*.png`,
`checkpoints/` and `report/`; `latentlab.storage.check` tells whether it is complete.
"""

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from latentlab.errors import UserError
from latentlab.storage import limits

LOCK, TIMES = ".lock", "times.json"
COMPRESSION = 4
"""Level of zlib in .npz and .png: pictures take less than half the time that they take at 6, and a tenth more bytes."""
_UNFINISHED = re.compile(r"\..+\.(jsonl?|npz|png)\.\w{8}")  # name that `atomic` gives a file until it is whole
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "matplotlib")


@contextlib.contextmanager
def create(path: Path | None, overwrite: bool, root: Path = Path("runs")) -> Iterator[Path]:
    """Make the directory of a new run for the block that fills it.

    If the block ends in an error before it has left more than `config.json`, the directory is removed, and a run that
    was to be overwritten is put back. No other process can use the directory meanwhile.

    Args:
        path: Where, or None for the next free number under `root`.
        overwrite: Whether an existing run at `path` is replaced.
        root: Parent of numbered runs.

    Raises:
        UserError: The directory exists and `overwrite` is false, or is no run directory, or is in use, or cannot be
            made.
    """
    try:
        if path is None:
            root.mkdir(parents=True, exist_ok=True)
            path = _next_number(root)
        if not path.resolve().name or path == Path():
            raise UserError(f"--out is {str(path)!r}, expected the name of a directory for the run")
        aside = path.with_name(f".{path.name}.replaced")
        if path.exists() and not (path.is_dir() and _is_empty(path)):
            if not overwrite:
                raise UserError(f"{path} exists; choose another --out, or give --overwrite or --resume {path}")
            if not (path / "config.json").is_file():
                raise UserError(f"{path} holds no config.json, so it is no run directory and is not overwritten")
            with locked(path):
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path or root}: cannot make a run directory ({error.strerror or error})") from error
    with locked(path):
        yield from _filled(path, aside)


def _filled(path: Path, aside: Path) -> Iterator[Path]:
    try:
        yield path
    except BaseException:
        if all(entry.is_dir() or entry.name in ("config.json", LOCK) for entry in path.rglob("*")):
            shutil.rmtree(path)
            if aside.exists():
                aside.rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a run directory for the block, so that no other process fills or overwrites it, or until this process ends.

    Raises:
        UserError: Another process is at work in the directory, or it cannot be written.
    """
    lock = FileLock(path / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{path}: another process is at work in it; wait for its end, or choose another --out"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        for entry in path.rglob(".*"):
            if _UNFINISHED.fullmatch(entry.name) and entry.is_file():
                entry.unlink()
        yield
    finally:
        lock.release()


def _is_empty(path: Path) -> bool:
    """Return whether there is nothing but what a killed process of this project may leave."""
    return all(entry.name == LOCK or _UNFINISHED.fullmatch(entry.name) for entry in path.iterdir())


def _next_number(root: Path) -> Path:
    taken = [int(entry.name) for entry in root.iterdir() if entry.name.isdecimal()]
    number = max(taken, default=0) + 1
    while True:
        with contextlib.suppress(FileExistsError):
            path = root / f"{number:04d}"
            path.mkdir()
            return path
        number += 1


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at `path` whole when the block ends, or not at all.

    Raises:
        UserError: The file could not be written, for instance because the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # `tempfile` would hide it from group and others
        try:
            with aside.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically.

    Raises:
        UserError: The file could not be written.
        ValueError: The value has NaN or infinity, which are not JSON.
    """
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with atomic(path) as file:
        file.write(text.encode())


def finite_or_null(value: Any) -> Any:
    """Return numbers, or lists and dictionaries of them, with None in the place of NaN and infinity, for JSON."""
    if isinstance(value, Mapping):
        return {name: finite_or_null(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [finite_or_null(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def _has_null(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return value is None or any(map(_has_null, parts))


def note_nulls(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return measures for `results.json`, NaN and infinity as null, and with a note where there are any."""
    found: dict[str, Any] = finite_or_null(measures)
    if _has_null(found):
        found["notes"] = ["null stands for a number that these data do not give, such as an error of a single image"]
    return found


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a compressed .npz, atomically, as `np.savez_compressed` does but at `COMPRESSION`."""
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: The file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz; pickled objects are refused, and more than `limits.MOST_BYTES`.

    Raises:
        UserError: The file is missing or no readable .npz.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                limits.check_archive(archive)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except Exception as error:  # zipfile, zlib and numpy raise many types for damaged files
        raise UserError(f"{path} cannot be read as .npz ({error})") from error


def add_time(run_dir: Path, seconds: float) -> None:
    """Add to the time that an experiment took; the time of a process that was killed is lost."""
    with contextlib.suppress(UserError, AttributeError, TypeError):  # no run fails for its time
        path = run_dir / TIMES
        before = read_json(path)["seconds"] if path.exists() else 0
        write_json(path, {"seconds": float(before) + seconds})


def describe_machine() -> dict[str, Any]:
    """Return versions, device and command, for `config.json`."""
    import jax

    return {
        "command": ["python", *sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
    }
