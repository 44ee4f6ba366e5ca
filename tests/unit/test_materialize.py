"""Materialised arrays: the same values and derivatives, and a call that XLA's CPU backend keeps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from latentlab.kernels.materialize import materialize


def squares(x: Array) -> dict[str, Array]:
    written = materialize({"x": jnp.sin(x), "twice": 2 * x})
    return {"square": written["x"] ** 2, "product": written["x"] * written["twice"]}


def plain(x: Array) -> dict[str, Array]:
    return {"square": jnp.sin(x) ** 2, "product": jnp.sin(x) * 2 * x}


def test_values_and_derivatives_are_those_of_the_arrays_themselves() -> None:
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    for name, expected in plain(x).items():
        np.testing.assert_allclose(jax.jit(squares)(x)[name], expected, rtol=1e-6)
        np.testing.assert_allclose(
            jax.vmap(jax.grad(lambda row: jnp.sum(squares(row)[name])))(x),  # noqa: B023
            jax.grad(lambda x: jnp.sum(plain(x)[name]))(x),  # noqa: B023
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            jax.jvp(squares, (x,), (x,))[1][name], jax.jvp(plain, (x,), (x,))[1][name], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("derived", [squares, jax.grad(lambda x: jnp.sum(squares(x)["square"]))])
def test_on_cpu_they_are_calls_that_compilation_does_not_dissolve(derived: Callable[[Array], Any]) -> None:
    traced = jax.jit(derived).trace(jnp.ones((3, 4)))
    assert " call(" in traced.lower(lowering_platforms=("cpu",)).compile().as_text()
    for platform in ("cuda", "tpu"):
        assert "inlineable" not in traced.lower(lowering_platforms=(platform,)).as_text()
