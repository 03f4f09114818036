"""The result of a reproduction: comparisons, the report, and its text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from workbench.core import digest
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.records.base import FrozenModel, Ref, digest_of, kind_of
from workbench.records.model_types import Environment
from workbench.records.store import Store

__all__ = ()

RebuildMethod = Literal["rebuilt", "merged"]

_MEMORY_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_MAX_LINE_LENGTH = 160


class OutputComparison(FrozenModel):
    """One output of a step; ``rebuilt`` is None when it was not rebuilt."""

    recorded: Ref
    rebuilt: Ref | None = None

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt


class StepOutcome(FrozenModel):
    """The result of one step.

    Attributes:
        code_same: Whether the imported workbench modules are the recorded ones.
        seconds: Run time, None for a step that an earlier attempt finished.
    """

    name: str
    run: Ref
    how: RebuildMethod
    status: Literal["same", "differs", "failed", "not-reached"]
    outputs: dict[str, OutputComparison]
    code_same: bool = True
    seconds: float | None = None
    reason: str = ""


class LeafCopy(FrozenModel):
    """A record that was copied instead of rebuilt, and why."""

    ref: Ref
    why: str


class _CellDifference(FrozenModel):
    """A cell whose output differs from the recorded one; ``number`` counts code cells from 1."""

    number: int
    source: str
    recorded: str
    rebuilt: str


class FirstDifference(FrozenModel):
    """The first output that differs from the recorded one.

    Attributes:
        output: Name of the output.
        fields: Fields of the record that differ, payload files as ``payload NAME``.
        cells: Cells whose outputs differ, in order; also cells that print a time.
        note: Why no cells are listed, if so.
    """

    step: str
    output: str
    recorded: Ref
    rebuilt: Ref
    fields: tuple[str, ...]
    cells: tuple[_CellDifference, ...] = ()
    note: str = ""


class ReproductionReport(FrozenModel):
    """The result of a reproduction.

    Attributes:
        environment: How this environment differs from the recorded ones, a line each.
        notes: What a reader has to know about how the records were rebuilt.
    """

    schema_version: Literal[1] = 1
    target: Ref
    folder: str
    status: Literal["reproduced", "differs", "failed"]
    environment: tuple[str, ...]
    leaves: tuple[LeafCopy, ...]
    steps: tuple[StepOutcome, ...]
    difference: FirstDifference | None = None
    notes: tuple[str, ...] = ()


def report_text(report: ReproductionReport) -> str:
    """The report in a few lines, without the steps, which were printed while they ran."""
    compared = [output for step in report.steps for output in step.outputs.values()]
    same = sum(output.same for output in compared)
    name = f"{kind_of(report.target)} {digest.shorten(digest_of(report.target))}"
    lines = ["", f"{name}: {report.status.upper()}"]
    outputs, steps = counted(len(compared), "output"), counted(len(report.steps), "step")
    lines.append(f"  equal: {same} of {outputs} of {steps}")
    if report.leaves:
        lines.append("  copied, not rebuilt:")
    for leaf in report.leaves:
        lines.append(f"    {kind_of(leaf.ref)} {digest.shorten(digest_of(leaf.ref))}  {leaf.why}")
    lines += [f"  note: {note}" for note in report.notes]
    if report.difference is not None:
        lines += _difference_lines(report.difference)
    failed = [step for step in report.steps if step.status == "failed"]
    lines += [f"  {step.name} failed: {step.reason}" for step in failed]
    if report.status == "differs" and report.environment:
        lines.append("  The environment differs from the recorded one, which may be the reason.")
    lines.append(f"  folder: {report.folder}")
    return "\n".join(lines)


def _difference_lines(difference: FirstDifference) -> list[str]:
    lines = [
        f"  first difference: step {difference.step}, output {difference.output}",
        f"    recorded {difference.recorded}",
        f"    rebuilt  {difference.rebuilt}",
    ]
    if difference.fields:
        lines.append(f"    in {', '.join(difference.fields)}")
    if difference.cells:
        first = difference.cells[0]
        lines.append(f"    first cell whose output differs: {first.number}")
        lines += [f"      | {line}" for line in first.source.splitlines()[:6]]
        lines.append(f"      recorded: {first.recorded}")
        lines.append(f"      rebuilt:  {first.rebuilt}")
    if len(difference.cells) > 1:
        others = ", ".join(str(cell.number) for cell in difference.cells[1:])
        lines.append(f"    other cells that differ: {others}")
    if difference.note:
        lines.append(f"    {difference.note}")
    return lines


def compare_environments(recorded: Environment, now: Environment) -> list[str]:
    """Compare installed packages and the machine with the recorded ones.

    Returns:
        One line per difference.
    """
    lines = []
    if recorded.python != now.python:
        lines.append(f"Python {recorded.python}, here {now.python}")
    before, here = _distribution_versions(recorded), _distribution_versions(now)
    for name in sorted({*before, *here}):
        if before.get(name) != here.get(name):
            lines.append(
                f"{name} {before.get(name, 'not installed')}, "
                f"here {here.get(name, 'not installed')}"
            )
    for key in sorted({*recorded.machine, *now.machine}):
        if recorded.machine.get(key) != now.machine.get(key):
            lines.append(f"machine {key} {recorded.machine.get(key)}, here {now.machine.get(key)}")
    return lines


def _distribution_versions(environment: Environment) -> dict[str, str]:
    entries = (entry.partition("==") for entry in environment.distributions)
    return {name: version for name, _, version in entries}


def compare_records(recorded: tuple[Store, Ref], rebuilt: tuple[Store, Ref]) -> tuple[str, ...]:
    """Compare two records of one kind.

    Returns:
        Names of the fields that differ, and of payload files as ``payload NAME``.
    """
    before, now = _record_body(*recorded), _record_body(*rebuilt)
    files_before, files_now = before.pop("payload", {}), now.pop("payload", {})
    fields = _differing_keys(before, now)
    return (*fields, *(f"payload {name}" for name in _differing_keys(files_before, files_now)))


def _record_body(store: Store, ref: Ref) -> Json:
    body: Json = json.loads((store.folder(ref) / "record.json").read_bytes())
    return body


def _differing_keys(before: Json, now: Json) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def compare_notebooks(
    recorded: Path, rebuilt: Path, paths: dict[str, str]
) -> tuple[tuple[_CellDifference, ...], str]:
    """Cells whose outputs differ, or a note why none is listed.

    Args:
        recorded: The executed notebook of the recorded run.
        rebuilt: The executed notebook of the rebuilt step.
        paths: Paths of both runs to their replacement: where a step ran is no difference.
    """
    if not rebuilt.exists():
        return (), "the output was made without a notebook"
    if not recorded.exists():
        return (), "the executed notebook of the recorded run is gone"
    pairs = zip(_code_cells(recorded), _code_cells(rebuilt), strict=False)
    differences = []
    for number, (one, other) in enumerate(pairs, start=1):
        before, now = _cell_output(one, paths), _cell_output(other, paths)
        if before != now:
            lines = _first_difference(before, now)
            differences.append(
                _CellDifference(
                    number=number,
                    source=_as_text(one["source"]),
                    recorded=lines[0],
                    rebuilt=lines[1],
                )
            )
    note = "" if differences else "the outputs of all cells are the same"
    return tuple(differences), note


def _code_cells(notebook: Path) -> list[Json]:
    """Code cells without the one that papermill inserts, so that numbers are the author's."""
    return [
        cell
        for cell in json.loads(notebook.read_bytes())["cells"]
        if cell["cell_type"] == "code"
        and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def _cell_output(cell: Json, paths: dict[str, str]) -> list[str]:
    """Lines and values that a cell displayed, without standard error, paths and addresses."""
    lines: list[str] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                lines += _as_text(output["text"]).splitlines()
        elif output["output_type"] == "error":
            lines.append(f"{output['ename']}: {output['evalue']}")
        else:
            for kind, value in sorted(output.get("data", {}).items()):
                text = _as_text(value)
                if kind.startswith("image/"):
                    text = f"{kind} {digest.of_bytes(text.encode())[:12]}"
                lines.append(text)
    return [_without_paths(line, paths) for line in lines]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "".join(value) if isinstance(value, list) else json.dumps(value, sort_keys=True)


def _without_paths(line: str, paths: dict[str, str]) -> str:
    for path in sorted(paths, key=len, reverse=True):
        line = line.replace(path, paths[path])
    return _MEMORY_ADDRESS.sub("at 0x…", line)


def _first_difference(before: list[str], now: list[str]) -> tuple[str, str]:
    for one, other in zip(before, now, strict=False):
        if one != other:
            return one[:_MAX_LINE_LENGTH], other[:_MAX_LINE_LENGTH]
    at = min(len(before), len(now))
    return (
        before[at][:_MAX_LINE_LENGTH] if at < len(before) else "nothing",
        now[at][:_MAX_LINE_LENGTH] if at < len(now) else "nothing",
    )
