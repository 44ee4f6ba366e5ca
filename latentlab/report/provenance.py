"""The page's last section: command, machine, time and data of every part of a run, and its files."""

import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentlab.experiment import CONFIG, Run
from latentlab.storage.run_directory import TIMES, read_json

KEY, TITLE = "made", "How it was made"


def make_section(run: Run, repeat: str) -> dict[str, Any]:
    """Return what the section shows of a run; `repeat` is the command that repeats it.

    Raises:
        UserError: A file of JSON cannot be read.
    """
    files = [path.relative_to(run.path) for path in sorted(run.path.rglob("*")) if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") or part == "checkpoints" for part in path.parts)]
    return {
        "command": repeat,
        "parts": [_describe_part(run.path, package, part.run_dir) for package, part in run.experiments.items()],
        "files": [
            {
                "name": path.as_posix(),
                "href": "../" + quote(path.as_posix()),
                "size": f"{math.ceil((run.path / path).stat().st_size / 1000):,} kB",
            }
            for path in shown
            if path.parts[0] != "report"
        ],
    }


def _describe_part(run_dir: Path, package: str, directory: Path) -> dict[str, Any]:
    record = _read_record(directory / CONFIG) or _read_record(run_dir / CONFIG)
    results, times = _read_record(directory / "results.json"), _read_record(directory / TIMES)
    facts = {
        "command": " ".join(map(str, _as_list(record.get("command")))),
        "started": record.get("started"),
        "time": f"{times['seconds']:,.0f} s" if isinstance(times.get("seconds"), int | float) else None,
        "devices": ", ".join(map(str, _as_list(record.get("devices")))),
        "data": _format_value(results.get("data") or results.get("photo")),
        "versions": _format_value(record.get("versions")),
        "Python": record.get("python"),
        "platform": record.get("platform"),
    }
    config = record.get("config")
    config = config.get(package, config) if isinstance(config, dict) else {}
    return {
        "name": package,
        "facts": [[name, str(fact)] for name, fact in facts.items() if fact],
        "config": [[name, _format_value(value)] for name, value in config.items()] if isinstance(config, dict) else [],
    }


def _read_record(path: Path) -> dict[str, Any]:
    """Return the object in a file of JSON, `{}` where there is no file or no object."""
    record = read_json(path) if path.exists() else {}
    return record if isinstance(record, dict) else {}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(inner)}" for key, inner in value.items())
    return ", ".join(map(_format_value, value)) if isinstance(value, list) else "" if value is None else str(value)
