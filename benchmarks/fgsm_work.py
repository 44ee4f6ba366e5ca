"""What contestants of the attacks share: the network's weights, images, labels, and the clock around an attack.

The functions that contestants name take images 0…255, uint8 (n, 224, 224, 3), and a number of repeats, of which the
first holds compilation. They return seconds of each repeat and, as its check, ‖∇L‖₁, the sum of the absolute values of
the gradient in [0, 1], which agree only where the whole network and its derivative do. Adversarial images come back as
uint8 too: ε is two grey levels, so nothing is lost, and a quarter of the bytes goes to the device and back.
"""

from collections.abc import Callable

import jax
import numpy as np

from adversarial.mobilenet_v2 import MobileNetV2
from benchmarks.side_by_side import time_repeats
from latentlab.storage.keras_weights import paths

SIZE, CLASSES, EPSILON = 224, 1000, 2 / 255
Attack = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]


def images(count: int) -> np.ndarray:
    """Patches of colour, the same for all."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 14, 14, 3), np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)


def labels(count: int) -> np.ndarray:
    """Return the true classes."""
    return np.random.default_rng(1).integers(0, CLASSES, count).astype(np.int32)


def variables() -> dict[str, np.ndarray]:
    """Every variable of the network by its path in Flax, `params/Conv1/kernel`: random, and logits stay moderate."""
    network = MobileNetV2()
    template = jax.eval_shape(lambda: network.init(jax.random.key(0), np.zeros((1, SIZE, SIZE, 3), np.float32)))
    draws = np.random.default_rng(2)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("kernel"):
            return draws.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        return draws.uniform(0.5, 1.5, shape) if path.endswith(("scale", "var")) else draws.normal(0, 0.1, shape)

    shapes = zip(paths(template), jax.tree.leaves(template), strict=True)
    return {path: draw(path, leaf.shape).astype(np.float32) for path, leaf in shapes}


def time_attacks(attack: Attack, images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Time attacks from images and labels to the adversarial images and ‖∇L‖₁, all on the host."""
    truth = labels(len(images))
    return time_repeats(lambda: float(attack(images, truth)[1]), repeats)
