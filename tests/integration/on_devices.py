"""What eight simulated devices compute, run as a process of its own, for their number is set before JAX starts.

python -m tests.integration.on_devices OUT.npz writes arrays that are named `what: part/mesh`; `test_parallel` compares
those of all meshes with those of one device.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

# Room for them to wait for one another, as the command line makes it
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

from latent_arith.datasets import synthetic_faces
from latent_arith.model import FaceVae
from latentlab import parallel
from latentlab.model import LatentVariableModel, Loss, Variables
from latentlab.parallel import LocalRows, batched_apply
from latentlab.storage.checkpoints import digest
from latentlab.training.loop import LoopSchedule, init_states, streaming_train_steps
from latentlab.training.optimizer import adam
from vae.config import VaeConfig
from vae.evaluate import evaluate_test_set
from vae.experiment import make_vae

MESHES = {"1": (1, 1), "3": (1, 3), "8": (1, 8), "2x4": (2, 4)}  # devices for seeds, and for examples
SEEDS = 2
Arrays = dict[str, np.ndarray]


def main(path: str) -> None:
    found: Arrays = {}
    for name, shape in MESHES.items():
        devices = np.asarray(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
        with jax.set_mesh(Mesh(devices, (parallel.SEED, parallel.DATA), axis_types=(AxisType.Auto,) * 2)):
            for what, (function, meshes) in WORKS.items():
                if name in meshes:
                    found |= {f"{what}: {part}/{name}": array for part, array in function().items()}
    np.savez(path, **found)


def train(
    model: LatentVariableModel, images: np.ndarray, batch_size: int, seeds: int = SEEDS, shard_optimizer: bool = False
) -> Arrays:
    """Return weights and losses after three steps in float64, on batches that most numbers of devices do not divide."""

    def loss(variables: Variables, pixels: Array, key: Array, step: Array) -> Loss:
        return model.loss(variables, pixels.astype(jnp.float64), key, step, train=True)

    def init(key: Array) -> Variables:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.init(key))

    optimizer, steps = adam(1e-3, 1e-7), len(images) // batch_size
    settings = {"optimizer": optimizer, "seeds": seeds, "shard_optimizer": shard_optimizer}
    state = init_states(jax.random.key, range(seeds), init, optimizer, shard_optimizer)
    schedule = LoopSchedule(len(images), batch_size, 1, steps, 1)
    mine = (images[start + parallel.local_rows(batch_size)] for start in range(0, len(images), batch_size))
    state, metrics = streaming_train_steps(mine, schedule, loss=loss, **settings)(state, steps)
    moments = jax.tree.leaves(state.optimizer_state)
    held = sum(leaf.addressable_shards[0].data.size for leaf in moments) / sum(leaf.size for leaf in moments)
    host = parallel.gather_to_host(state.variables)
    weights = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(host)}
    return {**weights, "losses": np.asarray(metrics["loss"]), "share of moments": np.asarray(held)}


def digits(**settings: Any) -> Arrays:
    """Dense networks, which compile fast; faces have convolutions."""
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 1), np.uint8)
    return train(make_vae(VaeConfig(network="mlp")), images, 10, **settings)


def faces() -> Arrays:
    """Digest of faces, which are to be the same to the bit, and what they train, with BatchNorm and Dropout."""
    images, _, _ = synthetic_faces.paint_faces(jax.random.key(0), np.arange(100))
    key = np.frombuffer(digest(images).encode(), np.uint8)
    small = FaceVae(image_shape=(32, 32, 3), dropout=0.25)
    return {"painted": key, **train(small, images[:24, ::4, ::4], 12, seeds=1)}


def rows() -> Arrays:
    """Rows that the devices divide and others, with keys and shared arrays; and rows put on the devices and back."""
    found: Arrays = {}
    for count in (1, 5, 8, 24):
        images = np.arange(3.0 * count).reshape(count, 3)
        keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), count)))
        found[f"applied {count}"] = batched_apply(scale_and_shift, images, keys, batch_size=2, shared=np.asarray(2.0))
        found[f"squared {count}"] = batched_apply(jnp.square, images, batch_size=5)
        mine = LocalRows(images[parallel.local_rows(count)], count)
        found[f"read apart {count}"] = batched_apply(jnp.square, mine, batch_size=24)
        found[f"there and back {count}"] = parallel.gather_to_host(parallel.put_batch(mine))[:count]
    return found


def scale_and_shift(scale: Array, rows: Array, keys: Array) -> Array:
    noise = jax.vmap(lambda key: jax.random.normal(jax.random.wrap_key_data(key), rows.shape[1:]))(keys)
    return scale * rows + noise


def evaluation() -> Arrays:
    """What is measured of two seeds of the digits' VAE, for 7 images."""
    model = make_vae(VaeConfig(network="mlp"))
    variables = jax.vmap(model.init)(jax.random.split(jax.random.key(0), SEEDS))
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    return evaluate_test_set(model, variables, images, jax.random.split(jax.random.key(1), SEEDS))


WORKS: dict[str, tuple[Callable[[], Arrays], tuple[str, ...]]] = {
    "digits": (digits, ("1", "3", "8", "2x4")),
    "digits, one seed": (lambda: digits(seeds=1), ("1", "8")),
    "digits, moments divided": (lambda: digits(shard_optimizer=True), ("8", "2x4")),
    "faces": (faces, ("1", "8")),
    "rows": (rows, ("1", "3", "8")),
    "evaluation": (evaluation, ("1", "8")),
}
"""What is computed, and on which meshes."""

if __name__ == "__main__":
    main(sys.argv[1])
