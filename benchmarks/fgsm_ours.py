"""FGSM on MobileNetV2 with this project's attacks: on its own convolutions, on XLA's, and on its own by foolbox."""

from collections.abc import Callable
from typing import Any, cast

import face_work
import fgsm_work
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from adversarial import attacks, mobilenet_v2

EPSILONS = np.linspace(1, 10, 10, dtype=np.float32) / 255
TARGETS = 3
CHUNKED_EPSILONS = 3


def gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Attacks the images in one call."""
    variables = _variables()

    @jax.jit
    def fgsm(variables: Any, pixels: Array, labels: Array) -> tuple[Array, Array]:
        gradient = attacks.input_gradient(_logits(variables), pixels, labels, jnp.asarray(False))
        moved = jnp.clip(pixels + fgsm_work.EPSILON * jnp.sign(gradient), 0, 1)
        return moved, jnp.sum(jnp.abs(gradient))

    return fgsm_work.time_attacks(lambda *given: jax.device_get(fgsm(variables, *given)), images, repeats)


def xla_gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """The same with XLA's own convolutions, which Flax uses if it is told nothing."""
    mobilenet_v2.conv_general_dilated = cast(Any, lax.conv_general_dilated)
    return gradient_seconds(images, repeats)


def sweep_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Every ε, untargeted and towards three classes, in one call."""
    variables, rows = _variables(), _rows(len(images))

    @jax.jit
    def sweep(variables: Any, pixels: Array, rows: Array) -> attacks.Attacked:
        targeted = jnp.arange(1 + TARGETS) > 0
        return attacks.sweep(_logits(variables), pixels, rows, targeted, jnp.asarray(EPSILONS))

    moved: list[float] = []

    def work() -> None:
        swept = jax.device_get(sweep(variables, images, rows))
        moved.append(float(np.abs(swept.images - images).mean() * 255))

    return face_work.time_repeats(work, repeats)[0], moved


def foolbox_sweep_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """The same by foolbox, on the same network as one jitted call.

    Foolbox's fast gradient attack refuses targets; one full step of its basic iterative attack is the same.
    """
    import foolbox

    model = foolbox.JAXModel(jax.jit(_logits(_variables())), bounds=(0, 1))
    untargeted = foolbox.attacks.LinfFastGradientAttack()
    towards = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=1.0, steps=1, random_start=False)
    pixels, (truth, *targets) = jnp.asarray(images), jnp.asarray(_rows(len(images)))
    criteria = [
        (untargeted, foolbox.criteria.Misclassification(truth)),
        *((towards, foolbox.criteria.TargetedMisclassification(target)) for target in targets),
    ]
    moved: list[float] = []

    def work() -> None:
        swept = [attack(model, pixels, criterion, epsilons=EPSILONS.tolist()) for attack, criterion in criteria]
        clipped = np.stack([np.stack(row) for _, row, _ in jax.device_get(swept)])
        moved.append(float(np.abs(clipped - images).mean() * 255))

    return face_work.time_repeats(work, repeats)[0], moved


def chunks_of(chunk: int) -> Callable[[np.ndarray, int], tuple[list[float], list[float]]]:
    """A contestant that sweeps so many images at a time; its check is a call's temporary memory in XLA, in MB."""

    def seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
        logits = _logits(_variables())

        def attack(pixels: Array, labels: Array) -> attacks.Attacked:
            some = jnp.asarray(EPSILONS[:CHUNKED_EPSILONS])
            swept = attacks.sweep(logits, pixels, labels[None], jnp.asarray([False]), some)
            return jax.tree.map(lambda part: jnp.moveaxis(part[0], 1, 0), swept)

        pixels, labels = jnp.asarray(images), jnp.asarray(fgsm_work.labels(len(images)))
        memory: Any = jax.jit(attack).lower(pixels[:chunk], labels[:chunk]).compile().memory_analysis()
        seconds, _ = face_work.time_repeats(lambda: attacks.in_chunks(attack, pixels, labels, chunk), repeats)
        return seconds, [memory.temp_size_in_bytes / 1e6] * repeats

    return seconds


chunks_of_4, chunks_of_16, chunks_of_64 = map(chunks_of, (4, 16, 64))


def _rows(count: int) -> np.ndarray:
    """True classes and, for every image, three others."""
    return (fgsm_work.labels(count) + np.arange(1 + TARGETS, dtype=np.int32)[:, None]) % fgsm_work.CLASSES


def _logits(variables: Any) -> attacks.Logits:
    apply: Any = mobilenet_v2.MobileNetV2().apply
    return lambda pixels: apply(variables, 2 * pixels - 1)


def _variables() -> Any:
    """Variables on the device, as a tree."""
    tree: dict[str, Any] = {}
    for path, array in fgsm_work.variables().items():
        collection, layer, variable = path.split("/")
        tree.setdefault(collection, {}).setdefault(layer, {})[variable] = jnp.asarray(array)
    return tree
