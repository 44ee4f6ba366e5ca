"""Signs of life: a line whenever a command has shown nothing for a while."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

SILENCE = 9.0
"""Seconds without a word after which a line says that work goes on."""


class Watched:
    """A stream of text that remembers when it was last written to."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.last = stream, time.monotonic()

    def write(self, text: str) -> int:
        """Write, and note the time."""
        self.last = time.monotonic()
        written: int = self.stream.write(text)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def show_heartbeat(seconds: float = SILENCE) -> Iterator[None]:
    """Within the block, say on standard output that work goes on wherever nothing was shown for so many seconds.

    Standard error is for progress and for the one line of a mistake.
    """
    started = time.monotonic()
    out, errors = Watched(sys.stdout), Watched(sys.stderr)

    def watch(ended: threading.Event) -> None:
        while not ended.wait(seconds / 10):
            now = time.monotonic()
            if now - max(out.last, errors.last) >= seconds:
                try:
                    tqdm.write(f"  … at work, {now - started:.0f} s so far", file=out)
                except BrokenPipeError:  # nobody reads any more, which the run finds out when it has something to say
                    return

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), run_beside(watch):
        yield


@contextlib.contextmanager
def run_beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `work(ended)` in a thread beside the block, at whose end the event is set and the thread waited for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
