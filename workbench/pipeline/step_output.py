"""What a step writes while it runs: progress, metrics and logs, read once or followed.

A step's folder contains ``progress.json``, ``metrics.jsonl``, ``output.txt`` (what its cells print,
each under ``--- cell N``), ``log.txt`` (what its process prints) and, once it has ended,
``result.json`` with the traceback of a failure.
"""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.core.workspace import Workspace
from workbench.pipeline.runs import RunState, StepState, find_run, step_folder
from workbench.pipeline.spec import LOG_FILE, OUTPUT_FILE, RESULT_FILE
from workbench.tracking import MetricPoint

__all__ = ()

_POLL_S = 0.3
_PROGRESS_INTERVAL_S = 10.0
_METRICS_SHOWN = 3


class StepFiles:
    """Progress and metrics of a running step. Each call returns what is new since the last one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offset = 0
        self._progress = b""

    def progress(self) -> tuple[int, int] | None:
        """Number of items done and in all; None if they have not changed."""
        try:
            content = (self.folder / "progress.json").read_bytes()
        except FileNotFoundError:
            return None
        if content == self._progress:
            return None
        self._progress = content
        progress = json.loads(content)
        return progress["done"], progress["total"]

    def points(self) -> list[MetricPoint]:
        """New metric values; a half-written line is left for the next call."""
        try:
            with (self.folder / "metrics.jsonl").open("rb") as stream:
                stream.seek(self._offset)
                content = stream.read()
        except FileNotFoundError:
            return []
        complete, newline, _ = content.rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [MetricPoint(**json.loads(line)) for line in complete.splitlines()]


def last_metric_values(folder: Path) -> dict[str, float]:
    """The last value of each metric of a finished step."""
    return {point.name: point.value for point in StepFiles(folder).points()}


def resources(result: Path) -> list[MetricPoint]:
    """The cost of a step as metrics: each number of its ``result.json`` (seconds, MiB)."""
    try:
        content = json.loads(result.read_bytes())
    except (OSError, ValueError):
        return []
    return [
        MetricPoint(f"resources.{name}", float(value), 0, time.time())
        for name, value in content.items()
        if isinstance(value, int | float) and name not in ("status", "schema_version")
    ]


@dataclass(frozen=True)
class _StepLog:
    """The output of one step; parts that do not exist are empty."""

    name: str
    status: str
    output: str
    log: str
    failure: str

    def as_json(self) -> dict[str, str]:
        """For ``--json``."""
        return dict(vars(self))

    def as_text(self) -> str:
        """All parts, in the order in which they were written."""
        parts = [self.output, self.log, self.failure]
        return "\n".join(part.rstrip("\n") for part in parts if part.strip())


def read_log(workspace: Workspace, run: RunState, step: StepState) -> _StepLog:
    """The output of a step so far."""
    folder = step_folder(workspace, run, step)
    output, log = _read_text(folder / OUTPUT_FILE), _read_text(folder / LOG_FILE)
    return _StepLog(step.name, step.status, output, log, _failure_text(folder))


def follow_logs(
    workspace: Workspace, run_id: str, write: Callable[[str], None], step: str | None = None
) -> RunState:
    """Write lines as the steps print them, and their progress, until the run has ended.

    Files that do not exist yet, or that another attempt starts anew, are handled.

    Args:
        workspace: The workspace.
        run_id: As for `find_run`.
        write: Called with each line. Lines of several steps start with the step's name.
        step: Only this step.

    Returns:
        How the run ended.
    """
    tails: dict[Path, FileTail] = {}
    finished: set[str] = set()
    progress: dict[Path, _Progress] = {}
    while True:
        run = find_run(workspace, run_id)
        over = not run.alive  # read before the files, so that no last line is missed
        for one in run.steps:
            if step not in (None, one.name) or one.status in ("pending", "skipped", "not-reached"):
                continue
            prefix = "" if step else f"{one.name} | "
            folder = step_folder(workspace, run, one)
            for name in (OUTPUT_FILE, LOG_FILE):
                tail = tails.setdefault(folder / name, FileTail(folder / name))
                for line in tail.lines(last=over):
                    write(f"{prefix}{line}")
            shown = progress.setdefault(folder, _Progress(StepFiles(folder)))
            if one.status == "running" and (progress_line := shown.line()):
                write(f"{prefix}{progress_line}")
            if one.name not in finished and one.status != "running":
                finished.add(one.name)
                for line in _last_lines(folder, one):
                    write(f"{prefix}{line}")
        if over:
            return run
        time.sleep(_POLL_S)


class _Progress:
    """Progress of a running step, with the time, what is left and its newest metrics."""

    def __init__(self, files: StepFiles) -> None:
        self._files = files
        self._first: tuple[float, int] | None = None
        self._written = -_PROGRESS_INTERVAL_S
        self._metrics: dict[str, float] = {}

    def line(self) -> str | None:
        """A line, at most every ten seconds; None if there is nothing new."""
        now = time.monotonic()
        if now - self._written < _PROGRESS_INTERVAL_S:
            return None
        state, points = self._files.progress(), self._files.points()
        if state is None and not points:
            return None
        self._written = now
        for point in points:
            self._metrics.pop(point.name, None)  # the newest are last
            self._metrics[point.name] = point.value
        parts = [time.strftime("%H:%M:%S")]
        if state is not None:
            done, total = state
            first_at, first_done = self._first = self._first or (now, done)
            parts.append(f"{done} of {total}")
            if done > first_done:
                seconds = (total - done) * (now - first_at) / (done - first_done)
                parts.append(f"about {seconds:.0f} s left" if seconds else "done")
        newest = list(self._metrics.items())[-_METRICS_SHOWN:]
        parts += [f"{name} {value:.4g}" for name, value in newest]
        return "  ".join(parts)


class FileTail:
    """Lines appended to a file since the last call; a replaced file is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def lines(self, *, last: bool = False) -> list[str]:
        """New complete lines; with ``last`` also one without a line break."""
        try:
            with self.path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                file = (status.st_dev, status.st_ino)
                if file != self._file or status.st_size < self._offset:
                    self._file, self._offset, self._rest = file, 0, ""
                    self._decoder.reset()
                stream.seek(self._offset)
                content = stream.read()
                self._offset += len(content)
        except OSError:
            content = b""
        text = self._rest + self._decoder.decode(content, final=last)
        complete, _, self._rest = text.rpartition("\n")
        lines = complete.split("\n") if complete or text.startswith("\n") else []
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], ""
        return [line.rstrip("\r").rpartition("\r")[2] for line in lines]  # last state of a bar


def _last_lines(folder: Path, step: StepState) -> Iterator[str]:
    if step.status != "ran":
        yield from _failure_text(folder).splitlines()
    seconds = f" in {step.seconds:.1f} s" if step.seconds is not None else ""
    yield f"--- {step.status}{seconds}"


def _failure_text(folder: Path) -> str:
    """A step's failure with its traceback; empty if it has not failed."""
    try:
        failure = json.loads((folder / RESULT_FILE).read_bytes())["failure"]
    except (OSError, ValueError, KeyError):
        return ""
    if not failure:
        return ""
    where = f"\n   in: {failure['where']}" if failure.get("where") else ""
    cell = f"\n cell: {failure['cell']}" if failure.get("cell") else ""
    hint = f"\n next: {failure['hint']}" if failure.get("hint") else ""
    traceback = f"{failure['traceback'].rstrip()}\n" if failure.get("traceback") else ""
    kind = "" if failure["kind"] == failure["message"] else f"{failure['kind']}: "  # cancelled
    return f"{traceback}{kind}{failure['message']}{where}{cell}{hint}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
