"""Checkpoints come back bit for bit, or damage is noticed and the one before is used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentlab.errors import UserError
from latentlab.storage.checkpoints import Checkpoints, digest


def state(value: int) -> dict:
    return {
        "params": {"weights": jnp.arange(600.0).reshape(2, 300) + value, "bias": jnp.full(3, value, jnp.bfloat16)},
        "key": jax.random.split(jax.random.key(value), 2),
        "step": jnp.asarray(value, jnp.int32),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoints = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        checkpoints.save(epoch, state(epoch))
    checkpoints.close()
    return tmp_path


def test_the_newest_comes_back_bit_for_bit(saved: Path) -> None:
    epoch, restored, _ = Checkpoints(saved).restore(state(0), pytest.fail)
    assert epoch == 3
    assert digest(restored) == digest(state(3))
    assert digest(restored) != digest(state(2))
    np.testing.assert_array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(state(3)["key"]))


def test_only_the_newest_two_are_kept(saved: Path) -> None:
    assert sorted(entry.name for entry in saved.iterdir()) == ["2", "3"]


def test_nothing_to_restore_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).restore(state(0), pytest.fail) is None


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_noticed_or_harmless(saved: Path, damage: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each file of the newest checkpoint in turn: the state is right, or the one before is used and that is said."""
    fell_back = 0
    for file in files_of(saved / "3"):
        copy = tmp_path_factory.mktemp("copy") / "checkpoints"
        copy.mkdir()
        for source in files_of(saved):
            target = copy / source.relative_to(saved)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        victim = copy / file.relative_to(saved)
        content = bytearray(victim.read_bytes())
        if damage == "truncate":
            victim.write_bytes(content[: len(content) // 2])
        elif damage == "flip":
            content[len(content) // 2] ^= 0x10
            victim.write_bytes(content)
        else:
            victim.unlink()
        told: list[str] = []
        epoch, restored, _ = Checkpoints(copy).restore(state(0), told.append)
        assert digest(restored) == digest(state(epoch)), file
        assert epoch == 3 or (epoch == 2 and "step 3" in told[0] and "\n" not in told[0]), file
        fell_back += epoch == 2
    assert fell_back > 0


def test_a_run_goes_on_after_a_damaged_checkpoint_which_is_deleted_where_that_is_asked_for(saved: Path) -> None:
    (saved / "3" / "digest" / "metadata").write_text('{"sha256": "0"}')
    told: list[str] = []
    assert Checkpoints(saved).restore(state(0), told.append).step == 2 and "SHA-256" in told[0]
    assert (saved / "3").exists()
    checkpoints = Checkpoints(saved)
    assert checkpoints.restore(state(0), told.append, delete_damaged=True).step == 2
    assert not (saved / "3").exists()
    checkpoints.save(3, state(30))
    assert digest(Checkpoints(saved).restore(state(0), pytest.fail)[1]) == digest(state(30))


def test_all_damaged_is_an_error_and_nothing_is_deleted(saved: Path) -> None:
    for epoch in (2, 3):
        (saved / str(epoch) / "digest" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"all checkpoints \(steps \[3, 2\]\) are damaged"):
        Checkpoints(saved).restore(state(0), lambda line: None)
    assert (saved / "2").exists() and (saved / "3").exists()


def test_failing_to_write_is_one_line(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "gone")
    checkpoints.save(1, state(1))
    for path in sorted((tmp_path / "gone").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").write_text("a file where the directory was")
    with pytest.raises(UserError, match="checkpoint of step 2 could not be written") as caught:
        checkpoints.save(2, state(2))
    assert "\n" not in str(caught.value)
