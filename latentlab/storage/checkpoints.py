"""Checkpoints of a training run: the only module that knows orbax.

Every checkpoint carries the SHA-256 of its arrays, so that a truncated or bit-flipped one is noticed when it is read,
and the one before it is used instead.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp

from latentlab import parallel
from latentlab.errors import UserError, first_line

State = TypeVar("State")


@runtime_checkable
class CheckpointableIterator(Protocol):
    """An iterator of batches whose position is JSON, as grain's are."""

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""

    def __next__(self) -> Any:
        """Return the next batch."""

    def get_state(self) -> dict[str, Any]:
        """Return the position."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a position that `get_state` returned."""


class Restored(NamedTuple):
    """A checkpoint that was read: its step, its state, and the `extra` that `save` was given."""

    step: int
    state: Any
    extra: Any


class Checkpoints:
    """The newest `keep` checkpoints of one state, numbered by step, under one directory.

    A save is written aside and renamed, so a killed process leaves whole checkpoints only. Each of several processes
    writes its part of it, and a state can be restored to other devices than those that it was saved from.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory.resolve()  # the same path in all processes
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: State, batches: CheckpointableIterator | None = None, extra: Any = None) -> None:
        """Write the checkpoint of a step.

        Args:
            step: Number of the checkpoint.
            state: A tree of arrays.
            batches: The iterator of batches, whose position is written too.
            extra: Whatever else is needed to go on, as JSON.

        Raises:
            UserError: The checkpoint could not be written, for instance because the disk is full.
        """
        position = batches and batches.get_state()
        record = {"sha256": _seal(state, position, extra), "position": position, "extra": extra}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(record))
        try:
            self._manager.save(step, args=arguments, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = re.search(r": ([^:]+) \[os_error_code", str(error))  # where tensorstore says it
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written "
                f"({reason[1] if reason else first_line(error)}); earlier ones are untouched, so make room and resume"
            ) from error

    def restore(
        self,
        like: State,
        warn: Callable[[str], None],
        batches: CheckpointableIterator | None = None,
        delete_damaged: bool = False,
    ) -> Restored | None:
        """Return the newest undamaged checkpoint, or None where there is none at all.

        Args:
            like: A state of the expected structure, shapes and types (abstract or not).
            warn: Called with one line for each damaged checkpoint.
            batches: The iterator of batches, which is sent to the position that was saved.
            delete_damaged: Delete the damaged checkpoints that are newer, so that their steps can be saved again.

        Raises:
            UserError: There are checkpoints, and all of them are damaged.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state, position, extra = self._read(step, like)
                if batches:
                    batches.set_state(position)
            except Exception as error:  # orbax and tensorstore raise many types for damaged files
                damaged.append(step)
                warn(f"checkpoint of step {step} in {self.directory} is damaged ({first_line(error)})")
                continue
            if delete_damaged:
                self._delete(damaged)
            return Restored(step, state, extra)
        if damaged:
            raise UserError(
                f"{self.directory}: all checkpoints (steps {damaged}) are damaged; start again with --overwrite"
            )
        return None

    def close(self) -> None:
        """Release orbax's threads."""
        self._manager.close()

    def _delete(self, steps: list[int]) -> None:
        """Delete checkpoints; all processes wait until they are gone."""
        for step in steps if parallel.is_process_0() else ():
            shutil.rmtree(self.directory / str(step))
        parallel.barrier()
        self._manager.reload()

    def _read(self, step: int, like: State) -> tuple[State, Any, Any]:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_abstract, like)), digest=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=arguments)
        position, extra = restored.digest.get("position"), restored.digest.get("extra")
        if _seal(restored.state, position, extra) != restored.digest["sha256"]:
            raise ValueError("its arrays do not have the recorded SHA-256")
        return restored.state, position, extra


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape, type and sharding of an array; one without a sharding is replicated."""
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or parallel.replicated()
    )


def _seal(state: object, *others: object) -> str:
    text = " ".join(json.dumps(other, sort_keys=True) for other in others)
    return hashlib.sha256(f"{digest(state)} {text}".encode()).hexdigest()


def digest(tree: object) -> str:
    """Return the SHA-256 over paths, types, shapes and bytes of all arrays of a tree, typed keys included."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(parallel.gather_to_host(jax.random.key_data(leaf) if is_key else leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
