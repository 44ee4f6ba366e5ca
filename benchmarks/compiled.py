"""What the compilers for a GPU and a TPU make of every hot function, on a machine that has neither.

pip install -e ".[aot]"
python -m benchmarks.compiled --out DIR [--devices h100 v5e] [--works NAME …] [--quick]

Nothing is run. For every work of `bench` DIR gets the program; the table has the compiler's seconds, the instructions
that become kernels, outside all loops and in one round of each loop, and the memory that the call needs. XLA tries no
algorithms without the device, so a GPU's own program may have others for its products. `--devices host` compiles for
the CPU that is there.
"""

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import bench
from benchmarks.side_by_side import make_directory
from latentlab.errors import UserError, first_line

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
DEVICES = ("h100", "v5e", "host")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
WAITS = {"copy-done", "slice-done", "async-done", "all-reduce-done"}
CALLS = {"while", "call", "conditional"}
OPTIONS = {"h100": {"xla_gpu_enable_triton_gemm": False}, "v5e": {}, "host": {}}
"""Without the device to try them on, some of Triton's products end in «Couldn't find output tile sizes»."""


class Kernels(NamedTuple):
    """Instructions of a program that run, by their kind: outside all loops, and in one round of each."""

    outside: Counter[str]
    in_loops: Counter[str]


def main(arguments: Sequence[str]) -> int:
    """Compile every work for every device and print a table; returns the exit code."""
    parser = argparse.ArgumentParser("python -m benchmarks.compiled", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--devices", nargs="+", default=["h100", "v5e"], choices=DEVICES, metavar="DEVICE")
    parser.add_argument("--works", nargs="+", default=list(bench.WORKS), choices=bench.WORKS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="small arrays")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # the plugins that `aot` installs need not look for a device
    try:
        devices = {name: open_device(name) for name in options.devices}
        make_directory(options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    headings = ("work", "device", "compiler, s", "outside loops", "in loops", "memory, MB")
    print(f"{_line(headings)}\n{_line(['---'] * len(headings))}")
    for name in options.works:
        work = bench.WORKS[name](bench.QUICK if options.quick else bench.Sizes(), "default")
        for target, device in devices.items():
            try:
                seconds, program = compile_for(work, device, OPTIONS[target])
            except jax.errors.JaxRuntimeError as error:
                print(_line([work.title, target, f"failed: {first_line(error)}", "", "", ""]), flush=True)
                continue
            text = program.as_text() or ""
            (options.out / f"{name}-{target}.hlo.txt").write_text(text, encoding="utf-8")
            kernels = [describe(kinds) for kinds in count_kernels(text)]
            cells = [work.title, target, f"{seconds:.1f}", *kernels, f"{bench.peak_bytes(program) / 1e6:.0f}"]
            print(_line(cells), flush=True)
    return 0


def open_device(name: str) -> jax.Device:
    """Return a device to compile for, which need not be there.

    Raises:
        UserError: Its compiler is not installed.
    """
    try:
        if name == "h100":
            return topologies.get_topology_desc(name, "cuda", target_config=H100, topology="1x1x1").devices[0]
        if name == "v5e":
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            return topologies.get_topology_desc("v5e:2x4", "tpu").devices[0]
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{name}: no compiler ({first_line(error)}); pip install -e ".[aot]"') from error
    return jax.devices("cpu")[0]


def compile_for(work: bench.Work, device: jax.Device, options: dict[str, Any]) -> tuple[float, jax.stages.Compiled]:
    """Return seconds of the compiler, without tracing and lowering, and the program."""
    place = NamedSharding(Mesh([device], ("data",)), PartitionSpec())
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), work.program.arguments
    )
    lowered = jax.jit(work.program.function).trace(*shapes).lower()
    start = time.perf_counter()
    compiled = lowered.compile(options)
    return time.perf_counter() - start, compiled


def count_kernels(text: str) -> Kernels:
    """Count the instructions of a compiled program that are neither free nor inside a fusion."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = found[2]
            computations[name] = []
            entry = name if found[1] else entry
        elif name and " = " in line:
            computations[name].append(line)
    kernels, waiting, seen = Kernels(Counter(), Counter()), [(entry, False)], set()
    while waiting:
        name, in_loop = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in computations[name]:
            kind = re.search(r" = .*? ([a-z][a-z0-9\-]*)\(", line)
            if kind is None or kind[1] in FREE | WAITS:
                continue
            if kind[1] in CALLS:
                waiting += [(called, in_loop or kind[1] == "while") for called in _called(line)]
            else:
                (kernels.in_loops if in_loop else kernels.outside)[kind[1]] += 1
    return kernels


def _called(line: str) -> Iterable[str]:
    """Yield the computations that a loop, call or condition runs; a loop's test is left out."""
    for names in re.findall(r"(?:body|to_apply|(?:true|false)_computation|branch_computations)=(\{[^}]*\}|\S+)", line):
        yield from re.findall(r"[\w.\-]+", names)


def describe(kinds: Counter[str]) -> str:
    """Return «186: 101 fusions, 70 copies, …»."""
    largest = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    return f"{kinds.total()}: {largest}" if kinds else "none"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
