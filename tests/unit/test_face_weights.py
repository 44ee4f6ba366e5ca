"""Weights of the face VAE from files: ours, and a checkpoint as TensorFlow 2's Keras writes it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import linen as nn

from latent_arith import weights
from latent_arith.model import CPU_ROWS, FaceVae, make_decode, make_encode
from latentlab.errors import UserError
from latentlab.model import Variables, select_network_variables
from latentlab.storage.checkpoints import Checkpoints, digest
from latentlab.storage.run_directory import read_npz, write_json, write_npz
from latentlab.training.optimizer import adam
from latentlab.training.state import init_state
from tests.oracles import keras_face_vae

pytestmark = [pytest.mark.lenient, pytest.mark.unoptimized]
MADE = Path(__file__).parents[1] / "data" / "keras"  # by make_face_vae.py there
ARCHIVE = MADE / "face_vae.tar.gz"
MODEL = FaceVae()
MD5 = hashlib.md5(ARCHIVE.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def variables() -> Variables:
    return jax.tree.map(np.asarray, jax.jit(FaceVae().init)(jax.random.key(0)))


def test_a_tensorflow_checkpoint_decodes_to_the_images_of_keras() -> None:
    """tf-keras wrote the checkpoint and computed what to expect."""
    expected = np.load(MADE / "face_vae_expected.npz")
    loaded = weights.load(ARCHIVE, MODEL, MD5)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3)), jnp.float32) / 255
    decoded = jax.nn.sigmoid(jax.jit(FaceVae().decode)(loaded, expected["latents"]))[:, 3::8, 5::8]
    np.testing.assert_allclose(decoded, expected["decoded"], atol=1e-5)
    for ours, theirs in zip(FaceVae().encode(loaded, images), ("mean", "log_variance"), strict=True):
        np.testing.assert_allclose(ours, expected[theirs], atol=1e-5 * np.abs(expected[theirs]).max())


def test_what_is_saved_is_loaded(variables: Variables, tmp_path: Path) -> None:
    weights.save(tmp_path / "latent_arith" / weights.WEIGHTS, MODEL, variables)
    for path in (tmp_path, tmp_path / "latent_arith", tmp_path / "latent_arith" / weights.WEIGHTS):
        assert digest(weights.load(path, MODEL)) == digest(variables)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, on NumPy 2
@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_keras_3_models_are_loaded(variables: Variables, name: str, tmp_path: Path) -> None:
    """Names of layers, moving statistics and all, through Keras's own file."""
    built = keras_face_vae.build()
    keras_face_vae.to_keras({name: select_network_variables(variables, name) for name in built}, built)

    class Autoencoder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = built["encoder"], built["decoder"]

        def call(self, images: np.ndarray) -> np.ndarray:
            return self.decoder(self.encoder(images)[0])

    model = Autoencoder()
    with keras_face_vae.lenient():
        model(np.zeros((1, 128, 128, 3), np.float32))
        (model.save if name.endswith(".keras") else model.save_weights)(tmp_path / name)
    assert digest(weights.load(tmp_path / name, MODEL)) == digest(variables)


def test_a_training_that_goes_on_lends_its_newest_checkpoint(tmp_path: Path) -> None:
    optimizer = adam(optax.constant_schedule(5e-4), 1e-7)
    state = init_state(jax.random.key(3), jax.jit(MODEL.init), optimizer)
    checkpoints = Checkpoints(tmp_path / weights.CHECKPOINTS)
    checkpoints.save(2, state)
    checkpoints.close()
    assert digest(weights.load(tmp_path, MODEL)) == digest(state.variables)
    for config in ({"size": 96}, {"vae": {}, "latent_arith": {"size": 96}}):
        write_json(tmp_path / "config.json", {"config": config})
        assert weights.image_size(tmp_path) == 96


def test_an_experiment_of_an_unfinished_run_of_all_has_the_size_that_the_run_says(tmp_path: Path) -> None:
    (tmp_path / "latent_arith" / weights.CHECKPOINTS).mkdir(parents=True)
    write_json(tmp_path / "config.json", {"config": {"latent_arith": {"size": 64}}})
    assert weights.image_size(tmp_path) == weights.image_size(tmp_path / "latent_arith") == 64


def test_a_folder_that_is_called_like_our_checkpoints_is_tensorflows(tmp_path: Path) -> None:
    (tmp_path / weights.CHECKPOINTS.name).mkdir()
    for read in (weights.image_size, lambda path: weights.load(path, MODEL)):
        with pytest.raises(UserError, match=r"0 files end in \.index"):
            read(tmp_path / weights.CHECKPOINTS.name)


def test_encoder_and_decoder_take_any_number_of_rows(variables: Variables) -> None:
    images = np.random.default_rng(0).integers(0, 256, (CPU_ROWS + 3, 128, 128, 3), dtype=np.uint8)
    means = make_encode(MODEL, variables)(images)
    assert means.shape == (CPU_ROWS + 3, 200)
    np.testing.assert_array_equal(make_encode(MODEL, variables)(images[CPU_ROWS:]), means[CPU_ROWS:])
    expected, _ = jax.jit(MODEL.encode)(variables, jnp.asarray(images[-2:], jnp.float32) / 255)
    np.testing.assert_allclose(means[-2:], expected, atol=1e-5)
    pixels = make_decode(MODEL, variables)(means[:2])
    expected = jax.nn.sigmoid(jax.jit(MODEL.decode)(variables, jnp.asarray(means[:2]))) * 255
    assert pixels.dtype == np.uint8 and np.abs(pixels - np.asarray(expected)).max() < 0.51


def mistakes(variables: Variables, directory: Path) -> dict[str, tuple[Path, str]]:
    weights.save(directory / "good.npz", MODEL, variables)
    arrays = read_npz(directory / "good.npz")
    write_npz(directory / "missing.npz", {name: a for name, a in arrays.items() if name != "encoder/mu/bias"})
    write_npz(directory / "extra.npz", {**arrays, "encoder/encoder_conv_4/kernel": np.zeros((3, 3, 64, 64))})
    write_npz(directory / "shape.npz", {**arrays, "encoder/mu/bias": np.zeros(128)})
    write_npz(directory / "nan.npz", {**arrays, "encoder/mu/bias": np.full_like(arrays["encoder/mu/bias"], np.nan)})
    return {
        "absent": (directory / "absent.npz", "absent.npz is missing"),
        "nan": (directory / "nan.npz", "entries that are NaN or infinite"),
        "missing": (directory / "missing.npz", "params/encoder/mu/bias: missing"),
        "extra": (directory / "extra.npz", "encoder/encoder_conv_4/kernel of shape (3, 3, 64, 64) has 0 places"),
        "shape": (directory / "shape.npz", "encoder/mu/bias has shape (128,), expected (200,)"),
        "other": (MADE / "keras.tar.xz", "expected HDF5"),
    }


@pytest.mark.parametrize("mistake", ["absent", "missing", "extra", "shape", "other"])
def test_a_wrong_file_is_told_in_one_line(mistake: str, variables: Variables, tmp_path: Path) -> None:
    path, message = mistakes(variables, tmp_path)[mistake]
    with pytest.raises(UserError) as caught:
        weights.load(path, MODEL)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_weights_of_another_size_say_which(tmp_path: Path) -> None:
    other = FaceVae(20, (64, 64, 3))
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(other.init, jax.random.key(0))
    )
    weights.save(tmp_path / weights.WEIGHTS, other, variables)
    assert weights.image_size(tmp_path) == 64 and weights.image_size(ARCHIVE) == 128
    with pytest.raises(UserError, match=r"has shape .*; expected --size 64 --latent-dim 20 for these weights$"):
        weights.load(tmp_path, MODEL)
    write_npz(tmp_path / "none.npz", {"encoder/mu/bias": np.zeros(200)})
    with pytest.raises(UserError, match=r"none.npz: holds no weights of a face VAE"):
        weights.image_size(tmp_path / "none.npz")


def test_a_wrong_md5_is_told() -> None:
    with pytest.raises(UserError, match="MD5"):
        weights.load(ARCHIVE, MODEL, "0" * 32)


def test_the_fingerprint_is_that_of_published_edits(variables: Variables) -> None:
    """SHA-256 over networks first and collections within, as edits of before name their weights."""
    networks = ("encoder", "decoder")
    before = {name: {part: variables[part][name] for part in ("batch_stats", "params")} for name in networks}
    assert weights.fingerprint(variables) == digest(before)


def test_weights_of_another_model_have_its_paths(tmp_path: Path) -> None:
    model = FaceVae(encoder=Linear(5), latent_dim=5, image_shape=(32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0))
    weights.save(tmp_path / weights.WEIGHTS, model, variables)
    assert "params/encoder/Dense_0/kernel" in read_npz(tmp_path / weights.WEIGHTS)
    assert digest(weights.load(tmp_path, model)) == digest(variables)


class Linear(nn.Module):
    """An encoder of one layer."""

    latent_dim: int

    @nn.compact
    def __call__(self, images: Any, *, train: bool) -> Any:
        hidden = nn.Dense(2 * self.latent_dim)(images.reshape(len(images), -1))
        return hidden[:, : self.latent_dim], hidden[:, self.latent_dim :]


@pytest.mark.parametrize("names", [("z_mean", "z_log_var"), ("fc_mu", "fc_logvar"), ("location", "sigma")])
def test_heads_are_told_apart_by_the_name_of_the_variance(names: tuple[str, str]) -> None:
    """Whatever order a file has them in."""
    kernels = {f"encoder/{name}/kernel": np.full((4, 2), value, np.float32) for value, name in enumerate(names)}
    arrays = {**dict(reversed(kernels.items())), "decoder/conv2d_transpose/kernel": np.zeros((3, 3, 3, 4))}
    found, assumed = weights._in_our_names(arrays)
    assert assumed == "" and found["encoder/mu/kernel"][0, 0] == 0 and found["encoder/log_var/kernel"][0, 0] == 1


def tiny_face_vae(
    activate: Callable[[], keras.Layer] = keras.layers.LeakyReLU, epsilon: float = 1e-3, **convolution: Any
) -> keras.Model:
    """Encoder and decoder in one, of 32×32 pixels."""
    layers = keras.layers
    settings = {"kernel_size": 3, "strides": 2, "padding": "same"} | convolution
    images = keras.Input((32, 32, 3))
    hidden = layers.BatchNormalization(epsilon=epsilon)(layers.Conv2D(4, **settings)(images))
    hidden = activate()(hidden)
    flat = layers.Flatten()(hidden)
    mean, _ = (layers.Dense(5, name=name)(flat) for name in ("mu", "log_var"))
    hidden = layers.Reshape(hidden.shape[1:])(layers.Dense(flat.shape[1])(mean))
    return keras.Model(images, layers.Conv2DTranspose(3, 3, 2, padding="same", activation="sigmoid")(hidden))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras, on NumPy 2
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    ("settings", "words"),
    {
        "slope": ({"activate": lambda: keras.layers.LeakyReLU(negative_slope=0.2)}, r"(negative_slope|alpha) 0\.2"),
        "layer": ({"activate": keras.layers.ReLU}, "ReLU .*: the face VAE has no such layer, expected Conv2D"),
        "function": ({"activate": lambda: keras.layers.Activation("swish")}, "has activation (swish|silu), expected"),
        "epsilon": ({"epsilon": 1e-5}, r"has epsilon 1e-05, expected 0\.001"),
        "strides": ({"strides": 1}, "has strides 1, expected 2"),
        "padding": ({"padding": "valid"}, "has padding valid, expected same"),
        "activation": ({"activation": "relu"}, "has activation relu, expected linear"),
    }.values(),
)
def test_settings_that_are_not_the_face_vaes_are_refused(
    settings: dict[str, Any], words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    tiny_face_vae().save(path)
    weights._read(path, "")
    tiny_face_vae(**settings).save(path)
    with pytest.raises(UserError, match=words):
        weights._read(path, "")


def test_weights_that_are_no_floats_are_refused(variables: Variables, tmp_path: Path) -> None:
    arrays = weights.named_arrays(MODEL, variables)
    write_npz(tmp_path / "w.npz", arrays | {"note": np.asarray("mine")})
    with pytest.raises(UserError, match="note is <U4, expected floats"):
        weights.load(tmp_path / "w.npz", MODEL)
