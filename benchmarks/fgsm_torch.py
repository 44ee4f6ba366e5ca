"""FGSM on MobileNetV2 in PyTorch: channels last, a gradient for the images alone, eager or compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from adversarial.mobilenet_v2 import EXPANSION, GROUPS
from benchmarks import fgsm_work
from benchmarks.torch_device import fastest_device

LAST = 1280


class Block(nn.Module):
    """Expand, filter, project: an inverted residual."""

    def __init__(self, index: int, features: int, stride: int, channels: int) -> None:
        super().__init__()
        prefix, wide = f"block_{index}" if index else "expanded_conv", channels * (EXPANSION if index else 1)
        self.expand = layer(f"{prefix}_expand", f"{prefix}_expand_BN", channels, wide) if index else nn.Identity()
        depthwise = f"{prefix}_depthwise"
        self.filter = layer(depthwise, f"{depthwise}_BN", wide, wide, 3, stride, wide)
        self.project = layer(f"{prefix}_project", f"{prefix}_project_BN", wide, features, activated=False)
        self.adds = stride == 1 and channels == features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Feature maps to feature maps."""
        hidden = self.project(self.filter(self.expand(images)))
        return images + hidden if self.adds else hidden


class Network(nn.Module):
    """Mirrored images to logits.

    PyTorch's stride-2 layers pad before the image where Keras's pad after it. With mirrored kernels, on mirrored images
    of even sizes that is the same network, and spares PyTorch a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        blocks = [(features, 1 if repeat else stride) for features, stride, n in GROUPS for repeat in range(n)]
        channels = [32, *(features for features, _ in blocks)]
        self.layers = nn.Sequential(
            layer("Conv1", "bn_Conv1", 3, channels[0], 3, 2),
            *(Block(i, *blocks[i], channels[i]) for i in range(len(blocks))),
            layer("Conv_1", "Conv_1_bn", channels[-1], LAST),
        )
        predictions: Any = nn.Linear(LAST, fgsm_work.CLASSES)
        predictions.name = "predictions"
        self.predictions = predictions

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] to logits."""
        return self.predictions(self.layers(images).mean((2, 3)))


def layer(
    name: str,
    norm_name: str,
    channels: int,
    features: int,
    size: int = 1,
    stride: int = 1,
    groups: int = 1,
    activated: bool = True,
) -> nn.Sequential:
    """Return a convolution without bias, its BatchNorm, and ReLU6."""
    convolution: Any = nn.Conv2d(channels, features, size, stride, size // 2, groups=groups, bias=False)
    norm: Any = nn.BatchNorm2d(features, eps=1e-3)
    convolution.name, norm.name = name, norm_name
    return nn.Sequential(convolution, norm, *([nn.ReLU6(inplace=True)] if activated else []))


def gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Attacks the images at once."""
    return _gradients(images, repeats, lambda function: function)


def compiled_gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same with the network and the loss compiled."""
    return _gradients(images, repeats, partial(torch.compile, dynamic=False))


def _gradients(
    images: np.ndarray, repeats: int, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> tuple[list[float], list[float]]:
    device = fastest_device()
    model = _network().to(device)

    @compiled
    def loss_of(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(2 * inputs - 1), labels, reduction="sum")

    def attack(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)  # stays channels last
        inputs = (pixels.float() / 255).requires_grad_()
        loss = loss_of(inputs, torch.from_numpy(labels).to(device).long())
        (gradient,) = torch.autograd.grad(loss, inputs)
        moved = (inputs.detach() + fgsm_work.EPSILON * gradient.sign()).clamp_(0, 1)
        adversarial = (255 * moved).round_().byte().permute(0, 2, 3, 1)
        return adversarial.cpu().numpy(), gradient.abs().sum().item()

    return fgsm_work.time_attacks(attack, np.ascontiguousarray(images[:, ::-1, ::-1]), repeats)


def _network() -> Any:
    model: Any = Network()
    places = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    layers = {module.name: module for module in model.modules() if hasattr(module, "name")}
    for path, array in fgsm_work.variables().items():
        _, name, variable = path.split("/")
        if array.ndim == 4:
            array = array[::-1, ::-1].transpose(3, 2, 0, 1)
        place = getattr(layers[name], places[variable])
        place.data.copy_(torch.from_numpy(array.T if array.ndim == 2 else array.copy()))
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
