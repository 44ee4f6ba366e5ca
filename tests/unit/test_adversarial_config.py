"""Settings of attacks that cannot be meant."""

from typing import Any

import pytest

from adversarial.config import AdversarialConfig
from latentlab.errors import UserError


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"epsilon": 2.55}, r"epsilon is 2.55, more than the whole range \[0, 1\]; 2.55 grey levels are 2.55/255"),
        ({"epsilons": (0, 1, 8)}, r"epsilons is 8, more than the whole range \[0, 1\]; 8 grey levels are 8/255"),
        ({"step_size": 2}, "step_size is 2, more"),
        ({"train_epsilon": 76}, r"train_epsilon is 76, .*; 76 grey levels are 76/255"),
        ({"range": "minus-one-one", "epsilon": 2.55}, r"range \[-1, 1\]; 2.55 grey levels are 0.02"),
        ({"range": "zero-255", "epsilon": 256}, r"epsilon is 256, more than the whole range \[0, 255\]$"),
    ],
)
def test_a_radius_longer_than_the_range_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AdversarialConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon": 1.0},
        {"norm": "l2", "epsilon": 3.0, "epsilons": (0, 5)},
        {"range": "minus-one-one", "epsilon": 2.0},
        {"range": "zero-255", "epsilon": 8.0, "epsilons": (0, 2.55)},
    ],
)
def test_a_radius_within_it_and_any_distance_in_l2_are_not(fields: dict[str, Any]) -> None:
    AdversarialConfig(**fields)
