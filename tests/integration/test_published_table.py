"""The published runs of FGSM on the Labrador photo: compared where the files are, said to be not run where not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from adversarial.assets import REGISTRY
from benchmarks import published_table
from latentlab.storage import assets

ROOT = Path(__file__).parents[2]


def table(**environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.published_table"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def test_the_published_table_agrees_or_is_said_to_be_not_run() -> None:
    done = table()
    said = done.stdout.strip()
    if said.startswith("not run: "):
        assert done.returncode == 3 and "python run.py adversarial --weights imagenet" in said
    else:
        assert done.returncode == 0 and said.count("agrees") == 8, said + done.stderr


def test_without_the_files_it_says_which_are_missing(tmp_path: Path) -> None:
    done = table(XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 3
    assert "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5 and YellowLabradorLooking_new.jpg" in done.stdout


@pytest.mark.parametrize(
    ("row", "name", "confidence", "agrees"),
    [
        (0, "Labrador_retriever", 0.3717, True),
        (0, "Labrador_retriever", 0.3736, False),
        (1, "Saluki", 0.238, False),
        (2, "bath_towel", 0.32, True),
        (3, "brain_coral", 0.82, False),
    ],
)
def test_agreement_is_0_1_points_to_epsilon_0_01_and_2_above(
    row: int, name: str, confidence: float, agrees: bool
) -> None:
    assert published_table.TABLE[row].agrees(name, confidence) is agrees
    found = [(published.name, published.low) for published in published_table.TABLE]
    assert "differs" not in published_table.report(found)
    found[row] = ("tench", 0.5)
    assert published_table.report(found).count("**differs**") == 1


@pytest.mark.slow
def test_any_weights_and_photo_are_compared_with_tensorflow(tmp_path: Path) -> None:
    """Random weights, whose probabilities are neither 0 nor 1, and no word of what was published."""
    make = (
        "import sys, keras; from tests.oracles.keras_files import randomize; "
        "model = keras.applications.MobileNetV2(weights=None); randomize(model); model.save_weights(sys.argv[1])"
    )
    weights, (photo,) = tmp_path / "any.weights.h5", assets.fetch("imagenet_00_243.jpg", registry=REGISTRY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-c", make, str(weights)], env=environment, check=True, cwd=ROOT)
    options = published_table.Options(str(weights), str(photo), 243)
    ours, theirs = published_table.measured(options), published_table.by_tensorflow(options)
    assert theirs is not None
    for row, one, other in zip(published_table.TABLE, ours, theirs, strict=True):
        if row.epsilon <= 0.01:
            assert one[0] == other[0] and one[1] == pytest.approx(other[1], abs=2e-3), row
    said = published_table.report(ours, theirs, is_published=False)
    assert "published" not in said and said.count("TensorFlow here") == 1 and len(said.splitlines()) == 10
