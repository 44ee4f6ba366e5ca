"""`python run.py adversarial` as a user meets it: one photo, many photos, resuming, and every mistake in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np
import pytest
from PIL import Image

from adversarial import experiment
from adversarial.classifier import open_classifier
from adversarial.config import AdversarialConfig
from adversarial.pixels import RANGES
from latentlab import cli
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz

pytestmark = [
    pytest.mark.lenient,
    pytest.mark.unoptimized,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # of Keras, on NumPy 2
]

SIZE, CLASSES = 32, 6
RADII = ["0", "0.001", "0.02", "0.2"]
"""With an ε among them, and five objectives, all tests of one photo share their compiled programs."""

Command = Callable[..., int]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow MobileNetV2 with random weights, whole, as Keras saves it, that tells pictures apart."""
    model = keras.applications.MobileNetV2((SIZE, SIZE, 3), 0.35, weights=None, classes=CLASSES)
    draw = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("moving_variance"):
            variable.assign(draw.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith("kernel"):
            inputs = 9 if "depthwise" in variable.path else np.prod(variable.shape[:-1])
            variable.assign(draw.normal(0, (2 / inputs) ** 0.5, variable.shape))
    path = tmp_path_factory.mktemp("weights") / "narrow.h5"
    model.save(path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos: five that a folder or their name labels 0 … 4, and two more."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    (root / "class_5").mkdir()
    for name in [*(f"a_{label}.png" for label in range(5)), "class_5/b.png", "class_5/c.png"]:
        colours = draw.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours.repeat(12, axis=0).repeat(10, axis=1)).save(root / name)
    return root


@pytest.fixture
def attack(weights: Path, photos: Path, tmp_path: Path) -> Command:
    """`python run.py adversarial` on the small network, into tmp_path / "run"."""

    def command(*arguments: str, image: str = "a_0.png") -> int:
        one = [] if "--images" in arguments or "--resume" in arguments else ["--image", str(photos / image)]
        out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
        given = [] if "--weights" in arguments else ["--weights", str(weights)]
        return cli.main(["adversarial", *given, *one, *out, "--epsilons", *RADII, *arguments])

    return command


@pytest.fixture(scope="session")
def finished(weights: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one photo, its ε in the network's own range."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--weights", str(weights), "--image", str(photos / "a_0.png"), "--range", "minus-one-one"]
    options += ["--epsilons", *RADII, "--epsilon", "0.02", "--target-classes", "class_3"]
    assert cli.main(["adversarial", *options, "--out", str(out)]) == 0
    return out


def test_a_run_on_a_photo_is_complete(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(finished)]) == 0
    assert "complete, ans14, ans15, ans16, ans17, ans18" in capsys.readouterr().out
    results, answers = read_json(finished / "results.json"), read_npz(finished / "deliverables.npz")
    assert [entry["index"] for entry in results["top4"]][1::2] == [answers["ans14"], answers["ans15"]]
    assert [entry["attack"] for entry in results["attacks"]] == ["pgd"] * 5 + ["fgsm"] * 5
    for number, entry in zip((16, 17, 18), results["attacks"][6:9], strict=True):
        assert answers[f"ans{number}"] == entry["confidence"], "the exercise has FGSM"
    assert len(results["sweep"]) == 2 * 5 * len(RADII)
    assert MetricsLog(finished / "metrics.jsonl").rows() == results["sweep"]
    assert {entry["epsilon_range"] for entry in results["sweep"]} == {"[-1, 1]"}


def test_saved_pictures_are_those_that_were_classified(finished: Path, weights: Path) -> None:
    results = read_json(finished / "results.json")
    read = {path.stem: np.asarray(Image.open(path)) for path in (finished / "pictures").iterdir()}
    objectives = ("untargeted", "rank_2", "rank_3", "rank_4", "class_class_3")
    assert set(read) == {"original", *objectives, *(f"{name}_fgsm" for name in objectives)}
    classifier, _ = open_classifier(AdversarialConfig(weights=str(weights)), RANGES["minus-one-one"])
    for entry in results["attacks"]:
        picture = read[entry["objective"].replace(" ", "_") + ("_fgsm" if entry["attack"] == "fgsm" else "")]
        assert np.abs(picture.astype(int) - read["original"]).max() == entry["linf_grey_levels"] == 2  # of 2.55
        after = experiment.predict(classifier, picture[None], 1)[0]
        assert classifier.classes[after.argmax()].name == entry["top1_name_after_png"]
        np.testing.assert_allclose(after.max(), entry["confidence_after_png"], atol=1e-5)


def test_figures_can_be_drawn_again(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    drawn = {path.name: path.read_bytes() for path in (copy / "figures").iterdir()}
    assert set(drawn) == {"attacks.png", "attacks_fgsm.png", "confidence.png", "untargeted.png"}
    shutil.rmtree(copy / "figures")
    assert cli.main(["figures", str(copy)]) == 0
    assert {path.name: path.read_bytes() for path in (copy / "figures").iterdir()} == drawn


def test_a_range_is_what_the_network_is_fed_and_what_epsilon_is_counted_in(weights: Path, photos: Path) -> None:
    """But for `auto`, which feeds [-1, 1] and counts in [0, 1]."""
    pixels = experiment.photos.read(photos / "a_1.png", SIZE).pixels
    ranges = {
        config.range: (experiment.model_range(config), experiment.epsilon_range(config))
        for config in map(config_of, ("auto", "minus-one-one"))
    }
    assert ranges["auto"] == (RANGES["minus-one-one"], RANGES["zero-one"])
    assert ranges["minus-one-one"] == (RANGES["minus-one-one"], RANGES["minus-one-one"])
    classifier, _ = open_classifier(AdversarialConfig(weights=str(weights)), RANGES["minus-one-one"])
    fed = 2 * (pixels[None] / np.float32(255)) - 1
    ours = classifier.logits(jax.numpy.asarray(pixels[None]))
    np.testing.assert_allclose(ours, classifier.network.apply(classifier.variables, fed), rtol=1e-4, atol=1e-4)


def config_of(name: Any) -> AdversarialConfig:
    return AdversarialConfig(range=name)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_robust_accuracy_of_a_folder(
    attack: Command, tmp_path: Path, photos: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", str(photos), "--report", "robust-accuracy", "--attack", method, "--steps", "3"]
    assert attack(*options, "--batch-size", "3", "--labels", "predictions") == 0
    directory = tmp_path / "run"
    assert cli.main(["check", str(directory)]) == 0
    stands_for = "PGD in L∞, steps 3, restarts 1" if method == "pgd" else "FGSM in L∞"
    told = f"7 photos, clean accuracy 100.0%; robust accuracy against {stands_for}, an upper bound:"
    assert told in capsys.readouterr().out
    results, rows = read_json(directory / "results.json"), MetricsLog(directory / "metrics.jsonl").rows()
    assert results["photos"] == len(rows) == 7 and results["clean_accuracy"] == 1
    accuracy = [entry["accuracy"] for entry in results["robust_accuracy"]]
    assert accuracy == sorted(accuracy, reverse=True)
    assert results["robust_accuracy"][1]["accuracy_8_bit"] == 1  # a quarter of a grey level
    assert (directory / "figures" / "robust_accuracy.png").is_file()


def test_labels_come_from_folders_and_file_names(attack: Command, tmp_path: Path, photos: Path) -> None:
    root = tmp_path / "labeled"
    shutil.copytree(photos, root)
    for path in sorted((root / "class_5").iterdir()):
        path.rename(root / f"{path.stem}_5.png")
    many = ["--report", "robust-accuracy", "--attack", "fgsm", "--batch-size", "2"]
    assert attack("--images", str(root), *many, "--labels", "numbers") == 0
    labels = {row["photo"]: row["label"] for row in MetricsLog(tmp_path / "run" / "metrics.jsonl").rows()}
    assert labels == {**{f"a_{label}.png": label for label in range(5)}, "b_5.png": 5, "c_5.png": 5}
    assert attack("--images", str(photos / "class_5"), *many, "--overwrite") == 2
    for path in (photos / "class_5").iterdir():
        (root / "class_5").mkdir(exist_ok=True)
        shutil.copy(path, root / "class_5")
    for path in root.glob("*.png"):
        path.unlink()
    assert attack("--images", str(root), *many, "--overwrite") == 0
    rows = MetricsLog(tmp_path / "run" / "metrics.jsonl").rows()
    assert {row["photo"]: row["label"] for row in rows} == {"class_5/b.png": 5, "class_5/c.png": 5}


def test_photos_that_cannot_be_read_are_left_out_if_asked_for(
    attack: Command, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "some"
    shutil.copytree(photos, root)
    content = (root / "a_1.png").read_bytes()
    (root / "a_1.png").write_bytes(content[: len(content) // 2])
    (root / "notes.txt").write_text("of me")
    options = ["--images", str(root), "--report", "robust-accuracy", "--labels", "predictions", "--batch-size", "3"]
    options += ["--attack", "fgsm"]
    assert attack(*options) == 2
    assert "a_1.png: is damaged" in capsys.readouterr().err
    assert attack(*options, "--skip-bad", "--overwrite") == 0
    out = capsys.readouterr().out
    assert "1 of 7 photos cannot be read and are left out" in out
    assert "1 files in" in out and "are no photos and are left out, first notes.txt" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["photos"] == 6 and list(results["skipped"]) == ["a_1.png"]
    assert "6 photos (1 more cannot be read), clean accuracy" in out
    rows = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"".join(rows.splitlines(keepends=True)[:4]))
    (tmp_path / "run" / "results.json").unlink()
    assert cli.main(["adversarial", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == rows
    for path in root.rglob("*.png"):
        path.write_bytes(b"no photo")
    assert attack(*options, "--skip-bad", "--overwrite") == 2
    assert "none of 7 photos can be read, first ('a_0.png', 'is no photo" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 2, 3, 5])
def test_an_interrupted_run_of_many_goes_on_and_ends_the_same(
    attack: Command, tmp_path: Path, photos: Path, kept: int
) -> None:
    directory = tmp_path / "run"
    options = ["--images", str(photos), "--report", "robust-accuracy", "--attack", "pgd", "--steps", "2"]
    options += ["--labels", "predictions", "--batch-size", "3", "--seed", "5"]
    assert attack(*options) == 0
    whole = {name: (directory / name).read_bytes() for name in ("metrics.jsonl", "results.json")}
    lines = whole["metrics.jsonl"].splitlines(keepends=True)
    (directory / "metrics.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    (directory / "results.json").unlink()
    assert cli.main(["adversarial", "--resume", str(directory)]) == 0
    assert {name: (directory / name).read_bytes() for name in whole} == whole


def test_no_class_name_is_a_path_or_a_formula(attack: Command, tmp_path: Path, photos: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("$\\\\alpha$\n../../up\nBär_<b>\n_\n%s{0}\n" + "long " * 30 + "\n", encoding="utf-8")
    aims = ["--label", "0", "--targets", "-1", "--target-classes", "1", "2", "5"]
    assert attack("--names", str(names), *aims, "--epsilon", "0.02") == 0
    written = {path.name for path in (tmp_path / "run" / "pictures").iterdir()}
    assert {"class_..%2F..%2Fup.png", "class_..%2F..%2Fup_fgsm.png"} <= written and len(written) == 11


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no photo": (["--image", "absent.jpg"], r"absent.jpg: cannot be read \(No such file"),
    "no weights": (["--weights", "absent.h5"], r"absent.h5: cannot be read"),
    "no class": (["--label", "dalmatian"], "class 'dalmatian': the network has none"),
    "class out of range": (["--label", "6"], "class 6: out of range, expected 0 to 5"),
    "target out of range": (["--target-classes", "17"], "class 17: out of range, expected 0 to 5"),
    "target is true": (
        ["--label", "2", "--target-classes", "class_2"],
        r"target (rank \d|class class_2) is class_2, the true class",
    ),
    "rank out of range": (["--targets", "7"], "there is no class of rank 7, the network has 6"),
    "rank 0": (["--targets", "0"], "targets has rank 0"),
    "negative epsilon": (["--epsilon", "-0.1"], "epsilon is -0.1, expected a number from 0"),
    "epsilon is NaN": (["--epsilon", "nan"], "epsilon is nan, expected a number from 0"),
    "sweep has NaN": (["--epsilons", "0", "nan"], "epsilons is nan, expected a number from 0"),
    "no folder": (["--images", "absent", "--report", "robust-accuracy"], "absent: is no directory"),
    "no report": (["--images", "absent"], "images is for --report robust-accuracy"),
    "no images": (["--report", "robust-accuracy"], "report is robust-accuracy without images"),
    "small": (["--size", "16"], "size is 16, expected 32 pixels or more"),
    "labels of another network": (
        ["--images", "packaged", "--report", "robust-accuracy"],
        r"imagenet_00_243.jpg: class 243, but the network has 6 \(0 to 5\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(
    attack: Command, mistake: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments, message = MISTAKES[mistake]
    with jax.numpy_dtype_promotion("standard"):
        assert attack(*arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("error: ")
    assert re.search(message, told[0]), told[0]
    assert not (tmp_path / "run").exists()


def test_weights_that_are_damaged_or_of_another_network_are_told(
    attack: Command, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, other = tmp_path / "damaged.h5", tmp_path / "other.weights.h5"
    damaged.write_bytes(weights.read_bytes()[:100_000])
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)]).save_weights(other)
    for path, message in ((damaged, "no readable weights"), (other, "no Conv1")):
        assert attack("--weights", str(path)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert str(path) in line and message in line


def test_an_epsilon_below_the_8_bit_grid_is_warned_of(attack: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert attack("--epsilon", "0.001", "--target-classes", "class_3") == 0
    out = capsys.readouterr().out
    assert "warning: epsilon 0.001 of [0, 1] (0.255 grey levels) is less than one grey level" in out


def test_what_was_done_to_a_photo_is_told(
    attack: Command, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[274] = 6
    Image.open(photos / "a_0.png").convert("L").save(turned, exif=exif)
    assert attack("--epsilon", "0.02", "--target-classes", "class_3", image=str(turned)) == 0
    out = capsys.readouterr().out
    assert "turned.jpg: turned upright" in out and "turned.jpg: grey" in out
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["photo"]["notes"]) == 2
