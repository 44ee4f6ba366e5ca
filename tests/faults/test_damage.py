"""Files of our own that are damaged on the disk: what was written comes out, or one line that says what is wrong.

`python -m tests.faults.damage` tries more and prints a table.
"""

import random
from pathlib import Path

import pytest

from tests.faults import damage

TRIES = {damage.training: 1, damage.file_of_weights: 6, damage.cache_of_compilations: 3}


@pytest.mark.parametrize("name", damage.KINDS)
def test_no_damage_is_taken_for_what_was_written(name: str, tmp_path: Path) -> None:
    kind = damage.KINDS[name]
    tries = TRIES.get(kind, 12)
    tally = kind(tries, tmp_path, random.Random(name))
    assert (tally.tried, tally.lost, tally.wrong) == (tries, 0, 0), tally


def test_most_damage_is_noticed(tmp_path: Path) -> None:
    """Of damage that nobody notices nothing could be learnt."""
    tally = damage.cache_of_celeba(12, tmp_path, random.Random(0))
    assert tally.moments["refused"] >= 6, tally
