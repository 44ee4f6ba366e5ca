"""The imports of the project against the drawing in docs/architecture.md, and what only some modules may mention."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("latentlab", "vae", "latent_arith", "adversarial")
ROOMS = ("kernels", "training", "storage", "report", "parallel", "cli", "experiment")
LIGHT = (
    "latentlab.arrays",
    "latentlab.errors",
    "latentlab.config",
    "latentlab.model",
    "latentlab.figures",
    "latentlab.command_process",
)
"""Modules that every room may import, and that are left out of the drawing."""


def sources() -> Iterator[tuple[str, ast.Module, str]]:
    """Yield name, syntax tree and text of every module of the product."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")] + [ROOT / "run.py"]
    for path in paths:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        yield name, ast.parse(text), text


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that are imported anywhere in a module, with each name that is imported from one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """Return the node of the drawing that a module belongs to, or None where it is left out of it."""
    package, *rest = module.split(".")
    if package == "latentlab":
        return f"latentlab.{rest[0]}" if rest and rest[0] in ROOMS else None
    return package if package in (*PACKAGES, "run") else None


def drawn() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", text, re.S)
    return {(one, other) for one, other in re.findall(r"^\s*(\S+) --> ([\w.]+)", drawing, re.M) if other != "jax"}


def test_the_drawing_has_the_imports_and_no_others() -> None:
    found = {(room(name), room(target)) for name, tree, _ in sources() for target in imports(tree)}
    found = {(one, other) for one, other in found if one and other and one != other}
    assert found - drawn() == set(), "imports that the drawing lacks"
    assert drawn() - found == set(), "arrows that no import has"


def test_no_import_runs_upwards() -> None:
    floors = {"latentlab": 0, "vae": 1, "adversarial": 1, "latent_arith": 2, "run": 3}
    for name, tree, _ in sources():
        own = name.partition(".")[0]
        for target in imports(tree):
            other = target.partition(".")[0]
            if other in floors and other != own:
                assert floors[other] < floors[own], f"{name} imports {target}"


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (r"PartitionSpec|shard_map|NamedSharding|local_devices|make_mesh\(", ("latentlab.parallel", "latentlab.cli")),
        (r"platform_dependent|xla_metadata", ("latentlab.kernels",)),
        (r"from flax import linen", ("vae.model", "vae.keras_io", "vae.mlp", "latent_arith.model",
        "latent_arith.attribute_classifier", "adversarial.mobilenet_v2", "adversarial.resnet", "adversarial.digits",
        "adversarial.keras_layers")), (r"import orbax", ("latentlab.storage.checkpoints",)),
        (r"os\._exit|signal\.signal\(|unraisablehook",
        ("latentlab.command_process", "latentlab.training.interrupts", "latentlab.storage.checkpoints")),
    ],
)  # fmt: skip
def test_only_some_modules_mention(words: str, allowed: tuple[str, ...]) -> None:
    pattern = re.compile(words)
    named = {name for name, _, text in sources() if pattern.search(text) and not name.startswith(allowed)}
    assert not named
