"""`python run.py bench`: what it writes, what it refuses, and its count of operations. No time is asserted."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from adversarial.mobilenet_v2 import MobileNetV2
from benchmarks import bench, compiled, gpu
from latentlab import cli
from latentlab.kernels import convolution as kernels
from latentlab.kernels.convolution import convolution

pytestmark = pytest.mark.lenient


def test_it_prints_a_table_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    was = jax.config.values["jax_enable_compilation_cache"]
    assert cli.main(["bench", "--quick", "--works", "digits_grid", "--out", str(out)]) == 0
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


def test_all_about_a_gpu_is_measured_on_a_cpu_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu"
    arguments = ["--out", str(out), "--quick", "--parts", "works", "depthwise", "precision", "--works", "digits_grid"]
    arguments += ["--seconds", "3600"]
    monkeypatch.setattr(gpu, "PRECISIONS", ("bf16",))
    assert gpu.main(arguments) == 0
    found = json.loads((out / "gpu.json").read_text())
    assert found["left_out"] == [] and found["works"]["digits_grid"]["kernels"] == 0
    assert all(seconds > 0 for form in found["depthwise"].values() for seconds in form.values())
    assert 100 < found["precision"]["digits bf16"]["held_out_negative_elbo"] < 600
    assert 6000 < found["precision"]["faces bf16"]["held_out_loss"] < 8000
    assert "HloModule" in (out / "digits_grid.hlo.txt").read_text()
    assert "| digit VAE, a grid of 100 decoded |" in (out / "kernels.md").read_text()
    assert gpu.main(arguments) == 2
    assert f"{out} exists; choose another --out" in capsys.readouterr().err


def test_depthwise_shapes_are_those_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[int, int, int], None] = {}
    computed = kernels.depthwise_convolution

    def record(images: Array, kernel: Array, stride: int, padding: Any) -> Array:
        seen[images.shape[1], images.shape[3], stride] = None
        return computed(images, kernel, stride, padding)

    monkeypatch.setattr(kernels, "depthwise_convolution", record)
    jax.eval_shape(MobileNetV2().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert gpu.depthwise_shapes(224) == list(seen) and len(seen) == 10


def test_what_there_is_no_time_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu"), "--quick", "--seconds", "0"]) == 0
    left_out = json.loads((tmp_path / "gpu" / "gpu.json").read_text())["left_out"]
    assert {"works/digits_step", "peers/mnist_run/ours", "commands/warm"} <= set(left_out)
    assert "left out, for want of time: rates/measured, works/digits_step" in capsys.readouterr().out


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


def test_programs_are_compiled_and_their_kernels_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "hlo"), "--quick", "--works", "digits_epoch", "--devices", "host"]
    assert compiled.main(arguments) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:]
    _, title, device, seconds, outside, in_loops, memory, _ = (cell.strip() for cell in row.split("|"))
    assert (title, device) == ("digit VAE, an epoch of 64", "host") and float(seconds) > 0 and float(memory) > 1
    assert int(outside.partition(":")[0]) > 0 and int(in_loops.partition(":")[0]) > 50
    assert (tmp_path / "hlo" / "digits_epoch-host.hlo.txt").stat().st_size > 10_000
    assert compiled.main(arguments) == 2 and "hlo exists; choose another --out" in capsys.readouterr().err


PROGRAM = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %n = f32[2]{0} negate(%p)
}

%body (carry: (s32[], f32[2])) -> (s32[], f32[2]) {
  %carry = (s32[], f32[2]{0}) parameter(0)
  %x = f32[2]{0} get-tuple-element(%carry), index=1
  %f = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
  %c = f32[2]{0} copy(%f)
  ROOT %t = (s32[], f32[2]{0}) tuple(%i, %c)
}

%test (carry: (s32[], f32[2])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %first = f32[2]{0} fusion(%x), kind=kLoop, calls=%fused
  %loop = (s32[], f32[2]{0}) while(%start), condition=%test, body=%body
  ROOT %product = f32[2]{0} custom-call(%first), custom_call_target="gemm"
}
"""


def test_kernels_in_a_loop_and_outside_it_are_told_apart() -> None:
    found = compiled.count_kernels(PROGRAM)
    assert dict(found.outside) == {"fusion": 1, "custom-call": 1}
    assert dict(found.in_loops) == {"fusion": 1, "copy": 1}
    assert compiled.describe(found.in_loops) == "2: 1 fusion, 1 copy"


@pytest.mark.parametrize("device", ["h100", "v5e"])
def test_without_a_compiler_for_a_device_that_is_said(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no such plugin\nat all")

    monkeypatch.setattr(compiled.topologies, "get_topology_desc", fail)
    assert compiled.main(["--out", str(tmp_path / "hlo"), "--devices", device]) == 2
    said = f'error: {device}: no compiler (no such plugin); pip install -e ".[aot]"\n'
    assert capsys.readouterr().err == said and not list(tmp_path.iterdir())
