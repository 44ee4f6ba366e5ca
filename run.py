"""latentlab's command line: parses, dispatches, and turns errors into one line and an exit code.

python run.py [all | vae | latent-arith | adversarial] [--preset quick|demo|seed] [--out DIR | --resume RUN]
              [--FIELD VALUE …]
python run.py redraw EDIT.npz --weights WEIGHTS [--out FILE.png]
python run.py check RUN
python run.py figures RUN
python run.py report RUN
python run.py bench [--quick] [--works NAME …] [--out FILE.json]
"""

import argparse
import contextlib
import dataclasses
import errno
import io
import itertools
import shlex
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

import adversarial.config
import latent_arith.config
import vae.config
from runtime import compilation_cache, huge_pages, interrupts, processes, run_directory
from runtime.errors import UserError, first_line

EXPERIMENTS = {"vae": "vae", "latent-arith": "latent_arith", "adversarial": "adversarial"}
"""Command to package, in the order in which `all` runs them."""

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class AllConfig:
    """Every experiment, each in a folder of its package's name."""

    vae: vae.config.VaeConfig
    latent_arith: latent_arith.config.LatentArithConfig
    adversarial: adversarial.config.AdversarialConfig


PRESETS: dict[str, dict[str, Any]] = {
    "vae": vae.config.PRESETS,
    "latent-arith": latent_arith.config.PRESETS,
    "adversarial": adversarial.config.PRESETS,
    "all": {
        name: AllConfig(vae.config.PRESETS[name], latent_arith.config.PRESETS[name], adversarial.config.PRESETS[name])
        for name in vae.config.PRESETS
    },
}


@dataclasses.dataclass(frozen=True)
class Options(Generic[Config]):
    """What every run takes, beside the fields of its configuration."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: str = "demo"
    """quick (a smoke run), demo, or seed (the settings of the original exercise)."""
    out: Path | None = None
    """Directory of the run; by default the next free number under runs/."""
    resume: Path | None = None
    """Go on with the run in this directory, with its own configuration."""
    overwrite: bool = False
    """Delete the run that --out names, if it exists."""
    compilation_cache: bool = True
    """Keep what is compiled in the user's cache, so that the next run starts sooner."""
    seed_devices: int = 1
    """Divide the seeds of the digits over so many groups of devices, and images over the devices of each."""
    distributed: bool = False
    """This process is one of several that run the same command; what follows is found by JAX on SLURM, GKE or a TPU."""
    coordinator: str | None = None
    """HOST:PORT of the first process."""
    processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which of them this one is, from 0."""


@dataclasses.dataclass(frozen=True)
class RedrawOptions:
    """Draws the steps of edits again, from the floats in their file and the weights, without any data set."""

    edit: Annotated[Path, tyro.conf.Positional]
    """An EDIT.npz, such as edit.npz of a run."""
    weights: Path
    """The weights that it was made with: a run, its weights.npz, or a Keras or TensorFlow checkpoint."""
    weights_md5: str = ""
    """MD5 that the file of weights must have."""
    any_weights: bool = False
    """Draw even if the file names other weights, or none."""
    out: Path | None = None
    """The picture; by default beside the edit, with its name and .png."""
    overwrite: bool = False
    """Replace the picture, if it exists."""


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """Times every hot function on this device, stage by stage, and how close it comes to the device's limit."""

    works: tuple[str, ...] = ()
    """Which; all, if none is named."""
    precision: vae.config.Precision = "default"
    """Of the training steps."""
    quick: bool = False
    """Little work and few repeats, to see that everything runs; the times mean nothing."""
    out: Path | None = None
    """File of the results, JSON; by default named after the time, under runs/."""


def main(arguments: list[str]) -> int:
    """Runs one command and returns its exit code: 0, 1 (check found faults), 2 (user error), 130 or 143."""
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0][0] != "-" else ("all", arguments)
    try:
        with interrupts.raised():
            if command in PRESETS:
                return _run(command, rest)
            if command in COMMANDS:
                return COMMANDS[command](rest)
            known = ", ".join([*PRESETS, *COMMANDS])
            raise UserError(f"there is no command {command!r}; expected one of {known}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except interrupts.Interrupted as interruption:
        print(f"interrupted by {interruption}", file=sys.stderr)
        return interruption.exit_code


def _run(command: str, arguments: list[str]) -> int:
    options = _options(command, arguments)
    if options.distributed:
        processes.start(options.coordinator, options.processes, options.process_id)
    if options.compilation_cache:
        compilation_cache.enable()
    with _run_directory(options) as run_dir:
        parts = tuple(EXPERIMENTS.values()) if command == "all" else (".",)
        try:
            with processes.run_directory_of(run_dir, parts) as written:
                _run_in(written, command, options)
        except interrupts.Interrupted:
            if any(run_dir.rglob("metrics.jsonl")):
                print(f"to go on: python run.py {command} --resume {run_dir}", file=sys.stderr)
            raise
        except Exception as error:
            if not processes.lost_another(error):
                raise
            raise UserError(
                f"another process of this run is gone, and says why ({first_line(error)}); "
                f"to go on: python run.py {command} --resume {run_dir}"
            ) from error
    if processes.is_first():
        print(f"{command}: done, see {run_dir}")
        print(f"{command}: the page of it is {_write_report(run_dir, command)}")
    return 0


@contextlib.contextmanager
def _run_directory(options: Options[Any]) -> Iterator[Path]:
    """The directory of the run, made or gone on with by the first process, and by no other run at the same time."""
    with contextlib.ExitStack() as held:

        def hold() -> str:
            if options.resume:
                held.enter_context(run_directory.locked(options.resume))
                return str(options.resume)
            return str(held.enter_context(run_directory.create(options.out, options.overwrite)))

        yield Path(processes.from_first(hold))


def _run_in(run_dir: Path, command: str, options: Options[Any]) -> None:
    _write_config_once(run_dir, command, options.config)
    if command == "all":
        for name, package in EXPERIMENTS.items():
            _run_experiment(package, getattr(options.config, package), run_dir / package, name, options)
        _gather_deliverables(run_dir)
    else:
        _run_experiment(EXPERIMENTS[command], options.config, run_dir, command, options)


def _run_experiment(package: str, config: Any, run_dir: Path, command: str, options: Options[Any]) -> None:
    from runtime.check import check

    experiment = import_module(f"{package}.experiment")
    if not any(check(run_dir, experiment.expected(config))):
        print(f"{command}: {run_dir} is complete")
        return
    run_dir.mkdir(exist_ok=True)
    _write_config_once(run_dir, command, config)
    import jax

    from runtime import mesh

    started = time.monotonic()
    try:
        with jax.set_mesh(mesh.over_all_devices(options.seed_devices if package == "vae" else 1)):
            experiment.run(config, run_dir)
    finally:
        if (run_dir / "metrics.jsonl").exists():
            run_directory.add_time(run_dir, time.monotonic() - started)


def _options(command: str, arguments: list[str]) -> Options[Any]:
    """Parses the options; the configuration of a resumed run is the stored one, and none may contradict it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset")
    early.add_argument("--resume", type=Path)
    try:
        first, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (see python run.py {command} --help)") from error
    presets, preset = PRESETS[command], first.preset or "demo"
    if preset not in presets:
        raise UserError(f"there is no preset {preset!r}; expected one of {', '.join(presets)}")
    default = presets[preset]
    kind: Any = Options[type(default)]  # type: ignore[misc]
    if first.resume is None:
        return _parse(kind, Options(default, preset), command, arguments)
    stored = _read_config(first.resume, command, type(default))
    options = _parse(kind, Options(default if first.preset else stored, preset), command, arguments)
    if options.out or options.overwrite:
        raise UserError("--resume goes on in the run's own directory; leave out --out and --overwrite")
    for name, (ours, theirs) in _differences(dataclasses.asdict(options.config), dataclasses.asdict(stored)).items():
        raise UserError(
            f"--resume {first.resume}: the run has {name} = {theirs!r}, the command line {ours!r}; "
            f"a run is resumed with its own configuration"
        )
    return options


def _parse(kind: Any, default: Any, command: str, arguments: list[str]) -> Any:
    """Tyro's parse, with its framed error messages put into one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, prog=f"run.py {command}", **({"default": default} if default else {}))
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [line.strip("│╭╮╰╯ ") for line in complaint.getvalue().splitlines()]
    _, *told = [line for line in lines if line.strip("─-")]
    told = list(itertools.takewhile(lambda line: not line.startswith(("Argument helptext", "For full")), told))
    message = " ".join(
        itertools.takewhile(lambda line: not line.startswith(("Perhaps you meant", "Arguments similar to")), told)
    )
    near = dict.fromkeys(line.split()[0] for line in told if line.startswith("--") and "," not in line.split()[0])
    message += f"; perhaps you meant {' or '.join(near)}" if near else ""
    raise UserError(f"{message} (see python run.py {command} --help)")


def _write_config_once(run_dir: Path, command: str, config: Any) -> None:
    if (run_dir / "config.json").exists():
        return
    record = {"experiment": command, "config": dataclasses.asdict(config), **run_directory.describe_machine()}
    run_directory.write_json(run_dir / "config.json", record)


def _read_config(run_dir: Path, command: str | None, kind: Any) -> Any:
    record = run_directory.read_json(run_dir / "config.json")
    made_by = record.get("experiment") if isinstance(record, dict) else None
    if made_by != command:
        raise UserError(f"{run_dir} is a run of {made_by!r}, not of {command!r}")
    return _from_dict(kind, record.get("config"), run_dir)


def _from_dict(kind: Any, values: Any, run_dir: Path) -> Any:
    fields = get_type_hints(kind)
    if not isinstance(values, dict) or set(values) != set(fields):
        odd = sorted(set(values) ^ set(fields)) if isinstance(values, dict) else values
        raise UserError(f"{run_dir / 'config.json'} is of another version of {kind.__name__}: it differs in {odd}")
    found = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name]):
            found[name] = _from_dict(fields[name], value, run_dir)
            continue
        try:
            found[name] = _of_type(fields[name], value)
        except (TypeError, OverflowError) as error:
            raise UserError(f"{run_dir / 'config.json'}: {name} is {value!r}, expected {fields[name]}") from error
    return kind(**found)


def _of_type(hint: Any, value: Any) -> Any:
    """A value out of JSON as one of the types that configurations have; TypeError or OverflowError if it is none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_of_type(arguments[0], item) for item in value)
    if origin is Literal and value in arguments:
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is hint:
        return value
    raise TypeError


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            found |= _differences(value, theirs[name], f"{prefix}{name}.")
        elif value != theirs[name]:
            found[prefix + name] = (value, theirs[name])
    return found


def _gather_deliverables(run_dir: Path) -> None:
    from runtime.check import DELIVERABLES

    gathered: dict[str, Any] = {}
    for package in EXPERIMENTS.values():
        gathered |= run_directory.read_npz(run_dir / package / DELIVERABLES)
    run_directory.write_npz(run_dir / DELIVERABLES, gathered)


def _check(arguments: list[str]) -> int:
    """Usage: python run.py check RUN. Says what is missing or wrong in a run; exit code 1 if anything is."""
    from runtime.check import DELIVERABLES, check, check_arrays

    run_dir, command = _run_argument("check", arguments)
    faults: list[str] = []
    config = _read_config(run_dir, command, type(PRESETS[command]["demo"]))
    forms: dict[str, Any] = {}
    for package, part, directory in _parts(run_dir, command, config):
        expected = import_module(f"{package}.experiment").expected(part)
        faults += check(directory, expected)
        forms |= expected.deliverables
    if command == "all":
        faults += check_arrays(run_dir / DELIVERABLES, forms)
    for fault in faults:
        print(fault)
    print(f"{run_dir}: {len(faults)} faults" if faults else f"{run_dir}: complete, {', '.join(sorted(forms))}")
    return 1 if faults else 0


def _parts(run_dir: Path, command: str, config: Any) -> list[tuple[str, Any, Path]]:
    """Package, configuration and directory of every experiment of a run."""
    if command == "all":
        return [(package, getattr(config, package), run_dir / package) for package in EXPERIMENTS.values()]
    return [(EXPERIMENTS[command], config, run_dir)]


def _figures(arguments: list[str]) -> int:
    """Usage: python run.py figures RUN. Draws the figures of a run again from the files in it."""
    run_dir, command = _run_argument("figures", arguments)
    for package in EXPERIMENTS.values() if command == "all" else [EXPERIMENTS[command]]:
        for path in import_module(f"{package}.figures").draw(run_dir / package if command == "all" else run_dir):
            print(path)
    return 0


def _report(arguments: list[str]) -> int:
    """Usage: python run.py report RUN. Writes RUN/report/index.html, a page on which to look at the run and try it."""
    print(_write_report(*_run_argument("report", arguments)))
    return 0


def _write_report(run_dir: Path, command: str) -> Path:
    """The page of a run, from what is on disk of it."""
    from report import page

    config = _read_config(run_dir, command, type(PRESETS[command]["demo"]))
    parts, again = {}, shlex.join(["python", "run.py", command, "--resume", str(run_dir)])
    for package, part, directory in _parts(run_dir, command, config):
        parts[package] = (directory, import_module(f"{package}.experiment").expected(part))
    commands = {
        package: again if package in parts else f"python run.py {name}" for name, package in EXPERIMENTS.items()
    }
    return page.write(run_dir, parts, commands, _repeating(command, config))


def _repeating(command: str, config: Any) -> str:
    """The command that starts such a run, made of its configuration, for the command that is written in it may lie."""
    ours = dataclasses.asdict(config)
    every = {name: _differences(ours, dataclasses.asdict(preset)) for name, preset in PRESETS[command].items()}
    preset, changed = min(every.items(), key=lambda item: len(item[1]))
    words = ["python", "run.py", command, "--preset", preset]
    for name, (value, _) in changed.items():
        *path, field = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*path, field if value else f"no-{field}"]))
            continue
        words += ["--" + ".".join([*path, field]), *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


def _redraw(arguments: list[str]) -> int:
    """Usage: python run.py redraw EDIT.npz --weights WEIGHTS. Draws an edit again without any data set."""
    options = _parse(RedrawOptions, None, "redraw", arguments)
    out = options.out or options.edit.with_suffix(".png")
    if out.exists() and not options.overwrite:
        raise UserError(f"{out} exists; choose another --out, or give --overwrite")
    experiment = import_module("latent_arith.experiment")
    experiment.redraw(options.edit, options.weights, options.weights_md5, out, options.any_weights)
    print(out)
    return 0


def _bench(arguments: list[str]) -> int:
    """Usage: python run.py bench [--quick] [--works NAME …] [--out FILE.json]. Times every hot function."""
    options = _parse(BenchOptions, None, "bench", arguments)
    import_module("benchmarks.bench").run(options.quick, options.works, options.out, options.precision)
    return 0


def _run_argument(command: str, arguments: list[str]) -> tuple[Path, str]:
    """The run directory that is a command's only argument, and the command that made it."""
    if "--help" in arguments or "-h" in arguments:
        print(COMMANDS[command].__doc__)
        raise SystemExit(0)
    if len(arguments) != 1:
        raise UserError(f"{command} takes one argument, a run directory, and got {len(arguments)}")
    record = run_directory.read_json(Path(arguments[0]) / "config.json")
    made_by = record.get("experiment") if isinstance(record, dict) else None
    if made_by not in PRESETS:
        raise UserError(f"{arguments[0]}: config.json names no known experiment but {made_by!r}")
    return Path(arguments[0]), made_by


COMMANDS = {"bench": _bench, "check": _check, "figures": _figures, "redraw": _redraw, "report": _report}

if __name__ == "__main__":
    huge_pages.ask()
    processes.let_simulated_devices_take_turns()
    with processes.ending():
        sys.exit(main(sys.argv[1:]))
