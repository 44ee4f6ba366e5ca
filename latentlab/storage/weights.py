"""Variables of a model as named arrays, `params/encoder/conv_0/kernel`, and back."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax import Array
from jaxtyping import Key

from latentlab.errors import UserError
from latentlab.model import Variables
from latentlab.storage.keras_weights import assign, paths


def variable_arrays(variables: Variables) -> dict[str, np.ndarray]:
    """Return every variable under its path."""
    leaves = map(np.ascontiguousarray, jax.tree.leaves(variables))
    return dict(zip(paths(variables), leaves, strict=True))


def read_variables(
    init: Callable[[Key[Array, ""]], Variables],
    arrays: Mapping[str, np.ndarray],
    prefix: str,
    seeds: int,
    where: Path,
) -> Variables:
    """Return the variables of a model from the arrays whose names begin with a prefix.

    Args:
        init: Makes variables of the model that they are of from a key.
        arrays: What `variable_arrays` returned, with the prefix before every path.
        prefix: For instance `vae/`.
        seeds: Length of the leading axis of every array.
        where: The file, for the message.

    Raises:
        UserError: A variable is missing, extra or misshapen.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((seeds, *leaf.shape), leaf.dtype), shapes)
    named = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    try:
        return assign(template, named, {path: path for path in paths(template)})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
