"""Runs contestants in turn, each in a process of its own, and sums up: what the benchmarks here share.

In every round each installed contestant runs once, one after the other, so that a change of the
machine's speed meets all alike. Ratios are taken within a round. With every run goes how many
cores other processes kept busy meanwhile: with more than a few hundredths the numbers say little.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
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
JAX = ("jax", "flax", "optax")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        title: What the table calls it.
        module: Module beside this file with the function.
        packages: Packages it needs, by the names under which they are imported.
        function: Name of the function that does and times the work.
        most_rounds: At most so many rounds.
        most_repeats: At most so many repeats of the work in one process.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    function: str
    most_rounds: int | None = None
    most_repeats: int | None = None

    def load(self) -> Any:
        """The function, imported."""
        return getattr(import_module(self.module), self.function)

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


def compare(
    script: str, contestants: Mapping[str, Contestant], rounds: int, repeats: int, option: str, reference: str
) -> dict[str, Any]:
    """Runs all installed contestants in turn, `rounds` times over, and sums up.

    Args:
        script: File that, called with `--contestant NAME` and `option` REPEATS, ends with a line of JSON; its
            `seconds` are those of every counted repeat, its `losses`, if any, tell whether the work is the same.
        contestants: Contestants by name.
        rounds: Times that each runs.
        repeats: Repeats of the work in a run.
        option: Option of `script` for the repeats.
        reference: Name of the contestant that ratios have above the line.

    Raises:
        RuntimeError: A contestant failed; the message has the end of what it wrote.
    """
    missing = {name: contestant.missing() for name, contestant in contestants.items()}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants if not missing[name]}
    for number in range(rounds):
        for name, runs in measured.items():
            if number >= (contestants[name].most_rounds or rounds):
                continue
            runs.append(_run_apart(script, name, option, min(repeats, contestants[name].most_repeats or repeats)))
            median, others = statistics.median(runs[-1]["seconds"]), runs[-1].get("other_cores_busy", "unknown")
            print(f"round {number + 1} of {rounds}: {name} {median:.3f} s, other cores busy {others}", file=sys.stderr)
    return {
        "rounds": rounds,
        "not_installed": {name: packages for name, packages in missing.items() if packages},
        "contestants": {name: _summary(runs, measured.get(reference, [])) for name, runs in measured.items()},
    }


def table(result: Mapping[str, Any], contestants: Mapping[str, Contestant], reference: str, seconds: str) -> str:
    """The result of `compare` as a table in Markdown: median (lowest to highest); `seconds` heads that column."""
    title = contestants[reference].title
    lines = [
        f"| contestant | {seconds} | {title} / contestant | loss | others busy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, contestant in contestants.items():
        if name in result["not_installed"]:
            packages = ", ".join(result["not_installed"][name])
            lines.append(f"| {contestant.title} | not installed ({packages}) | | | |")
            continue
        summary = result["contestants"][name]
        ratio = "" if name == reference or "ratio" not in summary else _spread(summary["ratio"], 2)
        loss = f"{summary['final_loss']['median']:.1f} after {summary['repeats']}" if "final_loss" in summary else ""
        busy = max((run["other_cores_busy"] for run in summary["runs"] if "other_cores_busy" in run), default="unknown")
        lines.append(f"| {contestant.title} | {_spread(summary['seconds'], 3)} | {ratio} | {loss} | {busy} |")
    return "\n".join(lines)


def machine(contestants: Iterable[Contestant]) -> dict[str, Any]:
    """What the numbers depend on: processor, versions and date."""
    packages = {package for contestant in contestants for package in contestant.packages} | {"numpy", "jaxlib"}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in sorted(packages)},
        "environment": ON_CPU,
    }


def write(result: Mapping[str, Any], path: Path | None) -> None:
    """Writes the measurements as JSON, if there is a path."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def positive(text: str) -> int:
    """Type of an option that counts."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected 1 or more")
    return number


def _run_apart(script: str, name: str, option: str, repeats: int) -> dict[str, Any]:
    command = [sys.executable, script, "--contestant", name, option, str(repeats)]
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


def _summary(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"seconds": _statistics([second for run in runs for second in run["seconds"]])}
    if "losses" in runs[0]:
        summary["repeats"] = len(runs[0]["losses"])
        summary["final_loss"] = _statistics([run["losses"][-1] for run in runs])
    pairs = zip(reference, runs, strict=False)
    ratios = [statistics.median(one["seconds"]) / statistics.median(other["seconds"]) for one, other in pairs]
    if ratios:
        summary["ratio"] = {**_statistics(ratios), "per_round": ratios}
    return summary | {"runs": runs}


def _statistics(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _spread(values: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{values[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


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
