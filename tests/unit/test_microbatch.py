"""The loop over a few rows against the function itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from latentlab.kernels.microbatch import microbatch


def function(rows: Array, scales: Array) -> dict[str, Array]:
    return {"sums": jnp.sum(jnp.sin(rows), axis=1) * scales, "rows": rows * scales[:, None]}


@pytest.fixture
def rows() -> tuple[Array, Array]:
    draws = np.random.default_rng(0)
    return jnp.asarray(draws.random((11, 3), np.float32)), jnp.asarray(draws.random(11, np.float32))


@pytest.mark.parametrize("few", [1, 2, 3, 4, 10, 11, 100])
def test_it_is_the_function_whether_or_not_groups_come_out_even(rows: tuple[Array, Array], few: int) -> None:
    found = jax.jit(partial(microbatch, function, size=few))(*rows)
    for name, expected in function(*rows).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)


def test_it_has_derivatives_and_takes_batches(rows: tuple[Array, Array]) -> None:
    def total(run: Array, scales: Array, few: int) -> Array:
        return jnp.sum(microbatch(function, run, scales, size=few)["sums"])

    many = jnp.stack([rows[0], 2 * rows[0]])
    found, expected = (jax.vmap(jax.grad(partial(total, few=few)), (0, None))(many, rows[1]) for few in (3, 11))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_only_few_rows_are_seen_at_a_time_and_on_other_platforms_all(rows: tuple[Array, Array]) -> None:
    seen: list[int] = []

    def watched(rows: Array, scales: Array) -> dict[str, Array]:
        seen.append(len(rows))
        return function(rows, scales)

    traced = jax.jit(partial(microbatch, watched, size=4)).trace(*rows)
    assert sorted(set(seen)) == [4, 11]
    assert "while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "while" not in traced.lower(lowering_platforms=(platform,)).as_text()
