"""SIGINT and SIGTERM as an exception that training can put off until its state is safe.

Only the command line installs handlers (`handle_signals`). When the code is used from Python, signals act as Python
lets them act, and `defer` changes nothing.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STANDARD_ERROR = 2
STOPPING = b"stopping, once a checkpoint is written; again to stop at once\n"


class Interrupted(BaseException):
    """The process was asked to stop; `exit_code` is 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Pending:
    """The signal that came while signals were put off, if any."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_deferred = False


_HANDLED: ContextVar[Pending | None] = ContextVar("handled", default=None)


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise `Interrupted` in the main thread, or are noted where put off."""
    pending = Pending()

    def handler(number: int, frame: FrameType | None) -> None:
        if pending.is_deferred and pending.number is None:
            pending.number = number
            with contextlib.suppress(OSError):  # not `print`, which the signal may have interrupted
                os.write(STANDARD_ERROR, STOPPING)
            return
        raise Interrupted(number)

    token = _HANDLED.set(pending)
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _HANDLED.reset(token)


@contextlib.contextmanager
def defer() -> Iterator[Pending]:
    """Within the block only note the first signal that the command line catches; a second one stops at once."""
    pending = _HANDLED.get() or Pending()
    pending.is_deferred, pending.number = True, None
    try:
        yield pending
    finally:
        pending.is_deferred = False
