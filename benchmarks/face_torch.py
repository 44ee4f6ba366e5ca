"""The face VAE in PyTorch: channels last, fused Adam, eager as for MNIST (README.md) or compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import face_work
from benchmarks.torch_device import fastest_device
from latent_arith.config import ORIGINAL

ENCODED_AT_ONCE = 25

Compiled = Callable[[Callable[..., Any]], Callable[..., Any]]


class Vae(nn.Module):
    """Encoder and decoder of the face VAE, in PyTorch's own padding (see `mnist_torch`)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, features, 3, 2, padding=1)
            for channels, features in ((3, 32), (32, 64), (64, 64), (64, 64))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3, momentum=0.01) for n in (32, 64, 64, 64))
        self.mean, self.log_variance = nn.Linear(4096, 200), nn.Linear(4096, 200)
        self.dense = nn.Linear(200, 4096)
        self.transposed = nn.ModuleList(
            nn.ConvTranspose2d(channels, features, 3, 2, padding=1, output_padding=1)
            for channels, features in ((64, 64), (64, 64), (64, 32), (32, 3))
        )
        self.transposed_norms = nn.ModuleList(nn.BatchNorm2d(n, eps=1e-3, momentum=0.01) for n in (64, 64, 32))
        for module in (*self.convolutions, *self.transposed, self.mean, self.log_variance, self.dense):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images to posterior mean and log variance."""
        hidden = images
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            hidden = functional.leaky_relu(norm(convolution(hidden)), 0.3)
            if index:
                hidden = functional.dropout(hidden, ORIGINAL.dropout, self.training)
        hidden = hidden.flatten(1)
        return self.mean(hidden), self.log_variance(hidden)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images to logits of pixels, posterior mean and log variance."""
        mean, log_variance = self.encode(images)
        latent = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        hidden = self.dense(latent).reshape(-1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
        for transposed, norm in zip(self.transposed[:-1], self.transposed_norms, strict=True):
            hidden = functional.leaky_relu(norm(transposed(hidden)), 0.3)
            hidden = functional.dropout(hidden, ORIGINAL.dropout, self.training)
        return self.transposed[-1](hidden), mean, log_variance


def step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Trains on the images."""
    return _steps(images, repeats, lambda function: function)


def compiled_step_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same with forward pass and loss compiled."""
    return _steps(images, repeats, partial(torch.compile, dynamic=False))


def encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Encode all images, in batches of the fastest size (25 of 25, 50, 100 and 500)."""
    return _encodings(images, repeats, lambda function: function)


def compiled_encode_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same with the encoder compiled."""
    return _encodings(images, repeats, partial(torch.compile, dynamic=False))


def _steps(images: np.ndarray, repeats: int, compiled: Compiled) -> tuple[list[float], list[float]]:
    device = fastest_device()
    model = _network(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=ORIGINAL.learning_rate, eps=ORIGINAL.adam_epsilon, fused=True)

    @compiled
    def loss_of(pixels: torch.Tensor) -> torch.Tensor:
        logits, mean, log_variance = model(pixels)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, pixels)
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum() / len(pixels)
        return ORIGINAL.reconstruction_weight * cross_entropy + kl

    def step(batch: np.ndarray) -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(_pixels(batch, device))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return face_work.time_steps(step, images, repeats)


def _encodings(images: np.ndarray, repeats: int, compiled: Compiled) -> tuple[list[float], list[float]]:
    device = fastest_device()
    model = _network(device).eval()
    means_of = compiled(lambda pixels: model.encode(pixels)[0])

    @torch.inference_mode()
    def encode(images: np.ndarray) -> np.ndarray:
        chunks = np.split(images, range(ENCODED_AT_ONCE, len(images), ENCODED_AT_ONCE))
        return torch.cat([means_of(_pixels(chunk, device)) for chunk in chunks]).cpu().numpy()

    return face_work.time_encoding(encode, images, repeats)


def _network(device: torch.device) -> Any:
    torch.manual_seed(ORIGINAL.seed)
    model: Any = Vae()
    return model.to(device, memory_format=torch.channels_last)


def _pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)  # stays channels last
