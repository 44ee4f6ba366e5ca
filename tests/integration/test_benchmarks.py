"""Tests of the benchmarks: turns, ratios, what is left out, results on disk. No time is asserted."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import peers, scaling, side_by_side
from benchmarks.side_by_side import Contestant
from latent_arith.model import FaceVae
from latentlab.errors import UserError

OURS, OTHER = Contestant("ours", "m", "f", ("json",)), Contestant("other", "m", "f", ("json",))
ABSENT = Contestant("absent", "m", "f", ("no_such_package",), programs=("no-such-program",))


def comparison(**contestants: Contestant) -> tuple[dict[str, Any], list[str]]:
    """Three rounds in which the other takes 4, 5 and 2 times as long."""
    order: list[str] = []
    seconds = {"ours": iter([1.0, 2.0, 4.0]), "other": iter([4.0, 10.0, 8.0])}

    def run(name: str, repeats: int) -> dict[str, Any]:
        order.append(name)
        return {"seconds": [next(seconds[name])] * (repeats - 1), "checks": [9.0, 7.0], "peak_megabytes": 5.0}

    return side_by_side.compare(contestants, run, rounds=3, repeats=2), order


def test_contestants_take_turns_and_ratios_are_taken_within_a_round() -> None:
    found, order = comparison(ours=OURS, other=OTHER)
    assert order == ["ours", "other"] * 3
    ratio = found["contestants"]["other"]["ratio"]
    assert ratio["per_round"] == [1 / 4, 1 / 5, 1 / 2]
    assert (ratio["min"], ratio["median"], ratio["max"]) == (0.2, 0.25, 0.5)
    assert found["contestants"]["other"]["seconds"] == {"median": 8.0, "min": 4.0, "max": 10.0}


def test_a_slow_contestant_has_fewer_rounds() -> None:
    _, order = comparison(ours=OURS, other=Contestant("other", "m", "f", ("json",), most_rounds=1))
    assert order == ["ours", "other", "ours", "ours"]


def test_what_is_not_installed_is_named_in_the_table() -> None:
    contestants = {"ours": OURS, "absent": ABSENT}
    found, order = comparison(**contestants)
    assert "absent" not in order
    table = side_by_side.table(found, contestants, "seconds", "loss")
    assert "| absent | not installed (no_such_package, no-such-program) |" in table
    assert "| ours | 2.000 (1.000 to 4.000) |  | 7.0 after 2 | 5 |" in table


def test_work_that_is_not_the_same_is_refused() -> None:
    found, _ = comparison(ours=OURS, other=OTHER)
    side_by_side.verify(found, 0.01)
    found["contestants"]["other"]["check"]["median"] = 7.2
    with pytest.raises(RuntimeError, match="did not do the same work"):
        side_by_side.verify(found, 0.01)


def test_results_are_merged_by_part(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    side_by_side.merge(path, {"first": {"rounds": 1}, "second": {"rounds": 1}})
    side_by_side.merge(path, {"second": {"rounds": 2}})
    assert side_by_side.read(path) == {"first": {"rounds": 1}, "second": {"rounds": 2}}
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no results"):
        side_by_side.merge(path, {})


def test_every_contestant_of_the_installed_frameworks_can_be_found() -> None:
    """Their modules import and have the functions; what is missing is named."""
    found = {name: contestant for name, contestant in peers.CONTESTANTS.items() if contestant.packages == peers.JAX}
    assert {"mnist_epoch/ours", "face_encode/flax", "sweep/ours"} <= set(found)
    for contestant in found.values():
        assert callable(contestant.load())


@pytest.mark.lenient
def test_the_same_training_here_and_with_flax(capfd: pytest.CaptureFixture[str]) -> None:
    """One contestant of each kind, from command line to JSON, on little work."""
    names = ["mnist_epoch/ours", "mnist_epoch/flax"]
    assert peers.main(["--quick", "--contestant", *names]) == 0
    runs = json.loads(capfd.readouterr().out.splitlines()[-1])
    losses = [runs[name]["checks"][-1] for name in names]
    assert len(runs[names[0]]["seconds"]) == 1
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # different draws of weights and order


@pytest.mark.lenient
def test_what_is_only_measured_on_gpus_runs(capfd: pytest.CaptureFixture[str]) -> None:
    names = [f"{name}/ours" for name, part in peers.PARTS.items() if part.devices == ("gpu",)]
    assert peers.main(["--quick", "--contestant", *names]) == 0
    runs = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert set(runs) == {"mnist_run/ours", "gradient_64/ours"}
    assert all(math.isfinite(run["checks"][-1]) for run in runs.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds is 0, expected 1 or more"),
        (["--repeats", "1"], "--repeats is 1, expected 2 or more"),
        (["--figure", "x.png"], "expected --output FILE.json"),
    ],
)
def test_a_wrong_number_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(arguments) == 2
    complaint = capsys.readouterr().err
    assert message in complaint and complaint.count("\n") == 1


def test_the_figure_shows_measured_parts_and_no_quick_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "results.json", tmp_path / "peers.png"
    found, _ = comparison(ours=OURS, other=OTHER)
    found["contestants"]["torch"] = found["contestants"].pop("other")
    part = {"machine": {"processor": "P", "cpu_count": 2, "date": "2026-01-01"}, "quick": True, **found}
    side_by_side.merge(results, {"mnist_epoch": part})
    arguments = ["--output", str(results), "--figure", str(picture)]
    assert peers.main(arguments) == 2
    assert "quick ones not counted" in capsys.readouterr().err
    side_by_side.merge(results, {"mnist_epoch": part | {"quick": False}})
    assert peers.main(arguments) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_collectives_are_read_from_a_program_and_timed_by_hand() -> None:
    program = """
      %all-reduce.1 = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
      %all-reduce.2 = (f32[3,2]{1,0}, bf16[10]{0}) all-reduce(%y, %z), channel_id=2, to_apply=%add
      %gather = u8[8,4]{1,0} all-gather(%w), channel_id=3, dimensions={0}
      %sum = f32[64]{0} add(%all-reduce.1, %all-reduce.1)
    """
    moved = scaling.collectives(program)
    assert moved == [256, 44, 32]
    link = scaling.Link("", bandwidth=1000.0, latency=0.01)
    assert scaling.seconds(0.5, moved, 1, link) == 0.5
    assert scaling.seconds(0.5, moved, 8, link) == pytest.approx(0.5 + 2 * 7 / 8 * 332 / 1000 + 3 * 2 * 3 * 0.01)


def test_portions_of_photos_are_filled_up() -> None:
    """512 devices of 16 photos take 8,192 at once, so 50,000 take seven turns, of which the last is a tenth full."""
    assert scaling.portions(50_000, 1) == 3125
    assert scaling.portions(50_000, 512) == 7


def test_a_step_on_eight_devices_moves_every_gradient_once() -> None:
    """And little else: losses, and the sums of the normalisations, of 16 to 64 channels."""
    variables = jax.eval_shape(FaceVae().init, jax.random.key(0))
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert gradients < sum(scaling.counted(8)) < 1.001 * gradients
