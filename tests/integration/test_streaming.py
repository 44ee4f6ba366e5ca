"""A million images, 49 GB, that no machine here holds: read in batches, in memory that does not grow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

MILLION = """
import resource, sys
import numpy as np
from latent_arith.datasets import batches
from latent_arith.directions import find_directions

class Million:
    '''Image i is grey, of level i mod 251.'''

    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        images = np.empty((len(index), 128, 128, 3), np.uint8)
        images[:] = (index % 251)[:, None, None, None]
        return images

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MB

def told(read, every, count):
    for number, item in enumerate(read):
        if number % every == 0:
            print("peak", number, peak(), flush=True)
        if number == count:
            return
        yield item

source, rows = Million(), np.arange(1_000_000)
if sys.argv[1] == "training":
    read = batches.stream_images(source, rows, 32, seed=0)
    total = 0
    for images in told(read, 500, 5000):
        total += int(images[0, 0, 0, 0])
    print("mean level", total / 5000)
else:
    attributes = np.where(rows % 251 + rows % 97 > 170, 1, -1).astype(np.int8)[:, None]
    read = batches.read_in_order(source, rows, 500, attributes, np.ones((1, 1_000_000, 1), np.float32))

    def encode(images):
        level = images[:, 0, 0, 0].astype(np.float32)
        return np.stack([level, (level % 2) * 100], axis=1)

    found = find_directions(encode, told(read, 200, -1), ["bright"])
    print("distance", found.distances[0, 0], *found.vectors[0, 0], found.n_positive[0, 0], found.n_negative[0, 0])
"""


def run(what: str) -> tuple[list[int], list[str]]:
    """Peaks of resident memory on the way, in MB, and the last line."""
    done = subprocess.run(
        [sys.executable, "-c", MILLION, what], capture_output=True, text=True, cwd=ROOT, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [int(line[2]) for line in lines if line[0] == "peak"], lines[-1]


@pytest.mark.parametrize(("what", "points"), [("training", 11), ("directions", 10)])
def test_memory_stays_flat_over_a_million_images(what: str, points: int) -> None:
    """All in all 49 GB go through the pass for directions; training reads 160,000 of them, in random order."""
    peaks, last = run(what)
    assert len(peaks) == points
    assert peaks[-1] - peaks[1] < 64, peaks
    if what == "training":
        assert abs(float(last[2]) - 125) < 5
        return
    level = (np.arange(1_000_000) % 251).astype(np.float64)
    latents = np.stack([level, level % 2 * 100], axis=1)
    bright = np.arange(1_000_000) % 251 + np.arange(1_000_000) % 97 > 170
    difference = latents[bright].mean(axis=0) - latents[~bright].mean(axis=0)
    distance, *vector, positives, negatives = map(float, last[1:])
    assert (positives, negatives) == (bright.sum(), (~bright).sum())
    assert distance == pytest.approx(np.linalg.norm(difference), rel=1e-5)
    np.testing.assert_allclose(vector, difference / np.linalg.norm(difference), atol=1e-5)
