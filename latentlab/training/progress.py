"""Progress of a training run on the terminal, and plain lines where there is no terminal."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from latentlab import parallel

WIDTH = 80
FORMAT = "{desc}: {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"


class Progress:
    """A bar over epochs that shows the loss and images per second.

    It is given numbers that have already arrived on the host, and so never waits for a
    device. Without a terminal it logs a line every tenth of the way.
    """

    def __init__(
        self, label: str, total: int, start: int, images_per_epoch: int, log: Callable[[str], None] = print
    ) -> None:
        self.label, self.total, self.epoch, self.log = label, total, start, log
        self.images_per_epoch = images_per_epoch
        self.bar = tqdm(
            total=total, initial=start, desc=label, disable=not sys.stderr.isatty(), ncols=WIDTH, bar_format=FORMAT
        )
        self.silent = not parallel.is_process_0()
        self.since = time.perf_counter()

    def update(self, epoch: int, loss: float) -> float:
        """Show that `epoch` is done and return the images per second since the last update."""
        now = time.perf_counter()
        rate = self.images_per_epoch * (epoch - self.epoch) / max(now - self.since, 1e-9)
        tenth = epoch * 10 // self.total > self.epoch * 10 // self.total
        self.bar.set_postfix_str(f"loss {loss:.4g}, {rate:,.0f} images/s", refresh=False)
        self.bar.update(epoch - self.epoch)
        if self.bar.disable and tenth and not self.silent:
            seconds = (self.total - epoch) * self.images_per_epoch / max(rate, 1e-9)
            left = f", {tqdm.format_interval(seconds)} left" if epoch < self.total else ""
            self.log(f"{self.label}: epoch {epoch} of {self.total}, loss {loss:.4g}, {rate:,.0f} images/s{left}")
        self.epoch, self.since = epoch, now
        return rate

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()
