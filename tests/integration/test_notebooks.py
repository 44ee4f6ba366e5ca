"""Notebooks run from top to bottom, and what they show is what is stored in them."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """What every cell shows: its text with numbers as #, for those differ between machines in their last digits."""
    lines = []
    for index, cell in enumerate(notebook.cells):
        outputs = cell.get("outputs", ())
        # How many pieces the text of a cell comes in is chance.
        text = "".join(output.text for output in outputs if output.get("name") == "stdout")
        lines.append(f"{index}: {re.sub(' +', ' ', NUMBER.sub('#', text))}")
        lines += [f"{index}: a picture" for output in outputs if "image/png" in output.get("data", {})]
    return lines


def test_there_is_one_an_experiment() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1_digits", "2_faces", "3_attacks"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_stored(path: Path) -> None:
    stored = nbformat.read(path, 4)
    assert path.stat().st_size < MOST_BYTES
    assert "colab.research.google.com" in stored.cells[0].source and "pip install" in stored.cells[1].source
    fresh = nbformat.read(path, 4)
    NotebookClient(fresh, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    assert shown(fresh) == shown(stored)
    assert not any(output.get("name") == "stderr" for cell in stored.cells for output in cell.get("outputs", ()))
