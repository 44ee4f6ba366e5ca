"""Make the packaged weights of the faces, `latent_arith/pretrained`, of a run: `python -m benchmarks.pretrain RUN`.

The run is that of `COMMAND`. Its weights are rounded to float16, and directions and population are those of the rounded
weights, found on the faces that they were trained on.
"""

import argparse
import dataclasses
import datetime
import json
import tempfile
from pathlib import Path

import numpy as np

from latent_arith import experiment, weights
from latent_arith.editor import POPULATION
from latentlab.experiment import CONFIG, Run
from latentlab.storage.run_directory import read_json, read_npz, write_json, write_npz

COMMAND = "python run.py latent-arith --train --synthetic-images 60000 --epochs 480"


def main() -> None:
    """Write the package's own weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run, out = Run(parser.parse_args().run), weights.PRETRAINED
    out.mkdir(exist_ok=True)
    arrays = read_npz(run.path / weights.WEIGHTS)
    write_npz(out / weights.WEIGHTS, {name: array.astype(np.float16) for name, array in arrays.items()})
    quick = {"classifier_epochs": 1, "scored_faces": 2, "compared_faces": 2, "bootstrap_resamples": 0}
    config = dataclasses.replace(run.config, weights=str(out / weights.WEIGHTS), train=False, **quick)
    with tempfile.TemporaryDirectory() as folder:
        found = experiment.run(config, Path(folder))
        for file in ("directions.npz", POPULATION):
            stored = read_npz(Path(folder) / file)
            write_npz(out / file, {name: _shrink(array) for name, array in stored.items()})
        measured = read_json(Path(folder) / "results.json")
    record = read_json(run.path / CONFIG)
    settings = dataclasses.asdict(dataclasses.replace(run.config, weights="", train=False))
    write_json(out / CONFIG, {**record, "config": settings})
    ended = datetime.date.fromtimestamp((run.path / weights.WEIGHTS).stat().st_mtime)
    about = {
        "command": COMMAND,
        "date": ended.isoformat(),
        "steps": run.config.epochs * run.config.steps_per_epoch,
        "batch_size": run.config.batch_size,
        "versions": record.get("versions"),
        "fingerprint": measured["weights"]["fingerprint"],
        "held_out_loss": measured["held_out_loss"],
    }
    write_json(out / "about.json", about)
    print(json.dumps(about, indent=2))
    print(found.summary())


def _shrink(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


if __name__ == "__main__":
    main()
