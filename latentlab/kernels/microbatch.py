"""Functions of many rows, on CPU of a few rows at a time, whose temporary arrays stay in its cache."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

CACHED_PIXELS = 2 * 224 * 224 * 3
"""Pixels × channels that go through MobileNetV2 at a time on CPU: more leave its cache (`benchmarks/README.md`)."""


def apply_in_cache(function: Callable[..., Any], images: Array, *others: Array) -> Any:
    """Return `function(images, *others)`; on CPU in microbatches of `CACHED_PIXELS`."""
    return microbatch(function, images, *others, size=max(1, CACHED_PIXELS // math.prod(images.shape[1:])))


def microbatch(function: Callable[..., Any], *arrays: Array, size: int) -> Any:
    """Return `function(*arrays)`; on CPU in a loop over microbatches of at most `size` rows.

    Where the rows do not fill all microbatches alike, the last one is repeated and its results are cut off.

    Args:
        function: Arrays with n rows to a tree of arrays with n rows; no row may depend on another.
        arrays: All with the same number of rows.
        size: Most rows at a time on CPU, 1 or more.
    """
    count = len(arrays[0])
    if count <= size:
        return function(*arrays)
    groups = -(-count // size)
    rows = -(-count // groups)

    def apply_in_loop(*arrays: Array) -> Any:
        def group(array: Array) -> Array:
            filled = jnp.pad(array, [(0, groups * rows - count), *[(0, 0)] * (array.ndim - 1)], mode="edge")
            return filled.reshape(groups, rows, *array.shape[1:])

        results = lax.map(lambda some: function(*some), tuple(map(group, arrays)))
        return jax.tree.map(lambda part: part.reshape(groups * rows, *part.shape[2:])[:count], results)

    return lax.platform_dependent(*arrays, cpu=apply_in_loop, default=function)
