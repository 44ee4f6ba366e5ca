"""Functions of many rows, on CPU of a few rows at a time, whose temporary arrays stay in its cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def few_at_a_time(function: Callable[..., Any], *arrays: Array, few: int) -> Any:
    """`function(*arrays)`; on CPU in a loop over groups of at most `few` rows.

    Where the rows do not fill all groups alike, the last one is repeated and what comes of it cut off.

    Args:
        function: Arrays with n rows to a tree of arrays with n rows; no row may depend on another.
        arrays: All with the same number of rows.
        few: Most rows at a time on CPU, 1 or more.
    """
    count = len(arrays[0])
    if count <= few:
        return function(*arrays)
    groups = -(-count // few)
    size = -(-count // groups)

    def looped(*arrays: Array) -> Any:
        def grouped(rows: Array) -> Array:
            filled = jnp.pad(rows, [(0, groups * size - count), *[(0, 0)] * (rows.ndim - 1)], mode="edge")
            return filled.reshape(groups, size, *rows.shape[1:])

        results = lax.map(lambda some: function(*some), tuple(map(grouped, arrays)))
        return jax.tree.map(lambda part: part.reshape(groups * size, *part.shape[2:])[:count], results)

    return lax.platform_dependent(*arrays, cpu=looped, default=function)
