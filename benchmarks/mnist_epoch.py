"""Times one training epoch of the MNIST VAE (1,000 images, batch 32) here and in other frameworks, side by side.

python benchmarks/mnist_epoch.py [--rounds 5] [--epochs 6] [--output benchmarks/results/NAME.json]
python benchmarks/mnist_epoch.py --contestant torch

How contestants take turns and what is summed up: `side_by_side`.
"""

import argparse
import json
from pathlib import Path

import side_by_side
from side_by_side import JAX, Contestant

CONTESTANTS = {
    "ours": Contestant("latentlab", "ours", JAX, "epoch_seconds"),
    "torch": Contestant("PyTorch, eager, channels last", "peer_torch", ("torch",), "epoch_seconds"),
    "tensorflow": Contestant(
        "Keras on TensorFlow, epoch in tf.function", "peer_tensorflow", ("tensorflow", "keras"), "epoch_seconds"
    ),
    "flax": Contestant("plain Flax, jitted step", "peer_flax", JAX, "epoch_seconds"),
    "flax_scan": Contestant("plain Flax, jitted scan", "peer_flax", JAX, "epoch_seconds_scanned", 1, 2),
}


def main() -> None:
    """Runs one contestant, or all of them against each other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=side_by_side.positive, default=5, help="times that every contestant runs")
    parser.add_argument(
        "--epochs", type=side_by_side.positive, default=6, help="epochs a run, the first one not counted"
    )
    parser.add_argument("--output", type=Path, help="JSON file of the measurements")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="run only this one, here, and print its JSON")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs is 1, expected 2 or more: the first epoch holds compilation and is not counted")
    if options.contestant:
        print(json.dumps(run(CONTESTANTS[options.contestant], options.epochs)))
        return
    described = side_by_side.machine(CONTESTANTS.values())
    compared = side_by_side.compare(__file__, CONTESTANTS, options.rounds, options.epochs, "--epochs", "ours")
    print(side_by_side.table(compared, CONTESTANTS, "ours", "seconds an epoch"))
    side_by_side.write({"machine": described, "epochs": options.epochs, **compared}, options.output)


def run(contestant: Contestant, epochs: int) -> dict[str, list[float]]:
    """Trains one contestant in this process.

    Returns:
        Seconds of every epoch but the first, seconds of the first, and mean loss of every epoch.
    """
    from vae.data import open_dataset

    seconds, losses = contestant.load()(open_dataset("packaged").train.images, epochs)
    return {"seconds": seconds[1:], "first_epoch_seconds": seconds[:1], "losses": losses}


if __name__ == "__main__":
    main()
