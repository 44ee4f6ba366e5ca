"""SIGINT and SIGTERM as exceptions, which a training loop can put off until its state is safe."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """The process was asked to stop; `exit_code` is 130 for SIGINT and 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Pending:
    """What a deferred interruption left behind."""

    number: int | None = None

    def raise_if_set(self) -> None:
        """Raises the interruption that has been put off, if there is one."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise `Interrupted` in the main thread."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled_by(handler):
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Pending]:
    """Within the block the first SIGINT or SIGTERM is only noted; a second one stops at once."""
    pending = Pending()

    def handler(number: int, frame: FrameType | None) -> None:
        if pending.number is not None:
            raise Interrupted(number)
        pending.number = number

    with _handled_by(handler):
        yield pending


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
