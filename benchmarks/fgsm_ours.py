"""FGSM and PGD on MobileNetV2 with this project's attacks, each in one call."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adversarial import attacks, mobilenet_v2
from adversarial.classifier import in_unit_range
from benchmarks import fgsm_work
from benchmarks.side_by_side import time_repeats

EPSILONS = np.linspace(1, 10, 10, dtype=np.float32) / 255
TARGETS = 3
PGD_STEPS, PGD_STEP = 10, 0.25


def gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Attacks the images in one call."""
    variables = variables_on_device()

    @jax.jit
    def fgsm(variables: Any, images: Array, labels: Array) -> tuple[Array, Array]:
        pixels = in_unit_range(images)
        gradient = attacks.input_gradient(logits_of(variables), pixels, labels, jnp.asarray(False))
        moved = jnp.clip(pixels + fgsm_work.EPSILON * jnp.sign(gradient), 0, 1)
        return jnp.round(255 * moved).astype(jnp.uint8), jnp.sum(jnp.abs(gradient))

    return fgsm_work.time_attacks(lambda *given: jax.device_get(fgsm(variables, *given)), images, repeats)


def sweep_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Every ε, untargeted and towards three classes, in one call."""
    variables, rows, pixels = variables_on_device(), objectives(len(images)), images / np.float32(255)

    @jax.jit
    def sweep(variables: Any, pixels: Array, rows: Array) -> attacks.AttackResult:
        targeted, epsilons = jnp.arange(1 + TARGETS) > 0, jnp.asarray(EPSILONS)
        return attacks.sweep(attacks.fgsm, jax.random.key(0), logits_of(variables), pixels, rows, targeted, epsilons)

    def work() -> np.ndarray:
        return jax.device_get(sweep(variables, pixels, rows)).images

    return time_repeats(work, repeats, partial(change, pixels))


def pgd_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Ten steps of a quarter of ε from a random start, in one call; the check is the mean change of a pixel."""
    variables, labels, pixels = variables_on_device(), fgsm_work.labels(len(images)), images / np.float32(255)

    @jax.jit
    def pgd(key: Array, variables: Any, pixels: Array, labels: Array) -> Array:
        logits, epsilon = logits_of(variables), fgsm_work.EPSILON
        step_size = PGD_STEP * epsilon
        every = jax.random.split(key, len(labels))
        settings: dict[str, Any] = {"epsilon": epsilon, "step_size": step_size, "steps": PGD_STEPS}
        return attacks.pgd(every, logits, pixels, labels, **settings).images

    keys = iter(jax.random.split(jax.random.key(0), repeats))

    def work() -> np.ndarray:
        return jax.device_get(pgd(next(keys), variables, pixels, labels))

    return time_repeats(work, repeats, partial(change, pixels))


def change(images: np.ndarray, moved: np.ndarray) -> float:
    """Mean change of a pixel, in grey levels."""
    return float(np.mean([np.abs(row - images).mean() for row in moved.reshape(-1, *images.shape)]) * 255)


def objectives(count: int, targets: int = TARGETS) -> np.ndarray:
    """Return the true classes and, for every image, some others."""
    return (fgsm_work.labels(count) + np.arange(1 + targets, dtype=np.int32)[:, None]) % fgsm_work.CLASSES


def logits_of(variables: Any) -> attacks.Logits:
    """Pixels in [0, 1] to logits."""
    apply: Any = mobilenet_v2.MobileNetV2().apply
    return lambda pixels: apply(variables, 2 * pixels - 1)


def variables_on_device() -> Any:
    """Variables on the device, as a tree."""
    tree: dict[str, Any] = {}
    for path, array in fgsm_work.variables().items():
        collection, layer, variable = path.split("/")
        tree.setdefault(collection, {}).setdefault(layer, {})[variable] = jnp.asarray(array)
    return tree
