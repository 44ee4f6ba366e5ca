"""Where runs write: a disk that is full, one that is read-only, a directory that is taken, and a clock that goes back.

Disks are tmpfs, mounted in a namespace of the command alone, for which Linux asks no privileges.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from latentlab.storage.metrics import MetricsLog
from tests.faults import kills
from tests.faults.kills import ROOT, command, differences, whole_run

digits = partial(kills.digits, network="mlp")
needs_namespaces = pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0
    if sys.platform == "linux"
    else True,
    reason="this system lets nobody mount a file system of their own",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits that nothing disturbed."""
    place = tmp_path_factory.mktemp("digits")
    whole_run(digits(place), place / "whole")
    return place / "whole"


def in_a_namespace(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, cwd=ROOT)


def told(stderr: str) -> str:
    """The one line of an error, without the progress that comes before it."""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in stderr, stderr
    return errors[0]


@needs_namespaces
@pytest.mark.parametrize("share", [0.02, 0.7])
def test_a_full_disk_loses_nothing_that_was_saved(whole: Path, share: float, tmp_path: Path) -> None:
    """With room for a share of the run, it ends in one line; with more room it goes on, or starts, to the same end."""
    size = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    run, out = disk / "run", tmp_path / "out"
    first = shlex.join(command(digits(whole.parent), run))
    resume = shlex.join([sys.executable, str(ROOT / "run.py"), "vae", "--resume", str(run)])
    errors = tmp_path / "errors"
    done = in_a_namespace(
        f"mount -t tmpfs -o size={int(share * size) // 1024}k none {disk}; {first} >/dev/null 2>{errors}; echo $?\n"
        f"mount -o remount,size=1g {disk}; if [ -e {run}/config.json ]; then {resume}; else {first}; fi >/dev/null\n"
        f"echo $?; cp -r {run} {out}"
    )
    assert done.stdout.split() == ["2", "0"], (done, errors.read_text())
    assert str(disk) in told(errors.read_text())
    assert differences(whole, out) == []


@needs_namespaces
def test_a_read_only_directory_is_told_and_left_as_it_is(whole: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    for where in (["--out", str(whole.parent / "new")], ["--resume", str(whole)]):
        arguments = shlex.join([sys.executable, str(ROOT / "run.py"), "vae", *where])
        done = in_a_namespace(
            f"mount --bind {whole.parent} {whole.parent} && mount -o remount,bind,ro {whole.parent} && {arguments}"
        )
        assert done.returncode == 2, done
        assert where[1] in told(done.stderr) and "Read-only file system" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def stopped_in_training(whole: Path, run: Path) -> None:
    """A run of digits that SIGTERM has stopped."""
    process = subprocess.Popen(
        command(digits(whole.parent), run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while len(MetricsLog(run / "metrics.jsonl").rows()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM


def test_a_second_run_in_one_directory_is_refused_and_the_first_goes_on(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = subprocess.Popen(
        command(digits(whole.parent), run), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not (run / "config.json").exists():
        assert first.poll() is None
        time.sleep(0.01)
    others = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "vae", *where], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for where in (["--out", str(run), "--overwrite"], ["--resume", str(run)])
    ]
    said = [other.communicate()[1] for other in others]
    assert first.poll() is None, "the first was over too early for this to show anything"
    assert [other.returncode for other in others] == [2, 2]
    for errors in said:
        assert told(errors).startswith(f"error: {run}: another process is at work in it")
    first.communicate()
    assert first.returncode == 0
    assert differences(whole, run) == []


def test_a_clock_that_is_set_back_changes_nothing(whole: Path, tmp_path: Path) -> None:
    """All that was left is from the future, and Python's clock shows a time ten years ago."""
    run = tmp_path / "run"
    stopped_in_training(whole, run)
    for path in [run, *run.rglob("*")]:
        os.utime(path, (2**31 - 10, 2**31 - 10))
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n_now, _now_ns = time.time, time.time_ns\n"
        "time.time = lambda: _now() - 3e8\ntime.time_ns = lambda: _now_ns() - 300_000_000 * 10**9\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command(digits(whole.parent), run), cwd=ROOT, capture_output=True, text=True, env=environment, check=True
    )
    assert "resuming after" in done.stdout
    assert differences(whole, run) == []
