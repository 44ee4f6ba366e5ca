"""Settings of every test: the Keras backend, a shared compilation cache, and JAX without implicit promotion."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
COMPILATIONS = tempfile.TemporaryDirectory(prefix="latentlab-tests-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILATIONS.name  # for subprocesses too
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402


@pytest.fixture(autouse=True)
def strict(request: pytest.FixtureRequest) -> Iterator[None]:
    """No array changes its rank or dtype unless the code says so; Optax's Adam does, so `lenient` tests are let off."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(jax.numpy_rank_promotion("raise"))
        if not request.node.get_closest_marker("lenient"):
            modes.enter_context(jax.numpy_dtype_promotion("strict"))
        yield
