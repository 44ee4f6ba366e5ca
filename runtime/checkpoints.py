"""Checkpoints of a training run: the only module that knows orbax.

Every checkpoint carries the SHA-256 of its arrays, so a truncated or bit-flipped one is noticed
when it is read, and the one before it is used instead.
"""

import contextlib
import gc
import hashlib
import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from runtime import mesh, processes
from runtime.errors import UserError, first_line

State = TypeVar("State")


class Position(Protocol):
    """An iterator that tells where it stands as JSON and goes there, as grain's do."""

    def get_state(self) -> dict[str, Any]:
        """Where it stands."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where another one stood."""


class Restored(NamedTuple, Generic[State]):
    """A checkpoint that was read: its step, its state, and what `save` was given to keep beside it."""

    step: int
    state: State
    kept: Any


class Checkpoints:
    """The newest `keep` checkpoints of one state, numbered by step, under one directory.

    A save is written aside and renamed, so a killed process leaves whole checkpoints only. Each of several processes
    writes its part of it, and a state can be restored to other devices than those that it was saved from.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory.resolve()  # the same path in all processes
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: State, position: Position | None = None, kept: Any = None) -> None:
        """Writes `state`, and where the iterator of batches stands if there is one, as the checkpoint of `step`.

        Args:
            step: Number of the checkpoint.
            state: A tree of arrays.
            position: The iterator of batches.
            kept: Whatever else is needed to go on, as JSON.

        Raises:
            UserError: The checkpoint could not be written, for instance for want of disk space.
        """
        stands = position and position.get_state()
        record = {"sha256": _seal(state, stands, kept), "position": stands, "kept": kept}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(record))
        failure = None
        with _abandoned_forgotten():
            try:
                self._manager.save(step, args=arguments, force=True)
            except (OSError, ValueError, RuntimeError) as error:
                reason = re.search(r": ([^:]+) \[os_error_code", str(error))  # tensorstore tells it last
                failure = reason[1] if reason else first_line(error)
            if failure is not None:
                gc.collect()
        if failure is not None:
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written ({failure}); "
                f"earlier ones are untouched, so make room and resume"
            )

    def restore(
        self,
        like: State,
        warn: Callable[[str], None],
        position: Position | None = None,
        discard_damaged: bool = True,
    ) -> Restored[State] | None:
        """The newest undamaged checkpoint, or None where there is none at all.

        Damaged ones are reported through `warn`.

        Args:
            like: A state of the expected structure, shapes and types (abstract or not).
            warn: Called with one line for each damaged checkpoint.
            position: The iterator of batches, which is sent to where it stood.
            discard_damaged: Delete damaged ones, for the resumed run writes them anew.

        Raises:
            UserError: There are checkpoints, and all of them are damaged.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            with _abandoned_forgotten():
                try:
                    state, stands, kept = self._read(step, like)
                    if position:
                        position.set_state(stands)
                except Exception as error:  # orbax and tensorstore raise many types for damaged files
                    damaged.append(step)
                    warn(f"checkpoint of step {step} in {self.directory} is damaged ({first_line(error)})")
                if step in damaged:
                    gc.collect()
                    continue
            for bad in damaged if discard_damaged and processes.is_first() else ():
                shutil.rmtree(self.directory / str(bad))
            processes.exchanged(None)  # all wait until they are gone
            self._manager.reload()
            return Restored(step, state, kept)
        if damaged:
            raise UserError(
                f"{self.directory}: all checkpoints (steps {damaged}) are damaged; start again with --overwrite"
            )
        return None

    def close(self) -> None:
        """Releases orbax's threads."""
        self._manager.close()

    def _read(self, step: int, like: State) -> tuple[State, Any, Any]:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(_placed, like)), digest=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=arguments)
        stands, kept = restored.digest.get("position"), restored.digest.get("kept")
        if _seal(restored.state, stands, kept) != restored.digest["sha256"]:
            raise ValueError("its arrays do not have the recorded SHA-256")
        return restored.state, stands, kept


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, type and place of an array; those that have no place yet are read whole to every device."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or mesh.replicated())


def _seal(state: object, *others: object) -> str:
    told = " ".join(json.dumps(other, sort_keys=True) for other in others)
    return hashlib.sha256(f"{digest(state)} {told}".encode()).hexdigest()


@contextlib.contextmanager
def _abandoned_forgotten() -> Iterator[None]:
    """Where one array cannot be read or written, orbax abandons the others, which Python would print tracebacks of.

    It does so when they are collected, so a block that caught an error has to see to that.
    """

    def silent(told: Any) -> None:
        pass

    hooks = sys.unraisablehook, threading.excepthook
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    disabled = [logger.disabled for logger in loggers]
    sys.unraisablehook = threading.excepthook = silent
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


def digest(tree: object) -> str:
    """SHA-256 over paths, types, shapes and bytes of all arrays of a tree, typed keys included."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(mesh.fetched(jax.random.key_data(leaf) if is_key else leaf))
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
