"""One run on several devices and in several processes, from the command line: the same numbers, and one end for all."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import processes
from runtime.errors import UserError
from runtime.run_directory import Metrics, read_json, read_npz
from tests.test_run import ROOT
from tests.test_vae_data import write_packaged

EPOCHS, STEPS = 2, 3
DIGITS = (
    f"--train-images 90 --epochs {EPOCHS} --epochs-per-checkpoint 1 --iwae-samples 2 --prior-samples 30 "
    "--latent-points 20 --seeds 2"
)
FACES = (
    f"--synthetic-images 60 --held-out-images 11 --epochs {EPOCHS} --steps-per-epoch 2 --batch-size 12 "
    "--epochs-per-checkpoint 1 --classifier-images 64 --classifier-epochs 1 --scored-faces 3 --adam-epsilon 0.01 "
    "--dropout 0.25 --resident never"
)
PHOTO = "--epsilons 0 0.01 --size 96"
MANY = (
    "--images packaged --report robust-accuracy --labels predictions --epsilons 0 0.001 --epsilon 0.002 --size 96 "
    "--batch-size 6 --attack pgd --steps 2 --restarts 2"
)
SETTINGS = {"one": (1, 1), "8 devices": (8, 1), "2 processes": (1, 2), "4 processes": (1, 4)}


def start(arguments: list[str], devices: int = 1, count: int = 1) -> list[subprocess.Popen]:
    """Starts a run of `count` processes of `devices` simulated devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    several = ["--distributed", "--coordinator", address, "--processes", str(count), "--process-id"]
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments, *([*several, str(index)] if count > 1 else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for index in range(count)
    ]


def ended(started: list[subprocess.Popen], seconds: float = 600) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of every process."""
    found = []
    for process in started:
        out, err = process.communicate(timeout=seconds)
        found.append((process.returncode, out, err))
    return found


def run_to_its_end(arguments: list[str], devices: int = 1, count: int = 1) -> list[str]:
    results = ended(start(arguments, devices, count))
    assert [code for code, _, _ in results] == [0] * count, results
    return ["".join(line for line in out.splitlines(True) if "[Gloo]" not in line) for _, out, _ in results]


def of_all(digits: Path) -> list[str]:
    """Arguments of `all`."""
    parts = {"vae": f"--data idx:{digits} {DIGITS}", "latent-arith": FACES, "adversarial": PHOTO}
    return ["all", *" ".join(text.replace("--", f"--{name}.") for name, text in parts.items()).split()]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of idx files with 90 training and 21 held-out digits."""
    directory = tmp_path_factory.mktemp("digits")
    write_packaged(directory, 90, 21)
    return directory


@pytest.fixture(scope="module")
def made(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run directory of a command in a setting, which is run once."""
    root, commands = (
        tmp_path_factory.mktemp("runs"),
        {
            "all": of_all(digits),
            "vae": ["vae", "--data", f"idx:{digits}", *DIGITS.split()],
            "many": ["adversarial", *MANY.split()],
        },
    )

    def make(command: str, setting: str) -> Path:
        path = root / f"{command} {setting}"
        if not path.exists():
            outputs = run_to_its_end([*commands[command], "--out", str(path)], *SETTINGS[setting])
            assert f"done, see {path}" in outputs[0]
            assert not any(outputs[1:]), "only the first process reports"
        return path

    return make


def assert_same_training(one: Path, other: Path) -> None:
    """Losses to 1e-4, and what is left of the training."""
    kept = [Metrics(run / "metrics.jsonl").rows() for run in (one, other)]
    assert len(kept[0]) == len(kept[1]) > 0
    for ours, theirs in zip(*kept, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"model", "images_per_second"}:
            np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-3 if name == "kl" else 1e-4, err_msg=name)


def assert_same_digits(one: Path, other: Path) -> None:
    assert_same_training(one, other)
    latents = [read_npz(run / "latents.npz") for run in (one, other)]
    for name in latents[0]:
        np.testing.assert_allclose(latents[1][name], latents[0][name], rtol=1e-4, atol=1e-5, err_msg=name)


def assert_same_faces(one: Path, other: Path) -> None:
    """In float32 a LeakyReLU whose input is 0 up to rounding may fall on either side, which `test_mesh` rules out."""
    assert_same_training(one, other)
    weights, directions = ([read_npz(run / name) for run in (one, other)] for name in ("weights.npz", "directions.npz"))
    for name in weights[0]:
        np.testing.assert_allclose(weights[1][name], weights[0][name], atol=2e-3, err_msg=name)
    np.testing.assert_array_equal(directions[1]["names"], directions[0]["names"])
    for kind in ("vectors", "raw"):
        cosines = np.sum(directions[1][kind] * directions[0][kind], axis=1)
        assert cosines.min() > 0.999, kind
    pictures = [read_npz(run / "figures.npz") for run in (one, other)]
    assert pictures[1].pop("pair").tolist() == pictures[0].pop("pair").tolist()
    for name in pictures[0]:
        np.testing.assert_allclose(pictures[1][name].astype(int), pictures[0][name].astype(int), atol=2, err_msg=name)
    np.testing.assert_array_equal(pictures[1]["originals"], pictures[0]["originals"])


def assert_same_attacks(one: Path, other: Path) -> None:
    """The adversarial pictures are the same to the bit, and their probabilities to 1e-4."""
    sweeps, pictures = ([read_npz(run / name) for run in (one, other)] for name in ("sweep.npz", "figures.npz"))
    for name in ("before", "probabilities", "after_png"):
        np.testing.assert_allclose(sweeps[1][name], sweeps[0][name], atol=1e-4, err_msg=name)
    for name in pictures[0]:
        np.testing.assert_array_equal(pictures[1][name], pictures[0][name], err_msg=name)


@pytest.mark.parametrize("setting", ["8 devices", "2 processes"])
def test_the_three_experiments_are_the_same_on_many_devices(made: Callable[[str, str], Path], setting: str) -> None:
    one, other = made("all", "one"), made("all", setting)
    assert_same_digits(one / "vae", other / "vae")
    assert_same_faces(one / "latent_arith", other / "latent_arith")
    assert_same_attacks(one / "adversarial", other / "adversarial")
    assert len(read_json(other / "config.json")["devices"]) == max(SETTINGS[setting])


def test_digits_are_the_same_in_four_processes(made: Callable[[str, str], Path]) -> None:
    assert_same_digits(made("all", "one") / "vae", made("vae", "4 processes"))


@pytest.mark.parametrize("setting", ["8 devices", "2 processes", "4 processes"])
def test_robust_accuracy_is_the_same_on_many_devices(made: Callable[[str, str], Path], setting: str) -> None:
    """20 photos, 6 at a time: of the last two, some processes have none."""
    one, other = made("many", "one"), made("many", setting)
    assert Metrics(other / "metrics.jsonl").rows() == Metrics(one / "metrics.jsonl").rows()
    accuracies = read_npz(one / "robustness.npz")["accuracy"]
    assert 0 < accuracies[1] < 1, "a radius at which some fall and others do not"


def stripped(run: Path, copy: Path) -> Path:
    """A copy of a run of `all` as if its training of faces had been killed in the last epoch."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "adversarial")
    for path in (copy / "latent_arith").iterdir():
        if path.suffix == ".npz" or path.name == "results.json":
            path.unlink()
    shutil.rmtree(copy / "latent_arith" / "checkpoints" / "face_vae" / str(EPOCHS * 2))
    (copy / "deliverables.npz").unlink()
    return copy


@pytest.mark.parametrize(("before", "after"), [("8 devices", "one"), ("one", "2 processes")])
def test_a_run_goes_on_on_another_number_of_devices(
    made: Callable[[str, str], Path], before: str, after: str, tmp_path: Path
) -> None:
    resumed = stripped(made("all", before), tmp_path / "resumed")
    (said, *_) = run_to_its_end(["all", "--resume", str(resumed)], *SETTINGS[after])
    assert f"resuming after epoch {EPOCHS - 1} of {EPOCHS}" in said
    assert "vae is complete" in said
    assert_same_faces(made("all", "one") / "latent_arith", resumed / "latent_arith")
    assert_same_attacks(made("all", "one") / "adversarial", resumed / "adversarial")


def epochs_of(run: Path) -> list[int]:
    return [row["epoch"] for row in Metrics(run / "metrics.jsonl").rows() if row["model"] == "autoencoder"]


@pytest.fixture
def long_run(digits: Path, tmp_path: Path) -> tuple[Path, list[subprocess.Popen]]:
    """Two processes that train for long, in their third epoch."""
    run = tmp_path / "run"
    arguments = f"vae --data idx:{digits} {DIGITS} --out {run}".replace(f"--epochs {EPOCHS} ", "--epochs 4000 ")
    started = start(arguments.split(), count=2)
    deadline = time.monotonic() + 300
    while not run.exists() or max(epochs_of(run), default=0) < 2:
        assert all(process.poll() is None for process in started) and time.monotonic() < deadline
        time.sleep(0.01)
    return run, started


def test_a_signal_to_one_process_stops_all_at_one_checkpoint(
    long_run: tuple[Path, list[subprocess.Popen]],
) -> None:
    run, started = long_run
    os.kill(started[1].pid, signal.SIGTERM)
    results = ended(started, 60)
    assert [code for code, _, _ in results] == [143, 143], results
    assert f"to go on: python run.py vae --resume {run}" in results[0][2]
    newest = max(int(path.name) for path in (run / "checkpoints" / "autoencoder").iterdir())
    assert newest == max(epochs_of(run)) * STEPS


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_takes_the_run_down(long_run: tuple[Path, list[subprocess.Popen]], killed: int) -> None:
    """Its connections break, as mostly here, or JAX notices first that it is gone and aborts, in its own words."""
    run, started = long_run
    os.kill(started[killed].pid, signal.SIGKILL)
    code, _, said = ended(started, 60)[1 - killed]
    assert not (run / "results.json").exists()
    assert any(path.name.isdecimal() for path in (run / "checkpoints" / "autoencoder").iterdir())
    if code == -signal.SIGABRT:
        assert "JAX distributed service" in said
        return
    assert code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "another process of this run is gone" in line
    assert line.endswith(f"to go on: python run.py vae --resume {run}")


def test_a_mistake_is_told_by_all_processes_and_leaves_what_was_there(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}")
    arguments = f"vae --data idx:{digits} {DIGITS} --out {tmp_path / 'taken'}"
    for code, _, said in ended(start(arguments.split(), count=2), 120):
        assert code == 2 and "taken exists; choose another --out" in said
    assert os.listdir(tmp_path / "taken") == ["config.json"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "distributed: cannot start (coordinator_address should be defined.); expected --coordinator HOST:PORT"),
        (["--coordinator", "here"], "coordinator is 'here', expected HOST:PORT"),
        (["--coordinator", "here:1", "--processes", "2", "--process-id", "2"], "process_id is 2, expected 0 to 1 of 2"),
    ],
)
def test_how_processes_find_one_another_is_checked(arguments: list[str], told: str) -> None:
    ((code, _, said),) = ended(start(["vae", "--distributed", *arguments]), 120)
    assert code == 2
    assert f"error: {told}" in said and len(said.splitlines()) == 1


def test_alone_a_process_is_the_first_and_agrees_with_itself() -> None:
    assert processes.is_first() and processes.count() == 1
    assert processes.exchanged({"a": 1}) == [{"a": 1}]
    assert processes.from_first(lambda: "there") == "there"

    def fail() -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        processes.from_first(fail)
    assert not processes.lost_another(ValueError("Gloo all-reduce failed"))
