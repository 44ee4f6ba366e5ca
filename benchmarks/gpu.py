"""Everything there is to know about a GPU, in one call: times, kernels, programs, whole commands.

python -m benchmarks.gpu --out DIR [--parts works peers commands] [--works NAME …] [--quick] [--seconds 280]

For every hot function of `bench`: its stages and times, how many kernels a call launches and how long they take, and
the program that XLA made of it. Then this project's own parts of `peers`, and `run.py`, with an empty compilation cache
and again with a full one. What does not fit in the time is named as left out. DIR holds `gpu.json`, `kernels.md` and
the programs. It runs on a CPU too, where it finds no kernels.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import bench, peers
from latentlab.errors import UserError
from latentlab.storage.run_directory import describe_machine, write_json

ROOT = Path(__file__).parents[1]
PARTS = ("works", "peers", "commands")
OURS = ("mnist_epoch/ours", "mnist_seeds/eight", "mnist_run/ours", "face_step/ours", "face_encode/ours")
LARGEST = 12
"""Kernels of a work that `kernels.md` names."""


def main(arguments: Sequence[str]) -> int:
    """Measure what fits in the time, and write it after every step; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--works", nargs="+", default=list(bench.WORKS), choices=bench.WORKS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="little work, whose times mean nothing")
    parser.add_argument("--seconds", type=float, default=280, help="start nothing new after these")
    options = parser.parse_args(arguments)
    try:
        _make(options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    found: dict[str, Any] = {**describe_machine(), "quick": options.quick, "works": {}, "left_out": []}
    start = time.perf_counter()

    def step(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if time.perf_counter() - start > options.seconds:
            found["left_out"].append(name)
        else:
            group, _, key = name.rpartition("/")
            found.setdefault(group, {})[key] = measured = measure()
            print(f"{name}: {json.dumps({k: v for k, v in measured.items() if k != 'largest'})}", flush=True)
        write_json(options.out / "gpu.json", found)

    with bench.without_compilation_cache():
        found["rates"] = bench.measured_rates(options.quick)
        for name in options.works if "works" in options.parts else ():
            step(f"works/{name}", lambda name=name: _measure(name, found["rates"], options))  # type: ignore[misc]
    for name in OURS if "peers" in options.parts else ():
        step(f"peers/{name}", lambda name=name: peers.run(name, 2 if options.quick else 6, "cpu", options.quick))  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm") if "commands" in options.parts else ():
            step(f"commands/{name}", lambda: _run_command(Path(cache), options.quick))
    (options.out / "kernels.md").write_text(_table(found["works"]), encoding="utf-8")
    if found["left_out"]:
        print(f"left out, for want of time: {', '.join(found['left_out'])}")
    print(options.out / "kernels.md")
    return 0


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{directory} exists; choose another --out") from error


def profile(call: Callable[[], Any]) -> dict[str, Any]:
    """Return how many kernels a call launches on the GPUs, how long they run, and the largest of them.

    Seconds between the first kernel's start and the last one's end are its `span`; where that is much longer than the
    kernels run, the device waits for launches or for the host.
    """
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            jax.block_until_ready(call())
        (file,) = Path(directory).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    events = [
        event
        for plane in data.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    seconds, counts = Counter[str](), Counter[str]()
    for event in events:
        seconds[event.name] += event.duration_ns / 1e9
        counts[event.name] += 1
    ends = [event.start_ns + event.duration_ns for event in events]
    return {
        "kernels": len(events),
        "busy_seconds": sum(seconds.values()),
        "span_seconds": (max(ends) - min(event.start_ns for event in events)) / 1e9 if events else 0.0,
        "largest": [[name, counts[name], spent] for name, spent in seconds.most_common(LARGEST)],
    }


def _measure(name: str, rates: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    def inspect(compiled: jax.stages.Compiled, arguments: tuple[Any, ...]) -> dict[str, Any]:
        (options.out / f"{name}.hlo.txt").write_text(compiled.as_text() or "", encoding="utf-8")
        return profile(lambda: compiled(*arguments))

    jax.clear_caches()
    work = bench.WORKS[name](bench.QUICK if options.quick else bench.Sizes(), "default")
    return bench.measured(work, rates, options.quick, inspect)


def _run_command(cache: Path, quick: bool) -> dict[str, Any]:
    """Time `run.py`, as a user types it, with a compilation cache of its own."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, str(ROOT / "run.py"), "all", "--preset", "quick" if quick else "demo"]
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        start = time.perf_counter()
        done = subprocess.run([*command, "--out", f"{place}/run"], env=environment, capture_output=True, text=True)
        return {"seconds": time.perf_counter() - start, "code": done.returncode, "error": done.stderr[-500:]}


def _table(works: dict[str, Any]) -> str:
    rows = ["| work | warm, ms | kernels | busy, ms | span, ms |", "| --- | --- | --- | --- | --- |"]
    named = []
    for name, work in works.items():
        milliseconds = [1e3 * value for value in (work["warm_seconds"]["median"], work["busy_seconds"])]
        rows.append(
            f"| {work['title']} | {milliseconds[0]:.2f} | {work['kernels']} | {milliseconds[1]:.2f} "
            f"| {1e3 * work['span_seconds']:.2f} |"
        )
        named += [f"\n**{name}**\n\n| kernel | times | ms |\n| --- | --- | --- |"]
        named += [f"| `{kernel}` | {count} | {1e3 * seconds:.3f} |" for kernel, count, seconds in work["largest"]]
    return "\n".join([*rows, *named, ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
