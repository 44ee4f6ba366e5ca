"""Parts that are given from Python are checked before any work, and a mistake ends in one line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adversarial import experiment as attacks
from adversarial.attacks import pgd
from adversarial.config import PRESETS as ATTACK_PRESETS
from latent_arith import experiment as faces
from latent_arith.config import PRESETS as FACE_PRESETS
from latent_arith.model import FaceVae
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset, LabeledImages
from latentlab.model import check_model
from vae import experiment
from vae.config import PRESETS
from vae.model import Autoencoder, ConditionalVae, ImportanceWeightedVae, TotalCorrelationVae, Vae

CONFIG = replace(PRESETS["quick"], train_images=64)
GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (64, 28, 28, 1)).astype(np.uint8)
LABELS = np.arange(64) % 3
SHAPE = (28, 28, 1)


def twice(hidden: Any) -> Any:
    return hidden, hidden


class Encoder(nn.Module):
    """A Dense layer, whose output goes through a function."""

    form: Callable[[Any], Any] = twice
    features: int = 2
    batch_norm: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> Any:
        hidden = nn.Dense(self.features)(images.reshape(len(images), -1))
        return self.form(nn.BatchNorm(use_running_average=True)(hidden) if self.batch_norm else hidden)


class TrainedEncoder(nn.Module):
    """Wants to know whether it is trained."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> Any:
        return images, images


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Vae(encoder=Encoder(lambda hidden: hidden)), "expected a tuple of mean and log_variance"),
        (Vae(encoder=Encoder(lambda hidden: (hidden,) * 3)), "gives 3 outputs, expected a tuple of mean"),
        (
            Vae(encoder=Encoder(features=5)),
            r"returns \(2, 5\), \(2, 5\) for two images, expected mean and log",
        ),
        (
            Vae(encoder=TrainedEncoder()),
            "init.key. fails: TypeError: .*missing 1 required .* 'train'",
        ),
        (Vae(decoder=Encoder()), r"decode.variables, latents. returns \(2, 2\), \(2, 2\) for two images"),
        (Encoder(), "has no image_shape, latent_dim, encode, decode, loss; expected a LatentVariableModel"),
        (Vae(image_shape=(32, 32, 1)), r"for images of \(32, 32, 1\), the data have \(28, 28, 1\)"),
        (Vae(encoder=Encoder(batch_norm=True)), "running statistics .BatchNorm., which its loss does not move"),
    ],
    ids=range(8),
)
@pytest.mark.unchecked
def test_a_model_that_does_not_fit_is_refused_before_training(model: Any, said: str) -> None:
    data = Dataset.from_arrays((IMAGES, LABELS), (IMAGES, LABELS))
    with pytest.raises(UserError, match=said):
        experiment.run(CONFIG, model=model, data=data, log=pytest.fail)


@pytest.mark.parametrize(
    "model",
    [Autoencoder(), Vae(), TotalCorrelationVae(), ImportanceWeightedVae(), ConditionalVae(), FaceVae(8, (32, 32, 3))],
    ids=lambda model: type(model).__name__,
)
def test_models_of_the_project_fit(model: Any) -> None:
    check_model(model, model.image_shape)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES / np.float32(255), LABELS, r"float32, expected 28 x 28 x 1 uint8; \(255 \* images\).round\(\)"),
        (IMAGES.astype(np.float32), LABELS, "float32, expected 28 x 28 x 1 uint8$"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"images.transpose\(0, 2, 3, 1\) puts channels last"),
        (IMAGES[0, ..., 0], LABELS, "expected height x width x channels"),
        (IMAGES[:0], LABELS[:0], "zero images"),
        (IMAGES, LABELS[:5], "64 images, but .* 5 labels"),
        (IMAGES, LABELS - 1, "label 0 is -1, expected 0"),
        (IMAGES, np.eye(3)[LABELS], r"labels are float64 \(64, 3\), expected an integer for each image"),
    ],
    ids=range(8),
)
@pytest.mark.unchecked
def test_images_of_another_form_are_refused(images: np.ndarray, labels: np.ndarray, said: str) -> None:
    part = LabeledImages(images, labels)
    for make in (Dataset.from_arrays, lambda train, test: Dataset("mine", train, test)):
        with pytest.raises(UserError, match=said):
            make(part, part)


def test_own_arrays_become_a_data_set() -> None:
    data = Dataset.from_arrays((IMAGES[..., 0], LABELS), (IMAGES[:9], LABELS[:9]), source="mine")
    assert data.classes == ("0", "1", "2") and data.image_shape == SHAPE and data.describe()["source"] == "mine"
    assert data.train.labels.dtype == np.int32
    np.testing.assert_array_equal(data.train.images, IMAGES)


@pytest.mark.parametrize("data", [IMAGES, (IMAGES, LABELS)], ids=["array", "tuple"])
@pytest.mark.unchecked
def test_what_is_no_data_set_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"expected a Dataset, such as Dataset.from_arrays\("):
        experiment.run(CONFIG, data=data, log=pytest.fail)


@pytest.mark.unchecked
def test_what_are_no_faces_is_refused() -> None:
    with pytest.raises(UserError, match="data is of type ndarray, expected FaceData"):
        faces.run(FACE_PRESETS["quick"], data=IMAGES, log=pytest.fail)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda images: images.reshape(len(images), -1) @ jnp.ones((784, 3)), r"fails on images \(1, 224, 224, 3\)"),
        (lambda images: (images,), "gives tuple for images"),
        (lambda images: images.mean(), r"gives \(\) for images .* expected logits of shape \(1, classes\)"),
    ],
    ids=range(3),
)
@pytest.mark.unchecked
def test_a_function_that_is_no_classifier_of_photos_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        attacks.run(ATTACK_PRESETS["quick"], classifier=function, log=pytest.fail)


PIXELS = jnp.full((4, 28, 28, 1), 0.5)
CLASSES = jnp.zeros(4, jnp.int32)


def linear(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), -1) @ jnp.ones((784, 3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": 0}, "key is of type int, expected a key such as jax.random.key"),
        ({"images": PIXELS[..., 0]}, r"images are float32 of shape \(4, 28, 28\)"),
        ({"images": (255 * PIXELS).astype(jnp.uint8)}, "images are uint8"),
        ({"images": 255 * PIXELS}, "images reach from 127.5 to 127.5, expected them within the bounds"),
        ({"labels": jax.nn.one_hot(CLASSES, 3)}, "expected an integer for each of 4 images"),
        ({"logits": lambda x: (linear(x),)}, "the network gives tuple for 4 images"),
        ({"logits": lambda x: linear(x)[:, 0]}, r"the network gives \(4,\) for 4 images"),
    ],
    ids=range(7),
)
@pytest.mark.unchecked
def test_an_attack_says_what_it_expects(change: dict[str, Any], said: str) -> None:
    right = {"key": jax.random.key(0), "logits": linear, "images": PIXELS, "labels": CLASSES}
    with pytest.raises(ValueError, match=said):
        pgd(**{**right, **change}, epsilon=0.1)
