"""The page of a run: one HTML file of the sections that the experiments make, with style, scripts and pictures.

A run may be a stranger's. Nothing of it becomes HTML: all that is known of it is one block of JSON without any `<`,
which the script puts on the page as text, and a content security policy names the script and the style that may act.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latentlab.errors import UserError
from latentlab.experiment import EXPERIMENTS, Run, import_part
from latentlab.report import provenance
from latentlab.storage.check import check
from latentlab.storage.run_directory import atomic, finite_or_null

PAGE = Path("report") / "index.html"


def write(run: Run, commands: Mapping[str, str], repeat: str) -> Path:
    """Write `report/index.html` into a run directory from what is on disk of the run, and return its path.

    Args:
        run: The run.
        commands: Package to the command that makes or finishes its part.
        repeat: The command that repeats the run.

    Raises:
        UserError: The page cannot be written, or `config.json` cannot be read.
    """
    sections: dict[str, dict[str, Any]] = {}
    for package in EXPERIMENTS.values():
        section = import_part(package, "section")
        sections[section.KEY] = {"title": section.TITLE, **_read_section(run, package, commands[package])}
    sections[provenance.KEY] = {"title": provenance.TITLE, **provenance.make_section(run, repeat)}
    with atomic(run.path / PAGE) as file:
        file.write(format_html({"run": "/".join(run.path.absolute().parts[-2:]), "sections": sections}).encode())
    return run.path / PAGE


def format_html(data: Mapping[str, Any]) -> str:
    """Return the page that shows data: `run`, and `sections` by key in their order."""
    script = _read_text("latentlab.report", "page.js")
    for package in EXPERIMENTS.values():
        script += f"{{\n{_read_text(package, 'section.js')}}}\n"  # a block, so that names of two do not meet
    style, page = _read_text("latentlab.report", "page.css"), _read_text("latentlab.report", "page.html")
    parts = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": json.dumps(finite_or_null(data), allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
    }
    for name, text in parts.items():
        before, after = page.split("{" + name + "}")
        page = before + text + after
    return page


def _read_section(run: Run, package: str, command: str) -> dict[str, Any]:
    """Return what the section of a package shows, or what is missing and the command that makes it."""
    part = run.experiments.get(package)
    if part is None:
        return {"missing": "Not part of this run. To make it:", "command": command}
    fault = next(iter(check(part.run_dir, import_part(package, "experiment").manifest(part.config))), "")
    if fault:
        return {"missing": f"Not complete ({fault}). To finish it:", "command": command}
    figures = [path.relative_to(run.path) for path in sorted((part.run_dir / "figures").rglob("*.png"))]
    try:
        made: dict[str, Any] = import_part(package, "section").make_section(part.run_dir)
    except UserError as error:
        missing = f"Cannot be shown ({error}). To make it anew:"
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        missing = f"Cannot be shown, for its files do not fit together ({error!r:.200}). To make it anew:"
    else:
        links = [{"name": path.stem.replace("_", " "), "href": f"../{quote(path.as_posix())}"} for path in figures]
        return {**made, "figures": links}
    return {"missing": missing, "command": command}


def _read_text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
