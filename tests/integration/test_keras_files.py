"""MobileNetV2 and face VAEs as Keras 3 and tf-keras save them: the numbers of the library that wrote, or a message."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adversarial.classifier import Classifier, open_classifier
from adversarial.config import AdversarialConfig
from adversarial.pixels import RANGES
from latent_arith import weights as face_weights
from latent_arith.model import FaceVae
from latentlab.errors import UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = {
    "keras": [
        *(
            f"{name}{form}"
            for name in ("plain", "nested")
            for form in (".keras", ".h5", ".weights.h5", "_checkpoint", "_export")
        ),
        "plain_and_optimizer", "mine.weights.h5", "mine_checkpoint", "mine_export",
        "tutorial.keras", "tutorial.h5", "tutorial_checkpoint", "tutorial_export", "tutorial.weights.h5",
    ],
    "tf_keras": [
        *(
            f"{name}{form}"
            for name in ("plain", "nested")
            for form in (".keras", ".h5", ".weights.h5", "_weights.h5", "_tf", "_checkpoint", "_saved_model")
        ),
        "mine.weights.h5", "mine_weights.h5", "mine_tf", "mine_checkpoint", "mine_saved_model",
        "tutorial.keras", "tutorial.h5", "tutorial_tf", "tutorial_checkpoint", "tutorial_saved_model",
    ],
}  # fmt: skip
REFUSED = {
    "keras": {"mine.keras": "a model of class Mine is code that the file does not hold"},
    "tf_keras": {
        "mine.keras": "a model of class Mine is code that the file does not hold",
        "tutorial.weights.h5": "layers tf_op_lambda, tf_op_lambda_1: weights alone do not tell what they do",
        "tutorial_weights.h5": "layers tf.math.truediv, tf.math.subtract: weights alone do not tell",
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, ...], Path] = {}

    def save(library: str, *kind: str) -> Path:
        if (library, *kind) not in made:
            folder = made[library, *kind] = tmp_path_factory.mktemp(library)
            command = [sys.executable, "-m", "tests.oracles.keras_files", library, str(folder), *kind]
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        return made[library, *kind]

    return save


def open_file(path: Path) -> Classifier:
    return open_classifier(AdversarialConfig(weights=str(path)), RANGES["minus-one-one"])[0]


@jax.jit
def evaluate(known: Classifier, images: jax.Array) -> jax.Array:
    return known.network.apply(known.variables, images)


@pytest.mark.parametrize(("library", "file"), [(library, file) for library, files in FILES.items() for file in files])
def test_a_file_gives_the_numbers_of_the_library_that_wrote_it(
    library: str, file: str, saved: Callable[..., Path]
) -> None:
    folder = saved(library)
    name = file.replace(".", "_").split("_")[0]
    expected = np.load(folder / f"{name}.npz")
    known = open_file(folder / file)
    fed = expected["images"]
    if name == "tutorial" and known.range == RANGES["minus-one-one"]:
        fed = fed / np.float32(127.5) - 1  # a checkpoint does not tell of preprocess_input
    found = np.asarray(jax.nn.softmax(evaluate(known, jnp.asarray(fed))))
    found = found[:, 1:] if name == "tutorial" else found
    assert expected["outputs"].min() > 0.01 and np.ptp(expected["outputs"], axis=0).max() > 0.001
    np.testing.assert_allclose(found, expected["outputs"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("library", "file"), [(library, file) for library, files in REFUSED.items() for file in files])
def test_what_a_file_does_not_tell_is_said(library: str, file: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as caught:
        open_file(saved(library) / file)
    assert REFUSED[library][file] in str(caught.value)


FACES = {
    "keras": [
        *(f"{name}{form}" for name in ("foster", "plain") for form in (".keras", ".h5", ".weights.h5", "_checkpoint")),
        "unnamed.weights.h5", "unnamed_checkpoint",
    ],
    "tf_keras": [
        *(
            f"{name}{form}"
            for name in ("foster", "plain")
            for form in (".keras", ".h5", ".weights.h5", "_weights.h5", "_tf", "_checkpoint")
        ),
        "unnamed.weights.h5", "unnamed_weights.h5", "unnamed_tf", "unnamed_checkpoint",
    ],
}  # fmt: skip
UNNAMED = {"tf_keras": ("foster.weights.h5", "plain.weights.h5")}
"""Files without names of layers, beside those of models that have none."""


@pytest.mark.parametrize(("library", "file"), [(library, file) for library, files in FACES.items() for file in files])
def test_a_face_vae_gives_the_latents_and_pictures_of_the_library_that_wrote_it(
    library: str, file: str, saved: Callable[..., Path]
) -> None:
    folder = saved(library, "faces")
    name = file.replace(".", "_").split("_")[0]
    expected = np.load(folder / f"{name}.npz")
    side, latent_dim = expected["images"].shape[1], expected["latents"].shape[1]
    model, assumed = face_weights.fit_model(folder / file, FaceVae(latent_dim, (side, side, 3)))
    is_unnamed = name == "unnamed" or file in UNNAMED.get(library, ())
    assert assumed.endswith("in the order of their numbers") == is_unnamed, assumed
    variables = face_weights.load(folder / file, model)
    mean, log_variance = jax.jit(model.encode)(variables, jnp.asarray(expected["images"]))
    decoded = jax.nn.sigmoid(jax.jit(model.decode)(variables, jnp.asarray(expected["latents"])))
    for found, key in ((mean, "mean"), (log_variance, "log_var"), (decoded, "decoded")):
        assert expected[key].std() > 0.001
        np.testing.assert_allclose(found, expected[key], atol=1e-5)


def test_a_face_vae_of_another_size_is_told_what_to_ask_for(saved: Callable[..., Path]) -> None:
    path = saved("keras", "faces") / "plain.h5"
    model, _ = face_weights.fit_model(path, FaceVae())
    with pytest.raises(UserError, match="expected --size 32 --latent-dim 10 for these weights"):
        face_weights.load(path, model)
