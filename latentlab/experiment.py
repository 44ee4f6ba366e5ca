"""What the command line, `latentlab.load` and the page ask of an experiment, and the registry of the three.

The registry names packages as strings and imports a module of one when it is asked for, so that no import runs from
here to an experiment.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, make_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_type_hints, runtime_checkable

import msgspec

from latentlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from latentlab.storage.check import Manifest

EXPERIMENTS = {"vae": "vae", "latent-arith": "latent_arith", "adversarial": "adversarial"}
"""Command to package, in the order in which `all` runs them."""
COMMANDS = ("all", *EXPERIMENTS)
CONFIG = "config.json"
SUMMARY = "summary.md"
"""What was measured, as the terminal shows it, beside an experiment's `results.json`."""

Differences = dict[str, tuple[Any, Any]]


@runtime_checkable
class Results(Protocol):
    """What an experiment gives: a frozen dataclass."""

    def arrays(self) -> "dict[str, dict[str, np.ndarray]]":
        """Return the arrays of every `.npz` that `save` writes, by file and name."""

    def summary(self) -> str:
        """Return what was measured, in a few lines for the terminal."""

    def save(self, run_dir: Path) -> None:
        """Write arrays, weights and `results.json`, each file whole or not at all."""


class Experiment(Protocol):
    """The functions of a package's module `experiment`.

    Beside it a package has `config` (a frozen dataclass and `PRESETS`; the dataclass may have a `RENAMED`, names of
    fields in older versions), `figures` (`draw(run_dir)`, which draws every figure from the files of a run), and its
    section of the page: `section` (`KEY`, `TITLE` and `make_section(run_dir)`, which returns JSON) and `section.js`,
    which shows that.
    """

    def run(self, config: Any, run_dir: Path | None = None, **parts: Any) -> Results:
        """Run the experiment, or go on with it; parts such as `model=` and `data=` replace what the config names."""

    def manifest(self, config: Any) -> "Manifest":
        """Return what `run` leaves in a run directory."""

    def load(self, run_dir: Path, config: Any) -> Results:
        """Read the results of a run, with its models and their weights."""


class Part(NamedTuple):
    """One experiment of a run: its configuration and where its files are."""

    run_dir: Path
    config: Any


class Run:
    """A run as it was stored: command, configuration, and results by package, read when they are first asked for.

    `run.vae` is what `vae.experiment.load` returns, and so for every package that the run has.

    Raises:
        UserError: The directory holds no run, or `config.json` is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        from latentlab.storage.run_directory import read_json  # NumPy, which `--help` does without

        record = read_json(path / CONFIG)
        command = record.get("experiment") if isinstance(record, dict) else None
        if command not in COMMANDS:
            raise UserError(f"{path / CONFIG}: experiment is {command!r}, expected one of {', '.join(COMMANDS)}")
        self.path, self.command = path, str(command)
        self.config = parse_config(config_type(self.command), record.get("config"), path / CONFIG)

    @property
    def experiments(self) -> dict[str, Part]:
        """The experiments of the run by package."""
        return split_config(self.command, self.config, self.path)

    def __getattr__(self, name: str) -> Any:
        if name not in EXPERIMENTS.values():
            raise AttributeError(f"a run has no {name!r}")
        part = self.experiments.get(name)
        if part is None:
            raise UserError(f"{self.path} is a run of {self.command!r}, which has no results of {name}")
        results = import_part(name, "experiment").load(part.run_dir, part.config)
        setattr(self, name, results)
        return results

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.experiments]


def start_run(run_dir: Path | None, command: str, config: Any) -> None:
    """Write `config.json` of a run, unless the directory has the one of a run that goes on.

    Raises:
        UserError: It has a run with another configuration, or cannot be written.
    """
    if run_dir is None:
        return
    from latentlab.storage import run_directory

    if not (run_dir / CONFIG).exists():
        record = {"experiment": command, "config": asdict(config), **run_directory.describe_machine()}
        run_directory.write_json(run_dir / CONFIG, record)
        return
    stored = Run(run_dir)
    if stored.command != command:
        raise UserError(f"{run_dir} is a run of {stored.command!r}, not of {command!r}; expected another directory")
    for name, (ours, theirs) in find_differences(config, stored.config).items():
        raise UserError(
            f"{run_dir}: the run has {name} = {theirs!r}, this one {ours!r}; a run goes on with its own configuration, "
            "another one needs another directory"
        )


def finish_run(run_dir: Path, command: str, results: Results) -> None:
    """Write `summary.md` of a run."""
    from latentlab.storage import run_directory

    with run_directory.atomic(run_dir / SUMMARY) as file:
        file.write(f"# {command}\n\n{results.summary()}\n".encode())


def find_differences(ours: Any, theirs: Any) -> Differences:
    """Return the fields, by dotted name, in which two configurations differ, with both values."""
    found: Differences = {}
    for field in fields(ours):
        values = getattr(ours, field.name), getattr(theirs, field.name)
        if is_dataclass(values[0]):
            found |= {f"{field.name}.{name}": pair for name, pair in find_differences(*values).items()}
        elif values[0] != values[1]:
            found[field.name] = values
    return found


def import_part(package: str, part: str) -> Any:
    """Import a module of an experiment, such as `config` or `experiment`."""
    return import_module(f"{package}.{part}")


@cache
def presets(command: str) -> Mapping[str, Any]:
    """Return the configurations of a command by preset; that of `all` has a field for every package."""
    if command != "all":
        return dict(import_part(EXPERIMENTS[command], "config").PRESETS)
    by_package = {package: presets(command) for command, package in EXPERIMENTS.items()}
    kinds = [(package, config_type(command)) for command, package in EXPERIMENTS.items()]
    kind = make_dataclass("AllConfig", kinds, frozen=True)
    kind.__doc__ = "All three experiments, each in a folder of its own."
    names = next(iter(by_package.values()))
    return {name: kind(**{package: by_name[name] for package, by_name in by_package.items()}) for name in names}


def config_type(command: str) -> type:
    """Return the dataclass of a command's configuration."""
    return type(next(iter(presets(command).values())))


def split_config(command: str, config: Any, run_dir: Path) -> dict[str, Part]:
    """Return the experiments of a run by package."""
    if command != "all":
        return {EXPERIMENTS[command]: Part(run_dir, config)}
    return {package: Part(run_dir / package, getattr(config, package)) for package in EXPERIMENTS.values()}


def parse_config(kind: type, values: Any, where: Path) -> Any:
    """Return a configuration from JSON; fields that a run of an older version lacks have their defaults.

    Raises:
        UserError: A field is unknown, of another type or out of range.
    """
    values, unknown = _rename_fields(kind, values)
    if unknown:
        raise UserError(f"{where}: config has {', '.join(unknown)}, which this version does not know")
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"{where}: config: {error}") from error


def _rename_fields(kind: type, values: Any) -> tuple[Any, list[str]]:
    """Return values with fields of older versions under their new names (`kind.RENAMED`), and names without a field."""
    if not isinstance(values, dict):
        return values, []
    names, kinds = {field.name for field in fields(kind)}, get_type_hints(kind)
    new_names: Mapping[str, str] = getattr(kind, "RENAMED", {})
    renamed: dict[str, Any] = {}
    unknown: list[str] = []
    for old, value in values.items():
        name = new_names.get(old, old)
        if name not in names:
            unknown.append(old)
        elif is_dataclass(kinds[name]):
            value, inner = _rename_fields(kinds[name], value)
            unknown += [f"{name}.{field}" for field in inner]
        renamed[name] = value
    return renamed, unknown
