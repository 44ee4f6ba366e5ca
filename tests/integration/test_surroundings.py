"""Environments as people have them: none of their settings ends a run in a traceback, or changes its numbers."""

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from latentlab import parallel
from latentlab.cli import main
from latentlab.errors import UserError
from latentlab.storage.run_directory import atomic
from vae import experiment
from vae.config import PRESETS

ROOT = Path(__file__).parents[2]
DIGITS = "vae --preset quick --train-images 20 --epochs 1 --epochs-per-checkpoint 1 --prior-samples 6"
ODD = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONIOENCODING": "ascii",
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "JAX_ENABLE_X64": "1",
}


def start(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(ROOT / "run.py"), *command.split()]
    return subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_setting_of_the_environment_ends_a_run_or_changes_it(
    finished: Path, finished_arguments: list[str], tmp_path: Path
) -> None:
    """All three experiments, against a run that was made without those settings."""
    odd = start(f"all {' '.join(finished_arguments)} --out {tmp_path / 'odd'}", **ODD)
    assert odd.returncode == 0, odd.stderr
    odd.stdout.encode("ascii")
    files = sorted(finished.rglob("*.npz"))
    assert {path.parent.name for path in files} >= {"vae", "latent_arith", "adversarial"}
    for path in files:
        one, other = np.load(path), np.load(tmp_path / "odd" / path.relative_to(finished))
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name], err_msg=f"{path.name} {name}")


@pytest.mark.slow
def test_a_reader_that_is_gone_ends_the_run_quietly(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "run.py"), *DIGITS.split(), "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith("vae: 20 training")
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 141
    assert "Traceback" not in said and "BrokenPipe" not in said


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_told(platforms: str, tmp_path: Path) -> None:
    done = start(f"{DIGITS} --out {tmp_path / 'run'}", JAX_PLATFORMS=platforms)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: JAX cannot start on JAX_PLATFORMS={platforms} (")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "a") as file:
            file.write(b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("out", [".", "", "/", "./"])
def test_a_directory_without_a_name_is_no_run_directory(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*DIGITS.split(), "--out", out, "--no-compilation-cache"]) == 2
    assert "expected the name of a directory for the run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "words"), [("no.such.host.invalid:1", "no answer from"), ("localhost:1", "refused")]
)
def test_a_coordinator_that_does_not_answer_is_told(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "START_SECONDS", 0.3)
    with pytest.raises(UserError, match=words):
        parallel.start_processes(address, 2, 1)


@pytest.mark.lenient
def test_in_a_notebook_with_float64_a_run_is_the_same(digits: Path) -> None:
    few = {"train_images": 20, "epochs": 1, "epochs_per_checkpoint": 1, "prior_samples": 6, "latent_points": 5}
    config = replace(PRESETS["quick"], data=f"idx:{digits}", **few)
    expected = experiment.run(config, log=lambda _: None)
    with jax.enable_x64(True):
        found = experiment.run(config, log=lambda _: None)
    for one, other in zip(jax.tree.leaves(expected.variables), jax.tree.leaves(found.variables), strict=True):
        np.testing.assert_array_equal(one, other)
