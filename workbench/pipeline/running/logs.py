"""What a run's steps have said, from the files they leave: at once, or followed as it comes.

A step's folder holds ``output.txt`` (what its cells print, each under ``--- cell N``), ``log.txt``
(what its process says) and, once it ended, ``result.json`` with the traceback of a failure.
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

from workbench.pipeline.running import history
from workbench.pipeline.running.history import RunState, StepState
from workbench.pipeline.steps.runner import EXECUTED, OUTPUT
from workbench.pipeline.steps.unit import LOG, RESULT
from workbench.workspace import Workspace

_POLL_S = 0.3

_Decoder = codecs.getincrementaldecoder("utf-8")

Write = Callable[[str], None]


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


def read(place: Workspace, run: RunState, step: StepState) -> StepLog:
    """A step's talk so far."""
    folder = history.folder_of(place, run, step)
    output = _text(folder / OUTPUT) or _from_notebook(folder / EXECUTED)
    return StepLog(step.name, step.status, output, _text(folder / LOG), failure(folder))


def failure(folder: Path) -> str:
    """What ended a step, traceback and all, or nothing."""
    try:
        told = json.loads((folder / RESULT).read_bytes())["failure"]
    except (OSError, ValueError, KeyError):
        return ""
    if not told:
        return ""
    where = f"\n   in: {told['where']}" if told.get("where") else ""
    cell = f"\n cell: {told['cell']}" if told.get("cell") else ""
    hint = f"\n next: {told['hint']}" if told.get("hint") else ""
    traceback = f"{told['traceback'].rstrip()}\n" if told.get("traceback") else ""
    return f"{traceback}{told['kind']}: {told['message']}{where}{cell}{hint}"


def follow(place: Workspace, run_id: str, write: Write, step: str | None = None) -> RunState:
    """Write lines as the steps say them until the run has ended; returns how it ended.

    Lines are marked with their step, because steps may run side by side. Files that are not
    there yet, or are begun anew by another try, are taken as they come.
    """
    tails: dict[Path, Tail] = {}
    ended: set[str] = set()
    while True:
        run = history.find(place, run_id)
        over = not run.alive  # asked before reading, so that the last lines are not missed
        for one in run.steps:
            if step not in (None, one.name) or one.status in ("pending", "skipped", "not-reached"):
                continue
            mark = "" if step else f"{one.name} | "
            folder = history.folder_of(place, run, one)
            for name in (OUTPUT, LOG):
                tail = tails.setdefault(folder / name, Tail(folder / name))
                for line in tail.lines(last=over):
                    write(f"{mark}{line}")
            if one.name not in ended and one.status not in ("running",):
                ended.add(one.name)
                for line in _ending(folder, one):
                    write(f"{mark}{line}")
        if over:
            return run
        time.sleep(_POLL_S)


def _ending(folder: Path, step: StepState) -> Iterator[str]:
    if not (folder / OUTPUT).exists():
        yield from _from_notebook(folder / EXECUTED).splitlines()
    if step.status != "ran":
        yield from failure(folder).splitlines()
    seconds = f" in {step.seconds:.1f} s" if step.seconds is not None else ""
    yield f"--- {step.status}{seconds}"


class Tail:
    """The lines added to a file since the last look; a file begun anew is read from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._rest = ""
        self._decoder = _Decoder("replace")

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


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _from_notebook(path: Path) -> str:
    """What cells printed, from an executed notebook of before there was an ``output.txt``."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    code = [cell for cell in cells if cell.get("cell_type") == "code"]
    lines: list[str] = []
    for number, cell in enumerate(code, 1):
        said = "".join(_streams(cell))
        if said.strip():
            lines += [f"--- cell {number}", said.rstrip("\n")]
    return "\n".join(lines)


def _streams(cell: dict[str, Any]) -> Iterator[str]:
    for output in cell.get("outputs", []):
        if output.get("output_type") == "stream":
            text = output.get("text", "")
            yield text if isinstance(text, str) else "".join(text)
