"""The network and the protocol of pythae's VAE in PyTorch alone: what `anchors pythae_vae` is compared with.

    python -m benchmarks.anchors_torch --mnist package/data --epochs 50

784-400-40, ReLU, PyTorch's initial weights; Adam, 1e-4, falling by 10^(1/5) at epochs 200 and 350; batches of 100. The
binary digits are those that `anchors` trains on.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentlab.labeled_images import open_dataset

TRAIN_IMAGES, BATCH = 50_000, 100


class TorchVae(nn.Module):
    """Dense layers 784-400-40 and back."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.mean, self.log_variance = nn.Linear(784, 400), nn.Linear(400, 40), nn.Linear(400, 40)
        self.decoder = nn.Sequential(nn.Linear(40, 400), nn.ReLU(), nn.Linear(400, 784))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 784) to mean and log variance of the posterior."""
        hidden = torch.relu(self.hidden(images))
        return self.mean(hidden), self.log_variance(hidden)

    def log_likelihood(self, images: Tensor, latents: Tensor) -> Tensor:
        """Return log p(x | z) of latents (…, n, 40), in nats."""
        logits = self.decoder(latents)
        return -functional.binary_cross_entropy_with_logits(logits, images.expand_as(logits), reduction="none").sum(-1)

    def loss(self, images: Tensor) -> Tensor:
        """Return the mean negative ELBO, from one sample an image."""
        mean, log_variance = self.encode(images)
        latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return (kl - self.log_likelihood(images, latents)).mean()

    def importance_weighted_bound(self, images: Tensor, samples: int) -> Tensor:
        """Return log (1/K) Σ p(x, z_k) / q(z_k | x) of every image."""
        mean, log_variance = self.encode(images)
        noise = torch.randn(samples, *mean.shape)
        latents = mean + torch.exp(log_variance / 2) * noise
        weights = self.log_likelihood(images, latents) + (noise**2 - latents**2 + log_variance).sum(-1) / 2
        return torch.logsumexp(weights, 0) - math.log(samples)


def main() -> None:
    """Train, and print losses on the way and the test NLL at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder of MNIST's four files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--samples", type=int, default=200, help="of the bound")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = open_dataset(f"idx:{options.mnist}").binarize()
    train, test = (
        torch.from_numpy(part.images.reshape(len(part.images), -1)).float() / 255 for part in (data.train, data.test)
    )
    model = TorchVae()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200, 350], 10 ** (-1 / 5))
    for epoch in range(1, options.epochs + 1):
        for rows in torch.randperm(TRAIN_IMAGES).split(BATCH):
            optimizer.zero_grad()
            model.loss(train[rows]).backward()
            optimizer.step()
        scheduler.step()
        if epoch % 50 == 0 or epoch == options.epochs:
            with torch.no_grad():
                print(f"epoch {epoch}: held-out loss {model.loss(test):.2f}", flush=True)
    with torch.no_grad():
        bounds = [model.importance_weighted_bound(images, options.samples) for images in test.split(BATCH)]
    print(f"test NLL after {options.epochs} epochs: {-torch.cat(bounds).mean():.2f}")


if __name__ == "__main__":
    main()
