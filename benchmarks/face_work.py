"""What contestants of `face_vae` share: batches, and clocks around steps and around whole repeats of the work.

The functions that contestants name take images 0…255, uint8 (n, 128, 128, 3), and a number of repeats, of which the
first holds compilation. They return seconds and mean loss of each repeat; without training there are no losses.
"""

import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, SupportsFloat

import numpy as np

from latent_arith.config import SEED

STEPS = 10
"""Steps of one repeat; their mean is the time of a step."""


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """The images in their order, batch after batch, again and again."""
    return cycle(np.split(images, range(SEED.batch_size, len(images), SEED.batch_size)))


def time_steps(
    step: Callable[[np.ndarray], SupportsFloat], images: np.ndarray, repeats: int
) -> tuple[list[float], list[float]]:
    """Trains by `step`, from a batch to its loss; the clock of a repeat stops when its last loss is on the host."""
    read, losses = batches(images), []

    def work() -> None:
        losses.append(float(np.mean([float(loss) for loss in [step(batch) for batch in islice(read, STEPS)]])))

    seconds, _ = time_repeats(work, repeats)
    return [second / STEPS for second in seconds], losses


def time_repeats(work: Callable[[], Any], repeats: int) -> tuple[list[float], list[float]]:
    """Times work whose result is on the host."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds, []
