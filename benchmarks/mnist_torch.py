"""Epochs of the MNIST VAE in PyTorch: channels last and eager, its fastest form on a CPU (README.md), or compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.side_by_side import time_repeats
from benchmarks.torch_device import fastest_device
from vae.config import ORIGINAL


class Vae(nn.Module):
    """Encoder and decoder of the digits' VAE, in PyTorch's own padding.

    A stride of 2 pads one row before instead of one after, as PyTorch's `padding=1` does: the
    same network for mirrored images, and one copy of the input less than with `functional.pad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, features, 3, stride, padding=1)
            for channels, features, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2), (64, 64, 1))
        )
        self.mean, self.log_variance = nn.Linear(3136, 2), nn.Linear(3136, 2)
        self.dense = nn.Linear(2, 3136)
        self.transposed = nn.ModuleList(
            nn.ConvTranspose2d(channels, features, 3, stride, padding=1, output_padding=stride - 1)
            for channels, features, stride in ((64, 64, 1), (64, 64, 2), (64, 32, 2), (32, 1, 1))
        )
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images to logits of pixels, posterior mean and log variance."""
        hidden = images
        for convolution in self.convolutions:
            hidden = functional.leaky_relu(convolution(hidden), 0.3)
        hidden = hidden.flatten(1)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        hidden = self.dense(latent).reshape(-1, 64, 7, 7).contiguous(memory_format=torch.channels_last)
        for transposed in self.transposed[:-1]:
            hidden = functional.leaky_relu(transposed(hidden), 0.3)
        return self.transposed[-1](hidden), mean, log_variance


def epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images and times every epoch; arguments and result are those of `mnist_ours.epoch_seconds`."""
    return _epochs(images, repeats, lambda function: function)


def compiled_epoch_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same with forward pass and loss compiled, once for whole batches and once for the last one."""
    return _epochs(images, repeats, partial(torch.compile, dynamic=False))


def _epochs(
    images: np.ndarray, repeats: int, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> tuple[list[float], list[float]]:
    torch.manual_seed(ORIGINAL.seed)
    device = fastest_device()
    model: Any = Vae()
    model = model.to(device, memory_format=torch.channels_last)
    data = torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2)
    data = data.to(device).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=ORIGINAL.learning_rate, eps=ORIGINAL.adam_epsilon, fused=True)

    @compiled
    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        logits, mean, log_variance = model(batch)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        return (cross_entropy + kl) / len(batch)

    def work() -> float:
        total = torch.zeros((), device=device)
        for indices in torch.randperm(len(data), device=device).split(ORIGINAL.batch_size):
            batch = data[indices]
            optimizer.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        return total.item() / len(data)

    return time_repeats(work, repeats)
