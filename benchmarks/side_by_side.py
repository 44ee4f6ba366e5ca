"""Runs contestants in turn, each in a process of its own, and sums up: what the benchmarks here share.

In every round each contestant runs once, one after the other, so that a change of the machine's
speed meets all alike. Ratios are taken within a round. With every run goes how many cores other
processes kept busy meanwhile: with more than a few hundredths the numbers say little.
"""

import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from latentlab.errors import UserError
from latentlab.storage.run_directory import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = {"TF_CPP_MIN_LOG_LEVEL": "3", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ENVIRONMENTS = {"cpu": {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", **EVERYWHERE}, "gpu": EVERYWHERE}
"""What a contestant's process is told, by device: huge pages, as `run.py` takes them, are for all."""

Run = Mapping[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        title: What the table calls it.
        module: Module of this package with the function.
        function: Name of the function that does and times the work: the input and a number of repeats to seconds and
            check of each repeat, and no checks where there is nothing to check.
        packages: Packages it is made of, by the names under which they are imported; the first is what computes.
        programs: Programs it needs.
        environment: Variables that its process needs.
        most_rounds: At most so many rounds.
        most_repeats: At most so many repeats of the work in one process.
    """

    title: str
    module: str
    function: str
    packages: tuple[str, ...]
    programs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    most_rounds: int | None = None
    most_repeats: int | None = None

    def load(self) -> Callable[[Any, int], tuple[list[float], list[float]]]:
        """Import the function."""
        return getattr(import_module(f"benchmarks.{self.module}"), self.function)

    def missing(self) -> list[str]:
        """Return the packages and programs that are not installed."""
        packages = [package for package in self.packages if find_spec(package) is None]
        return packages + [program for program in self.programs if shutil.which(program) is None]


def time_repeats(
    work: Callable[[], Result], repeats: int, check: Callable[[Result], Any] | None = None
) -> tuple[list[float], list[Any]]:
    """Time work whose result is on the host; return seconds, and results or what `check` makes of them."""
    seconds: list[float] = []
    checks: list[Any] = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
        checks.append(check(result) if check else result)
    return seconds, checks


def compare(
    contestants: Mapping[str, Contestant], run: Callable[[str, int], Run], rounds: int, repeats: int
) -> dict[str, Any]:
    """Run all contestants that are installed in turn, `rounds` times over, and sums up.

    Args:
        contestants: Contestants by name; the first is what the others are compared with.
        run: Name of a contestant and number of repeats to its run, which has the `seconds` of every counted repeat,
            perhaps their `checks`, or tells by `left_out` why there are none.
        rounds: Times that each runs.
        repeats: Repeats of the work in a run.
    """
    missing = {name: contestant.missing() for name, contestant in contestants.items()}
    left_out = {name: f"not installed ({', '.join(what)})" for name, what in missing.items() if what}
    runs: dict[str, list[Run]] = {name: [] for name in contestants if name not in left_out}
    for number in range(rounds):
        for name, of_name in runs.items():
            contestant = contestants[name]
            if name in left_out or number >= (contestant.most_rounds or rounds):
                continue
            found = run(name, min(repeats, contestant.most_repeats or repeats))
            if "left_out" in found:
                left_out[name] = found["left_out"]
                continue
            of_name.append(found)
            median, others = statistics.median(found["seconds"]), found.get("other_cores_busy", "unknown")
            print(f"round {number + 1} of {rounds}: {name} {median:.3f} s, other cores busy {others}", file=sys.stderr)
    measured = {name: of_name for name, of_name in runs.items() if of_name}
    reference = measured.get(next(iter(contestants)), [])
    return {
        "rounds": rounds,
        "repeats": repeats,
        "left_out": left_out,
        "contestants": {name: summary(of_name, reference) for name, of_name in measured.items()},
    }


def run_apart(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Run a command that ends with a line of JSON, runs by name, in a process of its own.

    Returns:
        The runs, each with how busy other processes were.

    Raises:
        RuntimeError: It failed; the message has the end of what it wrote.
    """
    # The code beside this file is measured, whichever copy is installed.
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    start, busy, own = time.perf_counter(), _busy_seconds(), os.times()
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    wall, now_busy, now_own = time.perf_counter() - start, _busy_seconds(), os.times()
    runs: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    if busy is not None and now_busy is not None:
        theirs = now_own.children_user + now_own.children_system - own.children_user - own.children_system
        for run in runs.values():
            run["other_cores_busy"] = round(max(0.0, now_busy - busy - theirs) / wall, 3)
    return runs


def summary(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    """Seconds of all repeats of all runs, ratios of the medians of each round, last checks, and most memory."""
    found: dict[str, Any] = {"seconds": _statistics([second for run in runs for second in run["seconds"]])}
    if "checks" in runs[0]:
        found["repeats"] = len(runs[0]["checks"])
        found["check"] = _statistics([run["checks"][-1] for run in runs])
    pairs = zip(reference, runs, strict=False)
    ratios = [statistics.median(one["seconds"]) / statistics.median(other["seconds"]) for one, other in pairs]
    if ratios:
        found["ratio"] = {**_statistics(ratios), "per_round": ratios}
    peaks = [run["peak_megabytes"] for run in runs if "peak_megabytes" in run]
    if peaks:
        found["peak_megabytes"] = max(peaks)
    return found | {"runs": list(runs)}


def table(result: Mapping[str, Any], contestants: Mapping[str, Contestant], seconds: str, check: str | None) -> str:
    """Format the result of `compare` as a table in Markdown: median (lowest to highest).

    Args:
        result: What `compare` returned.
        contestants: Contestants by name.
        seconds: Heading of the seconds.
        check: Heading of the checks, if there are any.
    """
    reference = next(iter(contestants))
    headings = ["contestant", seconds, f"{contestants[reference].title} / contestant"]
    headings += [*([check] if check else []), "peak memory, MB", "others busy"]
    rows = [headings, ["---"] * len(headings)]
    for name, contestant in contestants.items():
        if name in result["left_out"]:
            rows.append([contestant.title, result["left_out"][name], *[""] * (len(headings) - 2)])
            continue
        found = result["contestants"][name]
        row = [contestant.title, _spread(found["seconds"], 3)]
        row.append("" if name == reference or "ratio" not in found else _spread(found["ratio"], 2))
        if check:
            row.append(f"{found['check']['median']:.1f} after {found['repeats']}" if "check" in found else "")
        row.append(f"{found['peak_megabytes']:.0f}" if "peak_megabytes" in found else "")
        busy = [run["other_cores_busy"] for run in found["runs"] if "other_cores_busy" in run]
        rows.append([*row, str(max(busy, default="unknown"))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def verify(result: Mapping[str, Any], tolerance: float) -> None:
    """Refuses measurements of work that was not the same.

    Raises:
        RuntimeError: The checks differ by more than that share of the largest.
    """
    found = {name: one["check"]["median"] for name, one in result["contestants"].items()}
    if found and max(found.values()) - min(found.values()) > tolerance * max(found.values()):
        raise RuntimeError(f"contestants found {found}, expected one number: they did not do the same work")


def machine(packages: Iterable[str], environment: Mapping[str, str], command: str) -> dict[str, Any]:
    """Describe what the numbers depend on: processor, versions, date, and the command that made them."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in sorted({*packages, "numpy", "jaxlib"})},
        "environment": dict(environment),
    }


def merge(path: Path, parts: Mapping[str, Any]) -> None:
    """Write the parts into the JSON file at `path`; parts of other names that it has stay.

    Raises:
        UserError: The file holds something else, or cannot be written.
    """
    write_json(path, {"parts": {**(read(path) if path.exists() else {}), **parts}})


def read(path: Path) -> dict[str, Any]:
    """Read the parts in a file that `merge` wrote.

    Raises:
        UserError: The file is missing or holds something else.
    """
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("parts"), dict):
        raise UserError(f"{path}: holds no results, expected a file that --output wrote")
    return found["parts"]


def make_directory(path: Path) -> None:
    """Make a new directory for results.

    Raises:
        UserError: It exists.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{path} exists; choose another --out") from error


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
