"""Processes that are killed at random moments, again and again, and what is left of their work.

python -m tests.faults.kills [--kills 25] [--seed 0] [--kinds WORD] tries as many of each kind and prints a table;
`test_kills` tries a few. Every kind ends with a process that nobody kills, whose result must be, to the bit, that of
one that was never disturbed. A try is lost if work that had been reported as saved is gone, or if the run cannot go on;
it is wrong if the result differs.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from latent_arith.datasets import celeba
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json, read_npz
from tests.digits import write_packaged

ROOT = Path(__file__).parents[2]
FACES = (
    "latent-arith --synthetic-images 400 --held-out-images 12 --epochs 8 --steps-per-epoch 10 --batch-size 4 "
    "--epochs-per-checkpoint 2 --classifier-images 64 --classifier-epochs 1 --scored-faces 3 --label Smiling --size 64 "
    "--compared-faces 2 --bootstrap-resamples 1 --resident never"
)
SWEEP = (
    "adversarial --images packaged --report robust-accuracy --labels predictions --epsilons 0 0.001 0.002 "
    "--epsilon 0.004 --size 96 --batch-size 2 --attack pgd --steps 3 --restarts 2"
)


def digits(place: Path, network: str = "original") -> list[str]:
    """Arguments of a training of digits; those that it reads are written to a folder in `place`."""
    folder = place / "digits"
    if not folder.exists():
        folder.mkdir()
        write_packaged(folder, 300, 60)
    options = "--train-images 300 --epochs 8 --epochs-per-checkpoint 2 --iwae-samples 2 --prior-samples 30"
    return ["vae", "--data", f"idx:{folder}", "--network", network, *options.split(), "--latent-points", "50"]


@dataclass
class Tally:
    """What was tried, and what came of it."""

    tried: int = 0
    lost: int = 0
    wrong: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0  # seconds from a signal to the end

    def row(self, name: str) -> str:
        moments = ", ".join(f"{count} {moment}" for moment, count in self.moments.most_common())
        moments += f"; ended within {self.longest:.1f} s" if self.longest > 0.5 else ""
        return f"| {name} | {self.tried} | {self.lost} | {self.wrong} | {moments} |"


def command(arguments: list[str], directory: Path) -> list[str]:
    """The command that begins a run in a directory or, where one has begun, resumes it."""
    begun = (directory / "config.json").exists()
    where = ["--resume", str(directory)] if begun else ["--out", str(directory)]
    return [sys.executable, str(ROOT / "run.py"), *(arguments[:1] if begun else arguments), *where]


def whole_run(arguments: list[str], directory: Path) -> float:
    """A run that nobody disturbs, and the seconds it takes."""
    since = time.monotonic()
    subprocess.run(command(arguments, directory), check=True, cwd=ROOT, capture_output=True)
    return time.monotonic() - since


def killed_runs(
    arguments: list[str],
    whole: Path,
    seconds: float,
    kills: int,
    place: Path,
    chance: random.Random,
    kind: signal.Signals = signal.SIGKILL,
    after: str = "",
) -> Tally:
    """Runs that get a signal at random moments and are resumed, until `kills` have, however many runs that takes.

    Moments are spread over `seconds`, from the start or from when a run says the words `after`.
    """
    tally, number = Tally(), 0
    expected = -signal.SIGKILL if kind == signal.SIGKILL else 128 + kind
    while tally.tried < kills:
        directory, number = place / str(number), number + 1
        ended, of_this_run = False, 0
        while not ended and of_this_run < 6 and tally.tried < kills:
            with (place / "said").open("w+") as said:
                process = subprocess.Popen(command(arguments, directory), stdout=said, stderr=said, cwd=ROOT)
                while after not in Path(said.name).read_text() and process.poll() is None:
                    time.sleep(0.01)
                try:
                    code = process.wait(chance.uniform(0 if after else 0.2, 1.05 * seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(kind)
                    since = time.monotonic()
                    code = process.wait()
                    tally.longest = max(tally.longest, time.monotonic() - since)
                said.seek(0)
                *_, last = ["", *said.read().splitlines()]
            if code in (expected, -kind):  # the latter while Python starts
                tally.tried, of_this_run = tally.tried + 1, of_this_run + 1
                tally.moments[_moment(directory, last)] += 1
            else:
                ended = True
                tally.lost += code != 0
        if not ended:
            done = subprocess.run(command(arguments, directory), cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(done.stdout[-500:], done.stderr[-2000:])
                tally.lost += 1
                continue
        tally.wrong += bool(differences(whole, directory))
    return tally


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two runs left that is not the same to the bit; how fast they were does not count."""
    found = [
        name
        for name in ["results.json", *(path.name for path in one.glob("*.npz"))]
        if not (other / name).is_file() or (one / name).read_bytes() != (other / name).read_bytes()
    ]
    rows = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in MetricsLog(path).rows()]
        for path in (one / "metrics.jsonl", other / "metrics.jsonl")
    ]
    return found + ([] if rows[0] == rows[1] else ["metrics.jsonl"])


def killed_decoding(kills: int, place: Path, chance: random.Random) -> Tally:
    """CelebA's preparation, in small chunks."""
    tally, folder = Tally(), place / "celeba"
    images = folder / "img_align_celeba"
    images.mkdir(parents=True)
    names, noise = [f"{index:06d}.jpg" for index in range(400)], np.random.default_rng(0)
    for name in names:
        Image.fromarray(noise.integers(0, 256, (27, 22, 3), np.uint8)).resize((178, 218)).save(images / name)
    rows = "".join(f"{name} 1 -1\n" for name in names)
    (folder / "list_attr_celeba.txt").write_text(f"{len(names)}\nSmiling Male\n{rows}")
    program = (
        "import sys; from pathlib import Path; from latent_arith.datasets import celeba; celeba.CHUNK = 8; "
        "print(celeba.open_folder(Path(sys.argv[1]), Path(sys.argv[2])).sha256)"
    )

    def prepare(cache: Path) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", program, folder, cache], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )

    since = time.monotonic()
    whole, _ = prepare(place / "whole").communicate()
    seconds, number = time.monotonic() - since, 0
    while tally.tried < kills:
        cache, number, started = place / str(number), number + 1, tally.tried
        done = 0
        while tally.tried < kills:
            process = prepare(cache)
            try:
                found, _ = process.communicate(timeout=chance.uniform(0.3, 1.2 * seconds))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                tally.tried += 1
                records = list(cache.rglob(celeba.PREPARED))
                now = len(read_json(records[0])["chunks"]) if records else 0
                tally.lost += now < done
                tally.moments["before the first chunk" if not now else "after some chunks"] += 1
                done = now
                if tally.tried - started < 6:
                    continue
                found, _ = prepare(cache).communicate()
            tally.lost += not found
            tally.wrong += found != whole
            break
    return tally


def state(step: int) -> dict[str, np.ndarray]:
    """What a checkpoint of a step holds."""
    return {
        "weights": np.random.default_rng(step).normal(size=100_000).astype(np.float32),
        "step": np.asarray(step, np.int32),
    }


def killed_saving(kills: int, place: Path, chance: random.Random) -> Tally:
    """Checkpoints, written one after the other: the newest that was reported, or a later one, must be there."""
    program = (
        "import sys; from pathlib import Path; from latentlab.storage.checkpoints import Checkpoints; "
        "from tests.faults.kills import state; checkpoints = Checkpoints(Path(sys.argv[1]))\n"
        "for step in range(int(sys.argv[2]), 10**6): checkpoints.save(step, state(step)); print(step, flush=True)"
    )
    return _killed_writing(program, kills, place, chance, _restored)


def _restored(directory: Path) -> int:
    like = {name: jnp.asarray(array) for name, array in state(0).items()}
    restored = Checkpoints(directory).restore(like, warn=lambda line: None)
    if restored is None:
        return -1
    return restored.step if digest(restored.state) == digest(state(restored.step)) else -2


def killed_replacing(kills: int, place: Path, chance: random.Random) -> Tally:
    """A results file, replaced again and again."""
    program = (
        "import sys; from pathlib import Path; from latentlab.storage.run_directory import write_json, write_npz; "
        "from tests.faults.kills import state; place = Path(sys.argv[1])\n"
        "for step in range(int(sys.argv[2]), 10**6):\n"
        "    write_npz(place / 'arrays.npz', state(step)); write_json(place / 'results.json', {'step': step}); "
        "print(step, flush=True)"
    )

    def read(directory: Path) -> int:
        if not (directory / "results.json").exists():
            return -1
        step, arrays = read_json(directory / "results.json")["step"], read_npz(directory / "arrays.npz")
        same = digest(arrays) == digest(state(int(arrays["step"]))) and int(arrays["step"]) in (step, step + 1)
        return step if same else -2

    return _killed_writing(program, kills, place, chance, read)


def _killed_writing(program: str, kills: int, place: Path, chance: random.Random, read: Callable[[Path], int]) -> Tally:
    """A program that writes step after step and says so; `read` gives the step that is there, -1 or, if wrong, -2."""
    tally, directory, step = Tally(), place / "written", 0
    directory.mkdir()
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", program, directory, str(step)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()  # so that the moment is one of writing, not of starting
        time.sleep(chance.uniform(0, 1))
        process.kill()
        rest, _ = process.communicate()
        told = int((first + rest).split()[-1])
        found = read(directory)
        tally.tried += 1
        tally.lost += found < told
        tally.wrong += found == -2
        step = max(found, told) + 1
    tally.moments["while writing"] = kills
    return tally


def _moment(directory: Path, last: str) -> str:
    """What a run was about when it was killed."""
    if not (directory / "config.json").exists():
        return "before it began"
    for words, moment in {
        "one pass over": "in the direction pass",
        "editing": "in the edits",
        "scoring": "in the scorecard",
        "measuring": "in the evaluation",
        "photos": "in the sweep",
    }.items():
        if words in last:
            return moment
    if not (directory / "metrics.jsonl").exists():
        return "before the first epoch or batch"
    return "in the training" if (directory / "checkpoints").exists() else "in the sweep"


def main() -> None:
    """Tries every kind and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="", help="only kinds with this in their names")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        kinds: dict[str, Callable[[Path], Tally]] = {}
        for name, arguments in {
            "digits, whole runs": digits(Path(root)),
            "faces, whole runs": FACES.split(),
            "sweep over photos": SWEEP.split(),
        }.items():
            for kind in (signal.SIGKILL, signal.SIGTERM):
                kinds[f"{name}, {kind.name}"] = partial(_of_command, arguments, options.kills, chance, kind)
        kinds |= {
            "faces, direction pass, SIGKILL": partial(_in_the_direction_pass, options.kills, chance),
            "preparation of CelebA": lambda place: killed_decoding(options.kills, place, chance),
            "writing of checkpoints": lambda place: killed_saving(options.kills, place, chance),
            "writing of results": lambda place: killed_replacing(options.kills, place, chance),
        }
        print("| stopped | tried | lost | wrong | moments |\n| --- | --- | --- | --- | --- |")
        for number, (name, kind) in enumerate(kinds.items()):
            if options.kinds not in name:
                continue
            place = Path(root) / str(number)
            place.mkdir()
            print(kind(place).row(name), flush=True)


def _in_the_direction_pass(kills: int, chance: random.Random, place: Path) -> Tally:
    whole_run(FACES.split(), place / "whole")
    return killed_runs(FACES.split(), place / "whole", 0.8, kills, place, chance, after="one pass over")


def _of_command(arguments: list[str], kills: int, chance: random.Random, kind: signal.Signals, place: Path) -> Tally:
    whole_run(arguments, place / "first")  # compiles
    seconds = whole_run(arguments, place / "whole")
    return killed_runs(arguments, place / "whole", seconds, kills, place, chance, kind)


if __name__ == "__main__":
    main()
