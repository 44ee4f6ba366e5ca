"""The wheel, installed outside the checkout: all that a run reads is in it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "all --vae.train-images 64 --vae.epochs 1 --vae.epochs-per-checkpoint 1 --vae.epochs-per-dispatch 1 "
    "--vae.iwae-samples 2 --vae.prior-samples 50 --vae.latent-points 50 --latent-arith.weights packaged "
    "--latent-arith.synthetic-images 60 --latent-arith.held-out-images 6 --latent-arith.classifier-images 40 "
    "--latent-arith.scored-faces 2 --latent-arith.compared-images 40 --latent-arith.compared-faces 2 "
    "--adversarial.epsilons 0 0.01 --adversarial.steps 2"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages, which Python finds before the checkout's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # for a build leaves its files where it was made
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("latentlab-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def start(installed: Path, words: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as somebody does who has no checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-P", *words], cwd=where, env=environment, capture_output=True, text=True, timeout=900
    )


def test_what_is_imported_is_the_wheel_and_has_no_tests(installed: Path, tmp_path: Path) -> None:
    code = (
        "import latentlab, vae, latent_arith, adversarial; print(*(m.__file__ for m in (latentlab, vae, adversarial)))"
    )
    found = start(installed, ["-c", code], tmp_path)
    assert all(path.startswith(str(installed)) for path in found.stdout.split()), found.stderr
    assert not any((installed / name).exists() for name in ("tests", "benchmarks", "docs", "notebooks"))


def test_a_whole_run_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    run = start(installed, ["-m", "latentlab", *SMALL.split(), "--out", "run"], tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "Open run/report/index.html"
    for line in ("[1 of 3] vae", "[2 of 3] latent-arith", "[3 of 3] adversarial"):
        assert line in run.stdout
    assert all((tmp_path / "run" / name / "summary.md").exists() for name in ("vae", "latent_arith", "adversarial"))
    checked = start(installed, ["-m", "latentlab", "check", "run"], tmp_path)
    assert checked.returncode == 0 and "complete" in checked.stdout


def test_an_editable_install_is_a_path_and_so_is_found_from_beside_a_checkout(installed: Path, tmp_path: Path) -> None:
    """A checkout's folder is called latentlab too: with a finder of modules, Python would take it for the package."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--ignore-installed", "--prefix"]
    subprocess.run([*install, str(tmp_path), "-e", str(installed.parent / "source")], check=True, capture_output=True)
    (path_file,) = tmp_path.rglob("__editable__*latentlab*")
    assert path_file.suffix == ".pth"
    assert path_file.read_text().strip() == str(installed.parent / "source")
