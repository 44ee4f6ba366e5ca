"""FGSM and PGD by foolbox, on our MobileNetV2 as one jitted call."""

from functools import partial

import foolbox
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import fgsm_ours, fgsm_work
from benchmarks.side_by_side import time_repeats


def sweep_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Every ε, untargeted and towards three classes.

    Foolbox's fast gradient attack refuses targets; one full step of its basic iterative attack is the same.
    """
    model = foolbox.JAXModel(jax.jit(fgsm_ours.logits_of(fgsm_ours.variables_on_device())), bounds=(0, 1))
    untargeted = foolbox.attacks.LinfFastGradientAttack()
    towards = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=1.0, steps=1, random_start=False)
    pixels, (truth, *targets) = images / np.float32(255), jnp.asarray(fgsm_ours.objectives(len(images)))
    epsilons = fgsm_ours.EPSILONS.tolist()
    criteria = [
        (untargeted, foolbox.criteria.Misclassification(truth)),
        *((towards, foolbox.criteria.TargetedMisclassification(target)) for target in targets),
    ]

    def work() -> list[list[np.ndarray]]:
        given = jnp.asarray(pixels)
        return [jax.device_get(attack(model, given, criterion, epsilons=epsilons)[1]) for attack, criterion in criteria]

    return time_repeats(work, repeats, lambda swept: fgsm_ours.change(pixels, np.stack([*map(np.stack, swept)])))


def pgd_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Ten steps of a quarter of ε from a random start; the check is the mean change of a pixel."""
    logits = jax.jit(fgsm_ours.logits_of(fgsm_ours.variables_on_device()))
    model = foolbox.JAXModel(logits, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(rel_stepsize=fgsm_ours.PGD_STEP, steps=fgsm_ours.PGD_STEPS)
    pixels = images / np.float32(255)
    criterion = foolbox.criteria.Misclassification(jnp.asarray(fgsm_work.labels(len(images))))

    def work() -> np.ndarray:
        return jax.device_get(attack(model, jnp.asarray(pixels), criterion, epsilons=fgsm_work.EPSILON)[1])

    return time_repeats(work, repeats, partial(fgsm_ours.change, pixels))
