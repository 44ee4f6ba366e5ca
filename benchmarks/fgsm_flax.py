"""FGSM on our MobileNetV2 with XLA's own convolutions and all images at once, which a straight port has."""

import math
from unittest.mock import patch

import numpy as np
from jax import lax

from adversarial import mobilenet_v2
from benchmarks import fgsm_ours
from latentlab.kernels import microbatch


def gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Attacks the images in one call."""
    with (
        patch.object(mobilenet_v2, "conv_general_dilated", lax.conv_general_dilated),
        patch.object(microbatch, "CACHED_PIXELS", math.prod(images.shape)),
    ):
        return fgsm_ours.gradient_seconds(images, repeats)
