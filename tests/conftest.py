"""Settings of every test: the Keras backend, a shared compilation cache, JAX without implicit promotion; and a run."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
COMPILATIONS = tempfile.TemporaryDirectory(prefix="latentlab-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILATIONS.name  # for subprocesses too
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402

FEW_FACES = {
    "synthetic-images": 60,
    "held-out-images": 12,
    "epochs": 4,
    "steps-per-epoch": 2,
    "batch-size": 4,
    "epochs-per-checkpoint": 2,
    "classifier-images": 64,
    "classifier-epochs": 1,
    "scored-faces": 3,
}
SMALL_FACES = [argument for name, value in FEW_FACES.items() for argument in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    """No array changes its rank or dtype unless the code says so; Optax's Adam does, so `lenient` tests are let off."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.numpy_rank_promotion("raise"))
        if not request.node.get_closest_marker("lenient"):
            modes.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of idx files with 500 training and 40 held-out digits."""
    directory = tmp_path_factory.mktemp("digits")
    from tests.test_vae_data import write_packaged

    write_packaged(directory, 500, 40)
    return directory


@pytest.fixture(scope="session")
def small(digits: Path) -> list[str]:
    """Arguments of a run that takes seconds."""
    return (
        f"--data idx:{digits} --train-images 500 --epochs 4 --epochs-per-checkpoint 2 --iwae-samples 2 "
        "--prior-samples 30 --latent-points 50 --seeds 2"
    ).split()


@pytest.fixture(scope="session")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of `all`, with two seeds of the first experiment."""
    import run

    directory = tmp_path_factory.mktemp("runs") / "all"
    arguments = [name.replace("--", "--vae.") for name in small]
    arguments += [name.replace("--", "--latent-arith.") for name in SMALL_FACES]
    arguments += ["--adversarial.epsilons", "0", "0.01"]
    assert run.main(["all", *arguments, "--out", str(directory)]) == 0
    return directory
