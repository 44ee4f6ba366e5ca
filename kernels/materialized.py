"""Values that XLA's CPU backend writes to memory once, instead of computing them anew for all that reads them."""

from typing import TypeVar

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

Tree = TypeVar("Tree")


def materialized(tree: Tree) -> Tree:
    """The same arrays; on CPU they, their tangents and their cotangents are written to memory in row-major order.

    XLA's CPU backend fuses elementwise operations into every reader, and a transposition into all that follows it. It
    drops optimization barriers before it fuses, but keeps a call that is not to be inlined, and those of its derivative
    and transpose.
    """
    leaves, structure = jax.tree.flatten(tree)

    def written(*leaves: jax.Array) -> tuple[jax.Array, ...]:
        with set_xla_metadata(inlineable="false"):
            return _identity(*leaves)

    return jax.tree.unflatten(structure, lax.platform_dependent(*leaves, cpu=written, default=lambda *leaves: leaves))


@jax.jit
def _identity(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays
