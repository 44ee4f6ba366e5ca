"""Files of figures: their format, and the same bytes for the same figure."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from latentlab.figures import Format, save


def draw() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0], label="line")
    figure.legend()
    return figure


@pytest.mark.parametrize(("name", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_same_figure_gives_the_same_file(name: str, start: bytes, tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{index}.png", draw, Format(name, 300)) for index in range(2)]
    assert [path.name for path in paths] == [f"0.{name}", f"1.{name}"]
    one, other = (path.read_bytes() for path in paths)
    assert one.startswith(start) and one == other


def test_dots_per_inch_are_those_asked_for(tmp_path: Path) -> None:
    sizes = []
    for dots in (100, 300):
        content = save(tmp_path / f"{dots}.png", draw, Format("png", dots)).read_bytes()
        sizes.append(int.from_bytes(content[16:20], "big"))  # the width of IHDR
    assert sizes[1] == pytest.approx(3 * sizes[0], abs=3)


def test_type_is_embedded_as_journals_want_it(tmp_path: Path) -> None:
    content = save(tmp_path / "figure.png", draw, Format("pdf")).read_bytes()
    assert b"/Type3" not in content and b"/CIDFontType2" in content
