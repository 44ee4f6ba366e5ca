"""What contestants of the face VAE share: images, batches, and the clock around steps.

The functions that contestants name take images 0…255, uint8 (n, 128, 128, 3), and a number of repeats, of which the
first holds compilation. They return seconds and, where they train, mean loss of each repeat.
"""

from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import SupportsFloat

import numpy as np

from benchmarks.side_by_side import time_repeats
from latent_arith.config import ORIGINAL


def images(count: int) -> np.ndarray:
    """Patches of colour: something to learn, and the same for all, whatever is installed."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)


def steps(images: np.ndarray) -> int:
    """Return the steps of one repeat, which sees every image once; their mean is the time of a step."""
    return -(-len(images) // ORIGINAL.batch_size)


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images in their order, batch after batch, again and again."""
    return cycle(np.split(images, steps(images)))


def time_steps(
    step: Callable[[np.ndarray], SupportsFloat], images: np.ndarray, repeats: int
) -> tuple[list[float], list[float]]:
    """Trains by `step`, from a batch to its loss; the clock of a repeat stops when its last loss is on the host."""
    read, count = batches(images), steps(images)

    def work() -> float:
        return float(np.mean([float(loss) for loss in [step(batch) for batch in islice(read, count)]]))

    seconds, losses = time_repeats(work, repeats)
    return [second / count for second in seconds], losses


def time_encoding(
    encode: Callable[[np.ndarray], np.ndarray], images: np.ndarray, repeats: int
) -> tuple[list[float], list[float]]:
    """Time `encode`, from images to posterior means on the host; there is nothing to check."""
    seconds, _ = time_repeats(lambda: encode(images), repeats)
    return seconds, []
