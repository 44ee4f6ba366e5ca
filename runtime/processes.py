"""Several processes as one run: how they find one another, agree, and go down together.

Every process runs the same program on the same data, and JAX makes their devices one mesh (`runtime.mesh`). The first
one writes the run directory. Each of the others writes into a copy that goes when it ends, in which the checkpoints are
the real ones, for all processes write those. All must therefore see the same file system.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError, first_line

HEARTBEAT_SECONDS = 20
"""So long after a process has died without a word, at most, all others end."""
START_SECONDS = 120
GRACE_SECONDS = 2
"""So long the first process outlives its failure, for JAX aborts the others when the service that it runs is gone."""
CHECKPOINTS = "checkpoints"
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"

_LOST = re.compile(r"gloo|nccl|coordination|barrier|heartbeat|another task|distributed service|DEADLINE_EXCEEDED", re.I)


def let_simulated_devices_take_turns() -> None:
    """Room for simulated devices, where XLA_FLAGS ask for them, to wait for one another; before JAX is imported.

    All devices share one pool of threads, as large as their number, and each that waits in a collective operation holds
    a thread. If the pool runs dry, none gets on, and XLA ends the process after 40 seconds. So there is one program at
    a time, more threads, and more patience for busy machines. What the environment sets already stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices := re.search(r"host_platform_device_count=(\d+)", flags):
        os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
        os.environ.setdefault("PJRT_NPROC", str(4 * int(devices[1])))
        if PATIENCE not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {PATIENCE}=600"


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Makes this process one of several; what is None is told by SLURM, GKE, Open MPI or a TPU, as JAX finds them.

    Args:
        coordinator: Address and port of the first process.
        count: Number of processes.
        index: Of this one, from 0.

    Raises:
        UserError: Something is neither given nor found, is out of range, or the others do not come in two minutes.
    """
    import jax

    if coordinator is not None and not re.fullmatch(r"\S+:\d+", coordinator):
        raise UserError(f"coordinator is {coordinator!r}, expected HOST:PORT of the first process")
    if index is not None and count is not None and not 0 <= index < count:
        raise UserError(f"process_id is {index}, expected 0 to {count - 1} of {count} processes")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `runtime.interrupts`
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


def count() -> int:
    """Number of processes of this run."""
    jax = sys.modules.get("jax")  # not imported here, for that takes a second
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes what the run leaves."""
    return count() == 1 or sys.modules["jax"].process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, in all of them: JSON, or the UserError that it raises there."""
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"value": function()}
        except UserError as error:
            told = {"error": str(error)}
    told = exchanged(told)[0]
    if "error" in told:
        raise UserError(told["error"])
    return told["value"]


def exchanged(value: Any) -> list[Any]:
    """The values, as JSON, that the processes call this with, in their order; all wait for the last one."""
    if count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = json.dumps(value).encode()
    longest = int(process_allgather(np.asarray(len(text))).max())
    return [json.loads(bytes(row)) for row in process_allgather(np.frombuffer(text.ljust(longest), np.uint8))]


@contextlib.contextmanager
def run_directory_of(path: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """The directory that this process writes to: the run's own in the first, in others a copy that goes at the end.

    Args:
        path: The run directory, which exists.
        parts: Folders in it that checkpoints are in; "." where they are in the run directory itself.
    """
    if is_first():
        exchanged(None)  # wait until the others have copied
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="latentlab-") as scratch, contextlib.redirect_stdout(_Silent()):
        copy = Path(scratch) / path.name
        shutil.copytree(path, copy, ignore=shutil.ignore_patterns(CHECKPOINTS, ".*"))
        for part in parts:
            (copy / part).mkdir(exist_ok=True)
            (copy / part / CHECKPOINTS).symlink_to((path / part / CHECKPOINTS).absolute(), target_is_directory=True)
        exchanged(None)
        yield copy


def lost_another(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return count() > 1 and _LOST.search(str(error)) is not None


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """The block after which this process ends: at once if it is one of several and failed, so that the others notice.

    At its normal end JAX lets a process wait for the others.
    """
    try:
        yield
    except BaseException as error:
        failed = not (isinstance(error, SystemExit) and not error.code)
        if failed and count() > 1:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            if is_first():
                time.sleep(GRACE_SECONDS)
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
        raise


class _Silent:
    """Where the standard output of all processes but the first goes."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
