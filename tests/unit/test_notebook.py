"""A notebook's session, without the command line or a run directory: own data, encoder, photo and classifier."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from adversarial.attacks import pgd
from latent_arith import experiment as faces
from latent_arith.config import PRESETS as FACE_PRESETS
from latent_arith.datasets.face_data import FaceData
from latent_arith.directions import find_directions
from latentlab.labeled_images import Dataset, LabeledImages
from vae import experiment as digits
from vae.config import PRESETS as DIGIT_PRESETS
from vae.model import Vae
from vae.planes import even_grid

pytestmark = pytest.mark.lenient
GENERATOR = np.random.default_rng(0)


def squares(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright or dark squares on grey, +1 or -1."""
    signs = GENERATOR.choice([-1, 1], count).astype(np.int8)
    images = np.full((count, size, size, 3), 128, np.uint8)
    for image, sign in zip(images, signs, strict=True):
        top, left = GENERATOR.integers(0, size // 2, 2)
        image[top : top + size // 2, left : left + size // 2] = 220 if sign > 0 else 40
    return images, signs[:, None]


def test_train_a_small_vae_on_own_arrays_and_decode_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (train, _), (test, _) = squares(64, 16), squares(30, 16)
    labels = [np.zeros(len(part), np.int32) for part in (train, test)]
    data = Dataset("squares", LabeledImages(train, labels[0]), LabeledImages(test, labels[1]))
    settings = {"epochs": 30, "epochs_per_checkpoint": 30, "train_images": 64, "prior_samples": 10, "latent_points": 20}
    settings["batch_size"] = 16
    config = replace(DIGIT_PRESETS["quick"], **settings, learning_rate=2e-3)
    results = digits.run(config, model=Vae(2, (16, 16, 3)), data=data)
    grid = results.decode(even_grid(5, 2.0))
    assert grid.shape == (25, 16, 16, 3) and grid.dtype == np.uint8
    grey = np.mean((test / 255 - 0.5) ** 2)
    assert results.measures["vae"]["test_mse"]["mean"] < 0.7 * grey
    assert not list(tmp_path.iterdir()), "nothing is written without a run directory"


def test_find_a_direction_with_an_own_encoder() -> None:
    images, signs = squares(400, 8)
    projection = GENERATOR.normal(size=(8 * 8 * 3, 5)).astype(np.float32)

    def encode(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / 255 @ projection

    weights = np.ones((1, *signs.shape), np.float32)
    found = find_directions(encode, [(images, signs, weights)], ["Bright"])
    means = [encode(images)[signs[:, 0] == sign].mean(axis=0) for sign in (1, -1)]
    unit = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
    np.testing.assert_allclose(found.vector("Bright", "raw"), unit, atol=1e-5)


def test_edit_a_photo_and_attack_it_with_an_own_classifier() -> None:
    images, signs = squares(200, 32)
    sizes = {"held_out_images": 20, "classifier_images": 64, "scored_faces": 3, "steps_per_epoch": 5, "epochs": 2}
    config = replace(FACE_PRESETS["quick"], size=32, latent_dim=8, **sizes)
    results = faces.run(config, data=FaceData.from_arrays(images, signs, ["Bright"], config))
    photo = GENERATOR.integers(0, 256, (50, 40, 3)).astype(np.uint8)
    edited, untouched = results.edit(photo, Bright=3), results.edit(photo, Bright=0)
    assert edited.shape == (32, 32, 3) and np.any(edited != untouched)

    @jax.jit
    def logits(images: Array) -> Array:
        grey = images.mean(axis=(1, 2, 3))
        return 20 * jnp.stack([grey - 0.5, 0.5 - grey], axis=1)

    batch = jnp.asarray(edited, jnp.float32)[None] / 255
    label = jnp.argmax(logits(batch), axis=1)
    result = pgd(jax.random.key(0), logits, batch, label, epsilon=0.5, steps=5)
    assert result.images.shape == batch.shape and bool(result.success[0])
    assert float(jnp.abs(result.images - batch).max()) <= 0.5 + 1e-6
