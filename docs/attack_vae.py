"""The attacks know no model: here they move digits to another place in the latent plane of experiment 1's VAE.

    python docs/attack_vae.py runs/0001/vae

An encoder has no classes, but whatever gives logits can be attacked. Here class k's logit is minus half the squared
distance of an image's posterior mean to the mean of all training images of digit k: the nearest mean wins.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import latentlab
from adversarial import attacks
from adversarial.attacks import Logits
from latentlab.labeled_images import open_dataset
from latentlab.model import normalize
from vae.results import VaeResults

DIGITS, ATTACKED = 10, 200
EPSILON, STEPS = 0.1, 20  # of [0, 1]


def main(run_dir: Path) -> dict[str, float]:
    """Print and return which share of held-out digits each attack moves to another digit's mean."""
    results = latentlab.load(run_dir).vae
    data, config = open_dataset(results.config.data), results.config
    logits = make_logits(results, data.train.images[: config.train_images], data.train.labels[: config.train_images])
    images, key = normalize(jnp.asarray(data.test.images[:ATTACKED])), jax.random.key(config.seed)
    labels, targets = (attacks.class_at_rank(logits, images, rank) for rank in (1, 2))
    steps = {"steps": STEPS, "step_size": EPSILON / 4}
    moved = {
        "fgsm": attacks.fgsm(key, logits, images, labels, epsilon=EPSILON),
        "fgsm to the second nearest": attacks.fgsm(key, logits, images, targets, epsilon=EPSILON, targeted=True),
        "pgd": attacks.pgd(key, logits, images, labels, epsilon=EPSILON, **steps),
    }
    shares = {name: float(jnp.mean(result.success)) for name, result in moved.items()}
    for name, share in shares.items():
        print(f"{name}, epsilon {EPSILON} of [0, 1]: {share:.0%} of {len(images)} digits")
    return shares


def make_logits(results: VaeResults, images: np.ndarray, labels: np.ndarray) -> Logits:
    """Return logits of images from where the run's VAE puts them: -‖μ(x) - mₖ‖² / 2."""
    model = results.models["vae"]
    variables = jax.tree.map(lambda leaf: leaf[0], results.variables["vae"])
    codes = results.encode(images)
    means = jnp.stack([codes[labels == digit].mean(axis=0) for digit in range(DIGITS)])

    def logits(images: Array) -> Array:
        mean, _ = model.encode(variables, images)
        return -0.5 * jnp.sum((mean[:, None] - means[None]) ** 2, axis=-1)

    return logits


if __name__ == "__main__":
    main(Path(sys.argv[1]))
