"""Shares with their intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest


class Share(NamedTuple):
    """Shares and the ends of their 95 % intervals."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def share_with_interval(successes: Bool[np.ndarray, "*rows n"]) -> Share:
    """Return the share of successes in every row and the ends of its 95 % Wilson interval (1927), of 0 and 1 too."""
    counts, n = np.asarray(successes.sum(axis=-1)), successes.shape[-1]
    ends = [binomtest(int(count), n).proportion_ci(0.95, "wilson") for count in counts.flat]
    low, high = (np.reshape([end[side] for end in ends], counts.shape) for side in (0, 1))
    return Share(counts / n, low, high)
