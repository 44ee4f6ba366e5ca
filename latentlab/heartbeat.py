"""Signs of life: a line whenever a command has shown nothing for a while."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
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
    started, ended = time.monotonic(), threading.Event()
    out, errors = Watched(sys.stdout), Watched(sys.stderr)

    def watch() -> None:
        while not ended.wait(seconds / 10):
            now = time.monotonic()
            if now - max(out.last, errors.last) >= seconds:
                tqdm.write(f"  … at work, {now - started:.0f} s so far", file=out)

    thread = threading.Thread(target=watch, name="heartbeat", daemon=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
