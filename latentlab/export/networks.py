"""Networks of a run in the formats of others: safetensors, StableHLO by `jax.export`, and a folder for Hugging Face."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import load_file, save_file

from latentlab.errors import UserError
from latentlab.model import ConditionalModel, Labeled, LatentVariableModel, Variables
from latentlab.storage.run_directory import read_json
from latentlab.storage.weights import variable_arrays

PLATFORMS = ("cpu", "cuda", "tpu")
SAFETENSORS, STABLE_HLO = "safetensors", "jax-export"
SUFFIXES = {SAFETENSORS: ".safetensors", STABLE_HLO: ".stablehlo"}
TOLERANCE = 1e-4
"""Largest difference of an output from the network's own, relative to the largest output, that `check` lets pass."""
PROBED = 3
"""Examples that `check` compares."""


class Network(NamedTuple):
    """A function of variables and a batch, as it leaves a run.

    Attributes:
        name: Of its file.
        apply: Variables and inputs with a batch axis to outputs with one.
        variables: Its weights and statistics.
        inputs: Shape and type of each input of one example.
        about: What inputs and outputs are.
    """

    name: str
    apply: Callable[..., Any]
    variables: Variables
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    about: Mapping[str, str]


def make_networks(prefix: str, model: LatentVariableModel, variables: Variables) -> tuple[Network, Network]:
    """Return the encoder and the decoder of a model, each with its own variables."""
    classes = model.classes if isinstance(model, ConditionalModel) else 0
    image = jax.ShapeDtypeStruct(model.image_shape, jnp.float32)
    latent = jax.ShapeDtypeStruct((model.latent_dim + classes,), jnp.float32)
    label = jax.ShapeDtypeStruct((), jnp.int32)

    def encode(variables: Variables, *inputs: Any) -> Any:
        images: Any = Labeled(*inputs) if classes else inputs[0]
        mean, log_variance = model.encode(variables, images)
        return {"mean": mean, "variance": jnp.exp(log_variance)}

    def decode(variables: Variables, latents: Any) -> Any:
        return jax.nn.sigmoid(model.decode(variables, latents))

    behind = f", and the class of {classes} one-hot behind them" if classes else ""
    size = "×".join(map(str, model.image_shape))
    about_encoder = {
        "inputs": f"images {size} in [0, 1]" + (", and their classes" if classes else ""),
        "outputs": f"mean and variance of {model.latent_dim} latents",
    }
    about_decoder = {"inputs": f"{model.latent_dim} latents{behind}", "outputs": f"images {size} in [0, 1]"}
    inputs = (image, label) if classes else (image,)
    return (
        Network(f"{prefix}encoder", encode, _select(variables, "encoder"), inputs, about_encoder),
        Network(f"{prefix}decoder", decode, _select(variables, "decoder"), (latent,), about_decoder),
    )


def _select(variables: Variables, name: str) -> Variables:
    """Return the variables of one network of a model; all of them where a model does not keep them apart."""
    if not all(name in tree for tree in variables.values() if tree):
        return variables
    return {collection: {name: tree[name]} for collection, tree in variables.items() if name in tree}


def export_safetensors(networks: Sequence[Network], directory: Path) -> list[Path]:
    """Write the weights of every network by their paths, with what is known of it as metadata."""
    paths = []
    for network in networks:
        path = directory / f"{network.name}{SUFFIXES[SAFETENSORS]}"
        directory.mkdir(parents=True, exist_ok=True)
        shapes = {"shapes": json.dumps([[list(one.shape), str(one.dtype)] for one in network.inputs])}
        save_file(variable_arrays(network.variables), path, {**network.about, **shapes})
        paths.append(path)
    return paths


def export_stable_hlo(networks: Sequence[Network], directory: Path) -> list[Path]:
    """Write every network with its weights as one program for CPU, CUDA and TPU, of batches of any size.

    `jax.export.deserialize(bytearray(path.read_bytes())).call(images)` runs it without this package.
    """
    paths = []
    for network in networks:
        (batch,) = export.symbolic_shape("batch")
        inputs = [jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in network.inputs]
        exported = export.export(jax.jit(_close(network)), platforms=PLATFORMS)(*inputs)
        path = directory / f"{network.name}{SUFFIXES[STABLE_HLO]}"
        directory.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported.serialize())
        paths.append(path)
    return paths


def export_hugging_face(
    networks: Sequence[Network], directory: Path, run_dir: Path, summary: str, command: str
) -> list[Path]:
    """Write a folder as Hugging Face's hub has them: weights, settings, and a card with what was measured.

    Args:
        networks: Of the run.
        directory: The folder.
        run_dir: Of the run, whose `config.json` goes along.
        summary: What was measured, in Markdown.
        command: The command that repeats the run.
    """
    paths = export_safetensors(networks, directory)
    (directory / "config.json").write_text(json.dumps(read_json(run_dir / "config.json"), indent=2), encoding="utf-8")
    lines = [
        f"| `{path.name}` | {network.about['inputs']} | {network.about['outputs']} |"
        for path, network in zip(paths, networks, strict=True)
    ]
    card = CARD.format(files="\n".join(lines), summary=summary, command=command, first=paths[0].name)
    (directory / "README.md").write_text(card, encoding="utf-8")
    return [*paths, directory / "README.md"]


CARD = """\
---
library_name: latentlab
license: apache-2.0
tags: [jax, flax, vae, adversarial-examples]
---
# Networks trained with latentlab

    {command}

| file | inputs | outputs |
| --- | --- | --- |
{files}

Weights have the names and the axis order of Flax; images are NHWC in [0, 1].

```python
from safetensors.numpy import load_file

weights = load_file("{first}")
```

## Measured

{summary}
"""


def check_exports(networks: Sequence[Network], directory: Path, inner: str = "") -> Iterator[str]:
    """Yield a line for every exported file that does not do what the run's own network does.

    Args:
        networks: Of the run.
        directory: With a folder a format, each of which may be missing.
        inner: Folder within those of formats.
    """
    for network in networks:
        path = directory / SAFETENSORS / inner / f"{network.name}{SUFFIXES[SAFETENSORS]}"
        if path.exists():
            yield from _compare_weights(network, path)
        path = directory / STABLE_HLO / inner / f"{network.name}{SUFFIXES[STABLE_HLO]}"
        if path.exists():
            yield from _compare_program(network, path)


def _compare_weights(network: Network, path: Path) -> Iterator[str]:
    try:
        stored = load_file(path)
    except Exception as error:  # safetensors raises its own, and those of files
        yield f"{path} cannot be read ({error})"
        return
    own = variable_arrays(network.variables)
    if stored.keys() != own.keys() or any((stored[name] != own[name]).any() for name in own):
        yield f"{path} holds other weights than the run"


def _compare_program(network: Network, path: Path) -> Iterator[str]:
    inputs = [_probe(one) for one in network.inputs]
    try:
        outputs = export.deserialize(bytearray(path.read_bytes())).call(*inputs)
    except Exception as error:  # of flatbuffers, of StableHLO, and of shapes
        yield f"{path} cannot be run ({type(error).__name__})"
        return
    for ours, theirs in zip(jax.tree.leaves(jax.jit(_close(network))(*inputs)), jax.tree.leaves(outputs), strict=True):
        difference = float(jnp.max(jnp.abs(ours - theirs)) / jnp.maximum(jnp.max(jnp.abs(ours)), 1e-6))
        if not difference <= TOLERANCE:
            yield f"{path} differs from the run's network by {difference:.2g} of its largest output"
            return


def _close(network: Network) -> Callable[..., Any]:
    return lambda *inputs: network.apply(network.variables, *inputs)


def _probe(one: jax.ShapeDtypeStruct) -> np.ndarray:
    generator = np.random.default_rng(0)
    shape = (PROBED, *one.shape)
    if np.issubdtype(one.dtype, np.integer):
        return generator.integers(2, size=shape).astype(one.dtype)
    return generator.uniform(size=shape).astype(one.dtype)


def require_networks(networks: Sequence[Network], run: Path) -> None:
    """Raise UserError where a run has no networks of its own."""
    if not networks:
        raise UserError(f"{run} has no networks: it is of a photo that was edited with another run; export that one")
