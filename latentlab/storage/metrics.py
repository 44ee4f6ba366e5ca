"""The metrics of a run: a JSON object an epoch and model, or a photo."""

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentlab.errors import UserError
from latentlab.storage.run_directory import atomic


class MetricsLog:
    """Rows of metrics, appended as a run goes: `metrics.jsonl`, or in memory where there is no path."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            UserError: The file could not be written.
        """
        if self.path is None:
            self._rows.append(dict(row))
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: could not be written ({error.strerror or error})") from error

    def rows(self) -> list[dict[str, Any]]:
        """Return all whole rows; a line that a killed run left half-written, or that is damaged, is passed over.

        Raises:
            UserError: The file cannot be read.
        """
        if self.path is None:
            return list(self._rows)
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        parsed = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                parsed.append(json.loads(line))
        return [row for row in parsed if isinstance(row, dict)]

    def rewind(self, model: str, epoch: int) -> None:
        """Remove the rows of `model` after `epoch`, which a resumed run writes again."""
        self.replace([row for row in self.rows() if row.get("model") != model or row.get("epoch", epoch) <= epoch])

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rows, atomically."""
        if self.path is None:
            self._rows = [dict(row) for row in rows]
            return
        with atomic(self.path) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
