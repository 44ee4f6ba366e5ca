"""The page: sections out of `sections`, put into one HTML file together with style, script and pictures.

A run may be a stranger's. Nothing of it becomes HTML: all that is known of it is one block of JSON without any `<`,
which the script puts on the page as text, and a content security policy names the script and the style that may act.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from report import sections
from runtime.check import check
from runtime.errors import UserError
from runtime.run_directory import atomic

PAGE = Path("report") / "index.html"
LATENT, FACES, ATTACK, MADE = "latent", "faces", "attack", "made"
SECTIONS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    LATENT: ("vae", sections.latent_space),
    FACES: ("latent_arith", sections.faces),
    ATTACK: ("adversarial", sections.attack),
}
"""Section to the package whose run it shows, and what reads that."""


def write(run_dir: Path, parts: Mapping[str, tuple[Path, Any]], commands: Mapping[str, str], repeat: str) -> Path:
    """Writes `report/index.html` into a run directory from what is on disk of the run, and returns its path.

    Args:
        run_dir: The run.
        parts: Package to its directory and what `expected` says of it, for the packages that are part of the run.
        commands: Package to the command that makes or finishes its part.
        repeat: The command that repeats the run.

    Raises:
        UserError: The page cannot be written, or `config.json` cannot be read.
    """
    told: dict[str, Any] = {"run": str(run_dir.absolute())}
    for section, (package, read) in SECTIONS.items():
        missing = "Not part of this run. To make it:"
        if package in parts:
            directory, expected = parts[package]
            fault = next(iter(check(directory, expected)), "")
            missing = f"Not complete ({fault}). To finish it:" if fault else ""
        if not missing:
            try:
                told[section] = read(directory)
            except UserError as error:
                missing = f"Cannot be shown ({error}). To make it anew:"
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                missing = f"Cannot be shown, for its files do not fit together ({error!r:.200}). To make it anew:"
        if missing:
            told[section] = {"missing": missing, "command": commands[package]}
    told[MADE] = sections.made(run_dir, {package: directory for package, (directory, _) in parts.items()}, repeat)
    with atomic(run_dir / PAGE) as file:
        file.write(html(told).encode())
    return run_dir / PAGE


def html(told: Mapping[str, Any]) -> str:
    """The page that shows the sections `told`, by name."""
    style, script, page = (_part(f"page.{suffix}") for suffix in ("css", "js", "html"))
    parts = {
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": json.dumps(told, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c"),
    }
    for name, text in parts.items():
        before, after = page.split("{" + name + "}")
        page = before + text + after
    return page


def _part(name: str) -> str:
    return resources.files("report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
