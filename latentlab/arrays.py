"""`AnyArray`, the type of what JAX's functions take, and `compute_in_float32`.

Static checkers see JAX's arrays alone in `AnyArray`, because code uses what only those have, such as `x.at`.
"""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import jax

if TYPE_CHECKING:
    from jax import Array as AnyArray
else:
    import numpy as np

    AnyArray = jax.Array | np.ndarray | np.generic

__all__ = ["AnyArray", "compute_in_float32"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compute_in_float32(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a function that computes in float32 where JAX's default is float64, as in a notebook with x64 enabled."""

    @wraps(function)
    def compute(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        with jax.enable_x64(False):
            return function(*arguments, **keywords)

    return compute
