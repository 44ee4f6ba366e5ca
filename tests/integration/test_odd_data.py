"""Every experiment on the smallest and oddest data that are accepted; what is not accepted is said before the work."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentlab.cli import main

FACES = "latent-arith --preset quick --size 32 --held-out-images 4 --classifier-images 10 --scored-faces 1"
DIGITS = "vae --preset quick --network mlp --prior-samples 6 --latent-points 5"
ONE_EPOCH = "--epochs 1 --epochs-per-checkpoint 1 --steps-per-epoch 1"

pytestmark = [pytest.mark.slow, pytest.mark.lenient, pytest.mark.unoptimized]


def run(out: Path, command: str) -> int:
    return main([*command.split(), "--out", str(out), "--no-compilation-cache"])


def results_of(out: Path) -> Any:
    assert main(["check", str(out)]) == 0
    text = (out / "results.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    return json.loads(text)


def write_digits(path: Path, train: np.ndarray, test: np.ndarray) -> str:
    labels = [np.arange(len(images)) % 10 for images in (train, test)]
    np.savez(path, x_train=train, y_train=labels[0], x_test=test, y_test=labels[1])
    return f"{DIGITS} --epochs 1 --epochs-per-checkpoint 1 --data npz:{path} --train-images {len(train)}"


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)


def test_six_held_out_digits_and_one_to_train_on(tmp_path: Path) -> None:
    assert run(tmp_path / "run", write_digits(tmp_path / "few.npz", noise(1), noise(6))) == 0
    assert results_of(tmp_path / "run")["train_images_used"] == 1


def test_digits_that_are_all_the_same_have_nulls_with_a_note(tmp_path: Path) -> None:
    blank = np.zeros((20, 28, 28), np.uint8)
    assert run(tmp_path / "run", write_digits(tmp_path / "blank.npz", blank, blank)) == 0
    results = results_of(tmp_path / "run")
    assert results["autoencoder"]["aggregate_kl_to_prior"]["mean"] is None
    assert results["notes"][0].startswith("null stands for a number that these data do not give")


def test_too_few_held_out_digits_are_told_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", write_digits(tmp_path / "few.npz", noise(20), noise(5))) == 2
    said = capsys.readouterr()
    assert "has 5 held-out images, expected more than 5" in said.err and "epoch" not in said.out


def test_pictures_without_classes_have_no_neighbour_accuracy(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for index, image in enumerate(noise(40)):
        Image.fromarray(image).save(tmp_path / "own" / f"{index}.png")
    command = f"{DIGITS} --epochs 1 --epochs-per-checkpoint 1 --data folder:{tmp_path / 'own'} --train-images 30"
    assert run(tmp_path / "run", command) == 0
    results = results_of(tmp_path / "run")
    assert "neighbour_accuracy" not in results["vae"] and results["data"]["classes"] == []


def write_faces(folder: Path, count: int, **columns: list[int]) -> str:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), np.uint8)
    rows = [["file", *columns]]
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index}.png")
        rows.append([f"{index}.png", *(str(values[index]) for values in columns.values())])
    with (folder / "attributes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return f"{FACES} {ONE_EPOCH} --data folder:{folder}"


@pytest.mark.parametrize("rule", ["all", "stderr", "classic"])
def test_attributes_of_one_image_of_all_and_of_none(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And two that are the same, and one that is their opposite. As the first 200 rows of CelebA, with one Mustache."""
    monkeypatch.setattr("latent_arith.datasets.face_data.user_cache_path", lambda _: tmp_path / "cache")
    rows = np.arange(30)
    order = np.random.default_rng(0).permutation(30)  # of the split: the last ones train
    half = [int(row % 2) for row in rows]
    columns = {
        "One": [int(row == order[-1]) for row in rows], "None": [0] * 30, "All": [1] * 30, "Half": half, "Same": half,
        "Opposite": [1 - value for value in half],
    }  # fmt: skip
    command = f"{write_faces(tmp_path / 'faces', 30, **columns)} --rule {rule}"
    assert run(tmp_path / "run", command) == 0
    results = results_of(tmp_path / "run")
    directions = results["directions"]
    assert directions["One"]["positives"] == 1 and directions["One"]["standard_error_degrees"] is None
    assert directions["left_out"] == ["None", "All"]
    assert results["notes"][0].startswith("null stands for")


def test_a_label_that_is_constant_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latent_arith.datasets.face_data.user_cache_path", lambda _: tmp_path / "cache")
    half = [row % 2 for row in range(30)]
    command = write_faces(tmp_path / "faces", 30, All=[1] * 30, Half=half)
    assert run(tmp_path / "run", f"{command} --label All") == 2
    said = capsys.readouterr()
    assert "label is 'All', which 16 of 16 training images have, so it has no direction" in said.err
    assert "epoch" not in said.out
    command = write_faces(tmp_path / "other", 30, All=[1] * 30, None_=[0] * 30)
    assert run(tmp_path / "second", command) == 2
    assert "of no attribute are there training images with and without it" in capsys.readouterr().err


def test_faces_without_attributes_have_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_arith.datasets.face_data.user_cache_path", lambda _: tmp_path / "cache")
    command = write_faces(tmp_path / "faces", 30, Half=[row % 2 for row in range(30)])
    (tmp_path / "faces" / "attributes.csv").unlink()
    assert run(tmp_path / "run", f"{command} --latent-dim 8") == 0
    results = results_of(tmp_path / "run")
    assert len(results["data"]["explained_variance"]) == 8
    assert "component_1" in {*results["directions"], *results["directions"]["left_out"]}
    assert run(tmp_path / "other", f"{command} --latent-dim 8 --label Smiling") == 2
