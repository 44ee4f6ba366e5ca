"""Settings of every test: the Keras backend, and JAX without implicit broadcasting or promotion."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax  # noqa: E402


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """No array is broadcast to another's rank, and none changes its dtype, unless the code says so."""
    with jax.numpy_dtype_promotion("strict"):
        yield
