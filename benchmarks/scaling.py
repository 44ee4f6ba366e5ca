"""What training and attacks should reach on many devices, calculated from what one device takes.

python -m benchmarks.scaling [--step-ms 1.34] [--attack-ms 2] [--cores 8] [--repeats 20]

Measured here: a training step of the face VAE on one device, its images read from a memory map, and a photo read. From
results/bench.json: a photo attacked. Counted in the program that XLA makes of the step for eight devices: collective
operations, and the bytes that each of them moves. Calculated from these, for links that are assumed:

    step(n) = step(1) + Σ over collectives [2 (n - 1) / n · bytes / bandwidth + 2 log2(n) · latency]
    images a second(n) = n · batch / step(n),    efficiency(n) = step(1) / step(n)

which is a ring for the bytes and a tree for the latency (Thakur et al. 2005), over one kind of link, with nothing
hidden behind the computation. Attacked photos need no collectives: the threads of a process read its share of a portion
while its devices attack the one before, so

    seconds(n) = batch · (reads + ⌈photos / (n · batch)⌉ · max(attack, reads)),  reads = devices of a process · reading
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from adversarial import photos
from benchmarks import fgsm_work
from latent_arith import experiment
from latent_arith.config import ORIGINAL
from latent_arith.datasets import batches
from latentlab import parallel
from latentlab.storage.run_directory import read_json
from latentlab.training.state import train_step

DEVICES = (1, 8, 64, 512)
PHOTOS, PHOTOS_AT_ONCE, STEPS = 50_000, 16, 10  # ImageNet's validation set, per device, of PGD
DEVICES_OF_A_PROCESS = 8
IMAGES = 4096  # in the memory map
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}
COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\(")
ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


class Link(NamedTuple):
    """The slowest connection between two devices: bytes a second each way, and seconds until the first is there."""

    name: str
    bandwidth: float
    latency: float


LINKS = (Link("10 Gbit/s Ethernet", 1.25e9, 50e-6), Link("50 GB/s, 5 µs", 50e9, 5e-6))


@dataclass(frozen=True)
class Options:
    """What is taken for an accelerator's times, and how often things are measured here."""

    step_ms: float = 1.34
    """Milliseconds of a training step of 32 faces on an accelerator; those of an H100 (`docs/gpu.md`)."""
    attack_ms: float = 2.0
    """Milliseconds in which an accelerator attacks a photo with ten steps of PGD. Assumed, not measured."""
    cores: int = photos.THREADS
    """Cores of an accelerator's process that read photos, one a thread. Assumed as fast as one of these here."""
    repeats: int = 20
    """How often each thing is measured here."""
    count: bool = False
    """Print the bytes of every collective operation of a step on all devices instead, as JSON."""


def collectives(text: str) -> list[int]:
    """Bytes of every collective operation of a compiled program, from its HLO."""
    found = []
    for shapes, _ in COLLECTIVE.findall(text):
        sizes = [(kind, [int(side) for side in size.split(",") if side]) for kind, size in ARRAY.findall(shapes)]
        found.append(sum(BYTES[kind] * math.prod(sides) for kind, sides in sizes))
    return found


def seconds(alone: float, moved: Sequence[int], devices: int, link: Link) -> float:
    """step(n) of the module."""
    if devices == 1:
        return alone
    share, hops = 2 * (devices - 1) / devices, 2 * math.log2(devices)
    return alone + sum(share * size / link.bandwidth + hops * link.latency for size in moved)


def portions(photos_in_all: int, devices: int) -> int:
    """How often all devices attack a batch each."""
    return -(-photos_in_all // (devices * PHOTOS_AT_ONCE))


def step_program() -> tuple[Any, tuple[Any, ...]]:
    """Return a compiled training step of 32 faces for every device, and its arguments."""
    with jax.set_mesh(parallel.make_mesh()):
        model, optimizer = experiment.make_model(ORIGINAL), experiment.make_optimizer(ORIGINAL)
        state = experiment.initial_state(ORIGINAL, model)
        images = np.zeros((parallel.device_count() * ORIGINAL.batch_size, 128, 128, 3), np.uint8)
        arguments = (state, parallel.put_batch(images), jnp.ones(len(images)))

        def step(state: Any, images: Any, mask: Any) -> Any:
            loss = partial(model.loss, train=True)
            return train_step(state, parallel.shard_batch(images), mask, loss=loss, optimizer=optimizer)

        return jax.jit(step).lower(*arguments).compile(), arguments


def counted(devices: int) -> list[int]:
    """Count `collectives` of a step on simulated devices, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--count"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        command, env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, check=True
    )
    found: list[int] = json.loads(done.stdout)
    return found


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds that a piece of work takes, after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def reading(repeats: int) -> float:
    """Seconds an image, read from a memory map in training's batches of 32."""
    with tempfile.TemporaryDirectory() as place:
        pixels = np.lib.format.open_memmap(Path(place) / "images.npy", "w+", np.uint8, (IMAGES, 128, 128, 3))
        pixels[:] = 1
        read = batches.stream_images(pixels, np.arange(IMAGES), ORIGINAL.batch_size, seed=0)
        return median(lambda: [next(read) for _ in range(20)], repeats) / 20 / ORIGINAL.batch_size


def photo_reading(repeats: int) -> tuple[float, float]:
    """Seconds a photo of 500×375, a JPEG read as a network's image, in one thread and in those that read ahead."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "photo.jpg"
        noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), np.uint8)
        Image.fromarray(noise).resize((500, 375)).save(path, quality=95)
        paths = [path] * 2 * PHOTOS_AT_ONCE
        together = median(lambda: [*photos.read_ahead(paths, fgsm_work.SIZE, PHOTOS_AT_ONCE)], repeats) / len(paths)
        return median(lambda: photos.read(path, fgsm_work.SIZE), repeats), together


def main(options: Options) -> None:
    """Measures, counts, calculates and prints."""
    if options.count:
        print(json.dumps(collectives(step_program()[0].as_text())))
        return
    moved = counted(8)
    compiled, arguments = step_program()
    alone = median(lambda: jax.block_until_ready(compiled(*arguments)), options.repeats)
    read, (read_photo, together) = reading(options.repeats), photo_reading(options.repeats)
    print(f"measured: a step of {ORIGINAL.batch_size} faces on this machine {1e3 * alone:.0f} ms")
    print(f"measured: {1 / read:,.0f} faces a second read from a memory map")
    print(f"measured: {1 / read_photo:,.0f} photos a second from JPEGs in one thread, {1 / together:,.0f} read ahead")
    print(
        f"counted: {len(moved)} collectives a step, {sum(moved) / 1e6:.2f} MB; the largest {max(moved) / 1e6:.2f} MB,"
    )
    print(f"    {sum(size < 10_000 for size in moved)} below 10 kB")
    print(f"bench.json: a photo through {STEPS} steps of PGD {1e3 * attack_here():.0f} ms")
    print("\ncalculated: training of the face VAE, 32 images a device")
    print(
        "| step on one device | links | devices | batch | bytes, ms | latency, ms | step, ms | images/s | efficiency |"
    )
    print("|" + " --- |" * 9)
    for how, step, link in (("measured", alone, LINKS[0]), ("an accelerator's", options.step_ms / 1e3, LINKS[1])):
        for devices in DEVICES:
            print(training_row(how, step, moved, devices, link))
    print(
        f"\ncalculated: {PHOTOS:,} photos, PGD of {STEPS} steps, one radius, {PHOTOS_AT_ONCE} photos a device at a time"
    )
    print("| a photo on one device | devices | portions | filled | attack, s | reading, s | photos/s | efficiency |")
    print("|" + " --- |" * 8)
    assumed = read_photo / min(options.cores, photos.THREADS)
    for how, attack, share in (("measured", attack_here(), together), ("assumed", options.attack_ms / 1e3, assumed)):
        for devices in DEVICES:
            print(photos_row(how, attack, share, devices))


def attack_here() -> float:
    """Seconds a photo, as `run.py bench` measured it."""
    return 1 / float(read_json(Path(__file__).parent / "results" / "bench.json")["works"]["pgd"]["images_per_second"])


def training_row(how: str, step: float, moved: Sequence[int], devices: int, link: Link) -> str:
    """Format a row of the table of training."""
    total, late = seconds(step, moved, devices, link), seconds(0, [0] * len(moved), devices, link)
    images = devices * ORIGINAL.batch_size
    cells = [f"{1e3 * step:.3g} ms, {how}", link.name, f"{devices}", f"{images:,}"]
    cells += [f"{1e3 * (total - step - late):.2f}", f"{1e3 * late:.2f}", f"{1e3 * total:.2f}"]
    return f"| {' | '.join([*cells, f'{images / total:,.0f}', f'{step / total:.0%}'])} |"


def photos_row(how: str, attack: float, read: float, devices: int) -> str:
    """Format a row of the table of attacked photos."""
    at_once = portions(PHOTOS, devices) * PHOTOS_AT_ONCE
    share = min(devices, DEVICES_OF_A_PROCESS) * read
    attacks, reads = at_once * attack, (at_once + PHOTOS_AT_ONCE) * share
    total = PHOTOS_AT_ONCE * share + at_once * max(attack, share)
    cells = [f"{1e3 * attack:.0f} ms, {how}", f"{devices}", f"{portions(PHOTOS, devices):,}"]
    cells += [f"{PHOTOS / (at_once * devices):.0%}", f"{attacks:,.1f}", f"{reads:,.1f}"]
    cells += [f"{PHOTOS / total:,.0f}", f"{PHOTOS * attack / devices / total:.0%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
