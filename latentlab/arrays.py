"""`AnyArray`, the type of what JAX's functions take: an array of JAX or of NumPy, or a scalar of NumPy.

Static checkers see JAX's alone, because code uses what only those have, such as `x.at`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax import Array as AnyArray
else:
    import jax
    import numpy as np

    AnyArray = jax.Array | np.ndarray | np.generic

__all__ = ["AnyArray"]
