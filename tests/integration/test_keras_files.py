"""MobileNetV2 as Keras 3 and tf-keras save it: the numbers of the library that wrote the file, or one message."""

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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def save(library: str) -> Path:
        if library not in made:
            folder = made[library] = tmp_path_factory.mktemp(library)
            command = [sys.executable, "-m", "tests.oracles.keras_files", library, str(folder)]
            subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        return made[library]

    return save


def open_file(path: Path) -> Classifier:
    return open_classifier(AdversarialConfig(weights=str(path)), RANGES["minus-one-one"])[0]


@jax.jit
def evaluate(known: Classifier, images: jax.Array) -> jax.Array:
    return known.network.apply(known.variables, images)


@pytest.mark.parametrize(("library", "file"), [(library, file) for library, files in FILES.items() for file in files])
def test_a_file_gives_the_numbers_of_the_library_that_wrote_it(
    library: str, file: str, saved: Callable[[str], Path]
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
def test_what_a_file_does_not_tell_is_said(library: str, file: str, saved: Callable[[str], Path]) -> None:
    with pytest.raises(UserError) as caught:
        open_file(saved(library) / file)
    assert REFUSED[library][file] in str(caught.value)
