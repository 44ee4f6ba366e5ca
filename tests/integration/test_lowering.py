"""Every hot function, lowered for GPUs and TPUs by `jax.export`, on a CPU, for one device and for a mesh of eight.

What is shown: no function needs a kernel that only CPUs have, on TPUs convolutions are XLA's own, on GPUs matrix
products, and over a mesh each device gets its share of the batch. Nothing is compiled or run;
`python -m benchmarks.compiled` does compile for devices that are not there.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from adversarial import attacks, experiment, robustness
from adversarial.attacks import SweptAttack
from adversarial.classifier import Class, Classifier
from adversarial.mobilenet_v2 import MobileNetV2
from adversarial.pixels import RANGES
from latent_arith.directions import init_moments, update_moments
from latent_arith.model import FaceVae, decode_rows, encode_rows
from latentlab import parallel
from latentlab.model import LatentVariableModel
from latentlab.training.loop import LoopSchedule, init_states, resident_train_steps
from latentlab.training.optimizer import adam
from vae.model import Autoencoder, Vae

DEVICES = 8
NOT_INLINED = re.compile(r"inlineable[^,}]*false")
Work = tuple[Callable[..., Any], tuple[Any, ...]]


def shaped(*shape: int, dtype: Any = jnp.uint8, rows: bool = False) -> jax.ShapeDtypeStruct:
    """An array without values; with `rows`, divided over the devices of the mesh, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    place = NamedSharding(mesh, PartitionSpec(parallel.DATA)) if rows and not mesh.empty else None
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def training(model: LatentVariableModel, seeds: int = 1, batch_size: int = 16) -> Work:
    """An epoch on images that are on the device."""
    optimizer, schedule = adam(1e-3, 1e-7), LoopSchedule(64, batch_size, 1, 4, 1)
    settings: dict[str, Any] = {"loss": partial(model.loss, train=True), "optimizer": optimizer, "seeds": seeds}
    state = jax.eval_shape(lambda: init_states(jax.random.key, range(seeds), model.init, optimizer))
    train = lambda state, images: resident_train_steps(images, schedule, **settings)(state, 4)  # noqa: E731
    return train, (state, shaped(64, *model.image_shape))


def in_rows(function: Callable[..., Any], static: tuple[Any, ...], shared: Any, *rows: Any) -> Work:
    return partial(parallel.apply_to_rows, function, static), (shared, list(rows))


def of_faces(function: Callable[..., Any], *shape: int, dtype: Any = jnp.uint8) -> Work:
    model = FaceVae()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    return in_rows(function, (model,), variables, shaped(DEVICES * 10, *shape, dtype=dtype, rows=True))


def classifier() -> Any:
    network = MobileNetV2(classes=19)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    return Classifier(network, variables, RANGES["minus-one-one"], tuple(Class("", str(n)) for n in range(19)))


def photos(count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Pixels and keys of photos."""
    return shaped(count, 224, 224, 3, rows=True), shaped(count, 2, dtype=jnp.uint32, rows=True)


def robust_accuracy() -> Work:
    attack, count = SweptAttack(attacks.pgd, "linf", (("steps", 3),)), DEVICES * 2
    shared = classifier(), shaped(4, dtype=jnp.float32), shaped(4, dtype=jnp.float32)
    labels = shaped(count, dtype=jnp.int32, rows=True)
    return in_rows(robustness._attack_and_classify_rows, (attack,), shared, *photos(count), labels)


def sweep() -> Work:
    count, objectives, epsilons = DEVICES, 4, 15
    shared = classifier(), shaped(objectives, dtype=jnp.bool), shaped(epsilons, dtype=jnp.float32)
    labels = shaped(count, objectives, dtype=jnp.int32, rows=True)
    return in_rows(experiment._sweep_rows, (SweptAttack(attacks.fgsm),), shared, *photos(count), labels)


def evaluation() -> Work:
    return in_rows(experiment._logits, (), classifier(), photos(DEVICES * 2)[0])


def moments() -> Work:
    values = jax.eval_shape(lambda: init_moments(2, 19, 200))
    latents, signs = shaped(500, 200, dtype=jnp.float32), shaped(500, 19, dtype=jnp.int8)
    return update_moments, (values, latents, signs, shaped(2, 500, 19, dtype=jnp.float32))


WORKS: dict[str, tuple[Callable[[], Work], int]] = {
    "autoencoder, an epoch": (lambda: training(Autoencoder()), 23),
    "digits' VAE, an epoch": (lambda: training(Vae()), 23),
    "digits' VAE, an epoch of 8 seeds": (lambda: training(Vae(), 8), 23),
    "faces, an epoch": (lambda: training(FaceVae()), 23),
    "faces, in bfloat16": (lambda: training(FaceVae(precision="bf16")), 23),
    "faces encoded": (lambda: of_faces(encode_rows, 128, 128, 3), 4),
    "faces decoded": (lambda: of_faces(decode_rows, 200, dtype=jnp.float32), 4),
    "directions": (moments, 0),
    "evaluation": (evaluation, 52),
    "sweep": (sweep, 2 * 52),
    "robust accuracy": (robust_accuracy, 4 * 52),
}
"""Hot functions, and how many convolutions stand in them where convolutions are XLA's; those of a function that they
call more than once, as the classifier, stand there once."""


@contextlib.contextmanager
def mesh_of(devices: int) -> Iterator[None]:
    """A mesh of devices that are not there, none for one."""
    if devices == 1:
        yield
        return
    axes = (parallel.SEED, parallel.DATA)
    with jax.sharding.use_abstract_mesh(AbstractMesh((1, devices), axes, axis_types=(AxisType.Auto,) * 2)):
        yield


@pytest.mark.unchecked  # arrays without values
@pytest.mark.lenient
@pytest.mark.parametrize("devices", [1, DEVICES])
@pytest.mark.parametrize("name", WORKS)
def test_it_is_lowered_for_gpus_and_tpus(name: str, devices: int) -> None:
    make, convolutions = WORKS[name]
    with mesh_of(devices):
        function, arguments = make()
        texts = {
            platform: jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
            for platform in ("cuda", "tpu")
        }
    for platform, text in texts.items():
        assert "custom_call" not in text.replace("stablehlo.custom_call @Sharding", ""), "no kernel of a platform's own"
        assert not NOT_INLINED.search(text), "no habit of XLA's on CPUs"
        found = text.count("stablehlo.convolution")
        if platform == "tpu":
            assert found == convolutions
        elif name.startswith(("digits", "auto", "faces")):
            assert not found and text.count("stablehlo.dot_general") > 4
        assert ('"data"=8' in text) == (devices > 1 and name != "directions")  # small, and whole everywhere
    if devices > 1 and name in ("faces encoded", "sweep", "probabilities", "robust accuracy"):
        rows = arguments[1][0]
        share = "x".join(map(str, (rows.shape[0] // DEVICES, *rows.shape[1:])))
        assert f"tensor<{share}xui8>" in texts["tpu"] and "manual_computation" in texts["tpu"]


@pytest.mark.unchecked
@pytest.mark.lenient
def test_on_cpus_it_is_another_program() -> None:
    function, arguments = of_faces(encode_rows, 128, 128, 3)
    trained, (state, images) = training(FaceVae())
    export = jax.export.export
    assert export(jax.jit(function), platforms=["cpu"])(*arguments).mlir_module().count("stablehlo.convolution") == 0
    assert NOT_INLINED.search(export(jax.jit(trained), platforms=["cpu"])(state, images).mlir_module())


def test_a_share_that_does_not_divide_is_padded_before() -> None:
    """8 devices take 8 or 16 rows; `batched_apply` fills them up."""
    with mesh_of(DEVICES):
        assert [parallel.rows_per_device(count) for count in (1, 8, 9)] == [1, 1, 2]


def test_arrays_without_values_stand_for_those_of_the_product() -> None:
    """The state of a training has the shapes that `init_states` gives it with values."""
    _, (state, _) = training(Vae())
    real = init_states(jax.random.key, [0], Vae().init, adam(1e-3, 1e-7))
    assert jax.tree.map(np.shape, state.params) == jax.tree.map(np.shape, real.params)
    assert isinstance(jax.tree.leaves(real.params)[0], Array)
