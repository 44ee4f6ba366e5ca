"""One mesh over eight simulated devices: what they compute together is what one computes alone, and who holds what.

`on_devices` computes it in a process of its own. Training is in float64 there, so that sums in another order move
the result by 1e-10 at most (a bias before BatchNorm, whose gradient is 0 up to rounding), and a wrong one by much more.
"""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from latentlab import parallel
from latentlab.errors import UserError

ROOT = Path(__file__).parents[2]
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    path = tmp_path_factory.mktemp("devices") / "computed.npz"
    subprocess.run([sys.executable, "-m", "tests.integration.on_devices", str(path)], check=True, cwd=ROOT)
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def of_mesh(computed: Arrays, what: str, name: str) -> Arrays:
    found = {key.removesuffix(f"/{name}"): array for key, array in computed.items() if key.endswith(f"/{name}")}
    return {key: array for key, array in found.items() if key.startswith(f"{what}: ")}


@pytest.mark.parametrize(
    ("what", "name"),
    [("digits", name) for name in ("3", "8", "2x4")]
    + [("digits, one seed", "8"), ("digits, moments divided", "8"), ("digits, moments divided", "2x4")]
    + [("rows", "3"), ("rows", "8"), ("evaluation", "8"), ("faces", "8")],
)
def test_many_devices_compute_what_one_does(computed: Arrays, what: str, name: str) -> None:
    """12 and 10 images a batch, so that 8 devices divide neither. Where moments are has no say in what they are."""
    one, many = of_mesh(computed, what.partition(", moments")[0], "1"), of_mesh(computed, what, name)
    parts = {key.partition(": ")[2]: key for key in one}
    assert parts.keys() == {key.partition(": ")[2] for key in many} and len(one) > 1
    for part, key in parts.items():
        if part != "share of moments":
            np.testing.assert_allclose(many[f"{what}: {part}"], one[key], rtol=1e-9, atol=1e-9, err_msg=key)


def test_three_training_steps_move_the_weights_by_much_more_than_that(computed: Arrays) -> None:
    (name,) = (
        key for key in computed if key.startswith("digits: ") and "'pixels'" in key and key.endswith("['bias']/8")
    )
    assert np.abs(computed[name]).max() > 1e-3  # it began as zeros


def test_moments_are_whole_on_every_device_or_divided(computed: Arrays) -> None:
    def held(what: str, name: str) -> float:
        return float(computed[f"{what}: share of moments/{name}"])

    assert held("digits", "8") == 1
    assert held("digits", "2x4") == 0.5
    for name in ("8", "2x4"):
        assert held("digits, moments divided", name) == pytest.approx(1 / 8, rel=1e-3)


def test_without_a_mesh_everything_stays_as_it_is() -> None:
    rows = np.arange(6.0).reshape(3, 2)
    assert parallel.device_count() == 1
    np.testing.assert_array_equal(parallel.local_rows(3), [0, 1, 2])
    np.testing.assert_array_equal(parallel.put_batch(rows), rows)
    np.testing.assert_array_equal(parallel.batched_apply(jnp.square, rows, batch_size=2), rows**2)
    assert parallel.replicate(rows) is rows and parallel.shard_batch(rows) is rows


def test_batched_apply_compiles_once_for_any_number_of_rows() -> None:
    shapes = []

    def square(rows: Array) -> Array:
        shapes.append(rows.shape)
        return rows**2

    for count in (0, 1, 4, 9):
        rows = np.arange(2.0 * count).reshape(count, 2)
        np.testing.assert_array_equal(parallel.batched_apply(square, rows, batch_size=4), rows**2)
    assert shapes == [(4, 2)]


def test_rows_that_were_read_apart_know_how_many_the_whole_has() -> None:
    assert len(parallel.LocalRows(np.zeros((2, 5)), count=7)) == 7
    with pytest.raises(ValueError, match=r"7 rows .* at most 4"):
        parallel.batched_apply(jnp.square, parallel.LocalRows(np.zeros((7, 5)), 7), batch_size=4)


@pytest.mark.parametrize("seed_devices", [0, 2])
def test_devices_for_seeds_must_divide_all(seed_devices: int) -> None:
    with pytest.raises(UserError, match=f"seed_devices is {seed_devices}, expected a divisor of .*, 1"):
        parallel.make_mesh(seed_devices)
