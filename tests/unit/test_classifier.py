"""The packaged dogs' network: Keras's numbers, FGSM as the exercise has it, names, and mistakes."""

import hashlib
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax import Array

from adversarial import attacks, classifier, experiment, photos
from adversarial.assets import REGISTRY
from adversarial.attacks import SweptAttack
from adversarial.classifier import Class, Classifier, decode_predictions, open_classifier
from adversarial.config import AdversarialConfig
from adversarial.pixels import RANGES, PixelRange
from latentlab.errors import UserError
from latentlab.storage import assets

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, on NumPy 2

EPSILON = 0.01  # of the range that the network is fed
MASTIFF = classifier.DOGS.index("bull_mastiff")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_and_photo() -> list[Path]:
    return assets.fetch("dog_breed_mobilenetv2.h5", "imagenet_00_243.jpg", registry=REGISTRY)


@pytest.fixture(scope="module")
def photo(model_and_photo: list[Path]) -> np.ndarray:
    return photos.read(model_and_photo[1], 160).pixels


@pytest.fixture(scope="module", params=["zero-one", "minus-one-one"])
def scaling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dogs(scaling: str) -> Classifier:
    return open_classifier(AdversarialConfig(), RANGES[scaling])[0]


@jax.jit
def input_gradient(dogs: Classifier, images: Array, labels: Array) -> Array:
    return attacks.input_gradient(dogs.logits, images, labels, jnp.asarray(False))


class FirstPixels:
    """A network whose logits are the first three numbers that it is fed."""

    @staticmethod
    def apply(variables: Any, images: Array) -> Array:
        return images.reshape(len(images), -1)[:, :3]


def first_pixels(pixels: PixelRange, *names: str) -> Classifier:
    return Classifier(FirstPixels, {}, pixels, tuple(Class("", name) for name in names))


@pytest.fixture(scope="module")
def expected(
    dogs: Classifier, scaling: str, photo: np.ndarray, model_and_photo: list[Path], tmp_path_factory: Any
) -> dict[str, Any]:
    """What Keras on TensorFlow makes of the photo, and the true class and the 2nd to 4th class."""
    directory = tmp_path_factory.mktemp("keras")
    np.save(directory / "image.npy", photo.astype(np.float32) / 255)
    before = experiment.predict(dogs, photo[None] / np.float32(255), 1)[0]
    _, *targets = np.argsort(-before)[:4].tolist()
    arguments = [model_and_photo[0], directory / "image.npy", ",".join(map(str, [MASTIFF, *targets])), scaling]
    command = [sys.executable, "-m", "tests.oracles.keras_fgsm", *map(str, arguments), str(directory / "out.npz")]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return {"labels": [MASTIFF, *targets], **np.load(directory / "out.npz")}


@pytest.fixture(scope="module")
def attacked(dogs: Classifier, photo: np.ndarray, expected: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Our images in [0, 1] for all four objectives, and their probabilities."""
    low, high = dogs.range
    labels, epsilons = np.asarray(expected["labels"])[:, None], np.asarray([EPSILON / (high - low)], np.float32)
    targeted = np.asarray([False, True, True, True])
    swept = experiment.sweep_photo(SweptAttack(attacks.fgsm), 0, dogs, photo[None], labels, targeted, epsilons)
    images = swept.images
    images = images[:, 0, 0]
    return images, experiment.predict(dogs, images, 1)


def test_the_trained_weights_give_the_probabilities_of_keras(
    dogs: Classifier, photo: np.ndarray, expected: dict[str, Any]
) -> None:
    before = experiment.predict(dogs, photo[None] / np.float32(255), 1)[0]
    np.testing.assert_allclose(before, expected["before"], atol=1e-5)


@pytest.mark.parametrize("position", range(4), ids=["untargeted", "2nd", "3rd", "4th"])
def test_fgsm_is_that_of_keras_on_tensorflow(
    dogs: Classifier,
    photo: np.ndarray,
    expected: dict[str, Any],
    attacked: tuple[np.ndarray, np.ndarray],
    position: int,
) -> None:
    images, label = jnp.asarray(photo, jnp.float32)[None] / 255, jnp.asarray([expected["labels"][position]])
    theirs = expected[f"gradient/{position}"]
    large = np.abs(theirs) > 1e-6 * np.abs(theirs).max()
    gradient = np.asarray(input_gradient(dogs, images, label))[0]
    assert np.mean(np.sign(gradient)[large] == np.sign(theirs)[large]) >= 0.999

    low, high = dogs.range
    ours, after = (part[position] for part in attacked)
    equal = np.isclose(low + (high - low) * ours, expected[f"images/{position}"], atol=1e-6)
    assert equal.mean() >= 0.999
    assert after.argmax() == expected[f"after/{position}"].argmax()
    np.testing.assert_allclose(after.max(), expected[f"after/{position}"].max(), atol=1e-3)


def test_images_may_be_bytes_or_floats_and_are_mapped_inside() -> None:
    known = first_pixels(RANGES["minus-one-one"], "a", "b", "c")
    pixels = np.asarray([[[[0, 255, 51]]]], np.uint8)
    np.testing.assert_allclose(known.logits(jnp.asarray(pixels)), [[-1, 1, -0.6]], atol=1e-6)
    np.testing.assert_allclose(known.logits(jnp.asarray(pixels, jnp.float32) / 255), [[-1, 1, -0.6]], atol=1e-6)
    gradient = jax.grad(lambda x: known.logits(x).sum())(jnp.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(gradient.ravel(), [2, 2, 2])


def test_class_names_of_imagenet_are_those_that_keras_publishes() -> None:
    content = resources.files("adversarial").joinpath("imagenet_class_index.json").read_bytes()
    assert hashlib.md5(content).hexdigest() == "c2c37ea517e94d9795004a39431a14cb"
    classes = classifier.imagenet_classes()
    assert len(classes) == 1000
    assert [classes[index].name for index in (207, 208, 248, 250)] == [
        "golden_retriever", "Labrador_retriever", "Eskimo_dog", "Siberian_husky"
    ]  # fmt: skip


def test_predictions_are_decoded_as_by_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    content = resources.files("adversarial").joinpath("imagenet_class_index.json").read_text(encoding="utf-8")
    monkeypatch.setattr(keras.src.applications.imagenet_utils, "CLASS_INDEX", json.loads(content))
    drawn = np.random.default_rng(0).dirichlet(np.ones(1000), 3).astype(np.float32)
    theirs = keras.applications.mobilenet_v2.decode_predictions(drawn, top=7)
    assert decode_predictions(drawn, classifier.imagenet_classes(), top=7) == theirs
    with pytest.raises(ValueError, match=r"shape \(3, 1000\), expected \(n, 19\)"):
        decode_predictions(drawn, [Class("", name) for name in classifier.DOGS])


def test_a_class_is_found_by_index_name_or_identifier() -> None:
    known = Classifier(FirstPixels, {}, RANGES["zero-one"], classifier.imagenet_classes())
    assert known.index("208") == known.index("labrador_retriever") == known.index("Labrador retriever") == 208
    assert known.index("n02099712") == 208
    for text, message in {
        "1000": r"class 1000: out of range, expected 0 to 999",
        "-1": r"class -1: out of range",
        "crane": r"there are 2 of that name; expected the index, one of \[134, 517\]",
        "Labradorretriever": r"the network has none; expected Labrador_retriever",
        "%%": r"expected an index from 0 to 999, or a name such as tench",
    }.items():
        with pytest.raises(UserError, match=message):
            known.index(text)


def test_a_class_that_is_called_by_a_number_is_meant_by_it() -> None:
    """By its name, in a folder's name and on the command line alike, and not by its place."""
    known = first_pixels(RANGES["zero-one"], "3", "1", "2")
    for text, index in (("3", 0), ("1", 1), ("2", 2), ("0", 0)):
        assert known.index(text) == index
        assert photos.label_of(Path("photos", text, "a.jpg"), Path("photos"), known.classes) == index


def test_names_can_be_given_and_must_be_as_many(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"dog {number}" for number in range(19)) + "\n")
    known, size = open_classifier(AdversarialConfig(names=str(names)), RANGES["zero-one"])
    assert known.classes[18] == Class("", "dog 18") and size == 160
    names.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"names.txt: 2 names, but .* has 19 classes"):
        open_classifier(AdversarialConfig(names=str(names)), RANGES["zero-one"])
    with pytest.raises(UserError, match=r"absent.txt: cannot be read as text"):
        open_classifier(AdversarialConfig(names=str(tmp_path / "absent.txt")), RANGES["zero-one"])


def test_weights_without_a_top_are_no_classifier(tmp_path: Path) -> None:
    base = keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, weights=None)
    base.save_weights(tmp_path / "base.weights.h5")
    with pytest.raises(UserError, match=r"base.weights.h5: has no top"):
        open_classifier(AdversarialConfig(weights=str(tmp_path / "base.weights.h5")), RANGES["zero-one"])


def test_any_function_to_logits_can_be_a_classifier() -> None:
    def logits(images: Array) -> Array:
        return images.mean(axis=(1, 2)) * 5

    known = classifier.wrap_classifier(jax.jit(logits), 8, ["red", "green", "blue"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(known(pixels), logits(jnp.asarray(pixels, jnp.float32) / 255), rtol=1e-6)
    assert known.index("green") == 1 and classifier.wrap_classifier(logits, 8).classes[2].name == "class_2"
    with pytest.raises(UserError, match="2 names, but it gives 3 logits"):
        classifier.wrap_classifier(logits, 8, ["red", "green"])
