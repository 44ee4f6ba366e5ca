"""Growth curves: what is drawn and what is refused. No time is asserted."""

from pathlib import Path

import pytest

from benchmarks import bench, growth, side_by_side


def test_the_figure_shows_measured_curves_and_no_quick_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    points = [{"value": n, "warm_seconds": {"median": n / 1e3}, "peak_bytes": n * 1e6} for n in (1, 4, 16)]
    arguments = ["--output", str(results), "--figure", str(picture)]
    side_by_side.merge(results, {"seeds": {"quick": True, "points": points}, "start": {"quick": False}})
    assert growth.main(arguments) == 2
    assert "quick ones not counted" in capsys.readouterr().err and not picture.exists()
    side_by_side.merge(results, {"seeds": {"quick": False, "points": points}})
    assert growth.main(arguments) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_figure_needs_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--figure", "x.png"]) == 2
    assert "expected --output FILE.json" in capsys.readouterr().err


def test_every_curve_grows_a_work_of_the_bench() -> None:
    for curve in growth.CURVES.values():
        assert curve.work in bench.WORKS and curve.panel in growth.PANELS
        assert len({curve.sizes(value) for value in curve.values}) == len(curve.values)
