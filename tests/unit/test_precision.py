"""Precisions of training: what reaches the compiler, and what becomes of losses, gradients and statistics."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from latent_arith.model import FaceVae
from latentlab.config import Precision
from vae.model import Vae

pytestmark = pytest.mark.lenient
Loss = Callable[[Any], tuple[Array, Any]]


def digits(precision: Precision) -> tuple[Loss, Any]:
    """Mean loss of the digits' VAE as a function of its parameters, and parameters."""
    model = Vae(precision=precision)
    images = jax.random.uniform(jax.random.key(1), (8, 28, 28, 1))

    def loss(params: Any) -> tuple[Array, Any]:
        per_example, _, statistics = model.loss(params, images, jax.random.key(2), jnp.asarray(0), train=True)
        return jnp.mean(per_example), statistics

    return loss, jax.jit(model.init)(jax.random.key(0))


def faces(precision: Precision) -> tuple[Loss, Any]:
    """The same of the faces'."""
    model = FaceVae(dropout=0.25, precision=precision)
    images = jax.random.uniform(jax.random.key(1), (2, 128, 128, 3))

    def loss(params: Any) -> tuple[Array, Any]:
        per_example, _, statistics = model.loss(params, images, jax.random.key(2), jnp.asarray(0), train=True)
        return jnp.mean(per_example), statistics

    return loss, jax.jit(model.init)(jax.random.key(0))


@pytest.mark.parametrize("of", [digits, faces])
def test_bf16_rounds_the_networks_and_nothing_else(of: Callable[[Precision], tuple[Loss, Any]]) -> None:
    found = {}
    precisions: tuple[Precision, ...] = ("default", "float32", "bf16")
    for precision in precisions:
        loss, params = of(precision)
        found[precision] = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(found[precision])} == {jnp.dtype("float32")}
    (exact, rounded), (gradients, rough) = ([found[name][part] for name in ("default", "bf16")] for part in (0, 1))
    assert found["float32"][0][0] == exact[0]
    assert rounded[0] != exact[0] and float(rounded[0]) == pytest.approx(float(exact[0]), rel=0.01)
    cosines = [
        float(jnp.vdot(one, other) / (jnp.linalg.norm(one) * jnp.linalg.norm(other)))
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(rough), strict=True)
        if float(jnp.linalg.norm(one)) > 0
    ]
    assert np.median(cosines) > 0.99 and min(cosines) < 0.9999


@pytest.mark.parametrize(("precision", "told"), [("default", "DEFAULT"), ("float32", "HIGHEST"), ("tf32", "HIGH")])
def test_every_product_of_the_networks_and_their_gradients_is_told_its_precision(
    precision: Precision, told: str
) -> None:
    loss, params = digits(precision)
    text = jax.jit(jax.grad(loss, has_aux=True)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
    assert len(products) > 20
    # Where nothing is told, products of matrices say nothing and convolutions say so.
    found = [set(re.findall("HIGHEST|HIGH|DEFAULT", line)) or {"DEFAULT"} for line in products]
    assert found == [{told}] * len(products)
