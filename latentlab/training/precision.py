"""The precision in which a network multiplies while it is trained."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from latentlab.config import Precision

MATMUL = {"float32": "float32", "tf32": "tensorfloat32"}


def apply_with_precision(precision: Precision, apply: Callable[..., Any], variables: Any, *inputs: Any) -> Any:
    """Return `apply(variables, *inputs)` in the given precision; variables, gradients and results are float32.

    Args:
        precision: `default` is the platform's own: float32 on CPU, TF32 on recent NVIDIA GPUs, bfloat16 on TPU.
            `float32` and `tf32` (a mantissa of 10 bits; float32 on CPU) concern products alone. With `bf16`, weights
            and activations are bfloat16 (a mantissa of 7 bits); running statistics of BatchNorm stay float32.
        apply: A network; what it returns beside its outputs, such as statistics, is float32 too.
        variables: Of the network, by collection.
        inputs: Trees of float32; integers among their leaves stay so.
    """
    if precision == "default":
        return apply(variables, *inputs)
    if precision != "bf16":
        with jax.default_matmul_precision(MATMUL[precision]):
            return apply(variables, *inputs)

    def cast(path: Any, leaf: jax.Array) -> jax.Array:
        statistic = any(getattr(key, "key", None) == "batch_stats" for key in path)
        return leaf if statistic else leaf.astype(jnp.bfloat16)

    def cast_input(leaf: jax.Array) -> jax.Array:
        return leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    outputs = apply(jax.tree_util.tree_map_with_path(cast, variables), *jax.tree.map(cast_input, inputs))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs)
