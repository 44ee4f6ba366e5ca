"""The examples of docs/extending.md, run as they stand there."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

import latentlab
from adversarial.attacks import ATTACKS
from adversarial.classifier import CLASSIFIERS
from latent_arith.datasets.face_data import DATASETS
from latentlab import cli
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset
from vae import experiment
from vae.config import PRESETS
from vae.model import Vae

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
EXAMPLES = {
    title if index == 0 else f"{title}, {index + 1}": example
    for title, text in SECTIONS.items()
    for index, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
}
EXPECTED = {
    "Own images": "(1, 16, 16, 1)",
    "An own encoder": "(1, 28, 28, 1)",
    "An own data set of faces": "('Bright', 'Large')",
    "An own classifier": "(1, 5)",
    "An own classifier, 2": "(8, 28, 28, 1) (8,)",
    "An own attack": "False",
}

pytestmark = [pytest.mark.lenient, pytest.mark.unoptimized]


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that are what they were after the test."""
    for registry in (ATTACKS, CLASSIFIERS, DATASETS):
        for name in ("noise", "colours", "squares"):
            monkeypatch.setitem(registry, name, None)  # type: ignore[misc]
            del registry[name]


@pytest.mark.parametrize("title", EXPECTED)
def test_an_example_runs_and_is_short(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = EXAMPLES[title]
    assert len(example.splitlines()) < 40
    exec(compile(example, title, "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.splitlines()[-1] == EXPECTED[title]


def test_every_example_is_expected() -> None:
    assert EXAMPLES.keys() == EXPECTED.keys()


class Perceptron(nn.Module):
    """Images to mean and log variance of the posterior."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.relu(nn.Dense(8)(images.reshape(len(images), -1)))
        return nn.Dense(2)(hidden), nn.Dense(2)(hidden)


def test_a_run_from_python_is_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (96, 16, 16), dtype=np.uint8)
    labels = np.arange(96) % 2
    data = Dataset.from_arrays((images[:64], labels[:64]), (images[64:], labels[64:]), source="noise")
    few = {"train_images": 64, "epochs": 2, "epochs_per_checkpoint": 1, "prior_samples": 20, "latent_points": 20}
    config = replace(PRESETS["quick"], **few)
    model = Vae(image_shape=(16, 16, 1), encoder=Perceptron())
    run_dir = tmp_path / "run"
    said: list[str] = []
    results = experiment.run(config, run_dir, model=model, data=data, log=said.append)
    assert capsys.readouterr() == ("", ""), "all is said through `log`"
    assert any("epoch 2 of 2" in line for line in said)

    for words in (["check"], ["report"], ["figures"], ["export", "--to", "tensorboard"]):
        assert cli.main([words[0], str(run_dir), *words[1:]]) == 0
    assert latentlab.load(run_dir).config == config
    assert (run_dir / "summary.md").read_text().endswith(f"{results.summary()}\n")
    again = experiment.load(run_dir, config, model)
    latents = np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(again.decode(latents), results.decode(latents))
    with pytest.raises(UserError, match="epochs = 2, this one 3; a run goes on with its own configuration"):
        experiment.run(replace(config, epochs=3), run_dir, model=model, data=data)
    with pytest.raises(UserError, match=r"weights.npz: weights: params/encoder/conv_0/bias: missing"):
        _ = latentlab.load(run_dir).vae  # of the networks that the configuration names
