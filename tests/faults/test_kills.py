"""SIGKILL at random moments: nothing that was saved is lost, and what comes of it is the same to the bit.

`python -m tests.faults.kills` tries more of them and prints a table.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import kills

KILLS = {"digits": 2, "faces": 1, "sweep": 2}
Made = Callable[[str], tuple[list[str], Path, float]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Arguments of a run, what it leaves undisturbed, and the seconds it takes once all is compiled."""
    known: dict[str, tuple[list[str], Path, float]] = {}

    def make(name: str) -> tuple[list[str], Path, float]:
        if name not in known:
            place = tmp_path_factory.mktemp(name)
            arguments = (
                kills.digits(place, "mlp")
                if name == "digits"
                else {"faces": kills.FACES, "sweep": kills.SWEEP}[name].split()
            )
            kills.whole_run(arguments, place / "first")
            known[name] = arguments, place / "whole", kills.whole_run(arguments, place / "whole")
        return known[name]

    return make


@pytest.mark.parametrize("name", KILLS)
def test_killed_runs_end_as_if_nothing_had_happened(name: str, made: Made, tmp_path: Path) -> None:
    tally = kills.killed_runs(*made(name), KILLS[name], tmp_path, random.Random(name))
    assert (tally.tried, tally.lost, tally.wrong) == (KILLS[name], 0, 0), tally


@pytest.mark.parametrize("kind", [kills.killed_decoding, kills.killed_saving, kills.killed_replacing])
def test_what_was_written_is_there(kind: Callable[..., kills.Tally], tmp_path: Path) -> None:
    tally = kind(6, tmp_path, random.Random(2))
    assert (tally.tried, tally.lost, tally.wrong) == (6, 0, 0), tally


def test_a_difference_is_found(made: Made, tmp_path: Path) -> None:
    """The comparison that all of this rests on."""
    _, whole, _ = made("digits")
    assert kills.differences(whole, whole) == []
    other = tmp_path / "other"
    other.mkdir()
    assert "results.json" in kills.differences(whole, other) and "metrics.jsonl" in kills.differences(whole, other)
