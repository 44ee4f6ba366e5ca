"""A function mapped over seeds gives what `vmap` gives, one after the other on a single CPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentlab import parallel
from latentlab.parallel import map_seeds

SEEDS = 3


@pytest.mark.parametrize(("in_axes", "out_axes"), [((0, None, 1), 0), ((0, None, 1), 1), ((0, None, 1), -1)])
def test_it_is_vmap(in_axes: tuple[int | None, ...], out_axes: int) -> None:
    def function(state: dict[str, jax.Array], shared: jax.Array, rows: jax.Array) -> dict[str, jax.Array]:
        return {"sum": jnp.outer(state["a"], shared) + rows[:, None], "noise": jax.random.normal(state["key"], (2,))}

    state = {"a": jnp.arange(3.0 * SEEDS).reshape(SEEDS, 3), "key": jax.random.split(jax.random.key(0), SEEDS)}
    arguments = state, jnp.arange(4.0), jnp.arange(3.0 * SEEDS).reshape(3, SEEDS)
    expected = jax.vmap(function, in_axes, out_axes)(*arguments)
    found = map_seeds(function, SEEDS, in_axes, out_axes)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_one_axis_can_stand_for_all_arguments() -> None:
    first, second = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))
    np.testing.assert_array_equal(map_seeds(jnp.add, 2)(first, second), first + second)


def test_one_seed_has_no_axis() -> None:
    assert map_seeds(jnp.sin, 1) is jnp.sin


@pytest.mark.parametrize(("backend", "loops"), [("cpu", True), ("gpu", False)])
def test_seeds_go_one_after_the_other_on_one_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, backend: str, loops: bool
) -> None:
    monkeypatch.setattr(parallel.jax, "default_backend", lambda: backend)
    shapes: list[Any] = []

    def function(row: jax.Array) -> jax.Array:
        shapes.append(row.shape)
        return row @ row

    text = str(jax.make_jaxpr(map_seeds(function, SEEDS))(jnp.ones((SEEDS, 4))))
    assert ("scan" in text) == loops
    assert set(shapes) == {(4,)}
