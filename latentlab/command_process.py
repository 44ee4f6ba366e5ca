"""What the process of a command does beyond running it. Nothing here acts on import, or on runs from Python.

Each has its reason, measured with jax 0.10.2 and orbax 0.12.8 on two cores:

- `ask_for_huge_pages`: every call of a compiled program takes its temporary arrays fresh from the system, page by page.
  A training step of 32 faces takes 267 ms with pages of 4 kB, and 197 ms with huge pages (`benchmarks/README.md`).
  Glibc reads the setting when a process starts, so the process is started anew, once.
- `settle_environment`: Jupyter sets MPLBACKEND to a module that may not be installed here, with which Matplotlib cannot
  be imported. Where output is ASCII (`PYTHONIOENCODING=ascii`), the é of Fréchet ended a run in a traceback.
- `let_simulated_devices_take_turns`: all simulated devices share one pool of threads, as large as their number, and
  each that waits in a collective operation holds a thread. With two programs under way the pool may run dry: a run of
  `all --preset quick` on eight devices, beside other work, was aborted by XLA after 40 seconds («Expected 8 threads to
  join the rendezvous, but only 7 of them arrived on time»). It is rare: five other such runs went well.
- `exit_before_peers`: at its end JAX lets a process wait for all others. Where one of two failed, both still waited
  after five minutes; where it exits at once, the other one ends 2 seconds later, with a message.
- `is_peer_failure`: the error of a collective operation whose peer is gone has no type of its own. It is a
  `JaxRuntimeError`, like a lack of memory, and only its text differs.
- `hide_abandoned_io`: where one array cannot be read or written, orbax abandons the others. For one truncated file of a
  checkpoint of 14 arrays, or for a full disk, Python printed 2 to 40 tracebacks before the one line of the error.
- `hide_warnings_of_pillow`: it warns of damage that it can mend, such as EXIF that is cut short, with a line of its own
  source beneath, and of sizes that are refused anyway. `warnings.catch_warnings` around it is for one thread alone.
"""

import contextlib
import io
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 2
"""How long process 0 outlives its failure: when it ends, JAX aborts the others at once."""
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
COLLECTIVE_TIMEOUT_FLAG = "--xla_cpu_collective_call_terminate_timeout_seconds"

UNSTARTED_COROUTINE = "coroutine '.*' was never awaited"
"""The warning about a read that orbax had not begun. This project has no coroutines of its own."""

_PEER_FAILURE = re.compile(
    r"gloo|nccl|coordination|barrier|heartbeat|another task|distributed service|DEADLINE_EXCEEDED", re.I
)


@contextlib.contextmanager
def own_process() -> Iterator[None]:
    """Prepare the process for a command, which the block runs; JAX must not have been imported before."""
    ask_for_huge_pages()
    settle_environment()
    let_simulated_devices_take_turns()
    hide_abandoned_io()
    hide_warnings_of_pillow()
    with exit_before_peers():
        yield


def ask_for_huge_pages() -> None:
    """Start this process anew with huge pages for glibc's malloc, unless the environment sets them or forbids them.

    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` forbids them. Other systems and C libraries ignore the variable.
    """
    tunables = os.environ.get(TUNABLES, "")
    if sys.platform == "linux" and HUGE_PAGES not in tunables:
        os.environ[TUNABLES] = ":".join(filter(None, [tunables, f"{HUGE_PAGES}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settle_environment() -> None:
    """Draw to files, whatever backend MPLBACKEND names, and print what the terminal's encoding has not as `?`.

    And compute in float32, whatever JAX_ENABLE_X64 says.
    """
    os.environ |= {"MPLBACKEND": "agg", "JAX_ENABLE_X64": "0"}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def let_simulated_devices_take_turns() -> None:
    """Give simulated devices, where XLA_FLAGS ask for them, threads and time to wait for one another.

    What the environment sets already stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices := re.search(r"host_platform_device_count=(\d+)", flags):
        os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")
        os.environ.setdefault("PJRT_NPROC", str(4 * int(devices[1])))
        if COLLECTIVE_TIMEOUT_FLAG not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {COLLECTIVE_TIMEOUT_FLAG}=600"


def hide_abandoned_io() -> None:
    """Print nothing of the reads and writes that orbax abandons, nor its own report of an error that it raises too."""
    import absl.logging  # which replaces the logger of its name when it is first imported

    def print_others(unraisable: Any) -> None:
        abandoned = str(unraisable.exc_value) == "Event loop is closed" or "orbax" in getattr(
            getattr(unraisable.object, "cr_code", None), "co_filename", ""
        )
        if not abandoned:
            sys.__unraisablehook__(unraisable)

    absl.logging.get_absl_logger().setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", UNSTARTED_COROUTINE, RuntimeWarning)
    sys.unraisablehook = print_others


def hide_warnings_of_pillow() -> None:
    """Print nothing of what Pillow warns of; what it cannot read is an error, with a message of ours."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def exit_before_peers() -> Iterator[None]:
    """End this process at once where the block fails and it is one of several, so that the others notice.

    At its normal end JAX lets a process wait for the others.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if code and _process_count() > 1:
            if not isinstance(error, SystemExit):
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            if sys.modules["jax"].process_index() == 0:
                time.sleep(GRACE_SECONDS)
            os._exit(code if isinstance(code, int) else 1)
        raise


def is_peer_failure(error: BaseException) -> bool:
    """Return whether an error says that another process is gone."""
    return _process_count() > 1 and _PEER_FAILURE.search(str(error)) is not None


def _process_count() -> int:
    parallel = sys.modules.get("latentlab.parallel")  # where it was not imported, there are no others
    return parallel.process_count() if parallel else 1
