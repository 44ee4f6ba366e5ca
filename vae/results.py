"""What experiment 1 gives: its models with their weights, latents, pictures and measurements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, UInt8

from latentlab.export.networks import Network, make_networks
from latentlab.model import LatentVariableModel, Variables
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz
from latentlab.storage.weights import read_variables, variable_arrays
from latentlab.tables import format_table
from vae import evaluate
from vae.config import VaeConfig

COMPARED = {
    "squared error, held out": "test_mse",
    "neighbour accuracy in latent space": "neighbour_accuracy",
    "KL of the codes to N(0, I), nats": "aggregate_kl_to_prior",
    "Fréchet distance, prior samples": "prior_frechet_distance",
    "density of prior samples": "prior_density",
    "coverage of prior samples": "prior_coverage",
    "prior samples of the class asked for": "prior_class_accuracy",
    "negative ELBO, training, nats": "train_negative_elbo",
    "negative ELBO, held out, nats": "test_negative_elbo",
    "negative IWAE bound, held out, nats": "test_iwae",
}
"""Measurements of the summary: what a person reads to what `results.json` calls it."""
HIGHER_IS_BETTER = {"neighbour_accuracy", "prior_coverage", "prior_class_accuracy"}
LOWER_IS_BETTER = set(COMPARED.values()) - HIGHER_IS_BETTER - {"prior_density"}
"""Of density neither: 1 is that of real images."""


@dataclass(frozen=True, eq=False)
class VaeResults:
    """The trained models and what was measured of them.

    Attributes:
        config: Settings of the run.
        models: Models by name: `autoencoder` and `vae`.
        variables: Variables of each on the host, every leaf with a leading axis of seeds.
        latents: What `latents.npz` holds: latents `NAME_z` of sampled held-out images of the first seed, and labels.
        pictures: What `figures.npz` holds: pictures 0…255 behind the figures.
        measures: What `results.json` holds.
    """

    config: VaeConfig
    models: Mapping[str, LatentVariableModel]
    variables: Mapping[str, Variables]
    latents: Mapping[str, np.ndarray]
    pictures: Mapping[str, np.ndarray]
    measures: Mapping[str, Any]

    def encode(
        self,
        images: UInt8[Array | np.ndarray, "n height width channels"],
        name: str = "vae",
        seed: int = 0,
        labels: Int[Array | np.ndarray, " n"] | None = None,
    ) -> Float[np.ndarray, "n latent"]:
        """Return posterior means of images 0…255; a conditional model asks for their classes too."""
        model = self.models[name]
        inputs = evaluate.take_inputs(model, np.asarray(images), None if labels is None else np.asarray(labels))
        return evaluate.encode(model, self._of_seed(name, seed), inputs)[0]

    def decode(
        self,
        latents: Float[Array | np.ndarray, "n latent"],
        name: str = "vae",
        seed: int = 0,
        labels: Int[Array | np.ndarray, " n"] | None = None,
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Return images 0…255 of latents; a conditional model asks for their classes too."""
        model, given = self.models[name], None if labels is None else np.asarray(labels)
        inputs = evaluate.take_latents(model, np.asarray(latents, np.float32)[None], given)
        return evaluate.decode(model, self._of_seed(name, seed), inputs)[0]

    def networks(self, seed: int = 0) -> tuple[Network, ...]:
        """Return encoders and decoders of one seed, for `export`."""
        pairs = (make_networks(f"{name}_", model, self._of_seed(name, seed)) for name, model in self.models.items())
        return tuple(network for pair in pairs for network in pair)

    def arrays(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the arrays of every file that `save` writes."""
        return {
            "weights.npz": {
                f"{name}/{path}": array
                for name, variables in self.variables.items()
                for path, array in variable_arrays(variables).items()
            },
            "latents.npz": dict(self.latents),
            "figures.npz": dict(self.pictures),
            "deliverables.npz": {"ans03": self.latents["vae_z"]},
        }

    def summary(self) -> str:
        """Return the comparison as a table."""

        def format_number(model: str, name: str) -> str:
            if name not in self.measures[model]:  # an autoencoder has no likelihood
                return ""
            value = self.measures[model][name]
            if value["mean"] is None:
                return "–"
            spread = f" ± {value['standard_deviation']:.3g}" if "standard_deviation" in value else ""
            return f"{value['mean']:.4g}{spread}"

        rows = [
            [label, format_number("autoencoder", key), format_number("vae", key)]
            for label, key in COMPARED.items()
            if key in self.measures["vae"]
        ]
        return format_table(["measure", "autoencoder", "VAE"], rows)

    def save(self, run_dir: Path) -> None:
        """Write all arrays and `results.json`, each file whole or not at all.

        Raises:
            UserError: A file could not be written.
        """
        for file, arrays in self.arrays().items():
            write_npz(run_dir / file, arrays)
        write_json(run_dir / "results.json", self.measures)

    @classmethod
    def load(cls, run_dir: Path, config: VaeConfig, models: Mapping[str, LatentVariableModel]) -> "VaeResults":
        """Read what `save` wrote; `models` are those that were trained.

        Raises:
            UserError: A file is missing or damaged, or the weights are those of other models.
        """
        arrays = read_npz(run_dir / "weights.npz")
        variables = {
            name: read_variables(model.init, arrays, f"{name}/", config.seeds, run_dir / "weights.npz")
            for name, model in models.items()
        }
        latents, pictures = read_npz(run_dir / "latents.npz"), read_npz(run_dir / "figures.npz")
        return cls(config, models, variables, latents, pictures, read_json(run_dir / "results.json"))

    def _of_seed(self, name: str, seed: int) -> Variables:
        variables: Variables = jax.tree.map(lambda leaf: leaf[seed], self.variables[name])
        return variables
