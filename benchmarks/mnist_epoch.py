"""Times one training epoch of the MNIST VAE (1,000 images, batch 32) here and in other frameworks, side by side.

python benchmarks/mnist_epoch.py [--rounds 5] [--epochs 6] [--output benchmarks/results/NAME.json]
python benchmarks/mnist_epoch.py --contestant torch

In every round each installed contestant runs once, in a process of its own, one after the
other, so that a change of the machine's speed meets all alike. Ratios are taken within a round.
With every run goes how many cores other processes kept busy meanwhile: with more than a few
hundredths the numbers say little.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ON_CPU = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Contestant:
    """One way to train the network.

    Attributes:
        title: What the table calls it.
        module: Module beside this file with the function.
        packages: Packages it needs, by the names under which they are imported.
        function: Takes images and a number of epochs; returns seconds and mean loss of each epoch.
        most_rounds: At most so many rounds.
        most_epochs: At most so many epochs.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    function: str = "epoch_seconds"
    most_rounds: int | None = None
    most_epochs: int | None = None


JAX = ("jax", "flax", "optax")
CONTESTANTS = {
    "ours": Contestant("latentlab", "ours", JAX),
    "torch": Contestant("PyTorch, eager, channels last", "peer_torch", ("torch",)),
    "tensorflow": Contestant("Keras on TensorFlow, epoch in tf.function", "peer_tensorflow", ("tensorflow", "keras")),
    "flax": Contestant("plain Flax, jitted step", "peer_flax", JAX),
    "flax_scan": Contestant("plain Flax, jitted scan", "peer_flax", JAX, "epoch_seconds_scanned", 1, 2),
}


def main() -> None:
    """Runs one contestant, or all of them against each other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=_positive, default=5, help="times that every contestant runs")
    parser.add_argument("--epochs", type=_positive, default=6, help="epochs a run, the first one not counted")
    parser.add_argument("--output", type=Path, help="JSON file of the measurements")
    parser.add_argument("--contestant", choices=CONTESTANTS, help="run only this one, here, and print its JSON")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs is 1, expected 2 or more: the first epoch holds compilation and is not counted")
    if options.contestant:
        print(json.dumps(run(CONTESTANTS[options.contestant], options.epochs)))
        return
    result = compare(options.rounds, options.epochs)
    print(table(result))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run(contestant: Contestant, epochs: int) -> dict[str, list[float]]:
    """Trains one contestant in this process.

    Returns:
        Seconds of every epoch but the first, seconds of the first, and mean loss of every epoch.
    """
    from vae.data import open_dataset

    epoch_seconds = getattr(import_module(contestant.module), contestant.function)
    first, *warm = zip(*epoch_seconds(open_dataset("packaged").train.images, epochs), strict=True)
    losses = [first[1], *(loss for _, loss in warm)]
    return {"seconds": [seconds for seconds, _ in warm], "first_epoch_seconds": [first[0]], "losses": losses}


def compare(rounds: int, epochs: int) -> dict[str, Any]:
    """Runs all installed contestants in turn, `rounds` times over, and sums up.

    Raises:
        RuntimeError: A contestant failed; the message has the end of what it wrote.
    """
    missing = {name: _missing(contestant) for name, contestant in CONTESTANTS.items()}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS if not missing[name]}
    described = machine()
    for number in range(rounds):
        for name, runs in measured.items():
            if number >= (CONTESTANTS[name].most_rounds or rounds):
                continue
            runs.append(_run_apart(name, min(epochs, CONTESTANTS[name].most_epochs or epochs)))
            median, others = statistics.median(runs[-1]["seconds"]), runs[-1].get("other_cores_busy", "unknown")
            print(f"round {number + 1} of {rounds}: {name} {median:.3f} s, other cores busy {others}", file=sys.stderr)
    return {
        "machine": described,
        "rounds": rounds,
        "epochs": epochs,
        "not_installed": {name: packages for name, packages in missing.items() if packages},
        "contestants": {name: _summary(runs, measured.get("ours", [])) for name, runs in measured.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as a table in Markdown: median (lowest to highest)."""
    lines = [
        "| contestant | seconds an epoch | latentlab / contestant | loss after epochs | others busy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, contestant in CONTESTANTS.items():
        if name in result["not_installed"]:
            packages = ", ".join(result["not_installed"][name])
            lines.append(f"| {contestant.title} | not installed ({packages}) | | | |")
            continue
        summary = result["contestants"][name]
        ratio = "" if name == "ours" or "ratio" not in summary else _spread(summary["ratio"], 2)
        loss = f"{summary['final_loss']['median']:.1f} after {summary['epochs']}"
        busy = max((run["other_cores_busy"] for run in summary["runs"] if "other_cores_busy" in run), default="unknown")
        lines.append(f"| {contestant.title} | {_spread(summary['seconds'], 3)} | {ratio} | {loss} | {busy} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, versions and date."""
    packages = {package for contestant in CONTESTANTS.values() for package in contestant.packages} | {"numpy", "jaxlib"}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in sorted(packages)},
        "environment": ON_CPU,
    }


def _run_apart(name: str, epochs: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--contestant", name, "--epochs", str(epochs)]
    # The code beside this file is measured, whichever copy is installed.
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": str(ROOT)}
    start, busy, own = time.perf_counter(), _busy_seconds(), os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    wall, now_busy, now_own = time.perf_counter() - start, _busy_seconds(), os.times()
    result = json.loads(done.stdout.splitlines()[-1])
    if busy is not None and now_busy is not None:
        theirs = now_own.children_user + now_own.children_system - own.children_user - own.children_system
        result["other_cores_busy"] = round(max(0.0, now_busy - busy - theirs) / wall, 3)
    return result


def _summary(runs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "epochs": len(runs[0]["losses"]),
        "seconds": _statistics([second for run in runs for second in run["seconds"]]),
        "final_loss": _statistics([run["losses"][-1] for run in runs]),
        "runs": runs,
    }
    pairs = zip(ours, runs, strict=False)
    ratios = [statistics.median(we["seconds"]) / statistics.median(they["seconds"]) for we, they in pairs]
    return summary | ({"ratio": {**_statistics(ratios), "per_round": ratios}} if ratios else {})


def _statistics(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _spread(values: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{values[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _missing(contestant: Contestant) -> list[str]:
    return [package for package in contestant.packages if find_spec(package) is None]


def _version(package: str) -> str | None:
    for distribution in (package, f"{package}-cpu"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _busy_seconds() -> float | None:
    """Processor time that all processes have taken, and the host that of this machine; None where not on Linux."""
    try:
        user, nice, system, _, _, interrupt, soft_interrupt, steal, *_ = map(
            int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        )
    except FileNotFoundError:
        return None
    return (user + nice + system + interrupt + soft_interrupt + steal) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected 1 or more")
    return number


if __name__ == "__main__":
    main()
