"""How time and memory grow with the work, and what a second start of a command saves.

python -m benchmarks.growth [--curves NAME …] [--quick] [--output benchmarks/results/growth.json]
python -m benchmarks.growth --output benchmarks/results/growth.json --figure docs/figures/growth.png
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks import bench, side_by_side
from benchmarks.bench import Sizes
from latentlab import figures
from latentlab.errors import UserError

PANELS = {
    "batch": "images of a batch",
    "data": "images of a pass",
    "attributes": "attributes",
    "sweep": "ε, or objectives",
    "seeds": "seeds",
}
"""What grows, by panel of the figure."""

HUGE_PAGES = "GLIBC_TUNABLES"
"""Variable that asks glibc for huge pages, which XLA's temporary arrays gain by."""

START = "start"
"""Name of the curve that is none: seconds of whole commands, started twice."""


@dataclass(frozen=True)
class Curve:
    """A work of the bench at several sizes.

    Attributes:
        title: What it is called in the figure.
        panel: One of `PANELS`.
        work: Name in `bench.WORKS`.
        values: What grows.
        sizes: Its value to the sizes of the work.
    """

    title: str
    panel: str
    work: str
    values: tuple[int, ...]
    sizes: Callable[[int], Sizes]


PHOTOS = Sizes(photos=(4, 4, 4))

CURVES = {
    "digits_batch": Curve(
        "digit VAE, step", "batch", "digits_step", (1, 4, 16, 32, 64, 128, 256), lambda n: Sizes(batch=n)
    ),
    "face_batch": Curve("face VAE, step", "batch", "face_step", (1, 2, 4, 8, 16, 32, 64), lambda n: Sizes(batch=n)),
    "photo_batch": Curve(
        "FGSM gradient", "batch", "gradient_1", (1, 2, 4, 8, 16, 32, 64), lambda n: Sizes(photos=(n, n, n))
    ),
    "digits_data": Curve(
        "digit VAE, epoch", "data", "digits_epoch", (250, 500, 1000, 2000, 4000, 8000), lambda n: Sizes(digits=n)
    ),
    "face_data": Curve(
        "direction pass", "data", "face_directions", (50, 100, 250, 500, 1000, 2000), lambda n: Sizes(faces=n // 10)
    ),
    "attributes": Curve(
        "direction pass, 500 faces", "attributes", "face_directions", (1, 5, 19, 40, 80), lambda n: Sizes(attributes=n)
    ),
    "epsilons": Curve(
        "sweep of 4 photos, ε", "sweep", "sweep", (1, 2, 5, 10, 20), lambda n: replace(PHOTOS, epsilons=n, objectives=1)
    ),
    "objectives": Curve(
        "sweep of 4 photos, objectives",
        "sweep",
        "sweep",
        (1, 2, 4, 8),
        lambda n: replace(PHOTOS, epsilons=1, objectives=n),
    ),
    "seeds": Curve("digit VAE, epoch of 1,000", "seeds", "digits_epoch", (1, 2, 4, 8, 16), lambda n: Sizes(seeds=n)),
}
STARTED = ("vae", "latent-arith", "adversarial")
FIRST_STEP = """
import os, sys, time
from latentlab import cli
from vae import experiment
resident_train_steps = experiment.resident_train_steps
def stopped(*args, **kwargs):
    run = resident_train_steps(*args, **kwargs)
    def first(state, count):
        run(state, count)
        print("first step", time.time() - float(sys.argv[1]), flush=True)
        os._exit(0)
    return first
experiment.resident_train_steps = stopped
cli.main(["vae", "--preset", "quick", "--out", sys.argv[2]])
"""
"""A run of the digits that ends when its first epoch has been handed to the device, and tells when that was."""


def main(arguments: Sequence[str]) -> int:
    """Measures curve by curve, or draws what was measured; returns the exit code."""
    try:
        options = _parse(arguments)
        if options.figure:
            found = side_by_side.read(options.output)
            curves = {name: curve for name, curve in found.items() if name in CURVES and not curve["quick"]}
            if not curves:
                names = ", ".join(CURVES)
                raise UserError(f"{options.output}: has no curve, quick ones not counted; expected one of {names}")
            print(figures.save(options.figure, lambda: _figure(curves)))
        else:
            _measure(options, f"python -m benchmarks.growth {shlex.join(arguments)}".strip())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measured(curve: Curve, rates: dict[str, float], quick: bool) -> list[dict[str, Any]]:
    """Measure every value of a curve with `bench.measure`; its first two, if it is to be quick."""
    points = []
    for value in curve.values[:2] if quick else curve.values:
        jax.clear_caches()
        work = bench.WORKS[curve.work](curve.sizes(value), "default")
        points.append({"value": value, **bench.measured(work, rates, quick)})
        point = points[-1]
        milliseconds, megabytes = 1e3 * point["warm_seconds"]["median"], point["peak_bytes"] / 1e6
        print(f"| {curve.title} | {value} | {milliseconds:,.1f} | {megabytes:,.0f} |", flush=True)
    return points


def starts(quick: bool) -> dict[str, list[float]]:
    """Seconds of whole quick runs, and until the first step of the digits' training, at first and at later starts.

    All of a name share a cache that was empty at first.
    """
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as parent:
        for name in ("vae, until its first step", *(() if quick else STARTED)):
            found[name] = [_start(name, Path(parent), number) for number in range(2 if quick else 3)]
            listed = ", ".join(f"{seconds:.1f}" for seconds in found[name])
            print(f"| {name} | {listed} |", flush=True)
    return found


def _start(name: str, parent: Path, number: int) -> float:
    out, cache = parent / f"{name}-{number}", parent / f"{name}-cache"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    variables = {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(side_by_side.ROOT)}
    if name == "adversarial":  # weights and photos are in the user's cache; the compiled programs shall be elsewhere
        variables = {**kept, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(side_by_side.ROOT)}
        variables["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    start = time.time()
    script = ["-c", FIRST_STEP, str(start), str(out)] if "," in name else ["run.py", name, "--preset", "quick"]
    command = [sys.executable, *script, *([] if "," in name else ["--out", str(out)])]
    done = subprocess.run(command, env=variables, cwd=side_by_side.ROOT, capture_output=True, text=True, check=False)
    seconds = time.time() - start
    if done.returncode:
        raise RuntimeError(f"{name} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return float(done.stdout.rsplit(maxsplit=1)[-1]) if "," in name else seconds


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.growth", description=(__doc__ or "").splitlines()[0])
    names = [*CURVES, START]
    parser.add_argument("--curves", nargs="+", choices=names, metavar="CURVE", help=f"of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="two sizes and few repeats, whose seconds mean nothing")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file that the results are merged into, by curve")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="measure nothing, and draw what --output has")
    options = parser.parse_args(arguments)
    if options.figure and not options.output:
        raise UserError("--figure draws results, expected --output FILE.json with the file that has them")
    return options


def _measure(options: argparse.Namespace, command: str) -> None:
    if options.output and options.output.exists():
        side_by_side.read(options.output)  # an error before the work, not after it
    machine = side_by_side.machine(("jax", "flax"), {HUGE_PAGES: os.environ.get(HUGE_PAGES, "")}, command)
    rates = bench.measured_rates(options.quick)

    def keep(name: str, found: Mapping[str, Any]) -> None:
        if options.output:
            side_by_side.merge(options.output, {name: {"machine": machine, "quick": options.quick, **found}})

    names = options.curves or [*CURVES, START]
    print("| work | size | ms | peak memory, MB |\n| --- | --- | --- | --- |")
    with bench.without_compilation_cache():
        for name in names:
            if name != START:
                curve = CURVES[name]
                keep(name, {"work": curve.work, "points": measured(curve, rates, options.quick)})
    if START in names:
        print("\n| command | seconds of the first, second and third start |\n| --- | --- |")
        keep(START, {"seconds": starts(options.quick)})


def _figure(curves: Mapping[str, Any]) -> Figure:
    """Time above, memory below; dashed is growth in proportion, from the largest size."""
    figure = Figure(figsize=(15, 6.2), layout="constrained")
    grid = figure.subplots(2, len(PANELS), sharex="col")
    for column, (panel, label) in enumerate(PANELS.items()):
        upper, lower = grid[:, column]
        shown = [(name, curve) for name, curve in CURVES.items() if curve.panel == panel and name in curves]
        for colour, (name, curve) in zip((figures.BLUE, figures.ORANGE, "#1b9e77"), shown, strict=False):
            points = curves[name]["points"]
            values = [point["value"] for point in points]
            milliseconds = [1e3 * point["warm_seconds"]["median"] for point in points]
            megabytes = [point["peak_bytes"] / 1e6 for point in points]
            for axes, numbers in ((upper, milliseconds), (lower, megabytes)):
                axes.plot(values, numbers, "o-", color=colour, markersize=4, label=curve.title)
                line = [numbers[-1] * value / values[-1] for value in values]
                axes.plot(values, line, "--", color=colour, linewidth=0.8, alpha=0.6)
        for axes in (upper, lower):
            _scaled(axes)
        if shown:
            upper.legend(fontsize=8, frameon=False)
        lower.set_xlabel(label)
    grid[0, 0].set_ylabel("time of a call, ms")
    grid[1, 0].set_ylabel("peak memory, MB")
    return figure


def _scaled(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
