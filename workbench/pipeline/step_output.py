"""What a step writes while it runs: progress, metrics and logs, read at once or followed.

A step's folder holds ``progress.json``, ``metrics.jsonl``, ``output.txt`` (what its cells print, each
under ``--- cell N``), ``log.txt`` (what its process prints) and, once it ended, ``result.json`` with
the traceback of a failure.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.workspace import Workspace
from workbench.pipeline import runs
from workbench.pipeline.runner import EXECUTED_NOTEBOOK, OUTPUT_FILE
from workbench.pipeline.runs import RunState, StepState
from workbench.pipeline.unit import LOG_FILE, RESULT_FILE
from workbench.tracking import MetricPoint

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

    def points(self) -> list[MetricPoint]:
        """Metric values written since the last call."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [MetricPoint(**json.loads(line)) for line in whole.splitlines()]


def last_metric_values(folder: Path) -> dict[str, float]:
    """The last value of each metric of a finished step."""
    return {point.name: point.value for point in StepFiles(folder).points()}


def resources(result: Path) -> list[MetricPoint]:
    """What a step used, each number of its ``result.json``: seconds, memory, processor time."""
    try:
        told = json.loads(result.read_bytes())
    except (OSError, ValueError):
        return []
    return [
        MetricPoint(f"resources.{name}", float(value), 0, time.time())
        for name, value in told.items()
        if isinstance(value, int | float) and name not in ("status", "schema_version")
    ]


# ---- What a run's steps have said, from the files they leave: at once, or followed as it comes.
#
# A step's folder holds ``output.txt`` (what its cells print, each under ``--- cell N``), ``log.txt``
# (what its process says) and, once it ended, ``result.json`` with the traceback of a failure.


_POLL_S = 0.3

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")

WriteLine = Callable[[str], None]


@dataclass(frozen=True)
class StepLog:
    """All that is left of one step's talk; each empty where there is none."""

    name: str
    status: str
    output: str
    log: str
    failure: str

    def as_json(self) -> dict[str, str]:
        return dict(vars(self))

    def as_text(self) -> str:
        parts = [self.output, self.log, self.failure]
        return "\n".join(part.rstrip("\n") for part in parts if part.strip())


def read_log(place: Workspace, run: RunState, step: StepState) -> StepLog:
    """A step's talk so far."""
    folder = runs.step_folder(place, run, step)
    output = _read_text(folder / OUTPUT_FILE) or _notebook_output(folder / EXECUTED_NOTEBOOK)
    return StepLog(
        step.name, step.status, output, _read_text(folder / LOG_FILE), failure_text(folder)
    )


def failure_text(folder: Path) -> str:
    """What ended a step, traceback and all, or nothing."""
    try:
        told = json.loads((folder / RESULT_FILE).read_bytes())["failure"]
    except (OSError, ValueError, KeyError):
        return ""
    if not told:
        return ""
    where = f"\n   in: {told['where']}" if told.get("where") else ""
    cell = f"\n cell: {told['cell']}" if told.get("cell") else ""
    hint = f"\n next: {told['hint']}" if told.get("hint") else ""
    traceback = f"{told['traceback'].rstrip()}\n" if told.get("traceback") else ""
    return f"{traceback}{told['kind']}: {told['message']}{where}{cell}{hint}"


def follow_logs(
    place: Workspace, run_id: str, write: WriteLine, step: str | None = None
) -> RunState:
    """Write lines as the steps say them until the run has ended; returns how it ended.

    Lines are marked with their step, because steps may run side by side. Files that are not
    there yet, or are begun anew by another try, are taken as they come.
    """
    tails: dict[Path, FileTail] = {}
    ended: set[str] = set()
    while True:
        run = runs.find_run(place, run_id)
        over = not run.alive  # asked before reading, so that the last lines are not missed
        for one in run.steps:
            if step not in (None, one.name) or one.status in ("pending", "skipped", "not-reached"):
                continue
            mark = "" if step else f"{one.name} | "
            folder = runs.step_folder(place, run, one)
            for name in (OUTPUT_FILE, LOG_FILE):
                tail = tails.setdefault(folder / name, FileTail(folder / name))
                for line in tail.lines(last=over):
                    write(f"{mark}{line}")
            if one.name not in ended and one.status not in ("running",):
                ended.add(one.name)
                for line in _ending_lines(folder, one):
                    write(f"{mark}{line}")
        if over:
            return run
        time.sleep(_POLL_S)


def _ending_lines(folder: Path, step: StepState) -> Iterator[str]:
    if not (folder / OUTPUT_FILE).exists():
        yield from _notebook_output(folder / EXECUTED_NOTEBOOK).splitlines()
    if step.status != "ran":
        yield from failure_text(folder).splitlines()
    seconds = f" in {step.seconds:.1f} s" if step.seconds is not None else ""
    yield f"--- {step.status}{seconds}"


class FileTail:
    """The lines added to a file since the last look; a file begun anew is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rest = ""
        self._decoder = _Utf8Decoder("replace")

    def lines(self, *, last: bool = False) -> list[str]:
        """Whole lines that are new; with ``last`` also one that has no end yet."""
        try:
            with self.path.open("rb") as stream:
                told = os.fstat(stream.fileno())
                if (told.st_dev, told.st_ino) != self._file or told.st_size < self._offset:
                    self._begin()
                    self._file = (told.st_dev, told.st_ino)
                stream.seek(self._offset)
                content = stream.read()
                self._offset += len(content)
        except OSError:
            content = b""
        text = self._rest + self._decoder.decode(content, final=last)
        whole, _, self._rest = text.rpartition("\n")
        found = whole.split("\n") if whole or text.startswith("\n") else []
        if last and self._rest:
            found, self._rest = [*found, self._rest], ""
        return [line.rstrip("\r").rpartition("\r")[2] for line in found]  # a bar's last drawing

    def _begin(self) -> None:
        self._offset, self._rest = 0, ""
        self._decoder.reset()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _notebook_output(path: Path) -> str:
    """What cells printed, from an executed notebook of before there was an ``output.txt``."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    code = [cell for cell in cells if cell.get("cell_type") == "code"]
    lines: list[str] = []
    for number, cell in enumerate(code, 1):
        said = "".join(_stream_texts(cell))
        if said.strip():
            lines += [f"--- cell {number}", said.rstrip("\n")]
    return "\n".join(lines)


def _stream_texts(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        if output.get("output_type") == "stream":
            text = output.get("text", "")
            yield text if isinstance(text, str) else "".join(text)
