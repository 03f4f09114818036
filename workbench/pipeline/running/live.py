"""Takes what a running step leaves as files: progress for the screen, metrics for MLflow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from workbench.tracking import Point

Progress = Callable[[int, int], None]


class StepFiles:
    """Follows one step's folder. ``poll`` is cheap and never raises on half-written lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offset = 0
        self._progress = b""

    def progress(self) -> tuple[int, int] | None:
        """Pieces done and in all, if they changed since the last call."""
        try:
            content = (self.folder / "progress.json").read_bytes()
        except FileNotFoundError:
            return None
        if content == self._progress:
            return None
        self._progress = content
        told = json.loads(content)
        return told["done"], told["total"]

    def points(self) -> list[Point]:
        """Metric values written since the last call."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [Point(**json.loads(line)) for line in whole.splitlines()]


def last_values(folder: Path) -> dict[str, float]:
    """The last value of each metric of a finished step."""
    return {point.name: point.value for point in StepFiles(folder).points()}


def resources(result: Path) -> list[Point]:
    """What a step used, each number of its ``result.json``: seconds, memory, processor time."""
    try:
        told = json.loads(result.read_bytes())
    except (OSError, ValueError):
        return []
    return [
        Point(f"resources.{name}", float(value), 0, time.time())
        for name, value in told.items()
        if isinstance(value, int | float) and name not in ("status", "schema_version")
    ]
