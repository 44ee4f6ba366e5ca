"""Record the numbers of a checkout, and compare those of two on the same machine.

    python benchmarks/golden.py record CHECKOUT DIRECTORY --weights WEIGHTS_OF_FACES
    python benchmarks/golden.py compare BEFORE AFTER

Trained float32 numbers differ between processors, so no file of them is kept: record both checkouts on one machine.
Runs go through `run.py` alone, which every version has. Epochs of one step make a line of `metrics.jsonl` the loss and
metrics of a single step. Directions, edits and the scorecard are compared for the same weights of the face VAE, those
of either recording, since those of few steps differ by rounding that BatchNorm and Adam magnify.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ONE_STEP_EPOCHS = "--epochs 8 --epochs-per-checkpoint 4 --precision float32"
FACES = (
    f"latent-arith --preset quick --steps-per-epoch 1 {ONE_STEP_EPOCHS} --dropout 0.25 --synthetic-images 200 "
    "--held-out-images 40"
)
RUNS = {
    "first steps of the digits": f"vae --preset quick --train-images 32 {ONE_STEP_EPOCHS} --latent-points 64",
    "three seeds": "vae --preset quick --seeds 3 --epochs 2 --epochs-per-checkpoint 2",
    "first steps of the faces": FACES,
    "faces with a large epsilon of Adam": f"{FACES} --adam-epsilon 0.01",
    "faces with given weights": "latent-arith --preset quick --synthetic-images 200 --held-out-images 40 "
    "--precision float32 --weights {weights}",
    "iterated attacks": "adversarial --preset quick --attack pgd --steps 3 --restarts 2 --epsilons 0 0.01",
    "momentum in L2": "adversarial --preset quick --attack mi-fgsm --norm l2 --epsilon 0.5 --epsilons 0 0.5 --steps 3",
    "robust accuracy": "adversarial --preset quick --images packaged --labels predictions --report robust-accuracy "
    "--epsilons 0 0.01",
    "quick": "all --preset quick",
}
NOT_NUMBERS_OF_THE_RUN = ("images_per_second", "times.json", "config.json")
TOLERANCE = 1e-6


def main() -> int:
    """Run one of the two commands; exit code 1 where numbers differ by more than the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, first, second in (("record", "checkout", "directory"), ("compare", "before", "after")):
        command = commands.add_parser(name)
        command.add_argument(first, type=Path)
        command.add_argument(second, type=Path)
        if name == "record":
            command.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
            command.add_argument(
                "--weights", type=Path, required=True, help="weights.npz of a run of faces, one for both"
            )
    options = parser.parse_args()
    if options.command == "record":
        record(options.checkout.resolve(), options.directory.resolve(), options.runs, options.weights.resolve())
        return 0
    return compare(options.before, options.after)


def record(checkout: Path, directory: Path, names: list[str], weights: Path) -> None:
    """Run every command in `names` with the code of a checkout, and leave the runs in a directory."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    for name in names:
        out = directory / name.replace(" ", "-")
        arguments = RUNS[name].format(weights=weights).split()
        command = [sys.executable, str(checkout / "run.py"), *arguments, "--out", str(out), "--overwrite"]
        print(f"{name}: python run.py {' '.join(arguments)}", flush=True)
        subprocess.run(command, check=True, env=environment, cwd=checkout, stdout=subprocess.DEVNULL)


def compare(before: Path, after: Path) -> int:
    """Print the largest relative difference of every number and array; return 1 if any is too large."""
    worst = 0.0
    print("| run | what | values | largest relative difference |\n| --- | --- | --- | --- |")
    for name in RUNS:
        ours, theirs = (collect(root / name.replace(" ", "-")) for root in (before, after))
        for what in ours:
            if what not in theirs:
                print(f"| {name} | {what} | {ours[what].size} | missing |")
                worst = np.inf
                continue
            difference = relative_difference(ours[what], theirs[what])
            worst = max(worst, difference)
            shown = f"{difference:.1e}" if difference else "equal to the bit"
            print(f"| {name} | {what} | {ours[what].size} | {shown} |")
    print(f"\nlargest of all: {worst:.1e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


def collect(run: Path) -> dict[str, np.ndarray]:
    """Gather all numbers of a run by file and name; in JSON, places in lists do not count."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(run.rglob("*")):
        label = str(path.relative_to(run))
        if path.suffix == ".npz" and "checkpoints" not in path.parts:
            with np.load(path) as arrays:
                found |= {f"{label}: {name}": [array] for name, array in arrays.items()}
        elif path.name in ("metrics.jsonl", "results.json"):
            text = path.read_text()
            values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
            for name, value in flatten(values):
                if not name.endswith(NOT_NUMBERS_OF_THE_RUN):
                    found.setdefault(f"{label}: {name}", []).append(np.asarray(value))
    return {name: np.stack(values) for name, values in found.items()}


def flatten(value: Any, name: str = "") -> list[tuple[str, float]]:
    """List the numbers in a JSON value under their dotted names; places in lists do not count."""
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in flatten(inner, f"{name}.{key}".strip("."))]
    if isinstance(value, list):
        return [pair for inner in value for pair in flatten(inner, name)]
    return [(name, float(value))] if isinstance(value, int | float) else []


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return max |a - b| / max |a| over an array, of pictures mean |a - b| / 255; infinite for other shapes or text."""
    if one.shape != other.shape or one.dtype.kind in "US":
        return 0.0 if np.array_equal(one, other) else np.inf
    if one.dtype == np.uint8:
        return float(np.mean(np.abs(one.astype(np.int16) - other)) / 255)
    a, b = one.astype(np.float64), other.astype(np.float64)
    if np.array_equal(a, b):
        return 0.0
    return float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), 1e-30))


if __name__ == "__main__":
    sys.exit(main())
