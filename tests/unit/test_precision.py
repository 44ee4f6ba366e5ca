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
from latentlab.model import LatentVariableModel
from vae.model import Vae

pytestmark = pytest.mark.lenient
Loss = Callable[[Any], tuple[Array, Any]]


def mean_loss(model: LatentVariableModel) -> tuple[Loss, Any]:
    """Mean loss of a model in training as a function of its variables, and variables."""
    images = jax.random.uniform(jax.random.key(1), (8, *model.image_shape))

    def loss(variables: Any) -> tuple[Array, Any]:
        per_example, _, statistics = model.loss(variables, images, jax.random.key(2), jnp.asarray(0), train=True)
        return jnp.mean(per_example), statistics

    return loss, jax.jit(model.init)(jax.random.key(0))


def digits(precision: Precision) -> tuple[Loss, Any]:
    return mean_loss(Vae(precision=precision))


def faces(precision: Precision) -> tuple[Loss, Any]:
    return mean_loss(FaceVae(20, (32, 32, 3), dropout=0.25, precision=precision))


@pytest.mark.parametrize("of", [digits, faces])
def test_bf16_rounds_the_networks_and_nothing_else(of: Callable[[Precision], tuple[Loss, Any]]) -> None:
    _, params = of("default")

    def measure(precision: Precision) -> Any:
        found = jax.jit(jax.value_and_grad(of(precision)[0], has_aux=True))(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
        return found

    (exact, gradients), (rounded, rough) = measure("default"), measure("bf16")
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
