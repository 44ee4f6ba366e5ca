"""ResNets and photos against torchvision, and files of PyTorch (`tests/oracles/resnet.py`)."""

import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from safetensors.numpy import save_file

from adversarial import classifier, experiment, photos, resnet
from adversarial.config import AdversarialConfig
from adversarial.pixels import IMAGENET, RANGES
from adversarial.resnet import ResNet
from latentlab.errors import UserError
from latentlab.storage import keras_weights, limits, torch_weights
from tests.oracles.resnet import CLASSES, DATA, LAYERS, draw_images, draw_photo, draw_weights

KINDS = ("plain.pth", "legacy.pth", "wrapped.pth", "wrapped_legacy.pth", "plain.safetensors")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(DATA / "expected.npz"))


def torch_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's weights in PyTorch."""
    template = jax.eval_shape(ResNet(layers, CLASSES).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    shapes = {}
    for (path, name), leaf in zip(resnet._names(template).items(), jax.tree.leaves(template), strict=True):
        order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, range(leaf.ndim))
        shapes[name] = tuple(leaf.shape[axis] for axis in order)
        assert path.startswith(("params/", "batch_stats/"))
    return shapes


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Files of weights as torchvision names them, drawn as the oracle draws them."""
    folder = tmp_path_factory.mktemp("resnet")

    def save(layers: int) -> Path:
        path = folder / f"resnet{layers}.safetensors"
        if not path.exists():
            save_file(draw_weights(torch_shapes(layers)), path)
        return path

    return save


def open_resnet(path: Path, **settings: Any) -> classifier.Classifier:
    config = AdversarialConfig(weights=str(path), **settings)
    return classifier.open_classifier(config, experiment.model_range(config))[0]


@pytest.mark.parametrize("layers", LAYERS)
def test_logits_are_those_of_torchvision(
    layers: int, saved: Callable[[int], Path], expected: dict[str, np.ndarray]
) -> None:
    network = open_resnet(saved(layers), classifier=f"resnet{layers}")
    assert network.range == IMAGENET and "1.14 times as long as what is cut out" in network.assumed
    images = jnp.asarray(draw_images())
    theirs = expected[f"logits/{layers}"]
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(network(images), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layers", LAYERS)
def test_gradients_are_those_of_torchvision(
    layers: int, saved: Callable[[int], Path], expected: dict[str, np.ndarray]
) -> None:
    network, images = open_resnet(saved(layers)), jnp.asarray(draw_images())
    gradient = jax.jit(jax.grad(lambda images: network.logits(images)[:, 2].sum()))(images)
    slopes = expected[f"gradient/{layers}"]
    np.testing.assert_allclose(gradient[:, ::7, ::7], slopes, atol=1e-3 * np.abs(slopes).max())


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152])
def test_the_number_of_layers_is_read_off_the_names(layers: int) -> None:
    arrays = {name: np.zeros(0) for name in torch_shapes(layers)}
    assert resnet._count_layers(arrays) == layers
    counted = sum(name.endswith("weight") and ("conv" in name or name == "fc.weight") for name in arrays)
    assert counted == layers


def test_a_network_is_known_without_its_name(saved: Callable[[int], Path]) -> None:
    known = open_resnet(saved(18))
    assert known.network == ResNet(18, CLASSES) and known.classes[3].name == "class_3"
    fed = open_resnet(saved(18), range="zero-255")
    assert fed.range == RANGES["zero-255"]


def test_another_network_than_the_one_asked_for_is_refused(saved: Callable[[int], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has the weights of a resnet18, expected those of a resnet50"):
        open_resnet(saved(18), classifier="resnet50")
    with pytest.raises(UserError, match=r"resnet50 has no weights of its own; expected --weights FILE"):
        open_resnet(Path("dogs"), classifier="resnet50")
    with pytest.raises(UserError, match=r"of no ResNet of 18, 34.*the first are weight, transposed, part"):
        open_resnet(DATA / "plain.pth")
    shapes = torch_shapes(18)
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name != "bn1.running_var"}
    save_file(arrays, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"batch_stats/bn1/var: missing, expected bn1.running_var of shape \(64,\)"):
        open_resnet(tmp_path / "part.safetensors")
    save_file({name: array for name, array in arrays.items() if "fc" not in name}, tmp_path / "headless.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight has shape \(\), expected that of a last layer"):
        open_resnet(tmp_path / "headless.safetensors")


@pytest.mark.parametrize("name", KINDS)
def test_tensors_are_read_from_every_format(name: str) -> None:
    arrays = torch_weights.read(DATA / name)
    exact = dict(np.load(DATA / "tensors.npz"))
    del exact["bn_num_batches_tracked"]  # an integer
    assert arrays.keys() == exact.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array, np.float64), exact[key])
    assert arrays["brain"].dtype == jnp.bfloat16 and arrays["half"].dtype == np.float16


def test_parameters_are_tensors() -> None:
    arrays = torch_weights.read(DATA / "parameters.pth")
    np.testing.assert_array_equal(arrays["part"], np.load(DATA / "tensors.npz")["part"])


def test_a_whole_module_is_refused_and_named() -> None:
    with pytest.raises(UserError, match=r"holds a torch\.nn\.modules\.linear\.Linear, expected weights alone"):
        torch_weights.read(DATA / "module.pth")


class Runs:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def zip_of(path: Path, content: Any, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('at_')}", data)
    return path


def test_nothing_that_a_file_names_is_run(tmp_path: Path) -> None:
    mark, legacy = tmp_path / "mark", tmp_path / "legacy.pth"
    magic = pickle.dumps(torch_weights.MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    legacy.write_bytes(magic + pickle.dumps({"weight": Runs(mark)}, 2))
    for path in (zip_of(tmp_path / "zip.pth", {"weight": Runs(mark)}), legacy):
        with pytest.raises(UserError, match="holds no tensors by name"):
            torch_weights.read(path)
    assert not mark.exists()


HOSTILE = {
    "a key whose hash recurses": b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns.",
    "attributes of a type": b"\x80\x02ctorch\nBFloat16Storage\nN}X\x05\x00\x00\x00dtypeX\x01\x00\x00\x00xs\x86b.",
    "a place in memory far away": b"\x80\x02}r\xff\xff\xff\xff.",
    "lists that double": b"\x80\x02]q\x00" + b"]q\x01(h\x00h\x00eq\x00" * 60 + b"Q.",
    "lists within lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a call of what is no function": b"\x80\x02NN\x85R.",
    "an instruction that imports": b"\x80\x02(S'true'\nios\nsystem\n.",
    "no end": b"\x80\x02}",
    "nothing on the stack": b"\x80\x020.",
    "two items of three": b"\x80\x02}(NNNu.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no readable weights of PyTorch|holds"):
        torch_weights.read(zip_of(tmp_path / "hostile.pth", HOSTILE[name]))
    assert not hasattr(jnp.bfloat16, "x") and jnp.bfloat16.dtype == np.dtype(jnp.bfloat16)


def test_a_pickle_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"]" * 2**23 + b".")
    with pytest.raises(UserError, match=r"a pickle of 8,388,611 bytes, expected at most 4,194,304"):
        torch_weights.read(path)
    legacy = pickle.dumps(torch_weights.MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    path.write_bytes(legacy + b"\x80\x02" + b"]" * 2**23 + b".")
    with pytest.raises(UserError, match=r"a pickle of more than 4,194,304 bytes"):
        torch_weights.read(path)


def test_many_views_of_one_storage_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_BYTES", 4000)
    numbers = np.zeros(600, np.float32)
    one = tensor_pickle(0, (600,), (1,), 600)
    torch_weights.read(zip_of(tmp_path / "one.pth", one, at_0=numbers.tobytes()))
    item = one[one.index(b"X\x06\x00\x00\x00weight") : one.rindex(b"s.")]
    both = b"\x80\x02}" + item + b"s" + item.replace(b"weight", b"height") + b"s."
    with pytest.raises(UserError, match=r"unpacks to .* expected at most 4,000"):
        torch_weights.read(zip_of(tmp_path / "two.pth", both, at_0=numbers.tobytes()))


def test_a_tar_of_the_first_pytorch_is_named(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    assert torch_weights.is_torch(path)
    with pytest.raises(UserError, match=r"is a tar, as PyTorch wrote before version 0\.2; expected it loaded"):
        torch_weights.read(path)


class Reference:
    """A storage in a pickle that is made here."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


def tensor_pickle(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], count: int = 6) -> bytes:
    """A dictionary of one tensor, pickled as PyTorch does."""

    class Rebuilt:
        def __reduce__(self) -> tuple[Any, ...]:
            return rebuild, (Reference("storage", float_storage, "0", "cpu", count), offset, shape, strides, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            return found.pid if isinstance(found, Reference) else None

    packed = io.BytesIO()
    Pickler(packed, 2).dump({"weight": Rebuilt()})
    theirs = {b"rebuild": b"torch._utils\n_rebuild_tensor_v2", b"float_storage": b"torch\nFloatStorage"}
    made = packed.getvalue()
    for name, named in theirs.items():
        made = made.replace(__name__.encode() + b"\n" + name, named)
    return made


def rebuild() -> None: ...


def float_storage() -> None: ...


def test_views_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    numbers = np.arange(6, dtype=np.float32)

    def read(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], count: int = 6) -> Any:
        path = zip_of(tmp_path / "made.pth", tensor_pickle(offset, shape, strides, count), at_0=numbers.tobytes())
        return torch_weights.read(path)["weight"]

    np.testing.assert_array_equal(read(1, (2, 2), (3, 1)), [[1, 2], [4, 5]])
    np.testing.assert_array_equal(read(0, (3, 2), (1, 3)), numbers.reshape(2, 3).T)
    for offset, shape, strides in (
        (2, (2, 3), (3, 1)),
        (-1, (2,), (1,)),
        (5, (2,), (-1,)),
        (0, (10**6, 10**6), (0, 0)),
        (0, (2, 3), (1,)),
        (7, (1,), (1,)),
    ):
        with pytest.raises(UserError, match=r"weight of shape .* does not fit into its storage of 6 numbers"):
            read(offset, shape, strides)
    with pytest.raises(UserError, match="weight has a storage of 6 numbers, expected 8"):
        read(0, (6,), (1,), count=8)


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    for content, message in (
        (b"", r"begins with b'', expected safetensors or what torch\.save writes"),
        (b"GIF89a and more", r"begins with b'GIF89a a'"),
        ((DATA / "legacy.pth").read_bytes()[:900], "no readable weights of PyTorch"),
        ((DATA / "plain.safetensors").read_bytes()[:-20], "no readable weights of PyTorch"),
        ((DATA / "plain.pth").read_bytes()[:2000], "no readable weights of PyTorch"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message) as raised:
            torch_weights.read(path)
        assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    with pytest.raises(UserError, match=r"has 0 members data\.pkl, expected one"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other", b"")
        torch_weights.read(path)
    with pytest.raises(UserError, match="holds no tensors by name"):
        torch_weights.read(zip_of(path, OrderedDict(epoch=3)))
    with pytest.raises(UserError, match=r"MD5 .*, expected 00; fetch it again"):
        torch_weights.read(DATA / "plain.pth", "00")
    save_file({"weight": np.asarray([1, np.nan], np.float32)}, path)
    with pytest.raises(UserError, match="weight has 1 entries that are NaN or infinite"):
        torch_weights.read(path)


def test_files_are_told_apart(tmp_path: Path) -> None:
    assert all(torch_weights.is_torch(DATA / name) for name in KINDS)
    keras = Path(__file__).parents[1] / "data" / "keras"
    others = [path for path in keras.rglob("*") if path.is_file()]
    assert others and not any(torch_weights.is_torch(path) for path in others)
    with pytest.raises(UserError, match=r"begins with .*expected HDF5"):
        keras_weights.read(DATA / "plain.safetensors")


@pytest.mark.parametrize("photo", [(90, 140), (131, 77), (64, 64)])
def test_photos_are_cut_as_torchvision_does(photo: tuple[int, int], expected: dict[str, np.ndarray]) -> None:
    pixels = draw_photo(*photo)
    theirs = expected[f"photo/{photo[0]}/{photo[1]}"]
    np.testing.assert_array_equal(photos.resize_and_crop(pixels, 64, 56), theirs)
    np.testing.assert_array_equal(photos.from_pixels(pixels, 56, resize=64 / 56).pixels, theirs)


def test_a_photo_that_becomes_too_long_is_refused() -> None:
    with pytest.raises(UserError, match=r"photo: 16000000×256 pixels, expected at most 50 megapixels"):
        photos.from_pixels(np.zeros((1, 62500, 3), np.uint8), 224, resize=256 / 224)


@pytest.mark.slow
def test_a_resnet_sees_the_middle_of_a_photo(saved: Callable[[int], Path]) -> None:
    config = AdversarialConfig(weights=str(saved(18)), size=64, epsilons=(0.0, 0.02), epsilon=0.02)
    pixels = draw_photo(100, 180)
    results: Any = experiment.run(config, photo=pixels, log=lambda line: None)
    np.testing.assert_array_equal(results.photo, photos.resize_and_crop(pixels, round(64 * 256 / 224), 64))
    measured = results.measures
    assert measured["pixel_range"] == "([0, 1] - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)"
    assert measured["assumed"].startswith("a resnet18 that is fed")
    closer = replace(config, shorter_side=64, epsilons=(0.0,), epsilon=0.0)
    squared: Any = experiment.run(closer, photo=pixels, log=lambda line: None)
    np.testing.assert_array_equal(squared.photo, photos.resize_and_crop(pixels, 64, 64))
    with pytest.raises(UserError, match="shorter_side is 63, but the network's images have 64 pixels"):
        experiment.run(replace(config, shorter_side=63), photo=pixels, log=lambda line: None)
    moved = results.sweep.pictures[0, 1].astype(int) - results.photo
    assert 0 < np.abs(moved).max() <= 5, "ε counts grey levels of the picture, 0.02 · 255"


def test_epsilon_counts_grey_levels_whatever_the_network_is_fed() -> None:
    def logits(images: Array) -> Array:
        return images.mean(axis=(1, 2))

    network = classifier.Classifier(
        classifier.CallableNetwork(logits), {}, IMAGENET, tuple(classifier.Class("", name) for name in "rgb")
    )
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    np.testing.assert_allclose(network(white)[0], (1 - np.asarray(IMAGENET.mean)) / IMAGENET.std, rtol=1e-5)
