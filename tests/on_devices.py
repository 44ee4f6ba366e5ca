"""What eight simulated devices compute, run as a process of its own, for their number is set before JAX starts.

python -m tests.on_devices OUT.npz writes arrays that are named `what: part/mesh`; `test_mesh` compares those of all
meshes with those of one device.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

# Room for them to wait for one another, as `processes.let_simulated_devices_take_turns` makes it
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
os.environ["PJRT_NPROC"] = "32"
os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh

from adversarial import experiment
from adversarial.classifier import Class, Classifier
from adversarial.methods import Method
from adversarial.pixels import RANGES
from latent_arith import faces
from latent_arith.models import FaceVae
from runtime import mesh
from runtime.checkpoints import digest
from vae import models, train
from vae.config import VaeConfig

MESHES = {"1": (1, 1), "3": (1, 3), "8": (1, 8), "2x4": (2, 4)}  # devices for seeds, and for examples
SEEDS = 2


def main(path: str) -> None:
    found: dict[str, np.ndarray] = {}
    for name, shape in MESHES.items():
        devices = np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        with jax.set_mesh(Mesh(devices, (mesh.SEED, mesh.DATA), axis_types=(AxisType.Auto,) * 2)):
            for what, function in WORKS.items():
                if name in ("1", "8") or what.startswith("digits") or (name == "3" and what != "faces"):
                    found |= {f"{what}: {part}/{name}": array for part, array in function().items()}
    np.savez(path, **found)


def trained(model: Any, images: np.ndarray, batch_size: int, divided: bool) -> dict[str, np.ndarray]:
    """Parameters and losses after three steps in float64, on batches that most numbers of devices do not divide."""

    def loss(params: Any, pixels: Array, key: Array, step: Array) -> Any:
        return model.loss(params, pixels.astype(jnp.float64), key, step)

    optimizer = train.adam(1e-3, 1e-7, divided)

    def init(seed: Array) -> train.TrainState:
        def parameters(key: Array) -> Any:
            return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(key))

        return train.init_state(jax.random.key(seed), parameters, optimizer)

    state = jax.jit(jax.vmap(init, spmd_axis_name=mesh.SEED))(jnp.arange(SEEDS))
    run = train.steps_on_batches(
        iter(np.split(images, len(images) // batch_size)),
        len(images) // batch_size,
        batch_size=batch_size,
        loss=loss,
        optimizer=optimizer,
    )
    state, metrics = run(state, len(images) // batch_size)
    moments = jax.tree.leaves(state.optimizer_state)
    held = sum(leaf.addressable_shards[0].data.size for leaf in moments) / sum(leaf.size for leaf in moments)
    params = {
        jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(mesh.fetched(state.params))
    }
    return {**params, "losses": np.asarray(metrics["loss"]), "share of moments": np.asarray(held)}


def digits(divided: bool = False) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), np.uint8)
    return trained(models.variational_autoencoder(VaeConfig()), images, 10, divided)


def painted() -> np.ndarray:
    return np.asarray(mesh.fetched(faces.faces(jax.random.key(0), jnp.arange(70)))[0])


def faces_() -> dict[str, np.ndarray]:
    """Digest of faces, which are to be the same to the bit, and what they train, with BatchNorm and Dropout."""
    images = painted()
    key = np.frombuffer(digest(images).encode(), np.uint8)
    return {"painted": key, **trained(FaceVae(dropout=0.25), images[:24], 12, divided=False)}


def rows() -> dict[str, np.ndarray]:
    """Rows that the devices divide and others, with keys, in and out, along both axes."""
    found: dict[str, np.ndarray] = {}
    for count in (1, 5, 8, 24):
        images = np.arange(3.0 * count).reshape(count, 3)
        keys = jax.random.split(jax.random.key(1), count)

        def noisy(scale: Array, row: Array, key: Array) -> Array:
            return scale * row + jax.random.normal(key, row.shape)

        mapped = jax.jit(lambda rows, keys: mesh.map_rows(noisy, jnp.asarray(2.0), rows, keys, at_once=2))
        found[f"mapped {count}"] = mesh.fetched(mapped(images, keys))
        turned = jax.jit(mesh.over_rows(lambda rows: jnp.cumsum(rows, axis=0), (1,), out_axis=1))
        found[f"along the second axis {count}"] = mesh.fetched(turned(images.T))
        found[f"in chunks {count}"] = mesh.in_chunks(jax.jit(lambda some: some**2), images, at_once=5)
        there = mesh.put(mesh.portion(images.T.copy().T, size=24))
        found[f"there and back {count}"] = mesh.portion_of(there, count)
    return found


def attacked() -> dict[str, np.ndarray]:
    """Images after PGD from random starts, of five photos."""

    class Network:
        def apply(self, variables: Array, images: Array) -> Array:
            return jnp.tanh(images.reshape(len(images), -1)) @ variables

        __hash__ = object.__hash__

    weights = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)
    classifier = Classifier(
        NETWORK.setdefault("network", Network()), weights, RANGES["zero-one"], (Class("", "a"),) * 4
    )
    pixels = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 3), np.uint8)
    found = {}
    for name in ("fgsm", "pgd"):
        method = Method(name, steps=3, restarts=2)  # type: ignore[arg-type]
        found[name] = experiment._attacked_portion(
            method,
            jax.random.key(2),
            classifier,
            10,
            6,
            pixels,
            np.asarray([[0, 1, 2, 3, 0], [1, 2, 3, 0, 1]]),
            np.asarray([False, True]),
            np.asarray([0.0, 0.1], np.float32),
        )
    return found


NETWORK: dict[str, Any] = {}
WORKS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "digits": digits,
    "digits, moments divided": lambda: digits(divided=True),
    "faces": faces_,
    "rows": rows,
    "attacked": attacked,
}

if __name__ == "__main__":
    main(sys.argv[1])
