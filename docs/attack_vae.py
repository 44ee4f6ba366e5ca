"""The attacks know no model: here they move digits to another place in the latent plane of experiment 1's VAE.

    python docs/attack_vae.py runs/0001/vae

An encoder has no classes, but whatever gives logits can be attacked. Here class k's logit is minus half the squared
distance of an image's posterior mean to the mean of all training images of digit k: the nearest mean wins.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adversarial import attacks
from adversarial.attacks import Attacked, Labels, Logits
from runtime.checkpoints import Checkpoints
from runtime.run_directory import read_json
from vae import experiment, models
from vae.config import VaeConfig
from vae.data import open_dataset
from vae.train import normalize

DIGITS, ATTACKED = 10, 200
EPSILON, STEPS = 0.1, 20  # of [0, 1]


def main(run_dir: Path) -> dict[str, float]:
    """Prints, and returns, which share of held-out digits each attack moves to another digit's mean."""
    config = dataclasses.replace(VaeConfig(), **read_json(run_dir / "config.json")["config"])
    data = open_dataset(config.data)
    train = normalize(jnp.asarray(data.train.images[: config.train_images]))
    logits = nearest_mean(run_dir, config, train, data.train.labels[: config.train_images])
    images = normalize(jnp.asarray(data.test.images[:ATTACKED]))
    labels = attacks.likeliest(logits, images)

    def untargeted(images: Array, labels: Labels) -> Attacked:
        return attacks.fgsm(logits, images, labels, EPSILON)

    def targeted(images: Array, labels: Labels) -> Attacked:
        return attacks.fgsm(logits, images, labels, EPSILON, targeted=True)

    def projected(images: Array, labels: Labels, keys: Array) -> Attacked:
        size = EPSILON / 4
        return attacks.pgd(keys, logits, images, labels, EPSILON, step_size=size, steps=STEPS)

    keys = jax.random.split(jax.random.key(config.seed), len(images))
    targets = attacks.likeliest(logits, images, rank=2)
    moved = {
        "fgsm": attacks.in_chunks(untargeted, images, labels, chunk=100),
        "fgsm to the second nearest": attacks.in_chunks(targeted, images, targets, chunk=100),
        "pgd": attacks.in_chunks(projected, images, labels, keys, chunk=100),
    }
    shares = {name: float(jnp.mean(attacked.success)) for name, attacked in moved.items()}
    for name, share in shares.items():
        print(f"{name}, epsilon {EPSILON} of [0, 1]: {share:.0%} of {len(images)} digits")
    return shares


def nearest_mean(run_dir: Path, config: VaeConfig, train: Array, labels: np.ndarray) -> Logits:
    """Logits of images from where the run's VAE puts them: -‖μ(x) - mₖ‖² / 2."""
    model = models.variational_autoencoder(config)
    template = experiment.initial_states(model, 1, config)
    restored = Checkpoints(run_dir / "checkpoints" / "vae").restore(template, warn=print)
    if restored is None:
        raise SystemExit(f"{run_dir}: holds no checkpoint of the VAE")
    params = jax.tree.map(lambda leaf: leaf[0], restored.state.params)
    codes = model.encode(params, train)[0]
    means = jnp.stack([codes[labels == digit].mean(axis=0) for digit in range(DIGITS)])

    def logits(images: Array) -> Array:
        mean, _ = model.encode(params, images)
        return -0.5 * jnp.sum((mean[:, None] - means[None]) ** 2, axis=-1)

    return logits


if __name__ == "__main__":
    main(Path(sys.argv[1]))
