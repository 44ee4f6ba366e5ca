"""Files of a run appear whole or not at all, and nothing that existed is lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentlab.errors import UserError
from latentlab.storage import run_directory
from latentlab.storage.metrics import MetricsLog

ROOT = Path(__file__).parents[2]


def test_new_runs_are_numbered_after_the_last(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    names = []
    for unrelated in ("notes", "draft 3", "0009"):
        with run_directory.create(None, False, root) as run:
            names.append(run.name)
        (root / unrelated).mkdir()
    assert names == ["0001", "0002", "0003"]
    with run_directory.create(None, False, root) as run:
        assert run.name == "0010"


def test_an_existing_run_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with (
        pytest.raises(UserError, match=r"exists; choose another --out, or give --overwrite or --resume"),
        run_directory.create(run, False),
    ):
        pytest.fail("the directory was opened")
    assert (run / "results.json").exists()
    with run_directory.create(run, True):
        assert [entry.name for entry in run.iterdir()] == [run_directory.LOCK]
    assert list(tmp_path.iterdir()) == [run]


def a_run(parent: Path) -> Path:
    with run_directory.create(parent / "run", False) as run:
        run_directory.write_json(run / "config.json", {})
        run_directory.write_json(run / "results.json", {})
    return run


def test_a_run_that_fails_before_it_begins_leaves_everything_as_it_was(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for path, overwrite in ((run, True), (tmp_path / "new", False)):
        with pytest.raises(UserError, match="no data"), run_directory.create(path, overwrite):
            run_directory.write_json(path / "config.json", {})
            (path / "checkpoints").mkdir()
            raise UserError("no data")
    assert list(tmp_path.iterdir()) == [run]
    assert (run / "results.json").exists()


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError), run_directory.create(tmp_path / "run", False) as run:
        run_directory.write_json(run / "config.json", {})
        MetricsLog(run / "metrics.jsonl").append({"epoch": 1})
        raise UserError("the loss became nan")
    assert len(MetricsLog(run / "metrics.jsonl").rows()) == 1


def test_overwriting_spares_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="no run directory"), run_directory.create(path, True):
            pytest.fail("the directory was opened")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    run_directory.write_json(path, [1])
    with pytest.raises(RuntimeError), run_directory.atomic(path) as file:
        file.write(b"[2, 3")
        raise RuntimeError
    assert run_directory.read_json(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_results_are_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        run_directory.write_json(tmp_path / "results.json", {"loss": value})
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    """A process that may write 4 KiB a file meets the end of its space half-way."""
    path = tmp_path / "latents.npz"
    run_directory.write_npz(path, {"z": np.ones(3)})
    program = (
        "import sys, pathlib, resource, numpy as np\n"
        "from latentlab.storage import run_directory\n"
        "from latentlab.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: run_directory.write_npz(pathlib.Path(sys.argv[1]), {'z': np.random.default_rng(0).random(9999)})\n"
        "except UserError as error: print(error)\n"
    )
    limited = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert limited.stdout == f"{path}: could not be written (File too large)\n"
    np.testing.assert_array_equal(run_directory.read_npz(path)["z"], np.ones(3))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), (b"PK\x03\x04", "cannot be read as .npz"), (b"\x93NUMPY", "cannot be read as .npz")],
)
def test_bad_arrays_are_user_errors(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "latents.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        run_directory.read_npz(path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "latents.npz", z=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="cannot be read as"):
        run_directory.read_npz(tmp_path / "latents.npz")


def test_metrics_rewind_forgets_later_epochs_of_one_model_and_half_lines(tmp_path: Path) -> None:
    metrics = MetricsLog(tmp_path / "metrics.jsonl")
    rows = [{"model": model, "epoch": epoch, "loss": 1.0} for model in ("autoencoder", "vae") for epoch in (1, 2, 3)]
    for row in rows:
        metrics.append(row)
    with metrics.path.open("a") as file:
        file.write('{"model": "vae", "epo')
    assert metrics.rows() == rows
    metrics.rewind("vae", 1)
    assert metrics.rows() == rows[:4]
    assert [json.loads(line) for line in metrics.path.read_text().splitlines()] == rows[:4]


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    with run_directory.create(tmp_path / "run", False) as run:
        run_directory.write_json(run / "config.json", {})
        for other in (run_directory.locked(run), run_directory.create(run, True)):
            with pytest.raises(UserError, match="run: another process is at work in it"), other:
                pytest.fail("both are")
        assert (run / "config.json").exists()
    with run_directory.locked(run):
        pass


def test_hidden_files_of_others_are_not_nothing(tmp_path: Path) -> None:
    (tmp_path / ".settings.abcdefgh").write_text("years of work")
    with pytest.raises(UserError, match="exists; choose another --out"), run_directory.create(tmp_path, False):
        pytest.fail("it is made")
    with run_directory.locked(tmp_path):
        assert (tmp_path / ".settings.abcdefgh").read_text() == "years of work"


def test_what_a_killed_process_left_half_written_is_no_run_and_goes(tmp_path: Path) -> None:
    for name in (".config.json.ab12_x9z", ".results.json.ab12_x9z", run_directory.LOCK):
        (tmp_path / name).write_text("{")
    with run_directory.create(tmp_path, False) as run:
        assert [entry.name for entry in run.iterdir()] == [run_directory.LOCK]
