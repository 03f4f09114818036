"""The result of a reproduction: comparisons, the report, and its text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from workbench.core import digest
from workbench.core.digest import shorten
from workbench.records.base import Digest, FrozenModel, Ref, digest_of, kind_of
from workbench.records.model_types import Environment
from workbench.records.store import Store

RebuildMethod = Literal["rebuilt", "merged"]
Json = dict[str, Any]


class OutputComparison(FrozenModel):
    """One output of a step: ``rebuilt`` is None when it was not made again."""

    recorded: Ref
    rebuilt: Ref | None = None

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt


class StepOutcome(FrozenModel):
    """One step. ``code_same`` is False when the workbench's modules are not those recorded."""

    name: str
    run: Ref
    how: RebuildMethod
    status: Literal["same", "differs", "failed", "not-reached"]
    outputs: dict[str, OutputComparison]
    code_same: bool = True
    seconds: float | None = None
    reason: str = ""


class LeafCopy(FrozenModel):
    """A record that was taken as it is, and why."""

    ref: Ref
    why: str


class CellDifference(FrozenModel):
    """A cell whose output is not the recorded one; ``number`` counts code cells from 1."""

    number: int
    source: str
    recorded: str
    rebuilt: str


class FirstDifference(FrozenModel):
    """The first thing that is not as it was recorded.

    Attributes:
        output: The first differing output, by name.
        fields: What of the record differs, payload files as ``payload NAME``.
        cells: Cells whose outputs differ, in order. A cell that prints a time is among them too.
        note: Why there are no cells to show, where that is so.
    """

    step: str
    output: str
    recorded: Ref
    rebuilt: Ref
    fields: tuple[str, ...]
    cells: tuple[CellDifference, ...] = ()
    note: str = ""


class ReproductionReport(FrozenModel):
    """How a reproduction ended.

    Attributes:
        environment: How this environment differs from the recorded ones, in words.
        notes: What a reader has to know about how it was done.
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

    @property
    def key(self) -> Digest:
        return digest_of(self.target)


def report_text(report: ReproductionReport) -> str:
    """The end of it in a few lines; steps were told while they ran."""
    compared = [output for step in report.steps for output in step.outputs.values()]
    same = sum(output.same for output in compared)
    name = f"{kind_of(report.target)} {shorten(report.key)}"
    lines = ["", f"{name}: {report.status.upper()}"]
    lines.append(f"  {same} of {len(compared)} outputs of {len(report.steps)} steps are the same")
    if report.leaves:
        lines.append("  taken as they are, not rebuilt:")
    for leaf in report.leaves:
        lines.append(f"    {kind_of(leaf.ref)} {shorten(digest_of(leaf.ref))}  {leaf.why}")
    lines += [f"  note: {note}" for note in report.notes]
    if report.difference is not None:
        lines += _difference_lines(report.difference)
    failed = [step for step in report.steps if step.status == "failed"]
    lines += [f"  {step.name} failed: {step.reason}" for step in failed]
    if report.status == "differs" and report.environment:
        lines.append("  The environment is not the recorded one; that may be all there is to it.")
    lines.append(f"  It lies in {report.folder}")
    return "\n".join(lines)


def _difference_lines(found: FirstDifference) -> list[str]:
    lines = [
        f"  first difference: step {found.step}, output {found.output}",
        f"    recorded {found.recorded}",
        f"    rebuilt  {found.rebuilt}",
    ]
    if found.fields:
        lines.append(f"    in {', '.join(found.fields)}")
    if found.cells:
        first = found.cells[0]
        lines.append(f"    first cell whose output differs: {first.number}")
        lines += [f"      | {line}" for line in first.source.splitlines()[:6]]
        lines.append(f"      recorded: {first.recorded}")
        lines.append(f"      rebuilt:  {first.rebuilt}")
    if len(found.cells) > 1:
        others = ", ".join(str(cell.number) for cell in found.cells[1:])
        lines.append(f"    others that differ: {others}")
    if found.note:
        lines.append(f"    {found.note}")
    return lines


# ---- How two environments, two records or two executed notebooks differ, in words.


_MEMORY_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_MAX_SHOWN_CHARACTERS = 160


def compare_environments(recorded: Environment, now: Environment) -> list[str]:
    """What is installed or built in otherwise than recorded; empty when nothing is."""
    found = []
    if recorded.python != now.python:
        found.append(f"Python {recorded.python}, here {now.python}")
    before, here = _distribution_versions(recorded), _distribution_versions(now)
    for name in sorted({*before, *here}):
        if before.get(name) != here.get(name):
            found.append(
                f"{name} {before.get(name, 'not installed')}, here {here.get(name, 'none')}"
            )
    for key in sorted({*recorded.machine, *now.machine}):
        if recorded.machine.get(key) != now.machine.get(key):
            found.append(f"machine {key} {recorded.machine.get(key)}, here {now.machine.get(key)}")
    return found


def compare_records(recorded: tuple[Store, Ref], rebuilt: tuple[Store, Ref]) -> tuple[str, ...]:
    """Names of the fields and payload files in which two records of one kind differ."""
    one, other = _record_body(*recorded), _record_body(*rebuilt)
    payload, made = one.pop("payload", {}), other.pop("payload", {})
    fields = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    files = [name for name in sorted({*payload, *made}) if payload.get(name) != made.get(name)]
    return (*fields, *(f"payload {name}" for name in files))


def compare_notebooks(
    recorded: Path, rebuilt: Path, places: dict[str, str]
) -> tuple[tuple[CellDifference, ...], str]:
    """Cells whose outputs differ, or why that cannot be told.

    Args:
        recorded: The executed notebook of the recorded run.
        rebuilt: The one just executed.
        places: Text that names a place in either, to what it stands for: where a step ran is not
            what it did.
    """
    if not rebuilt.exists():
        return (), "no notebook was run to make it, so no cell can be named"
    if not recorded.exists():
        return (), "the recorded run's executed notebook is gone, so no cell can be named"
    pairs = zip(_code_cells(recorded), _code_cells(rebuilt), strict=False)
    found = []
    for number, (one, other) in enumerate(pairs, start=1):
        before, now = _cell_output(one, places), _cell_output(other, places)
        if before != now:
            source = one["source"] if isinstance(one["source"], str) else "".join(one["source"])
            where = _first_difference(before, now)
            found.append(
                CellDifference(number=number, source=source, recorded=where[0], rebuilt=where[1])
            )
    return tuple(found), "" if found else "what the cells print and draw is the same in both runs"


def _distribution_versions(environment: Environment) -> dict[str, str]:
    return {
        name: version
        for name, _, version in (entry.partition("==") for entry in environment.distributions)
    }


def _record_body(store: Store, ref: Ref) -> Json:
    body: Json = json.loads((store.folder(ref) / "record.json").read_bytes())
    return body


def _code_cells(notebook: Path) -> list[Json]:
    """Code cells but the one with the run's parameters, so that numbers are the author's."""
    content = json.loads(notebook.read_bytes())
    return [
        cell
        for cell in content["cells"]
        if cell["cell_type"] == "code"
        and "injected-parameters" not in cell["metadata"].get("tags", [])
    ]


def _cell_output(cell: Json, places: dict[str, str]) -> list[str]:
    """What a cell showed, without what every run shows otherwise.

    What it writes to standard error is left out: warnings and bars depend on who watches.
    """
    printed: list[str] = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                printed += _output_text(output["text"]).splitlines()
        elif output["output_type"] == "error":
            printed.append(f"{output['ename']}: {output['evalue']}")
        else:
            for kind, value in sorted(output.get("data", {}).items()):
                text = _output_text(value)
                picture = kind.startswith("image/")
                printed.append(f"{kind} {digest.of_bytes(text.encode())[:12]}" if picture else text)
    return [_without_paths(line, places) for line in printed]


def _output_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "".join(value) if isinstance(value, list) else json.dumps(value, sort_keys=True)


def _without_paths(line: str, places: dict[str, str]) -> str:
    for place in sorted(places, key=len, reverse=True):
        line = line.replace(place, places[place])
    return _MEMORY_ADDRESS.sub("at 0x…", line)


def _first_difference(before: list[str], now: list[str]) -> tuple[str, str]:
    for one, other in zip(before, now, strict=False):
        if one != other:
            return one[:_MAX_SHOWN_CHARACTERS], other[:_MAX_SHOWN_CHARACTERS]
    at = min(len(before), len(now))
    return (
        before[at][:_MAX_SHOWN_CHARACTERS] if at < len(before) else "nothing",
        now[at][:_MAX_SHOWN_CHARACTERS] if at < len(now) else "nothing",
    )
