"""What configurations share; it imports nothing heavy, so that `--help` is quick."""

from collections.abc import Mapping
from math import inf
from typing import Any, Literal

from latentlab.errors import UserError

Precision = Literal["default", "float32", "tf32", "bf16"]
"""Precision of products in training; see `latentlab.training.precision`."""

Decoder = Literal["pillow", "tensorflow"]
"""Whose pixels a JPEG has; see `latentlab.decoding`."""


def check_numbers(config: Any, least: Mapping[str, float], most: Mapping[str, float] | None = None) -> None:
    """Check that every integer of a dataclass is at least 1 and every float finite and above 0.

    Args:
        config: A dataclass instance.
        least: Other lower bounds by field, which are themselves allowed.
        most: Upper bounds by field.

    Raises:
        UserError: A number is out of bounds.
    """
    for name, value in vars(config).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high = least.get(name, 1 if isinstance(value, int) else 0), (most or {}).get(name, inf)
        inside = low < value if isinstance(value, float) and name not in least else low <= value
        if not (inside and value <= high and value < inf):
            if isinstance(value, int):
                expected = f"at least {low}" if high == inf else f"{low} to {high}"
            else:
                expected = f"a number {'from' if name in least else 'above'} {low}" + (
                    "" if high == inf else f" to {high}"
                )
            raise UserError(f"{name} is {value}, expected {expected}")
