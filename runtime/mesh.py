"""One mesh over all devices of all processes, and how arrays and work are divided over it.

The mesh has two axes: examples are divided over `data`, and seeds that are trained at once over `seed`, which is 1
unless the command line says otherwise. `jax.set_mesh` makes a mesh the current one; the functions here look it up.
Without one, or with one device, they leave everything as it is, so experiments do not know how many devices there are.

Two kinds of work are divided in two ways. A training step is written for the whole batch: `divided` says where its rows
are, XLA puts in the sums over all devices, and so the mean of a loss and the statistics of BatchNorm are those of
the whole batch. Encoding, decoding and attacks treat every row by itself: `over_rows` runs them on each device for
its own rows. Random numbers are the same either way: JAX computes each from its key and its place in the whole array
(`jax_threefry_partitionable`).

With several processes, each holds the rows of its own devices (`share`, `Portion`), and `fetched` brings what all of
them computed to every one of them. Arrays that are large come in through `put` or `everywhere`, for where an argument
of a compiled function is to be, and nothing says so, XLA may put it where no axis of the mesh divides it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Int

from runtime.errors import UserError

DATA, SEED = "data", "seed"

Tree = TypeVar("Tree")
Axes = Sequence[int | None]


@dataclass(frozen=True, eq=False)
class Portion:
    """What this process holds of rows that are divided over all devices: those of its own devices.

    Attributes:
        rows: The rows `share(count, size)` of the whole.
        count: How many the whole has.
        size: How many it has once it is filled up; 0 for the least multiple of the devices.
    """

    rows: np.ndarray
    count: int
    size: int = 0

    def __len__(self) -> int:
        return self.count


def over_all_devices(seed_devices: int = 1) -> Mesh:
    """A mesh over the devices of all processes, (`seed_devices`, all others).

    Raises:
        UserError: The number of devices is no multiple of `seed_devices`.
    """
    devices = jax.device_count()
    if seed_devices < 1 or devices % seed_devices:
        raise UserError(f"seed_devices is {seed_devices}, expected a divisor of the number of devices, {devices}")
    return jax.make_mesh((seed_devices, devices // seed_devices), (SEED, DATA), axis_types=(AxisType.Auto,) * 2)


def devices() -> int:
    """Over how many devices rows are divided: 1 without a mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)


def divided(tree: Tree, axis: int = 0) -> Tree:
    """Within `jit`: the same arrays, divided over the devices along an axis; their number of rows may be any."""
    return _constrained(tree, PartitionSpec(*[None] * axis, DATA))


def whole(tree: Tree) -> Tree:
    """Within `jit`: the same arrays, whole on every device; within `vmap(spmd_axis_name=SEED)`, those of its seeds."""
    return _constrained(tree, PartitionSpec())


def _constrained(tree: Tree, spec: PartitionSpec) -> Tree:
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    constrained: Tree = jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, spec), tree)
    return constrained


def divided_along_longest(tree: Tree) -> Tree:
    """Within `jit`: each array divided along the longest of the axes that the devices divide; whole where none is.

    Of Adam's moments this leaves 1/devices of the memory: ZeRO stage 1, Rajbhandari et al. 2020, arXiv 1910.02054.
    """

    def of_leaf(leaf: Array) -> Array:
        axes = [axis for axis, length in enumerate(leaf.shape) if not length % devices()]
        return divided(leaf, max(axes, key=lambda axis: leaf.shape[axis])) if axes else whole(leaf)

    return jax.tree.map(of_leaf, tree)


def over_rows(function: Callable[..., Any], in_axes: Axes, out_axis: int = 0) -> Callable[..., Any]:
    """Within `jit`: `function`, run by every device on its own rows; like `jax.vmap` over devices.

    Where rows do not divide, the last one is repeated and what comes of it cut off.

    Args:
        function: Arguments to a tree of arrays; no row may depend on another.
        in_axes: The axis of rows of every argument, or None for one that all devices have whole.
        out_axis: The axis of rows of every result.
    """

    def of_all(*arguments: Any) -> Any:
        count = devices()
        if count == 1:
            return function(*arguments)
        lengths = {
            leaf.shape[axis]
            for argument, axis in zip(arguments, in_axes, strict=True)
            if axis is not None
            for leaf in jax.tree.leaves(argument)
        }
        (rows,) = lengths
        kept = np.minimum(np.arange(_filled(rows)), rows - 1)

        def filled(leaf: Array, axis: int) -> Array:
            return leaf if len(kept) == rows else leaf[(slice(None),) * axis + (kept,)]

        complete = [
            argument if axis is None else jax.tree.map(lambda leaf, axis=axis: filled(leaf, axis), argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        specs = tuple(PartitionSpec() if axis is None else _along(axis) for axis in in_axes)
        run = jax.shard_map(function, in_specs=specs, out_specs=_along(out_axis), check_vma=False)
        results = run(*complete)
        if len(kept) == rows:
            return results
        return whole(jax.tree.map(lambda leaf: lax.slice_in_dim(leaf, 0, rows, axis=out_axis), results))

    return of_all


def map_rows(function: Callable[..., Any], shared: Any, *rows: Any, at_once: int) -> Any:
    """Within `jit`: `function(shared, *row)` of every row of some arrays, `at_once` at a time on each device."""

    def mapped(shared: Any, *rows: Any) -> Any:
        return lax.map(lambda row: function(shared, *row), rows, batch_size=at_once)

    return over_rows(mapped, (None, *[0] * len(rows)))(shared, *rows)


def share(count: int, size: int = 0) -> Int[np.ndarray, " rows"]:
    """Which of `count` rows, filled up to `size` and divided over the devices, are those of this process's devices."""
    if jax.process_count() == 1:
        return np.arange(count)
    total = _filled(size or count)
    blocks = _sharding(0).addressable_devices_indices_map((total,)).values()
    rows = np.unique(np.concatenate([np.arange(total)[block] for block in blocks if block is not None]))
    return rows[rows < count]


def portion(rows: np.ndarray, size: int = 0) -> Portion:
    """This process's portion of rows that every process has."""
    return Portion(rows[share(len(rows), size)], len(rows), size)


def put(rows: np.ndarray | Portion, axis: int = 0) -> Array:
    """Rows on the devices, each of which gets its own; zeros fill them up to `size` or a multiple of the devices.

    Args:
        rows: The whole, or this process's portion of it.
        axis: The axis of rows.
    """
    if isinstance(rows, Portion):
        held, places, size = rows.rows, share(rows.count, rows.size), rows.size or rows.count
    else:
        held, places, size = rows, np.arange(rows.shape[axis]), rows.shape[axis]
    shape = (*held.shape[:axis], _filled(size), *held.shape[axis + 1 :])

    def of_device(index: Any) -> np.ndarray:
        start, stop, _ = index[axis].indices(shape[axis])
        first, last = np.searchsorted(places, [start, stop])
        part = held[(slice(None),) * axis + (slice(first, last),)]
        missing = [(0, 0)] * held.ndim
        missing[axis] = (0, stop - start - part.shape[axis])
        return np.pad(part, missing) if missing[axis][1] else part

    if jax.sharding.get_mesh().empty:
        return jnp.asarray(of_device(tuple(slice(length) for length in shape)))
    return jax.make_array_from_callback(shape, _sharding(axis), of_device)


def everywhere(array: np.ndarray) -> Array:
    """An array that every process has, whole on every device."""
    if jax.sharding.get_mesh().empty:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, replicated(), lambda index: np.asarray(array[index]))


def replicated() -> Sharding:
    """Whole on every device."""
    mesh = jax.sharding.get_mesh()
    return SingleDeviceSharding(jax.devices()[0]) if mesh.empty else NamedSharding(mesh, PartitionSpec())


def fetched(tree: Tree) -> Tree:
    """All arrays, whole, on the host of every process; every process must call it alike."""

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    fetched: Tree = jax.device_get(jax.tree.map(of_leaf, tree))
    return fetched


def portion_of(array: Array, count: int, axis: int = 0) -> np.ndarray:
    """This process's rows of an array of `count` and more that is divided along an axis, on its host."""
    if array.is_fully_addressable:
        held = np.asarray(array)
    else:
        parts = {shard.index[axis].start or 0: shard.data for shard in array.addressable_shards}
        held = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)], axis=axis)
    return held[(slice(None),) * axis + (slice(len(share(count, array.shape[axis]))),)]


def in_chunks(function: Callable[[Array], Any], rows: np.ndarray | Portion, at_once: int) -> Any:
    """Results of `function` (a tree of arrays) for all rows, from calls on `at_once` rows each; zeros fill the last.

    Args:
        function: Compiled for one number of rows, which are divided over the devices; a tree of as many.
        rows: All of them, or this process's portion of at most `at_once`.
        at_once: Rows in a call.
    """
    if isinstance(rows, Portion):
        parts = [rows]
    else:
        parts = [portion(part, at_once) for part in np.split(rows, range(at_once, len(rows), at_once))]
    results = fetched([function(put(part)) for part in parts])
    cut = [jax.tree.map(itemgetter(slice(len(part))), some) for some, part in zip(results, parts, strict=True)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *cut)


def _filled(count: int) -> int:
    """The least multiple of the number of devices from `count` on."""
    return -(-count // devices()) * devices()


def _along(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, DATA)


def _sharding(axis: int) -> NamedSharding:
    return NamedSharding(jax.sharding.get_mesh(), _along(axis))
