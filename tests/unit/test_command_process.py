"""What only the process of a command does: its environment, what it does not print, and whose failure an error is."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from adversarial import photos
from latentlab import cli, command_process
from latentlab.storage import checkpoints

PROGRAM = (
    "import os, sys; print(os.getpid()); from latentlab import command_process; command_process.ask_for_huge_pages(); "
    "print(os.environ['GLIBC_TUNABLES'], *sys.argv[1:], sys.flags.optimize)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is glibc's")
@pytest.mark.parametrize(
    ("tunables", "wanted", "starts"),
    [
        ("", "glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.top_pad=4096", "glibc.malloc.top_pad=4096:glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
    ],
)
def test_the_process_starts_anew_once_with_its_arguments(tunables: str, wanted: str, starts: int) -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", PROGRAM, "an argument", "-x"],
        env={**os.environ, "GLIBC_TUNABLES": tunables, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    *processes, last = done.stdout.splitlines()
    assert len(processes) == starts and len({*processes}) == 1
    assert last == f"{wanted} an argument -x 1"


def test_simulated_devices_get_threads_and_time_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("JAX_CPU_ENABLE_ASYNC_DISPATCH", "PJRT_NPROC", "XLA_FLAGS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    command_process.let_simulated_devices_take_turns()
    assert not any(name in os.environ for name in names)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("PJRT_NPROC", "7")
    for _ in range(2):
        command_process.let_simulated_devices_take_turns()
        assert (
            os.environ["XLA_FLAGS"]
            == f"--xla_force_host_platform_device_count=8 {command_process.COLLECTIVE_TIMEOUT_FLAG}=600"
        )
        assert (os.environ["PJRT_NPROC"], os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"]) == ("7", "false")


def test_only_what_orbax_abandons_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    command_process.hide_abandoned_io()
    in_orbax = SimpleNamespace(cr_code=SimpleNamespace(co_filename=checkpoints.ocp.__file__))
    for error, of in ((RuntimeError("Event loop is closed"), None), (ValueError("half read"), in_orbax)):
        sys.unraisablehook(SimpleNamespace(exc_value=error, object=of))
    assert not capsys.readouterr().err

    class Failing:
        def __del__(self) -> None:
            raise ValueError("of ours")

    Failing().__del__  # noqa: B018
    assert "of ours" in capsys.readouterr().err


def test_a_read_that_never_began_is_not_warned_of_and_all_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    for hidden in (False, True):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if hidden:
                command_process.hide_abandoned_io()
            unstarted = asyncio.sleep(0)
            del unstarted
            warnings.warn("of ours", RuntimeWarning, stacklevel=1)
        texts = [str(warning.message) for warning in warned]
        assert texts == [*([] if hidden else ["coroutine 'sleep' was never awaited"]), "of ours"]


def test_a_failure_that_orbax_never_looked_at_is_not_logged_and_all_else_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where two writes fail at once, orbax raises one error, and asyncio logs the other when it is forgotten."""

    async def fail() -> None:
        raise OSError("no space left")

    async def forget() -> None:
        asyncio.get_running_loop().create_task(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()

    log = logging.getLogger("asyncio")
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    monkeypatch.setattr(log, "filters", [])
    for hidden in (False, True):
        if hidden:
            command_process.hide_abandoned_io()
        caplog.clear()
        asyncio.run(forget())
        log.error("of ours")
        messages = [message.splitlines()[0] for message in caplog.messages]
        assert messages == [*([] if hidden else ["Task exception was never retrieved"]), "of ours"]


def test_damage_that_pillow_mends_is_not_warned_of_and_all_else_is(tmp_path: Path) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01"  # five entries, of which two bytes are there
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.jpg", exif=exif)
    for hidden in (False, True):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if hidden:
                command_process.hide_warnings_of_pillow()
            assert photos.read(tmp_path / "a.jpg", 32).notes == ()
            warnings.warn("of ours", stacklevel=1)
        texts = [str(warning.message).partition(".")[0] for warning in warned]
        assert texts == [*([] if hidden else ["Corrupt EXIF data"]), "of ours"]


def test_a_command_that_is_called_leaves_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_process, "own_process", lambda: pytest.fail("it was touched"))
    assert cli.main(["--version"]) == 0


def test_alone_no_error_is_a_failure_of_a_peer() -> None:
    assert not command_process.is_peer_failure(ValueError("Gloo all-reduce failed"))
