"""Write values to memory once on CPU, where XLA would compute them anew for each of their readers."""

from typing import TypeVar

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

Tree = TypeVar("Tree")


def materialize(tree: Tree) -> Tree:
    """Return the same arrays; on CPU, write them, their tangents and cotangents to memory in row-major order.

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
