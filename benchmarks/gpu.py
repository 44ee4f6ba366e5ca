"""Everything there is to know about a GPU, in one call: numbers, times, kernels, programs, whole commands.

python -m benchmarks.gpu --out DIR [--parts works peers depthwise commands tests precision] [--works NAME …]
                         [--quick] [--seconds 280]

works: for every hot function of `bench` its stages and times, how many kernels a call launches and how long they take,
and the program that XLA made of it. peers: this project's own parts of `peers`. depthwise: MobileNetV2's depthwise
convolutions, grouped and as sums of windows. commands: `run.py` with an empty compilation cache, and again with a full
one. tests: `pytest -m gpu`. precision: whole runs in every precision, and the loss they end with. What does not fit in
the time is named as left out. DIR holds `gpu.json`, `kernels.md` and the programs. It runs on a CPU too, where it finds
no kernels.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from adversarial.mobilenet_v2 import EXPANSION, GROUPS
from benchmarks import bench, fgsm_work, peers
from benchmarks.side_by_side import make_directory
from latent_arith import config as faces_config
from latent_arith import experiment as faces
from latentlab.config import Precision
from latentlab.errors import UserError
from latentlab.kernels import convolution
from latentlab.storage.run_directory import describe_machine, write_json
from vae import config as digits_config
from vae import experiment as digits

ROOT = Path(__file__).parents[1]
PARTS = ("works", "peers", "depthwise", "commands", "tests", "precision")
OURS = (
    *("mnist_epoch/ours", "mnist_seeds/eight", "mnist_run/ours", "face_step/ours", "face_encode/ours"),
    *("gradient_1/ours", "gradient_64/ours"),
)
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
LARGEST = 12
"""Kernels of a work that `kernels.md` names."""
FEW_DIGITS = replace(
    digits_config.PRESETS["quick"],
    train_images=64,
    epochs=1,
    epochs_per_checkpoint=1,
    prior_samples=6,
    latent_points=50,
)
FEW_FACES = replace(
    faces_config.PRESETS["quick"],
    size=32,
    synthetic_images=100,
    held_out_images=10,
    epochs=1,
    steps_per_epoch=2,
    classifier_images=64,
    scored_faces=2,
    compared_images=50,
)
"""What `--quick` trains in every precision."""


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
        make_directory(options.out)
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

    with tempfile.TemporaryDirectory() as cache:
        for name, measure in _steps(options, Path(cache)):
            step(name, measure)
    (options.out / "kernels.md").write_text(_table(found["works"]), encoding="utf-8")
    if found["left_out"]:
        print(f"left out, for want of time: {', '.join(found['left_out'])}")
    print(options.out / "kernels.md")
    return 0


def _steps(options: argparse.Namespace, cache: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield what is to be measured, by name."""
    quick: bool = options.quick
    if "works" in options.parts:
        with bench.without_compilation_cache():
            rates = bench.measured_rates(quick)
            yield "rates/measured", lambda: rates
            for name in options.works:
                yield f"works/{name}", partial(_measure, name, rates, options)
    if "peers" in options.parts:
        for name in OURS:
            yield f"peers/{name}", partial(peers.run, name, 2 if quick else 6, "cpu", quick)
    if "depthwise" in options.parts:
        for side, channels, stride in depthwise_shapes(32)[:2] if quick else depthwise_shapes(fgsm_work.SIZE):
            name = f"{side}x{side}x{channels} stride {stride}"
            yield f"depthwise/{name}", partial(compare_depthwise, side, channels, stride, 1 if quick else 64, quick)
    if "commands" in options.parts:
        for name in ("cold", "warm"):
            yield f"commands/{name}", partial(_run_command, cache, quick)
    if "tests" in options.parts:
        yield "tests/gpu", _run_tests
    if "precision" in options.parts:
        for precision in PRECISIONS:
            yield f"precision/digits {precision}", partial(train_digits, precision, quick)
            yield f"precision/faces {precision}", partial(train_faces, precision, quick)


def depthwise_shapes(size: int) -> list[tuple[int, int, int]]:
    """Return side, channels and stride of MobileNetV2's depthwise convolutions, each once."""
    side, channels, shapes = -(-size // 2), 32, []
    for index, (features, stride, count) in enumerate(GROUPS):
        for repeat in range(count):
            wide, step = channels * (EXPANSION if index or repeat else 1), 1 if repeat else stride
            shapes.append((side, wide, step))
            side, channels = -(-side // step), features
    return list(dict.fromkeys(shapes))


def compare_depthwise(side: int, channels: int, stride: int, count: int, quick: bool = False) -> dict[str, float]:
    """Return median seconds of a depthwise convolution and its gradient in the images, in both forms."""
    images = jax.random.normal(jax.random.key(0), (count, side, side, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
    low, high = lax.padtype_to_pads((side, side), (3, 3), (stride, stride), "SAME")
    pads = low, high
    forms: dict[str, Callable[[Array, Array], Array]] = {
        "grouped": lambda x, w: convolution.xla_convolution(x, w, stride, pads, channels),
        "windows": lambda x, w: convolution.sum_of_windows(x, w, stride, pads),
    }

    def seconds(form: Callable[[Array, Array], Array]) -> float:
        work = jax.jit(lambda x, w: jax.value_and_grad(lambda x: jnp.sum(jnp.square(form(x, w))))(x))
        return statistics.median(bench.warm_seconds(lambda: work(images, kernel), 0 if quick else 0.3))

    return {name: seconds(form) for name, form in forms.items()}


def train_digits(precision: Precision, quick: bool = False) -> dict[str, float]:
    """Run experiment 1 with the exercise's settings; its time, and the VAE's bound for held-out digits, in nats."""
    preset = FEW_DIGITS if quick else digits_config.PRESETS["original"]
    start = time.perf_counter()
    results = digits.run(replace(preset, precision=precision), log=_say_nothing)
    bound = results.measures["vae"]["test_negative_elbo"]["mean"]
    return {"seconds": time.perf_counter() - start, "held_out_negative_elbo": bound}


def train_faces(precision: Precision, quick: bool = False) -> dict[str, float]:
    """Run the demo of experiment 2; its time and loss on held-out faces."""
    preset = FEW_FACES if quick else faces_config.PRESETS["demo"]
    start = time.perf_counter()
    results = faces.run(replace(preset, precision=precision), log=_say_nothing)
    return {"seconds": time.perf_counter() - start, "held_out_loss": results.measures["held_out_loss"]}


def _say_nothing(line: str) -> None:
    del line


def _run_tests() -> dict[str, Any]:
    """Run the suite for GPUs in a process of its own."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return {"seconds": time.perf_counter() - start, "code": done.returncode, "said": done.stdout[-4000:]}


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
