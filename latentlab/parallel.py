"""Devices and processes: the mesh, shardings, collectives, and functions applied to many rows.

This is the only module that knows how many devices and processes there are. One mesh covers all devices of all
processes: its axis `data` divides examples, its axis `seed` divides random seeds that are trained at once.
`jax.set_mesh(make_mesh())` makes it current; without a mesh, and on a single device, the functions here leave arrays as
they are.

A training step is written for the whole batch. `shard_batch` says where its rows are and XLA inserts the sums over
devices, so the mean of a loss and the statistics of BatchNorm are those of the whole batch. Encoding, decoding and
attacks treat every row by itself: `batched_apply` runs them on each device for its own rows. Random numbers are the
same either way, because JAX computes each from its key and its place in the whole array
(`jax_threefry_partitionable`).
"""

import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Int

from latentlab.errors import UserError, first_line

DATA, SEED = "data", "seed"
START_SECONDS = 120
HEARTBEAT_SECONDS = 20
"""Longest time after which all other processes end when one has died without closing its connections."""
CHECKPOINTS = "checkpoints"

Tree = TypeVar("Tree")


@dataclass(frozen=True, eq=False)
class LocalRows:
    """The rows of a batch that this process has read, `local_rows(count)` of `count` rows."""

    values: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count


def make_mesh(seed_devices: int = 1) -> Mesh:
    """Return a mesh over the devices of all processes, of shape (`seed_devices`, all others).

    Raises:
        UserError: The number of devices is not a multiple of `seed_devices`.
    """
    devices = jax.device_count()
    if seed_devices < 1 or devices % seed_devices:
        raise UserError(f"seed_devices is {seed_devices}, expected a divisor of the number of devices, {devices}")
    return jax.make_mesh((seed_devices, devices // seed_devices), (SEED, DATA), axis_types=(AxisType.Auto,) * 2)


def device_count() -> int:
    """Return over how many devices rows are divided, 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def shard_batch(tree: Tree, axis: int = 0) -> Tree:
    """Within `jit`, divide arrays over the devices along an axis of any length."""
    return _constrain(tree, _rows_along(axis))


def replicate(tree: Tree) -> Tree:
    """Within `jit`, keep arrays whole on every device (within `map_seeds`, on every device of their seeds)."""
    return _constrain(tree, PartitionSpec())


def shard_largest_axis(tree: Tree) -> Tree:
    """Within `jit`, divide each array along the longest axis that the devices divide; replicate it if there is none.

    Applied to Adam's moments this leaves 1/devices of their memory on each device: ZeRO stage 1, Rajbhandari et al.
    2020, arXiv 1910.02054.
    """

    def shard_leaf(leaf: Array) -> Array:
        axes = [axis for axis, length in enumerate(leaf.shape) if not length % device_count()]
        return shard_batch(leaf, max(axes, key=lambda axis: leaf.shape[axis])) if axes else replicate(leaf)

    return jax.tree.map(shard_leaf, tree)


def map_seeds(function: Callable[..., Any], seeds: int, in_axes: Any = 0, out_axes: int = 0) -> Callable[..., Any]:
    """Map a function over an axis of seeds: at once, or one after the other on a single CPU.

    With one seed there is no such axis and the function stays. On two CPU cores two seeds at once took 2.6 times as
    long as one.

    Args:
        function: Function of trees of arrays.
        seeds: Number of seeds.
        in_axes: Axis of seeds of every argument, None for those that all seeds share, or one axis for all arguments.
        out_axes: Axis of seeds of the results.
    """
    if seeds == 1:
        return function
    if jax.default_backend() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
        return jax.vmap(function, in_axes, out_axes, spmd_axis_name=SEED)

    def one_by_one(*arguments: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arguments)
        of_seeds = [_move_axis(part, axis, 0) for part, axis in zip(arguments, axes, strict=True) if axis is not None]

        def apply_seed(of_seed: list[Any]) -> Any:
            parts = iter(of_seed)
            return function(
                *(part if axis is None else next(parts) for part, axis in zip(arguments, axes, strict=True))
            )

        return _move_axis(lax.map(apply_seed, of_seeds), 0, out_axes)

    return one_by_one


def _move_axis(tree: Tree, source: int, destination: int) -> Tree:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, source, destination), tree)


def batched_apply(
    function: Callable[..., Any],
    *rows: np.ndarray | LocalRows,
    batch_size: int,
    shared: Any = None,
    static: tuple[Hashable, ...] = (),
) -> Any:
    """Apply a function of independent rows to many of them, and gather the results on the host.

    Calls of one size go through one compiled program: the last is filled up with zeros. While a call runs, the results
    of the one before are fetched.

    Args:
        function: `function(*static, *rows)`, or `function(*static, shared, *rows)`, to a tree of arrays with as many
            rows. No row may depend on another. It is compiled once for the same object, so pass one that lives long.
        rows: Arrays with rows along their first axis, whole in every process; or the rows that this process has read,
            at most one call's.
        batch_size: Rows that a device takes at a time.
        shared: A tree of arrays that every call takes whole, such as a model's variables.
        static: Further arguments that are not arrays, such as a model; equal ones share what was compiled.
    """
    at_once = batch_size * device_count()
    (count,) = {len(part) for part in rows}
    gathered, running = [], None
    for start in range(0, max(count, 1), at_once):
        chunk = [_put_chunk(part, start, at_once) for part in rows]
        following = apply_to_rows(function, static, shared, chunk)
        if running is not None:
            gathered.append(gather_to_host(running))
        running = following
    gathered.append(gather_to_host(running))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *gathered)


@partial(jax.jit, static_argnums=(0, 1))
def apply_to_rows(function: Callable[..., Any], static: tuple[Hashable, ...], shared: Any, rows: list[Array]) -> Any:
    """Apply a function of independent rows, of `batched_apply`, to one call's rows, each device to its own."""

    def apply_local(shared: Any, *rows: Array) -> Any:
        return function(*static, *rows) if shared is None else function(*static, shared, *rows)

    if device_count() == 1:
        return apply_local(shared, *rows)
    by_row = PartitionSpec(DATA)
    specs = (PartitionSpec(), *[by_row] * len(rows))
    # Seeds stay divided as they are; where they are not, each device's program is, to the bit, that of a single one.
    axes = {DATA, SEED} if jax.sharding.get_abstract_mesh().shape[SEED] == 1 else {DATA}
    apply_sharded = jax.shard_map(apply_local, in_specs=specs, out_specs=by_row, axis_names=axes, check_vma=False)
    return apply_sharded(shared, *rows)


def rows_per_device(rows: int) -> int:
    """Return how many rows a device takes where all devices together take `rows` at a time."""
    return _padded(rows) // device_count()


def local_rows(count: int) -> Int[np.ndarray, " rows"]:
    """Return which of `count` rows, divided over the devices, belong to this process's devices."""
    if jax.process_count() == 1:
        return np.arange(count)
    total = _padded(count)
    blocks = _sharding(0).addressable_devices_indices_map((total,)).values()
    rows = np.unique(np.concatenate([np.arange(total)[block] for block in blocks if block is not None]))
    return rows[rows < count]


def put_batch(rows: np.ndarray | LocalRows, axis: int = 0) -> Array:
    """Put rows on the devices, each of which gets its own; zeros fill them up to a multiple of the devices.

    Args:
        rows: All of them, or those that this process has read. A callback places them, since the rows of a process
            need not be contiguous, as `jax.make_array_from_process_local_data` wants them.
        axis: Axis of rows.
    """
    if isinstance(rows, LocalRows):
        held, places, count = rows.values, local_rows(rows.count), rows.count
    else:
        held, places, count = rows, np.arange(rows.shape[axis]), rows.shape[axis]
    shape = (*held.shape[:axis], _padded(count), *held.shape[axis + 1 :])

    def read_block(index: Any) -> np.ndarray:
        start, stop, _ = index[axis].indices(shape[axis])
        first, last = np.searchsorted(places, [start, stop])
        block = held[(slice(None),) * axis + (slice(first, last),)]
        missing = [(0, 0)] * held.ndim
        missing[axis] = (0, stop - start - block.shape[axis])
        return np.pad(block, missing) if missing[axis][1] else block

    if jax.sharding.get_mesh().empty:
        return jnp.asarray(read_block(tuple(slice(length) for length in shape)))
    return jax.make_array_from_callback(shape, _sharding(axis), read_block)


def put_replicated(tree: Any) -> Any:
    """Put arrays that every process has on the devices, whole on each."""

    def put_leaf(leaf: Any) -> Array:
        if jax.sharding.get_mesh().empty:
            return jnp.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, replicated(), lambda index: np.asarray(leaf[index]))

    return jax.tree.map(put_leaf, tree)


def replicated() -> Sharding:
    """Return the sharding of an array that is whole on every device."""
    mesh = jax.sharding.get_mesh()
    return SingleDeviceSharding(jax.devices()[0]) if mesh.empty else NamedSharding(mesh, PartitionSpec())


def gather_to_host(tree: Tree) -> Tree:
    """Return all arrays, whole, on the host of every process; every process must call this alike."""

    def gather_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    gathered: Tree = jax.device_get(jax.tree.map(gather_leaf, tree))
    return gathered


def free_device_bytes() -> int:
    """Return the memory that is free on the first local device, 0 where it is unknown, as on CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)


def start_processes(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Make this process one of several; what is None is found by JAX on SLURM, GKE, Open MPI or a TPU.

    Args:
        coordinator: Address and port of process 0.
        count: Number of processes.
        index: Index of this one, from 0.

    Raises:
        UserError: Something is neither given nor found, is out of range, or the others do not come in two minutes.
    """
    if coordinator is not None and not re.fullmatch(r"\S+:\d+", coordinator):
        raise UserError(f"coordinator is {coordinator!r}, expected HOST:PORT of the first process")
    if index is not None and count is not None and not 0 <= index < count:
        raise UserError(f"process_id is {index}, expected 0 to {count - 1} of {count} processes")
    if coordinator is not None and index:
        _wait_for_coordinator(coordinator)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the command line
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:  # missing arguments, refused connections, ports in use
        raise UserError(
            f"distributed: cannot start ({first_line(error)}); expected --coordinator HOST:PORT, --processes and "
            "--process-id, or a cluster that JAX knows (SLURM, GKE, Open MPI, TPU)"
        ) from error


def _wait_for_coordinator(address: str) -> None:
    """Wait until process 0 answers; JAX's own client aborts the process where it does not."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline or isinstance(error, socket.gaierror | OverflowError):
                raise UserError(
                    f"distributed: no answer from {address} ({first_line(error)}); expected --coordinator HOST:PORT of "
                    "the process with --process-id 0, started at the same time"
                ) from error
            time.sleep(0.2)
        else:
            return


def check_platform() -> None:
    """Start JAX's backend, which JAX_PLATFORMS may name.

    Raises:
        UserError: There is no such platform here.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        named = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX cannot start{f' on JAX_PLATFORMS={named}' if named else ''} ({first_line(error)}); expected a "
            "platform that is installed and has a device, such as cpu, or JAX_PLATFORMS unset"
        ) from error


def process_count() -> int:
    """Return the number of processes of this run, without starting JAX's backends."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_process_0() -> bool:
    """Return whether this process writes the run directory."""
    return process_count() == 1 or jax.process_index() == 0


def all_gather(value: Any) -> list[Any]:
    """Return the JSON values that the processes call this with, in their order; all wait for the last one."""
    if process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    longest = int(multihost_utils.process_allgather(np.asarray(len(text))).max())
    rows = multihost_utils.process_allgather(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(bytes(row)) for row in rows]


def barrier() -> None:
    """Wait until all processes have come here."""
    all_gather(None)


def broadcast_from_process_0(function: Callable[[], Any]) -> Any:
    """Call a function in process 0 and return its JSON value, or raise its UserError, in all processes."""
    outcome: dict[str, Any] = {}
    if is_process_0():
        try:
            outcome = {"value": function()}
        except UserError as error:
            outcome = {"error": str(error)}
    outcome = all_gather(outcome)[0]
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


@contextlib.contextmanager
def process_directory(path: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield the directory that this process writes to: the run's own in process 0, in others a temporary copy of it.

    Checkpoints in the copy are links to the real ones, because all processes write those. All must therefore see the
    same file system.

    Args:
        path: The run directory, which exists.
        parts: Folders in it that have checkpoints; "." where the run directory has them itself.
    """
    if is_process_0():
        barrier()  # until the others have copied
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="latentlab-") as scratch, contextlib.redirect_stdout(_Silent()):
        copy = Path(scratch) / path.name
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(CHECKPOINTS, ".*"))
        for part in parts:
            (copy / part).mkdir(exist_ok=True)
            (copy / part / CHECKPOINTS).symlink_to((path / part / CHECKPOINTS).absolute(), target_is_directory=True)
        barrier()
        yield copy


class _Silent:
    """Standard output of all processes but process 0."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _put_chunk(rows: np.ndarray | LocalRows, start: int, size: int) -> Array:
    """Put `size` rows from `start` on the devices, zeros where there are fewer."""
    if isinstance(rows, LocalRows):
        if rows.count > size:
            raise ValueError(f"{rows.count} rows that processes have read apart, expected at most {size} in a call")
        return put_batch(LocalRows(_pad(rows.values, len(local_rows(size))), size))
    return put_batch(_pad(np.asarray(rows[start : start + size]), size))


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, [(0, size - len(rows)), *[(0, 0)] * (rows.ndim - 1)]) if len(rows) < size else rows


def _padded(count: int) -> int:
    """Return the least multiple of the number of devices that is at least `count`."""
    return -(-count // device_count()) * device_count()


def _rows_along(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, DATA)


def _sharding(axis: int) -> NamedSharding:
    return NamedSharding(jax.sharding.get_mesh(), _rows_along(axis))


def _constrain(tree: Tree, spec: PartitionSpec) -> Tree:
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    constrained: Tree = jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, spec), tree)
    return constrained
