"""A folder from a stranger: nothing in it is imported or executed, whatever command is run from there.

The folder has a module of many a name that Python, pip and this project import, each of which leaves a file where it is
executed, and a `matplotlibrc` that names such a module.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TRAPS = """
abc adversarial benchmarks concurrent filelock flax grain h5py hashlib io jax json keras kernels latent_arith latentlab
logging matplotlib ml_dtypes multiprocessing numpy optax orbax os pathlib pickle PIL pip platformdirs pooch re report
runtime scipy sitecustomize sklearn socket ssl subprocess tensorflow threading tqdm typing tyro usercustomize vae
zipfile
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with traps, and a photo of class 243 in it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in TRAPS.split():
        code = f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + '\\n')\n"
        (folder / f"{name}.py").write_text(code)
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    (folder / "matplotlibrc").write_text("backend: module://pip\nfigure.facecolor: red\n")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo_3.png")
    return folder


def run_from(folder: Path, arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, as somebody does who has gone there."""
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def executed(folder: Path) -> str:
    path = folder.parent / "executed"
    return path.read_text() if path.exists() else ""


def test_the_traps_work(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "pip"], cwd=folder, capture_output=True, check=False)
    assert executed(folder)  # of pip, or of what it imports first


def test_reading_hdf5_executes_nothing(folder: Path) -> None:
    arguments = "adversarial --preset quick --report robust-accuracy --images . --labels numbers --size 64 "
    arguments += "--epsilons 0 --out ../run"
    done = run_from(folder, arguments.split())
    assert done.returncode == 0, done.stderr
    assert not executed(folder)


def test_the_module_executes_nothing_but_a_package_of_its_own_name(folder: Path) -> None:
    for name in ("latentlab", "latentlab.py"):  # which Python finds before the project's own code runs
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = [sys.executable, "-m", "latentlab", "--version"]
    search = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=search, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not executed(folder)


def test_fetching_assets_executes_nothing(folder: Path) -> None:
    """A pip of the environment is started, and finds no index."""
    nowhere = {
        "PIP_INDEX_URL": "http://localhost:9/",
        "PIP_NO_INDEX": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
    }
    done = run_from(folder, ["adversarial", "--out", "../run"], XDG_CACHE_HOME=str(folder.parent / "cache"), **nowhere)
    assert done.returncode == 2 and "pip could not download" in done.stderr, done.stderr
    assert not executed(folder)


def test_every_command_executes_nothing(folder: Path, finished: Path, small: list[str]) -> None:
    """On a run that lies in the folder; a `matplotlibrc` there changes no figure."""
    shutil.copytree(finished, folder / "run")
    figure = folder / "run" / "vae" / "figures" / "losses.png"
    before = figure.read_bytes()
    figure.unlink()
    part = folder / "run" / "latent_arith"
    commands = {
        "figures": ["figures", "run"],
        "check": ["check", "run"],
        "report": ["report", "run"],
        "redraw": ["redraw", str(part / "edit.npz"), "--weights", str(part)],
        "bench": ["bench", "--quick", "--works", "face_directions", "--out", "../bench.json"],
        "vae": ["vae", *small, "--out", "../vae"],
        "latent-arith": ["latent-arith", "--preset", "quick", "--data", "celeba:.", "--out", "../faces"],
    }
    for name, arguments in commands.items():
        done = run_from(folder, arguments)
        assert done.returncode == (2 if name == "latent-arith" else 0), (name, done.stderr)
        assert not executed(folder), name
    assert figure.read_bytes() == before
