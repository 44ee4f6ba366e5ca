"""Runs for other programs, read back by those programs' own readers."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from matplotlib.figure import Figure
from safetensors import safe_open

from latent_arith.model import FaceVae
from latentlab.errors import UserError
from latentlab.export import networks, trackers
from latentlab.export.records import Record, make_points
from latentlab.figures import save
from latentlab.storage.metrics import MetricsLog
from latentlab.storage.weights import variable_arrays
from vae.model import Autoencoder, ConditionalVae, Vae

pytestmark = pytest.mark.unoptimized

ROWS = [
    {"model": "vae", "epoch": epoch, "seed": seed, "loss": 10.0 / epoch + seed, "kl": 1.5}
    for epoch in (1, 2, 3)
    for seed in (0, 1)
]
TESTED = {"model": "vae", "epoch": 3, "seed": 0, "test_loss": 4.5}
SWEEP = [
    {
        "attack": "pgd",
        "objective": "rank 2",
        "epsilon": epsilon,
        "confidence": 0.5,
        "target_name": "pug",
        "success": True,
    }
    for epsilon in (0.0, 0.01)
]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    def draw() -> Figure:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return figure

    path = save(tmp_path / "run" / "figures" / "losses.png", draw)
    settings, results = {"epochs": 3, "data": "packaged"}, {"vae.test_iwae.mean": 99.5}
    return Record("vae", tmp_path / "run", settings, tuple(make_points([*ROWS, TESTED])), results, (path,))


def test_rows_are_points_of_their_series() -> None:
    points = list(make_points([*ROWS, TESTED, *SWEEP]))
    assert [(point.series, point.step) for point in points[:3]] == [
        ("vae/seed_0", 1), ("vae/seed_1", 1), ("vae/seed_0", 2),
    ]  # fmt: skip
    assert points[6] == ("vae/seed_0", 3, {"test_loss": 4.5})
    assert [(point.series, point.step, point.values["epsilon"]) for point in points[7:]] == [
        ("pgd/rank 2", 0, 0.0), ("pgd/rank 2", 1, 0.01),
    ]  # fmt: skip


def read_events(directory: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_reads_what_was_measured_once(record: Record, tmp_path: Path) -> None:
    for _ in range(2):  # an export in the place of another
        command = trackers.export_anew(trackers.export_tensorboard, [record], tmp_path / "events")
    assert command == f"tensorboard --logdir {tmp_path / 'events'}"
    events = read_events(tmp_path / "events" / "vae")
    found = [(event.step, event.value) for event in events.Scalars("vae/seed_1/loss")]
    assert found == [(1, 11.0), (2, 6.0), (3, pytest.approx(10 / 3 + 1))]
    assert [event.value for event in events.Scalars("results/vae/test_iwae/mean")] == [99.5]
    assert [event.value for event in events.Scalars("vae/seed_0/test_loss")] == [4.5]
    assert events.Images("figures/losses")[0].width > 50
    assert b"epochs: 3" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]


def test_mlflow_reads_what_was_measured_once(record: Record, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    for _ in range(2):
        command = trackers.export_anew(trackers.export_mlflow, [record], tmp_path / "mlflow")
    (database,) = (tmp_path / "mlflow").glob("*.db")
    address = f"sqlite:///{database}"
    assert command == f"mlflow ui --backend-store-uri {address}"
    client = MlflowClient(tracking_uri=address)
    (experiment,) = (one for one in client.search_experiments() if one.name == "latentlab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"epochs": "3", "data": "packaged"} and run.info.status == "FINISHED"
    found = client.get_metric_history(run.info.run_id, "vae/seed_0/loss")
    assert sorted((metric.step, metric.value) for metric in found) == [(1, 10.0), (2, 5.0), (3, 10 / 3)]
    assert run.data.metrics["results/vae.test_iwae.mean"] == 99.5
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "figures")] == ["figures/losses.png"]


def test_wandb_has_an_offline_run_that_can_be_read_back(record: Record, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    for _ in range(2):
        command = trackers.export_anew(trackers.export_wandb, [record], tmp_path / "wandb")
    assert command.startswith("wandb sync ")
    (path,) = (tmp_path / "wandb").rglob("*.wandb")
    history, summary = [], {}
    for content in read_level_db_log(path.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(content)
        if entry.HasField("history"):
            history.append({_key(item): json.loads(item.value_json) for item in entry.history.item})
        if entry.HasField("summary"):
            summary |= {_key(item): json.loads(item.value_json) for item in entry.summary.update}
    losses = [(row["vae/seed_0/step"], row["vae/seed_0/loss"]) for row in history if "vae/seed_0/loss" in row]
    assert losses == [(1, 10.0), (2, 5.0), (3, 10 / 3)]
    assert summary["results/vae.test_iwae.mean"] == 99.5
    assert history[-1]["figures/losses/path"].endswith(".png")


def read_level_db_log(content: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file: seven bytes of its own, then LevelDB's log in blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


def _key(item: Any) -> str:
    return str(item.key or "/".join(item.nested_key))


def test_a_tracker_that_is_not_installed_is_named(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(trackers, "import_module", refuse)
    for name, write in trackers.EXPORTS.items():
        with pytest.raises(UserError, match=rf'pip install -e ".\[{name}\]"'):
            write([record], tmp_path / name)


def test_a_run_is_followed_and_a_resumed_one_has_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "SECONDS", 0.05)
    log, events = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "events"
    with trackers.follow_with_tensorboard(tmp_path, events):
        for row in ROWS[:4]:
            log.append(row)
        deadline = time.monotonic() + 60
        while not list(events.glob("events.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert [event.step for event in read_events(events).Scalars("vae/seed_0/loss")] == [1, 2]
    with trackers.follow_with_tensorboard(tmp_path, events):
        log.rewind("vae", 1)  # to the checkpoint that it goes on from
        for row in ROWS[2:]:
            log.append(row)
    assert [event.step for event in read_events(events).Scalars("vae/seed_0/loss")] == [1, 2, 3]


@pytest.fixture(scope="module", params=["autoencoder", "vae", "conditional", "faces"])
def made(request: pytest.FixtureRequest) -> tuple[Any, Any, tuple[networks.Network, ...]]:
    model: Any = {
        "autoencoder": Autoencoder(3), "vae": Vae(3), "conditional": ConditionalVae(3, classes=4),
        "faces": FaceVae(8, (32, 32, 3), encoder_filters=(4, 8), decoder_filters=(8, 4)),
    }[request.param]  # fmt: skip
    variables = model.init(jax.random.key(0))
    return model, variables, networks.make_networks(f"{request.param}_", model, variables)


def test_weights_are_read_by_safetensors_with_what_they_are_for(made: Any, tmp_path: Path) -> None:
    _, variables, found = made
    stored: dict[str, np.ndarray] = {}
    for network, path in zip(found, networks.export_safetensors(found, tmp_path), strict=True):
        with safe_open(path, "numpy") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, for it is no mapping
            assert file.metadata()["inputs"] == network.about["inputs"]
            assert json.loads(file.metadata()["shapes"])[0][0] == list(network.inputs[0].shape)
    own = variable_arrays(variables)
    assert stored.keys() == own.keys() and all((stored[name] == own[name]).all() for name in own)


def test_programs_take_batches_of_any_size_on_three_platforms(made: Any, tmp_path: Path) -> None:
    model, variables, found = made
    encoder, decoder = (
        export.deserialize(bytearray(path.read_bytes())) for path in networks.export_stable_hlo(found, tmp_path)
    )
    assert encoder.platforms == decoder.platforms == ("cpu", "cuda", "tpu")
    for size in (1, 5):
        inputs = [np.zeros((size, *one.shape), one.dtype) for one in found[1].inputs]
        want = jax.nn.sigmoid(model.decode(variables, jnp.asarray(inputs[0])))
        np.testing.assert_allclose(decoder.call(*inputs), want, atol=1e-6)
        inputs = [np.ones((size, *one.shape), one.dtype) for one in found[0].inputs]
        assert encoder.call(*inputs)["mean"].shape == (size, model.latent_dim)


def test_check_finds_a_file_that_does_something_else(made: Any, tmp_path: Path) -> None:
    _, _, found = made
    for name, write in (("safetensors", networks.export_safetensors), ("jax-export", networks.export_stable_hlo)):
        write(found, tmp_path / name)
    assert list(networks.check_exports(found, tmp_path)) == []
    other = [replace_variables(network, jax.tree.map(lambda leaf: leaf + 0.1, network.variables)) for network in found]
    faults = list(networks.check_exports(other, tmp_path))
    assert len(faults) == 4 and sum("holds other weights" in fault for fault in faults) == 2
    assert sum("differs from the run's network" in fault for fault in faults) == 2
    for path in tmp_path.rglob("*.s*"):
        path.write_bytes(b"damaged")
    assert len(list(networks.check_exports(found, tmp_path))) == 4


def replace_variables(network: networks.Network, variables: Any) -> networks.Network:
    return network._replace(variables=variables)


def test_a_folder_for_the_hub_has_a_card_with_the_numbers(made: Any, tmp_path: Path) -> None:
    _, _, found = made
    (tmp_path / "config.json").write_text('{"experiment": "vae"}')
    directory = tmp_path / "hub"
    networks.export_hugging_face(found, directory, tmp_path, "| loss | 1.5 |", "python run.py vae")
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: latentlab\nlicense: apache-2.0\n")
    assert "| loss | 1.5 |" in card and "python run.py vae" in card and found[0].about["outputs"] in card
    assert {path.name for path in directory.iterdir()} == {
        "README.md", "config.json", *(f"{network.name}.safetensors" for network in found),
    }  # fmt: skip


def test_a_run_without_networks_is_refused() -> None:
    with pytest.raises(UserError, match="runs/0007 has no networks"):
        networks.require_networks((), Path("runs/0007"))
