"""Runs in TensorBoard, MLflow and Weights & Biases, replayed from a run's files whether it is finished or not.

An export is made anew each time, so that nothing in it stands twice, whatever was interrupted and resumed. Each tracker
is an extra of the package, imported where it is used.
"""

import contextlib
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentlab.errors import UserError
from latentlab.export.records import Point, Record, make_points
from latentlab.heartbeat import run_beside
from latentlab.storage.metrics import MetricsLog

SECONDS = 2.0
"""Time between two looks at the metrics of a run that goes on."""
MOST_CHARACTERS = 6000
"""Longest value of a setting that MLflow takes."""


def export_tensorboard(records: Sequence[Record], directory: Path) -> str:
    """Write event files for TensorBoard, a folder an experiment, and return the command that shows them.

    Raises:
        UserError: tensorboardX is not installed.
    """
    writer_type = _import("tensorboardX", "tensorboard").SummaryWriter
    for record in records:
        with contextlib.closing(writer_type(str(directory / record.name))) as writer:
            for point in record.points:
                _write_point(writer, point)
            for name, value in record.results.items():
                writer.add_scalar(f"results/{name.replace('.', '/')}", value, 0)
            writer.add_text("settings", _list_settings(record), 0)
            for path in record.figures:
                with Image.open(path) as figure:
                    writer.add_image(f"figures/{path.stem}", np.asarray(figure.convert("RGB")), 0, dataformats="HWC")
    return f"tensorboard --logdir {directory}"


def export_mlflow(records: Sequence[Record], directory: Path) -> str:
    """Write a database of MLflow with a run an experiment, and return the command that shows it.

    Raises:
        UserError: MLflow is not installed.
    """
    mlflow = _import("mlflow", "mlflow")
    _import("sqlalchemy", "mlflow")
    entities = import_module("mlflow.entities")
    directory.mkdir(parents=True)
    database = directory / f"mlflow-{secrets.token_hex(4)}.db"  # MLflow holds on to one of a name that it has opened
    address = f"sqlite:///{database.absolute()}"
    client = mlflow.MlflowClient(tracking_uri=address)
    experiment = client.create_experiment("latentlab", artifact_location=(directory / "artifacts").absolute().as_uri())
    for record in records:
        made = client.create_run(experiment, run_name=record.name).info.run_id
        for name, value in record.settings.items():
            client.log_param(made, name, str(value)[:MOST_CHARACTERS])
        rows = [(name, value, point.step) for point in record.points for name, value in _name_values(point)]
        rows += [(f"results/{name}", value, 0) for name, value in record.results.items()]
        metrics = [entities.Metric(_plain(name), value, 0, step) for name, value, step in rows if np.isfinite(value)]
        for start in range(0, len(metrics), 1000):  # as many as one call takes
            client.log_batch(made, metrics=metrics[start : start + 1000])
        for path in record.figures:
            client.log_artifact(made, str(path), "figures")
        client.set_terminated(made)
    return f"mlflow ui --backend-store-uri {address}"


def export_wandb(records: Sequence[Record], directory: Path) -> str:
    """Write offline runs of Weights & Biases, one an experiment, and return the command that uploads them.

    Raises:
        UserError: wandb is not installed.
    """
    wandb = _import("wandb", "wandb")
    directory.mkdir(parents=True)
    quiet = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, x_disable_stats=True)
    for record in records:
        run = wandb.init(
            project="latentlab", name=record.name, dir=str(directory), config=dict(record.settings), settings=quiet,
            reinit="create_new",
        )  # fmt: skip
        for series in dict.fromkeys(point.series for point in record.points):
            run.define_metric(f"{series}/*", step_metric=f"{series}/step")
        for point in record.points:
            run.log(
                {
                    f"{point.series}/step": point.step,
                    **{f"{point.series}/{name}": value for name, value in point.values.items()},
                }
            )
        run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in record.figures})
        run.summary.update({f"results/{name}": value for name, value in record.results.items()})
        run.finish()
    wandb.teardown()  # its process writes the files to their end
    return f"wandb sync {directory}/wandb/offline-run-*"


EXPORTS: dict[str, Callable[[Sequence[Record], Path], str]] = {
    "tensorboard": export_tensorboard,
    "mlflow": export_mlflow,
    "wandb": export_wandb,
}


def export_anew(export: Callable[[Sequence[Record], Path], str], records: Sequence[Record], directory: Path) -> str:
    """Export in the place of what an earlier export left in a directory."""
    shutil.rmtree(directory, ignore_errors=True)
    return export(records, directory)


@contextlib.contextmanager
def follow_with_tensorboard(run_dir: Path, directory: Path) -> Iterator[None]:
    """Within the block, write the metrics of a run to event files as they come.

    What an interrupted run had written is removed first. Where a run goes on from a checkpoint, its metrics become
    fewer for a moment; then all is written anew.

    Raises:
        UserError: tensorboardX is not installed.
    """
    writer_type = _import("tensorboardX", "tensorboard").SummaryWriter
    log = MetricsLog(run_dir / "metrics.jsonl")

    def follow(ended: threading.Event) -> None:
        written: list[Any] = []
        writer = None
        while True:
            last = ended.is_set()
            points = list(make_points(log.rows()))
            if writer is None or points[: len(written)] != written:
                if writer is not None:
                    writer.close()
                shutil.rmtree(directory, ignore_errors=True)
                writer, written = writer_type(str(directory)), []
            for point in points[len(written) :]:
                _write_point(writer, point)
            written = points
            writer.flush()
            if last:
                writer.close()
                return
            ended.wait(SECONDS)

    with run_beside(follow):
        yield


def _write_point(writer: Any, point: Point) -> None:
    for name, value in _name_values(point):
        writer.add_scalar(name, value, point.step)


def _name_values(point: Point) -> list[tuple[str, float]]:
    """Return the numbers of a point with the series in their names."""
    return [(f"{point.series}/{name}" if point.series else name, value) for name, value in point.values.items()]


def _list_settings(record: Record) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in record.settings.items())


def _plain(name: str) -> str:
    """Return a name of the characters that MLflow takes."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name).strip("/")


def _import(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f'{module} cannot be imported ({error}): pip install -e ".[{extra}]" in the checkout'
        ) from error
