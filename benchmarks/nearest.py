"""How near the nearest images are that attacks find here, beside those of foolbox, on two networks of digits.

    python -m benchmarks.nearest

attacks the networks of `tests/data/auto_attack`, and prints the median distance of the digits that are recognised,
beside that of what foolbox found on the same digits with the same steps (`tests/oracles/other_attacks.py`).
"""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adversarial.attacks import ATTACKS, Attack, AttackResult
from adversarial.classifier import Classifier
from benchmarks.auto_attack import DATA, NAMES, read_classifier
from latentlab.labeled_images import open_dataset

SEARCHES = (("deepfool", "l2", 0), ("deepfool", "linf", 0), ("fmn", "l2", 0), ("fmn", "linf", 0), ("cw", "l2", 1000))
"""Attack, norm, and steps; 0 for its own."""


@partial(jax.jit, static_argnums=0)
def _search(attack: Attack, classifier: Classifier, images: Array, labels: Array) -> AttackResult:
    return attack(jax.random.key(0), classifier.logits, images, labels)


def main() -> None:
    """Print a row for every network and attack."""
    expected, test = np.load(DATA / "other_attacks.npz"), open_dataset("packaged").test
    for network in NAMES:
        classifier = read_classifier(network)
        for name, norm, steps in SEARCHES:
            theirs = expected[f"{network}/{name}/{steps or norm}"]
            images = jnp.asarray(test.images[: len(theirs)], jnp.float32) / 255
            labels = jnp.asarray(test.labels[: len(theirs)])
            settings: dict[str, Any] = {"steps": steps} if steps else {}
            attack = partial(ATTACKS[name], epsilon=jnp.inf, norm=norm, **settings)
            begun = time.perf_counter()
            distances = np.asarray(_search(attack, classifier, images, labels).distance)
            seconds = time.perf_counter() - begun
            recognised = distances > 0
            ours, those = np.median(distances[recognised]), np.median(theirs[recognised])
            print(
                f"{network:8} {name:8} {norm:4} ours {ours:.4f} foolbox {those:.4f} ratio {ours / those:.3f}, "
                f"{int(recognised.sum())} digits, {seconds:.1f} s, compilation included",
                flush=True,
            )


if __name__ == "__main__":
    main()
