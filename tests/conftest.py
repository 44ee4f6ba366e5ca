"""Settings of every test: the Keras backend, a shared compilation cache, JAX without implicit promotion; and a run."""

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two workers share a GPU
# What a test compiles is kept for the other worker, for subprocesses and for the next session (a third shorter).
# `pytest --cache-clear` forgets it. With a largest size JAX locks the directory while it reads or writes an entry.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "d" / "compiled")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(4 * 1024**3)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402

import tests.typechecker  # noqa: E402, F401

hypothesis.settings.register_profile("untimed", deadline=None)  # how long an example takes is no property of it
hypothesis.settings.load_profile("untimed")

# Shapes and types of all annotated arguments and results are checked at run time, in tests alone.
CHECKED = jaxtyping.install_import_hook(("latentlab", "vae", "latent_arith", "adversarial"), "tests.typechecker.check")

FEW_FACES = {
    "size": 64,
    "synthetic-images": 60,
    "held-out-images": 12,
    "epochs": 4,
    "steps-per-epoch": 2,
    "batch-size": 4,
    "epochs-per-checkpoint": 2,
    "classifier-images": 64,
    "classifier-epochs": 1,
    "scored-faces": 3,
    "compared-faces": 2,
    "bootstrap-resamples": 1,
}
SMALL_FACES = [argument for name, value in FEW_FACES.items() for argument in (f"--{name}", str(value))]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail where a test was skipped, as CI does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder: integration and faults are slow, gpu is for a device; warnings in tests are errors.

    In tests, and not in the configuration of pytest, where a warning of a foreign plugin would end the suite. No error
    are the reads of a damaged checkpoint that orbax abandons: Python tells of them when it next collects garbage, in
    any test (the command hides them: `command_process.hide_abandoned_io`).
    """
    from latentlab.command_process import UNSTARTED_COROUTINE

    abandoned = (
        "ignore:(?s)Exception ignored.*orbax:pytest.PytestUnraisableExceptionWarning",
        "ignore:(?s)Exception ignored.*Event loop is closed:pytest.PytestUnraisableExceptionWarning",
        f"ignore:{UNSTARTED_COROUTINE}:RuntimeWarning",
    )
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error", *abandoned), append=False)
        if {"integration", "faults"} & set(item.path.parts):
            item.add_marker("slow")
        if "gpu" in item.path.parts:
            item.add_marker("gpu")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    """No array changes its rank or dtype unless the code says so; Optax's Adam does, so `lenient` tests are let off."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.numpy_rank_promotion("raise"))
        if request.node.get_closest_marker("unchecked"):
            jaxtyping.config.update("jaxtyping_disable", True)
            modes.callback(jaxtyping.config.update, "jaxtyping_disable", False)
        if not request.node.get_closest_marker("lenient"):
            modes.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


@pytest.fixture(autouse=True)
def optimized(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without most of XLA's optimizations many small programs compile in half the time, and take longer to run.

    The closest mark counts. Fixtures of a wider scope come before this one, and are compiled as users have them.
    """
    mark = request.node.get_closest_marker("unoptimized")
    jax.config.update("jax_disable_most_optimizations", mark is not None and mark.args != (False,))
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs() -> Iterator[None]:
    """Forget compiled programs and garbage at the end of a file, so that a worker keeps below 3 GB."""
    yield
    jax.clear_caches()
    gc.collect()


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return what `make` writes at a path: the first worker that wants it makes it, the other waits and uses it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    path, complete = root / name, root / f"{name} is complete"
    with FileLock(root / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(path, ignore_errors=True)
            make(path)
            complete.touch()
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of idx files with 500 training and 40 held-out digits."""
    from tests.digits import write_packaged

    return made_once(tmp_path_factory, "digits", lambda path: write_packaged(path, 500, 40))


@pytest.fixture(scope="session")
def small(digits: Path) -> list[str]:
    """Arguments of a run that takes seconds."""
    return (
        f"--data idx:{digits} --train-images 500 --epochs 4 --epochs-per-checkpoint 2 --iwae-samples 2 "
        "--prior-samples 30 --latent-points 50 --seeds 2"
    ).split()


@pytest.fixture(scope="session")
def finished_arguments(small: list[str]) -> list[str]:
    """Arguments of `all` that take few seconds for every experiment, with two seeds of the first."""
    arguments = [name.replace("--", "--vae.") for name in small]
    arguments += [name.replace("--", "--latent-arith.") for name in SMALL_FACES]
    return [*arguments, "--adversarial.epsilons", "0", "0.01", "--adversarial.size", "96"]


@pytest.fixture(scope="session")
def finished(finished_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of `all`, with two seeds of the first experiment. Tests change copies of it."""
    from latentlab import cli

    def make(path: Path) -> None:
        assert cli.main(["all", *finished_arguments, "--out", str(path)]) == 0

    return made_once(tmp_path_factory, "finished", make)
