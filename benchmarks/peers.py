"""Times this project side by side with other frameworks: training, encoding, attacks.

python -m benchmarks.peers [--parts mnist_epoch face_step …] [--device gpu] [--output benchmarks/results/peers.json]
python -m benchmarks.peers --quick
python -m benchmarks.peers --contestant mnist_epoch/torch
python -m benchmarks.peers --output benchmarks/results/peers.json --figure docs/figures/peers.png

How contestants take turns and what is summed up: `side_by_side`. What they are: README.md.
"""

import argparse
import json
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import side_by_side
from benchmarks.side_by_side import ENVIRONMENTS, Contestant, Run
from latentlab.errors import UserError

JAX = ("jax", "flax", "optax")
LOSS, NORM, MOVED = "loss", "‖∇L‖₁", "mean change, grey levels"
AGREEMENT = 0.01  # ReLU6 has corners: where rounding puts an activation on the other side, a gradient differs


@dataclass(frozen=True)
class Part:
    """One kind of work and who does it.

    Attributes:
        title: What is timed.
        seconds: Heading of the column of seconds.
        given: Makes what every contestant is given.
        small: Makes less of it, for a quick run.
        contestants: Who does it, by name; the first is what the others are compared with.
        rounds: Times that every contestant runs, unless told otherwise.
        repeats: Repeats of the work in a run, unless told otherwise; the first one is not counted.
        check: Heading of the number that tells whether the work is the same, if there is one.
        tolerance: Share by which that number may differ between contestants; without it the number is only shown.
        devices: Devices on which the part belongs to a run that names no parts.
    """

    title: str
    seconds: str
    given: Callable[[], Any]
    small: Callable[[], Any]
    contestants: dict[str, Contestant]
    rounds: int
    repeats: int
    check: str | None = None
    tolerance: float | None = None
    devices: tuple[str, ...] = tuple(ENVIRONMENTS)


def digits(count: int) -> np.ndarray:
    """Training images of the packaged digits, as the file has them."""
    from latentlab.labeled_images import open_dataset

    return open_dataset("packaged").train.images[:count]


def digits_and_epochs(count: int, epochs: int) -> tuple[np.ndarray, int]:
    """Digits, and how long to train on them."""
    return digits(count), epochs


def faces(count: int) -> np.ndarray:
    """Pictures of the size of the faces."""
    from benchmarks import face_work

    return face_work.images(count)


def photos(count: int) -> np.ndarray:
    """Pictures of the size of the photos."""
    from benchmarks import fgsm_work

    return fgsm_work.images(count)


def _everyone(experiment: str, work: str) -> dict[str, Contestant]:
    """Everyone who does a work that all frameworks do; their modules and functions have names alike."""
    torch, keras, seconds = f"{experiment}_torch", f"{experiment}_keras", f"{work}_seconds"
    return {
        "ours": Contestant("latentlab", f"{experiment}_ours", seconds, JAX),
        "torch": Contestant("PyTorch, eager", torch, seconds, ("torch",)),
        "torch_compiled": Contestant(
            "PyTorch, torch.compile", torch, f"compiled_{seconds}", ("torch",), programs=("g++",)
        ),
        "tensorflow": _keras("", keras, f"tensorflow_{seconds}", "tensorflow"),
        "keras_jax": _slow(_keras("", keras, f"jax_{seconds}", "jax")),
        "flax": _slow(Contestant("plain Flax", f"{experiment}_flax", seconds, JAX)),
    }


def _keras(form: str, module: str, function: str, backend: str) -> Contestant:
    on = {"tensorflow": "TensorFlow", "jax": "JAX"}[backend]
    environment = {"KERAS_BACKEND": backend}
    return Contestant(f"Keras on {on}{form}", module, function, (backend, "keras"), environment=environment)


def _slow(contestant: Contestant) -> Contestant:
    """With fewer runs, for XLA's own convolutions take up to ten times as long on a CPU."""
    return replace(contestant, most_rounds=2, most_repeats=3)


def _gradients(count: int, devices: tuple[str, ...]) -> Part:
    return Part(
        f"FGSM, {count} image{'s' if count > 1 else ''}",
        "seconds",
        partial(photos, count),
        partial(photos, 1),
        _everyone("fgsm", "gradient"),
        rounds=3,
        repeats=8,
        check=NORM,
        tolerance=AGREEMENT,
        devices=devices,
    )


PARTS = {
    "mnist_epoch": Part(
        "An epoch of the MNIST VAE, 1,000 images in batches of 32",
        "seconds an epoch",
        partial(digits, 1000),
        partial(digits, 40),
        {
            **_everyone("mnist", "epoch"),
            "flax_scan": Contestant(
                "plain Flax, in a scan", "mnist_flax", "scanned_epoch_seconds", JAX, most_rounds=1, most_repeats=2
            ),
        },
        rounds=5,
        repeats=6,
        check=LOSS,
    ),
    "mnist_seeds": Part(
        "An epoch of the MNIST VAE with one seed, and with eight seeds in one call",
        "seconds an epoch of all seeds",
        partial(digits, 1000),
        partial(digits, 40),
        {
            "one": Contestant("one seed", "mnist_ours", "epoch_seconds", JAX),
            "eight": Contestant("eight seeds", "mnist_ours", "epoch_of_8_seeds_seconds", JAX),
        },
        rounds=3,
        repeats=4,
        check=LOSS,
    ),
    "mnist_run": Part(
        "All training of experiment 1: autoencoder and VAE, 200 epochs each, 1,000 images in batches of 32",
        "seconds",
        partial(digits_and_epochs, 1000, 200),
        partial(digits_and_epochs, 40, 2),
        {"ours": Contestant("latentlab", "mnist_ours", "run_seconds", JAX)},
        rounds=3,
        repeats=2,
        check=LOSS,
        devices=("gpu",),
    ),
    "face_step": Part(
        "A training step of the face VAE, batch 32",
        "seconds a step",
        partial(faces, 320),
        partial(faces, 8),
        _everyone("face", "step"),
        rounds=4,
        repeats=4,
        check=LOSS,
    ),
    "face_encode": Part(
        "Posterior means of 500 faces",
        "seconds",
        partial(faces, 500),
        partial(faces, 50),
        {
            **_everyone("face", "encode"),
            "tensorflow": _keras(", predict, batch 500", "face_keras", "encode_seconds", "tensorflow"),
            "tensorflow_32": _keras(", predict, batch 32", "face_keras", "small_batches_encode_seconds", "tensorflow"),
            "keras_jax": _keras(", predict, batch 32", "face_keras", "small_batches_encode_seconds", "jax"),
        },
        rounds=4,
        repeats=4,
    ),
    "face_directions": Part(
        "Directions of all attributes, and of one, from 2,000 faces",
        "seconds",
        partial(faces, 2000),
        partial(faces, 50),
        {
            "all": Contestant("all attributes", "face_ours", "all_directions_seconds", JAX),
            "one": Contestant("one attribute", "face_ours", "one_direction_seconds", JAX),
        },
        rounds=4,
        repeats=4,
    ),
    "gradient_1": _gradients(1, tuple(ENVIRONMENTS)),
    "gradient_16": _gradients(16, tuple(ENVIRONMENTS)),
    "gradient_64": _gradients(64, ("gpu",)),
    "sweep": Part(
        "FGSM for 10 ε, untargeted and towards 3 classes, 16 images",
        "seconds",
        partial(photos, 16),
        partial(photos, 1),
        {
            "ours": Contestant("latentlab", "fgsm_ours", "sweep_seconds", JAX),
            "foolbox": Contestant("foolbox", "fgsm_foolbox", "sweep_seconds", (*JAX, "foolbox")),
        },
        rounds=2,
        repeats=3,
        check=MOVED,
        tolerance=AGREEMENT,
    ),
    "pgd": Part(
        "PGD of 10 steps, one ε, 4 images",
        "seconds",
        partial(photos, 4),
        partial(photos, 1),
        {
            "ours": Contestant("latentlab", "fgsm_ours", "pgd_seconds", JAX),
            "foolbox": Contestant("foolbox", "fgsm_foolbox", "pgd_seconds", (*JAX, "foolbox")),
        },
        rounds=3,
        repeats=4,
        check=MOVED,
        tolerance=AGREEMENT,
    ),
}
CONTESTANTS = {
    f"{name}/{who}": contestant for name, part in PARTS.items() for who, contestant in part.contestants.items()
}


def main(arguments: Sequence[str]) -> int:
    """Measures part by part, or draws what was measured, or runs one contestant here; returns the exit code."""
    try:
        options = _parse(arguments)
        if options.figure:
            from benchmarks import figure

            print(figure.draw(side_by_side.read(options.output), options.figure))
        elif options.contestant:
            repeats = options.repeats or 2
            print(json.dumps({name: run(name, repeats, options.device, options.quick) for name in options.contestant}))
        else:
            _measure(options, f"python -m benchmarks.peers {shlex.join(arguments)}".strip())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(name: str, repeats: int, device: str, quick: bool) -> dict[str, Any]:
    """Lets one contestant do its work in this process.

    Args:
        name: Name of part and contestant, `mnist_epoch/torch`.
        repeats: Repeats of the work.
        device: A contestant that sees no GPU is left out where this is `gpu`.
        quick: Whether it gets less to do.

    Returns:
        Seconds of every repeat but the first, seconds of the first, the check of every repeat where there is one, the
        most memory that the process held, in megabytes, and the GPU that it ran on; or only why it was left out.
    """
    part, contestant = PARTS[name.partition("/")[0]], CONTESTANTS[name]
    found: dict[str, Any] = {}
    if device == "gpu":
        found["gpu"] = _gpu(contestant.packages[0])
        if found["gpu"] is None:
            return {"left_out": f"left out (its {contestant.packages[0]} sees no GPU)"}
    seconds, checks = contestant.load()(part.small() if quick else part.given(), repeats)
    found |= {"seconds": seconds[1:], "first_seconds": seconds[:1]}
    if not quick:  # then others have been in this process
        found["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # Linux counts in kilobytes
    return found | ({"checks": checks} if checks else {})


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, help="times that every contestant runs; each part has its own default")
    parser.add_argument("--repeats", type=int, help="repeats of the work in a run, the first one not counted; likewise")
    parser.add_argument("--quick", action="store_true", help="one round of little work, whose seconds mean nothing")
    parser.add_argument("--device", choices=ENVIRONMENTS, default="cpu", help="what is measured")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file that the results are merged into, by part")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="measure nothing, and draw what --output has")
    parser.add_argument(
        "--contestant", nargs="+", choices=CONTESTANTS, metavar="PART/NAME", help="run these here, and print their JSON"
    )
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}, expected 1 or more")
    if options.repeats is not None and options.repeats < 2:
        raise UserError(
            f"--repeats is {options.repeats}, expected 2 or more: the first one holds compilation and is not counted"
        )
    if options.figure and not options.output:
        raise UserError("--figure draws results, expected --output FILE.json with the file that has them")
    return options


def _measure(options: argparse.Namespace, command: str) -> None:
    environment = ENVIRONMENTS[options.device]
    if options.output and options.output.exists():
        side_by_side.read(options.output)  # an error before the work, not after it
    names = options.parts or [name for name, part in PARTS.items() if options.device in part.devices]
    quick_runs = _quick_runs(names, options) if options.quick else {}
    for name in names:
        part = PARTS[name]
        rounds = options.rounds or (1 if options.quick else part.rounds)
        repeats = options.repeats or (2 if options.quick else part.repeats)

        def run_apart(who: str, repeats: int, name: str = name) -> Run:
            contestant = f"{name}/{who}"
            return quick_runs.get(contestant) or _run_apart([contestant], repeats, options, {})[contestant]

        print(f"{name}: {part.title}", file=sys.stderr)
        compared = side_by_side.compare(part.contestants, run_apart, rounds, repeats)
        said = ", a quick run whose seconds mean nothing" if options.quick else ""
        table = side_by_side.table(compared, part.contestants, part.seconds, part.check)
        print(f"\n**{part.title}** (`{name}`{said})\n\n{table}", flush=True)
        if part.tolerance is not None:
            side_by_side.verify(compared, part.tolerance)
        if options.output:
            packages = {package for contestant in part.contestants.values() for package in contestant.packages}
            machine = side_by_side.machine(packages, environment, command)
            side_by_side.merge(options.output, {name: {"machine": machine, "quick": options.quick, **compared}})


def _quick_runs(parts: Sequence[str], options: argparse.Namespace) -> dict[str, Run]:
    """Run all contestants of the parts: those of one framework in one process, two of these at a time.

    To import and to compile is nearly all that a quick run does. So what two contestants compile alike is compiled
    once, JAX optimizes little, and `torch.compile` lets through what it gets.
    """
    together: dict[tuple[str, ...], list[str]] = {}
    for name, contestant in CONTESTANTS.items():
        if name.partition("/")[0] in parts and not contestant.missing():
            together.setdefault((contestant.packages[0], *contestant.environment), []).append(name)
    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(2) as pool:
        quick = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "TORCH_COMPILE_DISABLE": "1",
        }
        runs = pool.map(lambda names: _run_apart(names, 2, options, quick), together.values())
        return {name: run for of_framework in runs for name, run in of_framework.items()}


def _run_apart(
    names: Sequence[str], repeats: int, options: argparse.Namespace, environment: Mapping[str, str]
) -> Mapping[str, Run]:
    """Run contestants that can share a process in one."""
    child = [sys.executable, "-m", "benchmarks.peers", "--contestant", *names]
    child += ["--repeats", str(repeats), "--device", options.device, *(["--quick"] if options.quick else [])]
    variables = {**ENVIRONMENTS[options.device], **CONTESTANTS[names[0]].environment, **environment}
    return side_by_side.run_apart(child, variables)


def _gpu(framework: str) -> str | None:
    """Return the GPU that a framework computes on; None if it sees none."""
    if framework == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if framework == "tensorflow":
        import tensorflow as tf

        return next((device.name for device in tf.config.list_physical_devices("GPU")), None)
    import jax

    return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
