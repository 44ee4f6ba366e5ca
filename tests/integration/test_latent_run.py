"""The face experiment as a user meets it: a run on a folder of faces, its edit drawn again, resuming, mistakes."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest
from PIL import Image

import latentlab
from latent_arith import edits, experiment, weights
from latent_arith.config import PRESETS, LatentArithConfig
from latent_arith.datasets.face_data import paint
from latent_arith.datasets.synthetic_faces import ATTRIBUTES
from latent_arith.directions import Directions
from latent_arith.editor import Editor
from latent_arith.model import FaceVae
from latent_arith.results import step_lengths
from latentlab import cli
from latentlab.experiment import Run
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz
from tests.conftest import FEW_FACES, SMALL_FACES

pytestmark = pytest.mark.lenient
ROOT = Path(__file__).parents[2]
MODEL = FaceVae(image_shape=(FEW_FACES["size"], FEW_FACES["size"], 3))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in CelebA's layout with 100 rendered faces."""
    directory = tmp_path_factory.mktemp("celeba")
    (directory / "img_align_celeba").mkdir()
    part = paint(jax.random.key(0), np.arange(100), 0.6, 128, "faces")
    names = [f"{index + 1:06d}.jpg" for index in range(100)]
    for name, image in zip(names, part.images, strict=True):
        Image.fromarray(image).resize((178, 218)).save(directory / "img_align_celeba" / name, quality=95)
    rows = [f"{name} " + " ".join(map(str, row)) for name, row in zip(names, part.attributes, strict=True)]
    table = "\n".join(["100", " ".join(ATTRIBUTES), *rows, ""])
    (directory / "list_attr_celeba.txt").write_text(table)
    return directory


@pytest.fixture(scope="session")
def streamed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Arguments and directory of a complete run for one attribute, whose images are streamed from the folder."""
    directory = tmp_path_factory.mktemp("runs") / "streamed"
    small = [*SMALL_FACES, "--data", f"celeba:{folder}", "--classifier-images", "20", "--label", "Smiling"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert cli.main(["latent-arith", *small, "--out", str(directory)]) == 0
    return small, directory


def test_a_run_on_celeba_is_complete(streamed: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, directory = streamed
    assert cli.main(["check", str(directory)]) == 0
    assert "complete, ans09, ans10, ans11" in capsys.readouterr().out
    results = read_json(directory / "results.json")
    assert results["data"]["images"] == 100
    assert results["equivalent_beta"] == pytest.approx(64 * 64 * 3 / 10_000)
    deliverables = read_npz(directory / "deliverables.npz")
    (edit,) = edits.read_edits(directory / "edit.npz")
    assert str(deliverables["ans09"]) == edit.image_id and edit.image_id.endswith(".jpg")
    assert edit.attribute == "Smiling"
    np.testing.assert_allclose(np.linalg.norm(deliverables["ans11"] - deliverables["ans10"]), 4, rtol=1e-5)
    vectors = read_npz(directory / "directions.npz")
    assert list(vectors["names"]) == ["Smiling"]
    for estimator in ("vectors", "raw", "orthogonal"):
        np.testing.assert_allclose(np.linalg.norm(vectors[estimator], axis=1), 1, rtol=1e-5)


def test_an_edit_is_drawn_again_from_its_floats_and_the_weights(
    streamed: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = streamed
    shutil.copy(directory / "edit.npz", tmp_path / "edit.npz")
    shutil.copy(directory / "weights.npz", tmp_path / "weights.npz")
    redraw = ["redraw", str(tmp_path / "edit.npz"), "--weights", str(tmp_path / "weights.npz")]
    assert cli.main(redraw) == 0
    drawn = (tmp_path / "edit.png").read_bytes()
    assert cli.main(redraw) == 2
    assert "exists" in capsys.readouterr().err
    assert cli.main([*redraw, "--overwrite"]) == 0
    for bare in ("face.f32", "face.f16"):
        out = tmp_path / f"{bare}.png"
        assert cli.main(["redraw", str(directory / bare), "--weights", str(directory), "--out", str(out)]) == 0
        with Image.open(out) as face:
            assert face.size == (64, 64)
    assert (tmp_path / "edit.png").read_bytes() == drawn


def test_an_edit_of_another_network_is_refused(
    streamed: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = streamed
    variables = weights.load(directory, MODEL)
    variables["params"]["encoder"]["mu"]["bias"] = variables["params"]["encoder"]["mu"]["bias"] + 1
    weights.save(tmp_path / "other.npz", MODEL, variables)
    out = tmp_path / "edit.png"
    redraw = ["redraw", str(directory / "edit.npz"), "--weights", str(tmp_path / "other.npz"), "--out", str(out)]
    assert cli.main(redraw) == 2
    assert "another network" in capsys.readouterr().err and not out.exists()
    assert cli.main([*redraw, "--any-weights"]) == 0 and out.exists()


def test_given_weights_are_used_and_give_the_same_directions(
    streamed: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the directions of all attributes is the same that `--label` finds alone."""
    small, directory = streamed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "again"
    given = ["--weights", str(directory), "--label", ""]
    assert cli.main(["latent-arith", *small, *given, "--out", str(out)]) == 0
    assert cli.main(["check", str(out)]) == 0
    assert digest(weights.load(out, MODEL)) == digest(weights.load(directory, MODEL))
    every, one = (read_npz(path / "directions.npz") for path in (out, directory))
    row = list(every["names"]).index("Smiling")
    for estimator in ("vectors", "raw"):
        np.testing.assert_allclose(one[estimator][0], every[estimator][row], atol=1e-5)
    (again,), (edit,) = (edits.read_edits(path / "edit.npz") for path in (out, directory))
    assert (again.image_id, again.fingerprint) == (edit.image_id, edit.fingerprint)
    np.testing.assert_allclose(again.z_end, edit.z_end, atol=1e-4)


PHOTO = ROOT / "tests" / "data" / "photos" / "astronaut.jpg"


def test_an_own_photo_is_edited_with_a_run_and_from_python(
    streamed: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = streamed
    out, edit = tmp_path / "mine", ["--image", str(PHOTO), "--weights", str(directory), "--edit", "Smiling=3"]
    assert cli.main(["latent-arith", *edit, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "astronaut.jpg: face at " in told and "of 12 held-out faces" in told
    assert cli.main(["check", str(out)]) == 0
    assert "complete, ans09, ans10, ans11" in capsys.readouterr().out
    found = read_json(out / "results.json")["photo"]
    assert found["strengths"] == {"Smiling": 3} and 0 <= found["reconstruction_percentile"] <= 100
    strip = read_npz(out / "figures.npz")["photo_strip"]
    assert strip.shape == (5, 64, 64, 3) and np.any(strip[0] != strip[-1])
    assert "Smiling" in (out / "report" / "index.html").read_text()

    faces = latentlab.load(directory).latent_arith
    np.testing.assert_array_equal(faces.edit(PHOTO, crop=None, Smiling=3), strip[-1])
    np.testing.assert_array_equal(latentlab.load(out).latent_arith.strip, strip)
    whole = faces.edit(PHOTO, Smiling=3)
    np.testing.assert_array_equal(faces.edit(np.asarray(Image.open(PHOTO)), Smiling=3), whole)

    assert cli.main(["figures", str(out)]) == 0
    redraw = ["redraw", str(out / "edit.npz"), "--weights", str(directory), "--out", str(tmp_path / "strip.png")]
    assert cli.main(redraw) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nothing.jpg", "--edit", "Smiling=3"], "nothing.jpg: cannot be read"),
        (["--image", str(PHOTO), "--edit", "Smilin=3"], "no direction 'Smilin'; there are Smiling"),
        (["--image", str(PHOTO), "--edit", "Smiling"], "expected ATTRIBUTE=STRENGTH"),
        (["--image", str(PHOTO), "--edit", "Smiling=3", "--crop", "0", "0", "900"], "is not within its 260×260"),
        (["--image", str(ROOT / "docs/figures/growth.png"), "--edit", "Smiling=3"], "no face that looks at the camera"),
        (["--image", str(ROOT / "README.md"), "--edit", "Smiling=3"], "is no photo"),
    ],
)
def test_a_photo_that_cannot_be_edited_is_told_in_one_line(
    words: list[str], message: str, streamed: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = streamed
    assert cli.main(["latent-arith", *words, "--weights", str(directory), "--out", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err


def test_an_edit_of_a_photo_needs_a_run_of_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = ["latent-arith", "--image", str(PHOTO), "--edit", "Smiling=3", "--out", str(tmp_path / "mine")]
    assert cli.main([*edit, "--weights", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_the_packaged_weights_are_those_that_they_say_they_are() -> None:
    editor = Editor.load(weights.PRETRAINED)
    about = read_json(weights.PRETRAINED / "about.json")
    assert weights.fingerprint(editor.variables) == about["fingerprint"]
    assert editor.names == ATTRIBUTES and editor.population is not None
    assert sum(file.stat().st_size for file in weights.PRETRAINED.iterdir()) < 8e6
    part = paint(jax.random.key(1), np.arange(40), 0.6, 128, "faces")
    latents = editor.encode(part.images)
    decoded = editor.decode(latents)
    assert np.sqrt(np.mean((decoded.astype(float) - part.images) ** 2)) < 20
    row = editor.names.index("Eyeglasses")
    moved = editor.decode(latents + 3 * editor.moves[row])
    without = part.attributes[:, row] < 0
    rows, columns = slice(58, 78), slice(30, 98)  # where glasses are worn, the frames are darker than the skin
    darker = decoded[without, rows, columns].astype(float).min(axis=-1) - moved[without, rows, columns].min(axis=-1)
    assert np.mean(darker > 40) > 0.05


def test_a_streamed_run_stopped_in_training_resumes_bit_equal(
    streamed: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process gets SIGTERM after the third of four epochs; the checkpoint holds grain's position.

    SIGKILL comes at random moments, in `faults/test_kills.py`.
    """
    small, directory = streamed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stopped = tmp_path / "stopped"
    command = [sys.executable, str(ROOT / "run.py"), "latent-arith", *small, "--out", str(stopped)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = MetricsLog(stopped / "metrics.jsonl")
    deadline = time.monotonic() + 300
    while not any(row["epoch"] == 2 for row in metrics.rows()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert not (stopped / "results.json").exists()
    assert cli.main(["latent-arith", "--resume", str(stopped)]) == 0
    config = Run(directory).config
    like, states = experiment.initial_state(config, MODEL), []
    for path in (stopped, directory):
        restored = Checkpoints(path / weights.CHECKPOINTS).restore(like, pytest.fail)
        assert restored is not None and restored.step == config.epochs * config.steps_per_epoch
        states.append(digest(restored.state))
    assert states[0] == states[1]
    assert (stopped / "results.json").read_bytes() == (directory / "results.json").read_bytes()


MISTAKES = {
    "data source 'celeb': expected one of 'synthetic', 'celeba', 'folder', 'tfds', some with": "--data celeb",
    "nowhere is not a directory or a zip; expected one with the pictures": "--data celeba:{folder}/nowhere",
    "label is 'Smilling', which celeba:{folder} does not have; expected Smiling": "--label Smilling",
    "{folder}/none.npz is missing": "--weights {folder}/none.npz",
    "weights_md5 is given, but no weights": "--weights-md5 0",
    "epochs is 0, expected at least 1": "--epochs 0",
    "correlation is 1.5, expected a number from -1 to 1": "--correlation 1.5",
    "dropout is 1.0, expected a number from 0 to 0.99": "--dropout 1",
    "has 100 images, expected more than held_out_images + classifier_images = 1020": "--held-out-images 1000",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    message: str,
    streamed: tuple[list[str], Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small, _ = streamed
    assert cli.main(["latent-arith", *small, *MISTAKES[message].format(folder=folder).split()]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert message.format(folder=folder) in said
    assert not list((tmp_path / "runs").rglob("*.json"))


@pytest.mark.parametrize(("scale", "lengths"), [("deviation", [2, 1]), ("means", [1.5, 0.5]), ("unit", [1, 1])])
def test_a_strength_of_one_is_what_the_scale_says(
    scale: Literal["deviation", "means", "unit"], lengths: list[float]
) -> None:
    count = np.ones((1, 2), int)
    vectors, distances = np.eye(2, dtype=np.float32)[None], np.asarray([[3.0, 1.0]])
    found = Directions(("Smiling", "Bangs"), ("balanced",), vectors, distances, count, count, np.ones((1, 2)))
    latents = np.asarray([[2, 1], [-2, 1], [2, -1], [-2, -1]], np.float32)
    steps = step_lengths(LatentArithConfig(scale=scale), latents, found, "balanced")
    np.testing.assert_allclose(steps, lengths, rtol=1e-6)


def test_presets_are_what_the_specification_says() -> None:
    """Batch 32, Adam 5e-4, dropout 0.25, 10,000 · cross-entropy, as the exercise has them."""
    original = PRESETS["original"]
    assert (original.batch_size, original.learning_rate, original.adam_epsilon) == (32, 5e-4, 1e-7)
    assert (original.dropout, original.reconstruction_weight) == (0.25, 10_000)
    assert {config.rule for config in PRESETS.values()} == {"all"}
