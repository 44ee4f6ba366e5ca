"""`export` and `--tracker` from the command line, on a whole run and on one of a part."""

import shutil
from pathlib import Path

import pytest

from latentlab import cli
from latentlab.storage.metrics import MetricsLog

pytestmark = pytest.mark.lenient


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(finished, path, ignore=shutil.ignore_patterns("checkpoints"))
    return path


@pytest.mark.parametrize(
    ("to", "files"),
    [
        ("tensorboard", ["vae/events.*", "latent_arith/events.*", "adversarial/events.*"]),
        ("mlflow", ["mlflow-*.db"]),
        ("wandb", ["wandb/offline-run-*/*.wandb"]),
        ("safetensors", ["vae/vae_decoder.safetensors", "latent_arith/encoder.safetensors", "adversarial/*"]),
        ("jax-export", ["vae/autoencoder_encoder.stablehlo", "adversarial/classifier.stablehlo"]),
        ("huggingface", ["vae/README.md", "latent_arith/config.json", "adversarial/classifier.safetensors"]),
    ],
)
def test_a_run_is_exported(run: Path, to: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert cli.main(["export", str(run), "--to", to]) == 0
    for pattern in files:
        assert len(list((run / "export" / to).glob(pattern))) == (3 if "offline" in pattern else 1), pattern
    assert str(run / "export" / to) in capsys.readouterr().out


def test_check_runs_what_was_exported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for to in ("safetensors", "jax-export"):
        assert cli.main(["export", str(run), "--to", to]) == 0
    assert cli.main(["check", str(run)]) == 0
    programs = run / "export" / "jax-export" / "latent_arith"
    (programs / "decoder.stablehlo").write_bytes(b"no program")
    shutil.copy(
        run / "export/safetensors/vae/vae_encoder.safetensors",
        run / "export/safetensors/vae/autoencoder_encoder.safetensors",
    )
    capsys.readouterr()
    assert cli.main(["check", str(run)]) == 1
    told = capsys.readouterr().out
    assert "decoder.stablehlo cannot be run" in told and "autoencoder_encoder.safetensors holds other weights" in told
    shutil.rmtree(run / "export")


def test_an_unfinished_run_goes_to_the_trackers_and_has_no_networks(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(finished / "vae" / name, tmp_path / name)
    assert cli.main(["export", str(tmp_path), "--to", "tensorboard"]) == 0
    assert list((tmp_path / "export" / "tensorboard" / "vae").glob("events.*"))
    assert cli.main(["export", str(tmp_path), "--to", "safetensors"]) == 2
    assert "is missing" in capsys.readouterr().err


def test_metrics_are_written_for_tensorboard_as_they_come(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = (
        "vae --preset quick --train-images 64 --epochs 3 --epochs-per-checkpoint 3 --iwae-samples 2 --prior-samples 50"
    )
    out = tmp_path / "run"
    assert cli.main([*words.split(), "--latent-points", "100", "--tracker", "tensorboard", "--out", str(out)]) == 0
    events = EventAccumulator(str(out / "export" / "tensorboard" / "vae"), size_guidance={"scalars": 0})
    events.Reload()
    rows = [row for row in MetricsLog(out / "metrics.jsonl").rows() if row["model"] == "vae" and "loss" in row]
    found = [(event.step, event.value) for event in events.Scalars("vae/seed_0/loss")]
    assert found == [(row["epoch"], pytest.approx(row["loss"])) for row in rows] and len(rows) == 3
