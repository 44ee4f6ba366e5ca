"""Objectives of the digits' VAE side by side: bounds, samples and disentanglement, on digits whose factors are known.

    python -m benchmarks.objectives --out DIR

Prints a table in Markdown, each cell the mean and the standard deviation of the seeds. Every row is a run in `DIR`,
which goes on where it stopped, and which `latentlab report` draws.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae import experiment
from vae.config import PRESETS, VaeConfig

OBJECTIVES: dict[str, dict[str, Any]] = {
    "ELBO": {},
    "ELBO, β = 4": {"beta": 4.0},
    "β-TCVAE, β = 6": {"objective": "tcvae", "beta": 6.0},
    "IWAE, K = 5": {"objective": "iwae", "objective_samples": 5},
    "ELBO given the class": {"objective": "conditional"},
}
COLUMNS = {
    "negative ELBO": "test_negative_elbo",
    "negative IWAE bound": "test_iwae",
    "Fréchet distance": "prior_frechet_distance",
    "MIG": "disentanglement_mig",
    "DCI disentanglement": "disentanglement_dci_disentanglement",
    "DCI completeness": "disentanglement_dci_completeness",
    "DCI informativeness": "disentanglement_dci_informativeness",
    "10-NN accuracy": "neighbour_accuracy",
}
SETTING = replace(
    PRESETS["original"],
    data="deformed",
    network="keras_io",
    latent_dim=10,
    train_images=10_000,
    batch_size=100,
    learning_rate=1e-3,
    epochs=30,
    seeds=3,
)


def main() -> None:
    """Train with every objective and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the runs, which then can be resumed")
    parser.add_argument("--quick", action="store_true", help="one short run of each, to see that it works")
    options = parser.parse_args()
    setting = replace(SETTING, train_images=256, epochs=1, seeds=1, prior_samples=100, iwae_samples=2)
    rows = {}
    for index, (name, choice) in enumerate(OBJECTIVES.items()):
        run_dir = options.out / str(index)
        run_dir.mkdir(parents=True, exist_ok=True)
        copy_autoencoder(options.out / "0", run_dir)
        rows[name] = measure(replace(setting if options.quick else SETTING, **choice), run_dir)
    print("\n".join([_row(["objective", *COLUMNS]), _row(["---"] * (1 + len(COLUMNS)))]))
    for name, measured in rows.items():
        print(_row([name, *(_cell(measured[key]) for key in COLUMNS.values())]))


def copy_autoencoder(first: Path, run_dir: Path) -> None:
    """Give a run the autoencoder of the first, which no objective changes."""
    if (run_dir / "metrics.jsonl").exists() or run_dir == first:
        return
    shutil.copytree(first / "checkpoints" / "autoencoder", run_dir / "checkpoints" / "autoencoder")
    rows = (first / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(row for row in rows if json.loads(row)["model"] == "autoencoder"))


def measure(config: VaeConfig, run_dir: Path) -> Mapping[str, Any]:
    """Return what is measured of the VAE, by name."""
    found: Mapping[str, Any] = experiment.run(config, run_dir).measures["vae"]
    return found


def _cell(value: Mapping[str, Any]) -> str:
    spread = value.get("standard_deviation")
    return f"{value['mean']:.4g}" + ("" if spread is None else f" ± {spread:.2g}")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
