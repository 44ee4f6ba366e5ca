"""What trackers are given of a run: settings, series of numbers, results, and figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latentlab.experiment import Run
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.run_directory import read_json


class Point(NamedTuple):
    """Numbers at one step of a series, such as an epoch of a model, or an ε of an attack."""

    series: str
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Record:
    """One experiment of a run, finished or not.

    Attributes:
        name: Of its package.
        run_dir: Where its files are.
        settings: Its configuration.
        points: What `metrics.jsonl` holds.
        results: Numbers of `results.json`, by dotted name; empty where the run is not finished.
        figures: PNGs.
    """

    name: str
    run_dir: Path
    settings: Mapping[str, Any]
    points: tuple[Point, ...]
    results: Mapping[str, float]
    figures: tuple[Path, ...]


def read_records(run: Run) -> list[Record]:
    """Return a record of every experiment of a run.

    Raises:
        UserError: A file is damaged.
    """
    records = []
    for package, part in run.experiments.items():
        place = part.run_dir / "results.json"
        results = dict(_numbers(read_json(place))) if place.exists() else {}
        points = tuple(make_points(MetricsLog(part.run_dir / "metrics.jsonl").rows()))
        figures = tuple(sorted((part.run_dir / "figures").glob("*.png")))
        records.append(Record(package, part.run_dir, asdict(part.config), points, results, figures))
    return records


def make_points(rows: Sequence[Mapping[str, Any]]) -> Iterator[Point]:
    """Yield rows of metrics as points: words and seed name the series, the epoch is the step, or the row's place."""
    counted: dict[str, int] = {}
    for row in rows:
        names = [f"seed_{value}" if key == "seed" else str(value) for key, value in row.items() if _is_name(key, value)]
        series = "/".join(names)
        step = int(row["epoch"]) if "epoch" in row else counted.get(series, 0)
        counted[series] = step + 1
        values = {
            key: float(value)
            for key, value in row.items()
            if key not in ("epoch", "seed") and isinstance(value, int | float) and not isinstance(value, str)
        }
        yield Point(series, step, values)


def _is_name(key: str, value: Any) -> bool:
    return key == "seed" or key in ("model", "attack", "objective", "training", "photo")


def _numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a tree of JSON by dotted name; of lists none, for those are in the files of arrays."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield name, float(tree)
