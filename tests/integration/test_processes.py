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

from latentlab import command_process, parallel
from latentlab.errors import UserError
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz
from tests.digits import write_packaged

ROOT = Path(__file__).parents[2]

EPOCHS, STEPS = 2, 3
DIGITS = (
    f"--network mlp --train-images 90 --epochs {EPOCHS} --epochs-per-checkpoint 1 --iwae-samples 2 --prior-samples 30 "
    "--latent-points 20 --seeds 2"
)
FACES = (
    f"--synthetic-images 60 --held-out-images 11 --epochs {EPOCHS} --steps-per-epoch 2 --batch-size 12 "
    "--epochs-per-checkpoint 1 --classifier-images 64 --classifier-epochs 1 --scored-faces 3 --adam-epsilon 0.01 "
    "--dropout 0.25 --resident never --size 32 --latent-dim 20 --compared-faces 2 --bootstrap-resamples 1"
)
PHOTO = "--epsilons 0 0.01 --size 96 --attack bim --steps 2 --beside bim"
MANY = (
    "--images packaged --report robust-accuracy --labels predictions --epsilons 0 0.001 --epsilon 0.002 --size 96 "
    "--batch-size 6 --attack pgd --steps 2 --restarts 2"
)
SETTINGS = {"one": (1, 1), "8 devices": (8, 1), "2 processes": (1, 2), "3 processes": (1, 3)}
OTHER_SUMS = "one, in other sums"
"""One device again, with `OTHER_ORDER`."""
OTHER_ORDER = "--xla_cpu_enable_fast_math=true --xla_cpu_experimental_ynn_fusion_type="
"""What lets LLVM sum in another order, and takes products from Eigen instead of YNNPACK, which has its own."""
FACTOR = 10
"""How many times as far as `OTHER_SUMS` a run on many devices may be from one device's.

Both differ from it by the rounding of sums in another order, which training magnifies alike, by how much depends on the
processor. Two samples of one random drift, each a maximum over an array, differ by less than that; a defect (a batch
that is not divided by its size, a key that differs) moves weights by whole steps of Adam, hundreds of times as far.
"""
TEXTS = (("directions.npz", "names"), ("figures.npz", "pair"))


def start(arguments: list[str], devices: int = 1, count: int = 1, flags: str = "") -> list[subprocess.Popen]:
    """Starts a run of `count` processes of `devices` simulated devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices} {flags}"
    environment = {**os.environ, "XLA_FLAGS": flags}
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


def run_to_its_end(arguments: list[str], devices: int = 1, count: int = 1, flags: str = "") -> list[str]:
    results = ended(start(arguments, devices, count, flags))
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
            flags = OTHER_ORDER if setting == OTHER_SUMS else ""
            arguments = [*commands[command], "--out", str(path)]
            outputs = run_to_its_end(arguments, *SETTINGS.get(setting, (1, 1)), flags)
            assert f"Open {path}" in outputs[0]
            assert not any(outputs[1:]), "only the first process reports"
        return path

    return make


def numbers(run: Path) -> dict[str, np.ndarray]:
    """All arrays of a part of a run and its metrics, by name."""
    rows = MetricsLog(run / "metrics.jsonl").rows() if (run / "metrics.jsonl").exists() else []
    found = {f"metrics {name}": np.asarray([row[name] for row in rows if name in row]) for row in rows for name in row}
    for path in run.glob("*.npz"):
        found |= {f"{path.name} {name}": array for name, array in read_npz(path).items()}
    return {
        name: array for name, array in found.items() if array.dtype.kind in "fiu" and "images_per_second" not in name
    }


def distances(one: Path, other: Path) -> dict[str, float]:
    """How far two runs are apart, for every array: the largest difference, of pictures the share of other pixels."""
    ours, theirs = numbers(one), numbers(other)
    assert ours.keys() == theirs.keys()
    found = {}
    for name, array in ours.items():
        assert array.shape == theirs[name].shape, name
        difference = np.abs(array.astype(np.float64) - theirs[name])
        found[name] = float(np.mean(difference > 0) if array.dtype == np.uint8 else difference.max(initial=0))
    return found


def assert_same(made: Callable[[str, str], Path], part: str, other: Path) -> None:
    """A part of a run is as far from that on one device as rounding can bring it, and no farther.

    Where the two runs on one device agree to the bit, the other may differ by the rounding of a single float32.
    """
    one = made("all", "one") / part
    drift, sizes = distances(one, made("all", OTHER_SUMS) / part), numbers(one)
    for name, distance in distances(one, other).items():
        size = 1e-4 if sizes[name].dtype == np.uint8 else 1e-6 * float(np.abs(sizes[name]).max(initial=0))
        assert distance <= FACTOR * drift[name] + size, (name, distance, drift[name])


def assert_same_faces(made: Callable[[str, str], Path], other: Path) -> None:
    one = made("all", "one") / "latent_arith"
    assert_same(made, "latent_arith", other)
    names, pairs = ([read_npz(run / file)[name] for run in (one, other)] for file, name in TEXTS)
    assert names[0].tolist() == names[1].tolist() and pairs[0].tolist() == pairs[1].tolist()
    originals = [read_npz(run / "figures.npz")["originals"] for run in (one, other)]
    np.testing.assert_array_equal(*originals)


@pytest.mark.parametrize("setting", ["8 devices", "2 processes"])
def test_the_three_experiments_are_the_same_on_many_devices(made: Callable[[str, str], Path], setting: str) -> None:
    other = made("all", setting)
    assert_same(made, "vae", other / "vae")
    assert_same_faces(made, other / "latent_arith")
    assert_same(made, "adversarial", other / "adversarial")
    assert len(read_json(other / "config.json")["devices"]) == max(SETTINGS[setting])


def test_digits_are_the_same_in_three_processes(made: Callable[[str, str], Path]) -> None:
    """Which divide none of the batches."""
    assert_same(made, "vae", made("vae", "3 processes"))


@pytest.mark.parametrize("setting", ["8 devices", "3 processes"])
def test_robust_accuracy_is_the_same_on_many_devices(made: Callable[[str, str], Path], setting: str) -> None:
    """20 photos, 6 at a time: of the last two, some processes have none."""
    one, other = made("many", "one"), made("many", setting)
    assert MetricsLog(other / "metrics.jsonl").rows() == MetricsLog(one / "metrics.jsonl").rows()
    accuracies = read_npz(one / "robustness.npz")["accuracy"]
    assert 0 < accuracies[1] < 1, "a radius at which some fall and others do not"


def stripped(run: Path, copy: Path) -> Path:
    """A copy of a run of `all` as if its training of faces had been killed in the last epoch."""
    shutil.copytree(run, copy)
    for path in (copy / "latent_arith").iterdir():
        if path.suffix == ".npz" or path.name == "results.json":
            path.unlink()
    shutil.rmtree(copy / "latent_arith" / "checkpoints" / "face_vae" / str(EPOCHS * 2))
    return copy


def test_a_run_goes_on_on_another_number_of_devices(made: Callable[[str, str], Path], tmp_path: Path) -> None:
    resumed = stripped(made("all", "8 devices"), tmp_path / "resumed")
    (said, *_) = run_to_its_end(["all", "--resume", str(resumed)], *SETTINGS["2 processes"])
    assert f"resuming after epoch {EPOCHS - 1} of {EPOCHS}" in said
    assert "vae is complete" in said and "adversarial is complete" in said
    assert_same_faces(made, resumed / "latent_arith")


def epochs_of(run: Path) -> list[int]:
    return [row["epoch"] for row in MetricsLog(run / "metrics.jsonl").rows() if row["model"] == "autoencoder"]


@pytest.fixture
def long_run(digits: Path, tmp_path: Path) -> tuple[Path, list[subprocess.Popen]]:
    """Two processes that train for long, in their third epoch."""
    run = tmp_path / "run"
    arguments = f"vae --data idx:{digits} {DIGITS} --out {run}"
    arguments = arguments.replace(f"--epochs {EPOCHS} ", "--epochs 4000 ")
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
    assert parallel.is_process_0() and parallel.process_count() == 1
    assert parallel.all_gather({"a": 1}) == [{"a": 1}]
    assert parallel.broadcast_from_process_0(lambda: "there") == "there"

    def fail() -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        parallel.broadcast_from_process_0(fail)
    assert not command_process.is_peer_failure(ValueError("Gloo all-reduce failed"))
