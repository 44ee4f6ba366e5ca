"""`python run.py bench`: what it writes, what it refuses, and its count of operations. No time is asserted."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from benchmarks import bench, gpu
from latentlab import cli
from latentlab.kernels.convolution import convolution

pytestmark = pytest.mark.lenient


def test_it_prints_a_table_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    was = jax.config.values["jax_enable_compilation_cache"]
    assert cli.main(["bench", "--quick", "--works", "digits_grid", "digits_step", "--out", str(out)]) == 0
    assert jax.config.values["jax_enable_compilation_cache"] == was
    said = capsys.readouterr().out
    assert "GFLOP/s, copies" in said and "| digit VAE, a grid of 100 decoded |" in said
    record = json.loads(out.read_text())
    assert {"devices", "versions", "date", "rates"} <= set(record) and record["quick"] is True
    for work in record["works"].values():
        assert min(work[f"{stage}_seconds"] for stage in ("trace", "lower", "compile")) > 0
        warm = work["warm_seconds"]
        assert 0 < warm["min"] <= warm["median"] <= warm["max"] and warm["repeats"] == bench.FEWEST_REPEATS
        assert work["share_of_limit"] > 0 and work["peak_bytes"] > work["bytes_in_and_out"] > 0
    assert cli.main(["bench", "--quick", "--works", "digits_grid", "--out", str(out)]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_all_about_a_gpu_is_measured_on_a_cpu_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu"
    arguments = ["--out", str(out), "--quick", "--parts", "works", "--works", "digits_grid"]
    assert gpu.main(arguments) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert found["left_out"] == [] and found["works"]["digits_grid"]["kernels"] == 0
    assert "HloModule" in (out / "digits_grid.hlo.txt").read_text()
    assert "| digit VAE, a grid of 100 decoded |" in (out / "kernels.md").read_text()
    assert gpu.main(arguments) == 2
    assert f"{out} exists; choose another --out" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu"), "--quick", "--seconds", "0"]) == 0
    left_out = json.loads((tmp_path / "gpu" / "gpu.json").read_text())["left_out"]
    assert {"works/digits_step", "peers/mnist_run/ours", "commands/warm"} <= set(left_out)
    assert "left out, for want of time: works/digits_step" in capsys.readouterr().out


def test_an_unknown_work_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--works", "digit_step", "--out", str(tmp_path / "x.json")]) == 2
    complaint = capsys.readouterr().err
    assert "there is no 'digit_step'; expected some of digits_step" in complaint and complaint.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_operations_are_those_of_the_network_whatever_form_the_platform_has() -> None:
    matrix = jnp.ones((64, 64))
    assert bench.count_operations(jnp.matmul, matrix, matrix) == 2 * 64**3
    # 300 million multiplications and additions a photo: Sandler et al. 2018, table 4.
    work = bench.forward(bench.Sizes(photos=(1, 1, 1)), "default")
    assert bench.count_operations(work.program.function, *work.program.arguments) == pytest.approx(2 * 300e6, rel=0.03)


@pytest.mark.parametrize("stride", [1, 2])
def test_zeros_of_a_dilated_input_are_no_operations(stride: int) -> None:
    """A gradient takes the convolution, and as many operations again for the images and for the kernel."""
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))

    def total(images: Array, kernel: Array) -> Array:
        return jnp.sum(convolution(images, kernel, stride) ** 2)

    once = 2 * 2 * (8 // stride) ** 2 * 5 * 27
    assert bench.count_operations(total, images, kernel) == once
    assert bench.count_operations(jax.grad(total, (0, 1)), images, kernel) == 3 * once


def test_what_a_loop_consists_of_is_counted_for_every_round() -> None:
    step, epoch = bench.digits_step(bench.QUICK, "default"), bench.digits_epoch(bench.QUICK, "default")
    once, whole = (bench.count_operations(work.program.function, *work.program.arguments) for work in (step, epoch))
    assert whole == epoch.images // step.images * once > 0
