"""The command line: tyro parses it, a command runs, and an error becomes one line and an exit code."""

import contextlib
import dataclasses
import errno
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

import tyro

from latentlab import command_process
from latentlab.config import Precision
from latentlab.errors import UserError, first_line
from latentlab.experiment import (
    COMMANDS,
    EXPERIMENTS,
    Part,
    Run,
    find_differences,
    import_part,
    presets,
    split_config,
    start_run,
)
from latentlab.training import interrupts

DESCRIPTION = """\
Autoencoders, latent arithmetic and adversarial attacks in JAX.
`COMMAND --help` or `help COMMAND` lists the options of a command, `--version` tells the version.

Examples:
  {program} all --preset quick            a smoke run of everything
  {program} vae --epochs 100 --seeds 3    one experiment, with other settings
  {program} adversarial --epsilon 8/255   a number may be a fraction
"""
EXPORT = "export"
"""Folder of a run for what it was exported to."""
OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

Config = TypeVar("Config")


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (check found faults), 2 (user error), 130, 141 or 143.

    Args:
        arguments: The words of the command; None for those that this process was started with, which it then owns
            (`latentlab.command_process`).

    Raises:
        SystemExit: After help, and after a line that cannot be parsed (2).
    """
    if arguments is None:
        with command_process.own_process():
            sys.exit(main(sys.argv[1:]))
    try:
        with interrupts.handle_signals():
            return _parse(arguments)()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read the output, as `head` does, has gone: nobody is left to tell, and the interpreter shall not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in OUT_OF_ROOM:
            raise
        print(f"error: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except interrupts.Interrupted as interruption:
        print(f"stopped by {interruption}", *getattr(interruption, "__notes__", ()), sep="\n", file=sys.stderr)
        return interruption.exit_code


@dataclasses.dataclass(frozen=True)
class RunCommand(Generic[Config]):
    """Run experiments, or go on with a run."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    command: tyro.conf.Suppress[str]
    preset: str = "demo"
    """quick (a smoke run), demo, or original (the settings of the original exercise)."""
    out: Path | None = None
    """Directory of the run; by default the next free number under runs/."""
    resume: Path | None = None
    """Go on with the run in this directory, with its own configuration."""
    overwrite: bool = False
    """Delete the run that --out names, if it exists."""
    tracker: Literal["none", "tensorboard"] = "none"
    """Write metrics for TensorBoard too, as they come, under RUN/export/tensorboard."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache, so that the next run starts sooner."""
    seed_devices: int = 1
    """Divide the seeds of the digits over so many groups of devices, and images over the devices of each."""
    distributed: bool = False
    """This process is one of several that run the same command; JAX finds the rest on SLURM, GKE or a TPU."""
    coordinator: str | None = None
    """HOST:PORT of the first process."""
    processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Index of this process, from 0."""

    def __call__(self) -> int:
        """Run, and write the page."""
        from latentlab import parallel
        from latentlab.storage import compilation_cache

        if self.distributed:
            parallel.start_processes(self.coordinator, self.processes, self.process_id)
        parallel.check_platform()
        if self.compilation_cache:
            compilation_cache.enable()
        with _hold_run_directory(self) as run_dir:
            _run_in_processes(run_dir, self)
        if parallel.is_process_0():
            print(f"Open {_write_page(Run(run_dir))}")
        return 0


@dataclasses.dataclass(frozen=True)
class Redraw:
    """Draw an edit again from its file and the weights."""

    edit: tyro.conf.Positional[Path]
    """An EDIT.npz, such as edit.npz of a run, or the bare latent of a face, face.f32 or face.f16."""
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

    def __call__(self) -> int:
        """Draw, and print the path of the picture."""
        out = self.out or self.edit.with_suffix(".png")
        if out.exists() and not self.overwrite:
            raise UserError(f"{out} exists; choose another --out, or give --overwrite")
        from latentlab import parallel

        parallel.check_platform()
        experiment = import_part("latent_arith", "experiment")
        experiment.redraw(self.edit, self.weights, self.weights_md5, out, self.any_weights)
        print(out)
        return 0


@dataclasses.dataclass(frozen=True)
class Check:
    """Say what is missing or wrong in a run (then exit code 1)."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""

    def __call__(self) -> int:
        """Print a line for every fault."""
        from latentlab.storage.check import DELIVERABLES, check, check_arrays

        run = Run(self.run)
        faults: list[str] = []
        forms: dict[str, Any] = {}
        for package, part in run.experiments.items():
            manifest = import_part(package, "experiment").manifest(part.config)
            faults += check(part.run_dir, manifest)
            forms |= manifest.deliverables
            faults += _check_exports(run, package)
        if run.command == "all":
            faults += check_arrays(run.path / DELIVERABLES, forms)
        for fault in faults:
            print(fault)
        print(f"{run.path}: {len(faults)} faults" if faults else ", ".join([f"{run.path}: complete", *sorted(forms)]))
        return 1 if faults else 0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Draw the figures of a run again from its files, for a page or a paper."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    format: Literal["png", "pdf", "svg"] = "png"
    """Of the files; pictures within PDF and SVG are pixels, all else is vectors."""
    dpi: int = 110
    """Dots per inch; journals ask for 300."""

    def __call__(self) -> int:
        """Draw, and print the paths of the figures."""
        if not 10 <= self.dpi <= 1200:
            raise UserError(f"dpi is {self.dpi}, expected 10 to 1200")
        from latentlab.figures import Format

        for package, part in Run(self.run).experiments.items():
            for path in import_part(package, "figures").draw(part.run_dir, Format(self.format, self.dpi)):
                print(path)
        return 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Write the page of a run, RUN/report/index.html."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""

    def __call__(self) -> int:
        """Write the page, and print its path."""
        print(_write_page(Run(self.run)))
        return 0


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run for other programs, under RUN/export."""

    run: tyro.conf.Positional[Path]
    """Directory of the run; for the trackers it need not be finished."""
    to: Literal["tensorboard", "mlflow", "wandb", "safetensors", "jax-export", "huggingface"]
    """tensorboard, mlflow and wandb (offline) have metrics, results and figures; safetensors, jax-export (a program for
    CPU, CUDA and TPU) and huggingface (a folder with a card) have the networks."""

    def __call__(self) -> int:
        """Export, and print where it is, or the command that shows it."""
        from latentlab import parallel
        from latentlab.export import networks, trackers
        from latentlab.export.records import read_records

        run, directory = Run(self.run), self.run / EXPORT / self.to
        if self.to in trackers.EXPORTS:
            print(trackers.export_anew(trackers.EXPORTS[self.to], read_records(run), directory))
            return 0
        parallel.check_platform()
        for package, part in run.experiments.items():
            results = getattr(run, package)
            found = results.networks() if hasattr(results, "networks") else ()
            networks.require_networks(found, part.run_dir)
            place = directory / package if len(run.experiments) > 1 else directory
            if self.to == "huggingface":
                again = repeat_command(run.command, run.config)
                paths = networks.export_hugging_face(found, place, part.run_dir, results.summary(), again)
                print(f"hf upload USER/NAME {place}")
            else:
                write = networks.export_safetensors if self.to == networks.SAFETENSORS else networks.export_stable_hlo
                paths = write(found, place)
            print(*paths, sep="\n")
        return 0


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time every hot function on this device."""

    works: tuple[str, ...] = ()
    """Which; all, if none is named."""
    precision: Precision = "default"
    """Of the training steps."""
    quick: bool = False
    """Little work and few repeats, to see that everything runs; the times mean nothing."""
    out: Path | None = None
    """File of the results, JSON; by default named after the time, under runs/."""

    def __call__(self) -> int:
        """Time, and write the results."""
        try:
            from benchmarks import bench
        except ModuleNotFoundError as error:
            if error.name != "benchmarks":
                raise
            raise UserError("bench needs a checkout of the project, for benchmarks are not installed") from error
        from latentlab import parallel

        parallel.check_platform()
        bench.run(self.quick, self.works, self.out, self.precision)
        return 0


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """Options that the defaults of all others depend on."""

    preset: str | None = None
    resume: Path | None = None


def _check_exports(run: Run, package: str) -> list[str]:
    """Return the faults of the networks that were exported, none where there are none."""
    exports = run.path / EXPORT
    if not any(exports.glob("jax-export/**/*.stablehlo")) and not any(exports.glob("safetensors/**/*.safetensors")):
        return []
    from latentlab.export import networks

    inner = package if len(run.experiments) > 1 else ""
    try:
        return list(networks.check_exports(getattr(run, package).networks(), exports, inner))
    except UserError as error:  # what is missing for them is a fault of the run, and stands among the others
        return [str(error)]


def _parse(arguments: list[str]) -> Callable[[], int]:
    """Return the command that the words ask for; those that make runs have the defaults of `--preset` or `--resume`."""
    if arguments[:1] == ["--version"]:
        return _print_version
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    prog = _program().split()[-1]  # of one word, as tyro's hints want it
    early, _ = tyro.cli(_Defaults, args=arguments, prog=prog, return_unknown_args=True, add_help=False)
    if early.preset == "seed":
        print("--preset seed is now called --preset original", file=sys.stderr)
        early = dataclasses.replace(early, preset="original")
    stored = Run(early.resume) if early.resume else None
    kinds: list[Any] = [_run_kind(command, early.preset, stored) for command in COMMANDS]
    commands: Any = Union[*kinds, Check, Figures, Report, Redraw, Export, Bench]
    description = DESCRIPTION.format(program=_program())
    command: Callable[[], int] = tyro.cli(
        commands, args=arguments, prog=prog, description=description, registry=_FRACTIONS
    )
    if isinstance(command, RunCommand) and stored:
        _check_resumed(command, stored)
    return command


def _run_kind(command: str, preset: str | None, stored: Run | None) -> Any:
    """Return the type of a command that runs experiments, which says what its defaults are."""
    known = presets(command)
    if preset is not None and preset not in known:
        raise UserError(f"there is no preset {preset!r}; expected one of {', '.join(known)}")
    is_stored = stored is not None and stored.command == command and preset is None
    config = stored.config if stored and is_stored else known[preset or "demo"]
    default = RunCommand(config, command, preset or "demo")
    kind: Any = RunCommand[type(config)]  # type: ignore[misc]
    return Annotated[
        kind,
        tyro.conf.subcommand(
            command, default=default, description=type(config).__doc__, prefix_name=False, is_default=command == "all"
        ),
    ]


def _check_resumed(options: RunCommand[Any], stored: Run) -> None:
    """Check that the command line contradicts nothing in the run that it goes on with."""
    if stored.command != options.command:
        raise UserError(f"{stored.path} is a run of {stored.command!r}, not of {options.command!r}")
    if options.out or options.overwrite:
        raise UserError("--resume goes on in the run's own directory; leave out --out and --overwrite")
    for name, (ours, theirs) in find_differences(options.config, stored.config).items():
        raise UserError(
            f"--resume {stored.path}: the run has {name} = {theirs!r}, the command line {ours!r}; "
            f"a run is resumed with its own configuration"
        )


@contextlib.contextmanager
def _hold_run_directory(options: RunCommand[Any]) -> Iterator[Path]:
    """Yield the run's directory, which process 0 creates or resumes, locked against other runs."""
    from latentlab import parallel
    from latentlab.storage import run_directory

    with contextlib.ExitStack() as held:

        def hold() -> str:
            if options.resume:
                held.enter_context(run_directory.locked(options.resume))
                return str(options.resume)
            return str(held.enter_context(run_directory.create(options.out, options.overwrite)))

        yield Path(parallel.broadcast_from_process_0(hold))


def _run_in_processes(run_dir: Path, options: RunCommand[Any]) -> None:
    from latentlab import parallel

    again = f"to go on: {_program()} {options.command} --resume {run_dir}"
    parts = split_config(options.command, options.config, run_dir).values()
    folders = tuple(str(part.run_dir.relative_to(run_dir)) for part in parts)
    try:
        with parallel.process_directory(run_dir, folders) as written:
            _run_experiments(written, options)
    except interrupts.Interrupted as interruption:
        if any(run_dir.rglob("metrics.jsonl")):
            interruption.add_note(again)
        raise
    except Exception as error:
        if not command_process.is_peer_failure(error):
            raise
        raise UserError(f"another process of this run is gone, and says why ({first_line(error)}); {again}") from error


def _run_experiments(run_dir: Path, options: RunCommand[Any]) -> None:
    from latentlab import parallel
    from latentlab.storage import run_directory
    from latentlab.storage.check import DELIVERABLES

    commands = {package: command for command, package in EXPERIMENTS.items()}
    start_run(run_dir, options.command, options.config)
    parts = split_config(options.command, options.config, run_dir)
    for stage, (package, part) in enumerate(parts.items(), 1):
        if len(parts) > 1 and parallel.is_process_0():
            print(f"[{stage} of {len(parts)}] {commands[package]}", flush=True)
        with _track(options.tracker, part.run_dir, run_dir / EXPORT / options.tracker / package):
            _run_experiment(package, commands[package], part, options.seed_devices)
    if options.command == "all":
        gathered: dict[str, Any] = {}
        for part in parts.values():
            gathered |= run_directory.read_npz(part.run_dir / DELIVERABLES)
        run_directory.write_npz(run_dir / DELIVERABLES, gathered)


def _track(tracker: str, run_dir: Path, directory: Path) -> contextlib.AbstractContextManager[None]:
    """Return a block in which metrics go to a tracker too."""
    from latentlab import parallel

    if tracker == "none" or not parallel.is_process_0():
        return contextlib.nullcontext()
    from latentlab.export.trackers import follow_with_tensorboard

    return follow_with_tensorboard(run_dir, directory)


def _run_experiment(package: str, command: str, part: Part, seed_devices: int) -> None:
    from latentlab.storage.check import check

    experiment = import_part(package, "experiment")
    if not any(check(part.run_dir, experiment.manifest(part.config))):
        print(f"{command}: {part.run_dir} is complete")
        return
    import jax

    from latentlab import parallel
    from latentlab.heartbeat import show_heartbeat
    from latentlab.storage import run_directory

    started = time.monotonic()
    try:
        mesh = parallel.make_mesh(seed_devices if hasattr(part.config, "seeds") else 1)
        with jax.set_mesh(mesh), show_heartbeat() if parallel.is_process_0() else contextlib.nullcontext():
            experiment.run(part.config, part.run_dir)
    finally:
        if (part.run_dir / "metrics.jsonl").exists():
            run_directory.add_time(part.run_dir, time.monotonic() - started)


def _write_page(run: Run) -> Path:
    """Write the page of a run from what is on disk of it."""
    from latentlab.report import page

    again = shlex.join([*_program().split(), run.command, "--resume", str(run.path)])
    commands = {
        package: again if package in run.experiments else f"{_program()} {command}"
        for command, package in EXPERIMENTS.items()
    }
    return page.write(run, commands, repeat_command(run.command, run.config))


def repeat_command(command: str, config: Any) -> str:
    """Return the command that makes a run with a configuration; the one in `config.json` may lie."""
    by_preset = {name: find_differences(config, preset) for name, preset in presets(command).items()}
    preset, changed = min(by_preset.items(), key=lambda item: len(item[1]))
    words = [*_program().split(), command, "--preset", preset]
    for name, (value, _) in changed.items():
        *path, field = name.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*path, field if value else f"no-{field}"]))
            continue
        words += ["--" + ".".join([*path, field]), *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)


def _program() -> str:
    """Return how this command was started, for commands that are shown to people."""
    started = Path(sys.argv[0])
    if started.parts[-2:] == ("latentlab", "__main__.py"):
        return "python -m latentlab"
    return started.name if started.stem == "latentlab" else "python run.py"


def _print_version() -> int:
    print(f"latentlab {metadata.version('latentlab')}")
    return 0


_FRACTIONS = tyro.constructors.ConstructorRegistry()


@_FRACTIONS.primitive_rule
def _parse_fractions(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Let every number be a fraction, as the radius 8/255 of an attack."""
    if info.type is not float:
        return None

    def parse(words: list[str]) -> float:
        numerator, slash, denominator = words[0].partition("/")
        try:
            return float(numerator) / (float(denominator) if slash else 1)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{words[0]!r} is neither a number nor a fraction such as 8/255") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [str(value)],
    )
