"""The command line as a user meets it: whole runs on a few digits, every mistake in one line, signals, resuming."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import latentlab
from latentlab import cli
from latentlab.errors import UserError
from latentlab.experiment import Run
from latentlab.labeled_images import open_dataset
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz
from vae import experiment
from vae.config import PRESETS, VaeConfig

pytestmark = pytest.mark.lenient
ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_a_run_of_all_is_complete(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(finished)]) == 0
    assert cli.main(["check", str(finished / "vae")]) == 0
    assert cli.main(["check", str(finished / "latent_arith")]) == 0
    assert cli.main(["check", str(finished / "adversarial")]) == 0
    assert "complete, ans03, ans09, ans10, ans11, ans14, ans15, ans16, ans17, ans18" in capsys.readouterr().out
    np.testing.assert_array_equal(
        read_npz(finished / "deliverables.npz")["ans03"], read_npz(finished / "vae" / "latents.npz")["vae_z"]
    )


def test_results_hold_every_seed_its_mean_and_spread(finished: Path, digits: Path) -> None:
    results = read_json(finished / "vae" / "results.json")
    for name in experiment.manifest(VaeConfig()).results:
        model, key = name.split(".")
        value = results[model][key]
        assert len(value["per_seed"]) == 2
        np.testing.assert_allclose(value["mean"], np.mean(value["per_seed"]))
        np.testing.assert_allclose(value["standard_deviation"], np.std(value["per_seed"], ddof=1))
    vae = {key: value["mean"] for key, value in results["vae"].items()}
    assert vae["test_negative_elbo"] == pytest.approx(vae["test_reconstruction"] + vae["test_kl"])
    assert vae["test_iwae"] < vae["test_negative_elbo"]
    for model, name in (("autoencoder", "test_mse"), ("vae", "test_negative_elbo")):
        rows = [row for row in MetricsLog(finished / "vae" / "metrics.jsonl").rows() if row["model"] == model]
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
    assert cli.main(["figures", str(copy)]) == 0
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
    assert cli.main(["check", str(copy)]) == 1
    said = capsys.readouterr().out
    assert re.search(fault, said), said
    assert "1 faults" in said


MISTAKES = {
    "there is no preset 'fast'; expected one of quick, demo, original": "vae --preset fast",
    "data source 'mnist': expected 'packaged'": "vae --data mnist --out {new}",
    "idx: {old}/nowhere is not a directory": "vae --data idx:{old}/nowhere --out {new}",
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
}
MISSPELT = {
    "Unrecognized options: vea": "vea",
    "Unrecognized options: --epoch, 3": "vae --epoch 3",
    "Perhaps you meant": "vae --epoch 3",
    "Error parsing --epochs: invalid literal for int": "vae --epochs many",
    "'8/0' is neither a number nor a fraction such as 8/255": "adversarial --epsilon 8/0",
    "invalid choice 'l1' for argument '--reconstruction'": "vae --reconstruction l1",
    "Missing value for argument '--preset'": "vae --preset",
    "Missing from run.py check": "check",
    "Unrecognized options: b": "check a b",
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
    assert cli.main(MISTAKES[message].format(**names).split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message.format(**names) in said
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize("message", MISSPELT)
def test_a_misspelt_command_line_is_explained(
    message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(MISSPELT[message].split())
    assert stop.value.code == 2 and not list(tmp_path.iterdir())
    said = capsys.readouterr().err
    assert message in " ".join(line.strip("│ ") for line in said.splitlines()), said


def test_a_mistake_leaves_no_run_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for mistake in ("--data nowhere", "--data idx:/nowhere", "--train-images 9000", "--epochs 0"):
        assert cli.main(["vae", *mistake.split()]) == 2
    assert not list(tmp_path.rglob("*.json"))


def test_resuming_a_complete_run_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "vae").rglob("*")}
    assert cli.main(["all", "--resume", str(finished)]) == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (finished / "vae").rglob("*")} == before


def test_presets_are_what_the_specification_says() -> None:
    """The original exercise: 1,000 images, batch 32, 200 epochs, Adam 5e-4 with epsilon 1e-7."""
    original = PRESETS["original"]
    assert (original.train_images, original.batch_size, original.epochs) == (1000, 32, 200)
    assert (original.learning_rate, original.adam_epsilon, original.beta) == (5e-4, 1e-7, 1.0)
    assert (original.latent_points, original.iwae_samples) == (5000, 64)


@pytest.mark.parametrize("command", ["all", "vae", "check", "figures"])
@pytest.mark.parametrize("form", ["{} --help", "help {}"])
def test_help_of_a_command(command: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(form.format(command).split())
    assert stop.value.code == 0
    assert f"usage: run.py {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_fits_a_screen(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0
    assert 24 <= len(lines) <= 40 and max(map(len, lines)) <= 100
    assert sum(line.startswith("  python run.py ") for line in lines) == 3
    for command in ("all", "vae", "latent-arith", "adversarial", "check", "figures", "report", "redraw", "bench"):
        assert sum(re.match(rf"\W+{command} ", line) is not None for line in lines) == 1


def test_ways_to_start(tmp_path: Path) -> None:
    """The script of a checkout and the module do the same, and help imports nothing heavy."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for start in ([str(ROOT / "run.py")], ["-m", "latentlab"]):
        command = [sys.executable, "-X", "importtime", *start]
        done = subprocess.run([*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "a smoke run of everything" in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "tyro" in imported and not imported & {"jax", "flax", "orbax.checkpoint", "matplotlib", "numpy"}
        version = subprocess.run([sys.executable, *start, "--version"], cwd=tmp_path, env=environment, stdout=-1)
        assert version.stdout.decode().split()[0] == "latentlab"


def test_bench_needs_a_checkout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    assert cli.main(["bench"]) == 2
    assert "bench needs a checkout of the project" in capsys.readouterr().err


def test_the_old_name_of_a_preset_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """For one version more."""
    command = cli._parse(["vae", "--preset", "seed", "--epochs", "7"])
    assert command.config == dataclasses.replace(PRESETS["original"], epochs=7)
    assert "--preset seed is now called --preset original" in capsys.readouterr().err


def test_a_number_may_be_a_fraction() -> None:
    words = "adversarial --epsilon 8/255 --epsilons 0 1/255 8/255 --step-size 2e-3"
    config = cli._parse(words.split()).config
    assert (config.epsilon, config.epsilons, config.step_size) == (8 / 255, (0.0, 1 / 255, 8 / 255), 2e-3)


def test_without_a_command_all_experiments_run() -> None:
    assert cli._parse([]).command == "all"
    assert cli._parse(["--vae.epochs", "7"]).config.vae.epochs == 7


def stored(finished: Path, directory: Path, change: Callable[[dict], None]) -> Path:
    """A directory with nothing but the record of the first experiment, changed."""
    record = read_json(finished / "vae" / "config.json")
    change(record["config"])
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(record))
    return directory


BAD_CONFIGS = {
    "config: Expected `int`, got `str` - at `$.epochs`": {"epochs": "4"},
    "config: Expected `int`, got `float` - at `$.seeds`": {"seeds": 1.5},
    "config: Expected `float`, got `bool` - at `$.beta`": {"beta": True},
    "config: Invalid enum value 'l1' - at `$.reconstruction`": {"reconstruction": "l1"},
    "config: epochs is 0, expected at least 1": {"epochs": 0},
    "config has dropout, which this version does not know": {"dropout": 0.5},
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_a_configuration_that_is_none_names_file_and_field(
    message: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = stored(finished, tmp_path / "run", lambda config: config.update(BAD_CONFIGS[message]))
    for words in (["check", str(directory)], ["vae", "--resume", str(directory)]):
        assert cli.main(words) == 2
        assert capsys.readouterr().err == f"error: {directory / 'config.json'}: {message}\n"


def test_fields_that_an_older_run_lacks_have_their_defaults(finished: Path, tmp_path: Path) -> None:
    directory = stored(finished, tmp_path / "run", lambda config: config.pop("latent_dim"))
    assert latentlab.load(directory).config == latentlab.load(finished).config.vae


def test_a_run_is_loaded_with_its_models(finished: Path, tmp_path: Path) -> None:
    run = latentlab.load(str(finished))
    decoded = run.vae.decode(run.vae.encode(run.vae.pictures["point_originals"]))
    np.testing.assert_allclose(decoded.astype(int), run.vae.pictures["vae_points"], atol=1)
    assert run.vae is run.vae, "it is read once"
    alone = latentlab.load(finished / "vae")
    assert alone.command == "vae" and "vae" in dir(alone) and "adversarial" not in dir(alone)
    with pytest.raises(UserError, match="is a run of 'vae', which has no results of adversarial"):
        _ = alone.adversarial
    with pytest.raises(AttributeError, match="a run has no 'vea'"):
        _ = alone.vea
    with pytest.raises(UserError, match=r"config.json is missing"):
        latentlab.load(tmp_path)


def test_importing_the_package_is_cheap() -> None:
    program = "import sys, latentlab; print({'jax', 'numpy', 'vae', 'tyro'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    command = "import sys, vae.experiment, latent_arith.experiment, adversarial.experiment"
    heavy = "{'scipy.stats', 'sklearn', 'pandas', 'tensorflow', 'keras', 'torch'}"  # seconds and 150 MB
    program = f"{command}; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def final_digests(run_dir: Path, config: VaeConfig) -> list[str]:
    """Digests of the final states of both models."""
    found = []
    for label, model in experiment.make_models(config).items():
        like = experiment.initial_states(config, model, label)
        restored = Checkpoints(run_dir / "checkpoints" / label).restore(like, pytest.fail)
        steps = config.epochs * experiment.make_schedule(config).steps_per_epoch
        assert list(restored.state.step) == [steps] * config.seeds
        found.append(digest(restored.state))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_bit_equal(
    number: int, code: int, small: list[str], finished: Path, tmp_path: Path
) -> None:
    """The process gets the signal while the VAE's fourth epoch runs: rows of an epoch are written during the next.

    SIGKILL comes at random moments, in `faults/test_kills.py`.
    """
    stopped = tmp_path / "stopped"
    command = [sys.executable, str(ROOT / "run.py"), "vae"]
    process = subprocess.Popen([*command, *small, "--out", str(stopped)], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = MetricsLog(stopped / "metrics.jsonl")
    deadline = time.monotonic() + 300
    while not any(row["model"] == "vae" and row["epoch"] == 3 for row in metrics.rows()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    again = f"to go on: python run.py vae --resume {stopped}"
    expected = ("stopping, once a checkpoint", f"stopped by {signal.Signals(number).name}", again)
    places = [said.find(words) for words in expected]
    assert places == sorted(places) and places[0] >= 0, said
    assert not (stopped / "results.json").exists()
    assert cli.main(["vae", "--resume", str(stopped)]) == 0
    assert cli.main(["check", str(stopped)]) == 0
    config = Run(stopped).config
    assert final_digests(stopped, config) == final_digests(finished / "vae", config)
    for name in ("results.json", "latents.npz"):
        assert (stopped / name).read_bytes() == (finished / "vae" / name).read_bytes()
    losses = [
        [(row["model"], row["epoch"], row["loss"]) for row in MetricsLog(d / "metrics.jsonl").rows() if "loss" in row]
        for d in (stopped, finished / "vae")
    ]
    assert losses[0] == losses[1]


def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_is_used(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = Path(shutil.copytree(finished / "vae", tmp_path / "damaged"))
    (damaged / "results.json").unlink()
    (damaged / "checkpoints" / "vae" / "64" / "digest" / "metadata").write_text("{}")
    assert cli.main(["vae", "--resume", str(damaged)]) == 0
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
