"""The command line as a user meets it: whole runs on a few digits, every mistake in one line, signals, resuming."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import run
from runtime.checkpoints import Checkpoints, digest
from runtime.run_directory import Metrics, read_json, read_npz
from vae import experiment, models
from vae.config import PRESETS, VaeConfig
from vae.data import open_dataset

pytestmark = pytest.mark.lenient
ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_run_of_all_is_complete(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["check", str(finished)]) == 0
    assert run.main(["check", str(finished / "vae")]) == 0
    assert run.main(["check", str(finished / "latent_arith")]) == 0
    assert run.main(["check", str(finished / "adversarial")]) == 0
    assert "complete, ans03, ans09, ans10, ans11, ans14, ans15, ans16, ans17, ans18" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_npz(finished / "deliverables.npz")["ans03"], read_npz(finished / "vae" / "latents.npz")["vae_z"]
    )


def test_results_hold_every_seed_its_mean_and_spread(finished: Path, digits: Path) -> None:
    results = read_json(finished / "vae" / "results.json")
    for name in experiment.expected(VaeConfig()).results:
        model, key = name.split(".")
        value = results[model][key]
        assert len(value["per_seed"]) == 2
        np.testing.assert_allclose(value["mean"], np.mean(value["per_seed"]))
        np.testing.assert_allclose(value["standard_deviation"], np.std(value["per_seed"], ddof=1))
    vae = {key: value["mean"] for key, value in results["vae"].items()}
    assert vae["test_negative_elbo"] == pytest.approx(vae["test_reconstruction"] + vae["test_kl"])
    assert vae["test_iwae"] < vae["test_negative_elbo"]
    for model, name in (("autoencoder", "test_mse"), ("vae", "test_negative_elbo")):
        rows = [row for row in Metrics(finished / "vae" / "metrics.jsonl").rows() if row["model"] == model]
        last = [row["test_loss"] for row in rows if row["epoch"] == 4 and "test_loss" in row]
        np.testing.assert_allclose(last, results[model][name]["per_seed"], rtol=1e-5)
    assert results["data"] == open_dataset(f"idx:{digits}").describe()


def test_config_tells_how_the_run_was_made(finished: Path) -> None:
    record = read_json(finished / "vae" / "config.json")
    assert record["config"]["epochs"] == 4
    assert record["versions"]["jax"] == __import__("jax").__version__
    assert record["backend"] == "cpu"


def test_figures_are_redrawn_from_the_files(copy: Path, finished: Path) -> None:
    for figure in (copy / "vae" / "figures").iterdir():
        figure.unlink()
    assert run.main(["figures", str(copy)]) == 0
    for figure in (finished / "vae" / "figures").iterdir():
        assert (copy / "vae" / "figures" / figure.name).read_bytes() == figure.read_bytes()


def spoil(file: str, change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        if file.endswith(".json"):
            value = json.loads((directory / file).read_text())
            change(value)
            (directory / file).write_text(json.dumps(value))
        else:
            arrays = read_npz(directory / file)
            change(arrays)
            np.savez(directory / file, **arrays)

    return apply


FAULTS = {
    "latents.npz is missing": lambda d: (d / "vae" / "latents.npz").unlink(),
    "manifold.png is missing": lambda d: (d / "vae" / "figures" / "manifold.png").unlink(),
    "losses.png is no readable PNG": lambda d: (d / "vae" / "figures" / "losses.png").write_bytes(b"\x89PNG"),
    "metrics.jsonl is missing": lambda d: (d / "vae" / "metrics.jsonl").unlink(),
    "results.json is missing": lambda d: (d / "vae" / "results.json").unlink(),
    "results.json cannot be read as JSON": lambda d: (d / "vae" / "results.json").write_text("{"),
    "vae.test_iwae is null": spoil("vae/results.json", lambda r: r["vae"].pop("test_iwae")),
    "autoencoder.test_mse is": spoil("vae/results.json", lambda r: r["autoencoder"]["test_mse"].update(mean=None)),
    "labels is missing": spoil("vae/latents.npz", lambda a: a.pop("labels")),
    r"vae_z is float64 \(50, 2\), expected float32 \(50, 2\)": spoil(
        "vae/latents.npz", lambda a: a.update(vae_z=a["vae_z"].astype(np.float64))
    ),
    r"ans03 is float32 \(49, 2\)": spoil("deliverables.npz", lambda a: a.update(ans03=a["ans03"][1:])),
    "ans03 has 1 entries that are NaN": spoil("deliverables.npz", lambda a: np.put(a["ans03"], 3, np.nan)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_check_finds_what_is_missing_or_wrong(copy: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    FAULTS[fault](copy)
    assert run.main(["check", str(copy)]) == 1
    said = capsys.readouterr().out
    assert __import__("re").search(fault, said), said
    assert "1 faults" in said


MISTAKES = {
    "there is no command 'vea'; expected one of vae, latent-arith, adversarial, all": "vea",
    "there is no preset 'fast'; expected one of quick, demo, seed": "vae --preset fast",
    "data source 'mnist': expected 'packaged'": "vae --data mnist --out {new}",
    "idx: {old}/nowhere is not a directory": "vae --data idx:{old}/nowhere --out {new}",
    "Unrecognized options: --epoch, 3; perhaps you meant --epochs": "vae --epoch 3",
    "Error parsing --epochs: invalid literal for int": "vae --epochs many",
    "invalid choice 'l1' for argument '--reconstruction'": "vae --reconstruction l1",
    "epochs is 0, expected at least 1": "vae --epochs 0",
    "beta is -1.0, expected a number from 0": "vae --beta -1",
    "train_images is 9000, but packaged has 1000": "vae --train-images 9000 --out {new}",
    "epochs_per_checkpoint is 10, expected a multiple of epochs_per_dispatch, 3": "vae --epochs-per-dispatch 3",
    "{old} exists; choose another --out": "all --out {old}",
    "config.json is missing": "vae --resume {old}/nowhere",
    "is a run of 'all', not of 'vae'": "vae --resume {old}",
    "the run has vae.epochs = 4, the command line 5": "all --resume {old} --vae.epochs 5",
    "the run has adversarial.epsilons = (0.0, 0.01), the command line (0.0, 0.1)": (
        "all --resume {old} --adversarial.epsilons 0 0.1"
    ),
    "the run has vae.data": "all --resume {old} --preset quick",
    "leave out --out and --overwrite": "all --resume {old} --overwrite",
    "check takes one argument": "check",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    message: str,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(finished.rglob("*"))
    names = {"old": finished, "new": tmp_path / "new"}
    assert run.main(MISTAKES[message].format(**names).split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message.format(**names) in said
    assert sorted(finished.rglob("*")) == before


def test_a_mistake_leaves_no_run_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mistake in ("--data nowhere", "--data idx:/nowhere", "--train-images 9000", "--epochs 0", "--no-such 1"):
        assert run.main(["vae", *mistake.split()]) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_resuming_a_complete_run_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "vae").rglob("*")}
    assert run.main(["all", "--resume", str(finished)]) == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (finished / "vae").rglob("*")} == before


def test_presets_are_what_the_specification_says() -> None:
    """The seed preset is SPEC's table: 1,000 images, batch 32, 200 epochs, Adam 5e-4 with epsilon 1e-7."""
    seed = PRESETS["seed"]
    assert (seed.train_images, seed.batch_size, seed.epochs) == (1000, 32, 200)
    assert (seed.learning_rate, seed.adam_epsilon, seed.beta) == (5e-4, 1e-7, 1.0)
    assert (seed.latent_points, seed.iwae_samples) == (5000, 64)


@pytest.mark.parametrize("command", ["all", "vae", "check", "figures"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 40


def final_digests(run_dir: Path, config: VaeConfig) -> list[str]:
    """Digests of the final states of both models."""
    compared = (models.autoencoder(), models.variational_autoencoder(config))
    found = []
    for index, (name, model) in enumerate(zip(("autoencoder", "vae"), compared, strict=True)):
        like = experiment.initial_states(model, index, config)
        restored = Checkpoints(run_dir / "checkpoints" / name).restore(like, pytest.fail)
        state = restored.state
        assert list(state.epoch) == [config.epochs] * config.seeds
        found.append(digest(state))
    return found


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["KILL", "TERM", "INT"]
)
def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_bit_equal(
    number: int, code: int, small: list[str], finished: Path, tmp_path: Path
) -> None:
    """The process gets the signal while the VAE's fourth epoch runs: rows of an epoch are written during the next."""
    stopped = tmp_path / "stopped"
    command = [sys.executable, str(ROOT / "run.py"), "vae"]
    process = subprocess.Popen([*command, *small, "--out", str(stopped)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = Metrics(stopped / "metrics.jsonl")
    deadline = time.monotonic() + 300
    while not any(row["model"] == "vae" and row["epoch"] == 3 for row in metrics.rows()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert f"to go on: python run.py vae --resume {stopped}" in said
    assert not (stopped / "results.json").exists()
    assert run.main(["vae", "--resume", str(stopped)]) == 0
    assert run.main(["check", str(stopped)]) == 0
    config = dataclasses.replace(VaeConfig(), **read_json(stopped / "config.json")["config"])
    assert final_digests(stopped, config) == final_digests(finished / "vae", config)
    for name in ("results.json", "latents.npz"):
        assert (stopped / name).read_bytes() == (finished / "vae" / name).read_bytes()
    losses = [
        [(row["model"], row["epoch"], row["loss"]) for row in Metrics(d / "metrics.jsonl").rows() if "loss" in row]
        for d in (stopped, finished / "vae")
    ]
    assert losses[0] == losses[1]


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(finished / "vae", tmp_path / "damaged"))
    (damaged / "results.json").unlink()
    (damaged / "checkpoints" / "vae" / "64" / "digest" / "metadata").write_text("{}")
    assert run.main(["vae", "--resume", str(damaged)]) == 0
    said = capsys.readouterr().out
    assert "vae: checkpoint of step 64" in said and "vae: resuming after epoch 2 of 4" in said
    assert (damaged / "results.json").read_bytes() == (finished / "vae" / "results.json").read_bytes()


def test_the_example_in_docs_attacks_the_encoder_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    location = importlib.util.spec_from_file_location("attack_vae", ROOT / "docs" / "attack_vae.py")
    example = importlib.util.module_from_spec(location)
    location.loader.exec_module(example)
    shares = example.main(finished / "vae")
    assert 0.2 < shares["fgsm"] <= shares["pgd"] <= 1
    assert shares["fgsm to the second nearest"] > 0  # before the attack it is nobody's nearest
    assert "of 40 digits" in capsys.readouterr().out
