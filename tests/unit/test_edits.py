"""Latent arithmetic and the files that keep it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latent_arith.config import PRESETS
from latent_arith.datasets.face_data import FaceData
from latent_arith.directions import Directions
from latent_arith.edits import (
    STRENGTHS,
    Edit,
    decode_all,
    lerp,
    move_along,
    read_bare,
    read_edits,
    slerp,
    write_bare,
    write_edits,
)
from latent_arith.pictures import make_kept_edit
from latentlab.errors import UserError

SMILE_PAIRS = Path(__file__).parents[1] / "data" / "smile_pairs.npz"


def latent(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape or (200,), np.float32)


def edit(seed: int = 0) -> Edit:
    return Edit(f"{seed}.jpg", latent(seed), latent(seed + 9), (-2.0, 0.0, 1.5), "Smiling", "synthetic:3", "ab" * 32)


def test_the_two_smiles_of_the_exercise() -> None:
    """Both differences are four times a unit vector; the vectors agree with cosine 0.971."""
    first, second = read_edits(SMILE_PAIRS)
    assert (first.image_id, second.image_id) == ("008629.jpg", "182365.jpg")
    for one in (first, second):
        assert one.strengths == STRENGTHS
        assert np.linalg.norm(one.z_end - one.z_start) == pytest.approx(4, abs=1e-5)
        assert np.linalg.norm(one.direction) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(one.latents(), one.z_start + np.outer(STRENGTHS, one.direction), atol=1e-5)
    assert first.direction @ second.direction == pytest.approx(0.971, abs=5e-4)


def test_an_edit_survives_its_file_bit_for_bit(tmp_path: Path) -> None:
    edits = [edit(0), edit(1)]
    write_edits(tmp_path / "EDIT.npz", edits)
    for kept, read in zip(edits, read_edits(tmp_path / "EDIT.npz"), strict=True):
        np.testing.assert_array_equal(kept.z_start, read.z_start)
        np.testing.assert_array_equal(kept.z_end, read.z_end)
        for name in ("image_id", "strengths", "attribute", "dataset", "fingerprint"):
            assert getattr(kept, name) == getattr(read, name)
    with pytest.raises(ValueError, match="share"):
        write_edits(tmp_path / "EDIT.npz", [edit(0), replace(edit(1), attribute="Bangs")])


def test_steps_include_both_ends_and_are_linear_in_the_strengths() -> None:
    one = edit()
    steps = one.latents()
    np.testing.assert_array_equal(steps[[0, -1]], [one.z_start, one.z_end])
    np.testing.assert_allclose(steps[1], one.z_start + 2 / 3.5 * (one.z_end - one.z_start), rtol=0, atol=1e-6)


def test_another_network_is_refused() -> None:
    edit().check_weights("ab" * 32)
    with pytest.raises(UserError, match=r"0\.jpg was made with weights abababababab…, these are cdcdcdcdcdcd…"):
        edit().check_weights("cd" * 32)
    with pytest.raises(UserError, match="weights it does not name"):
        replace(edit(), fingerprint="").check_weights("cd" * 32)


def test_several_attributes_at_once() -> None:
    faces, directions = latent(0, 3, 200), latent(1, 2, 200)
    factors = np.asarray([[0, 0], [1, -2], [0.5, 3]])
    moved = move_along(faces, directions, factors)
    assert moved.shape == (3, 3, 200) and moved.dtype == np.float32
    np.testing.assert_array_equal(moved[:, 0], faces)
    np.testing.assert_allclose(moved[2, 1], faces[2] + directions[0] - 2 * directions[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [lerp, slerp])
@given(seed=st.integers(0, 99), steps=st.integers(2, 9))
def test_paths_have_both_ends_exactly_and_reverse(path: Callable, seed: int, steps: int) -> None:
    start, end = latent(seed), latent(seed + 100)
    points = path(start, end, steps)
    np.testing.assert_array_equal(points[[0, -1]], [start, end])
    np.testing.assert_allclose(path(end, start, steps)[::-1], points, rtol=0, atol=1e-5)


def test_slerp_keeps_the_length_and_turns_evenly() -> None:
    start, end = (v / np.linalg.norm(v) for v in (latent(0), latent(1)))
    points = slerp(start, end, 6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-6)
    turns = np.einsum("il,il->i", points[:-1], points[1:])
    np.testing.assert_allclose(turns, turns[0], rtol=1e-5)
    assert np.linalg.norm(lerp(start, end, 3)[1]) < 0.9


@pytest.mark.parametrize("end", [latent(0), -latent(0), np.zeros(200, np.float32)], ids=["same", "opposite", "origin"])
def test_slerp_is_straight_where_no_arc_is_determined(end: np.ndarray) -> None:
    np.testing.assert_array_equal(slerp(latent(0), end, 5), lerp(latent(0), end, 5))


def test_a_grid_is_one_call_of_the_decoder() -> None:
    calls = []

    def decode(latents: np.ndarray) -> np.ndarray:
        calls.append(latents.shape)
        return np.round(latents[:, :12]).astype(np.uint8).reshape(-1, 2, 2, 3)

    grid = np.abs(latent(0, 3, 5, 200)) * 100
    images = decode_all(decode, grid)
    assert images.shape == (3, 5, 2, 2, 3) and calls == [(15, 200)]
    np.testing.assert_array_equal(images[1, 4].ravel(), np.round(grid[1, 4, :12]).astype(np.uint8))


def stored(**changes: np.ndarray) -> dict[str, np.ndarray]:
    with np.load(SMILE_PAIRS) as arrays:
        return dict(arrays) | changes


FAULTS = {
    "has no z_end": {k: v for k, v in stored().items() if k != "z_end"},
    r"z_end is float32 \(2, 199\)": stored(z_end=latent(0, 2, 199)),
    r"z_start is float32 \(3, 200\)": stored(z_start=latent(0, 3, 200)),
    r"z_start is int64 \(2, 200\)": stored(z_start=np.zeros((2, 200), np.int64)),
    r"image_ids is int64 \(2,\)": stored(image_ids=np.arange(2)),
    "z_start has 1 entries that are NaN": stored(z_start=np.where(np.arange(400).reshape(2, 200) == 7, np.nan, 1.0)),
    "begin and end apart": stored(factors=np.ones(3)),
    "edit 0 .* ends where it starts": stored(z_end=stored()["z_start"]),
    "pickle": stored(image_ids=np.asarray(["a", None], object)),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_bad_file_is_told_in_one_line(message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "EDIT.npz", **FAULTS[message])
    with pytest.raises(UserError, match=message) as told:
        read_edits(tmp_path / "EDIT.npz")
    assert str(tmp_path / "EDIT.npz") in str(told.value)


def test_a_bare_face_is_its_latent_and_nothing_else(tmp_path: Path) -> None:
    latent = np.random.default_rng(0).normal(size=200).astype(np.float32)
    write_bare(tmp_path, latent)
    assert (tmp_path / "face.f32").stat().st_size == 800 and (tmp_path / "face.f16").stat().st_size == 400
    np.testing.assert_array_equal(read_bare(tmp_path / "face.f32"), latent)
    np.testing.assert_allclose(read_bare(tmp_path / "face.f16"), latent, rtol=2**-11, atol=2**-24)
    assert (tmp_path / "face.f32").read_bytes() == latent.astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "has 0 bytes"), (b"abcde", "has 5 bytes, expected 4"), (b"\0\0\xc0\x7f", "1 entries that are NaN")],
)
def test_a_bad_bare_face_is_told_in_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "face.f32").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_bare(tmp_path / "face.f32")
    with pytest.raises(UserError, match="No such file"):
        read_bare(tmp_path / "none.f16")


def test_the_kept_edit_follows_the_estimator_of_the_configuration() -> None:
    """`original` keeps the exercise's, the raw difference of means."""
    config = replace(PRESETS["demo"], held_out_images=4, classifier_images=2)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    smiling = np.where(np.arange(12) % 2, 1, -1).astype(np.int8)
    data = FaceData.from_arrays(images, smiling[:, None], ["Smiling"], config)
    vectors, ones = np.eye(2, 8, dtype=np.float32)[:, None], np.ones((2, 1))
    found = Directions(("Smiling",), ("raw", "balanced"), vectors, ones, ones, ones, ones)

    def encode(faces: np.ndarray) -> np.ndarray:
        return np.asarray(faces, np.float32)[:, 0, 0, :1] + np.zeros(8, np.float32)

    for preset, axis in (("original", 0), ("demo", 1)):
        chosen = replace(config, estimator=PRESETS[preset].estimator)
        kept = make_kept_edit(chosen, data, encode, found, "")
        np.testing.assert_array_equal(kept.z_end - kept.z_start, 4 * np.eye(8)[axis])
        assert int(kept.image_id.split("-")[1]) % 2 == 0, "it has no smile"
