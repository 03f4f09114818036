"""What came of a reproduction, as one object for machines and a page for people."""

from __future__ import annotations

from typing import Any, Literal

from workbench.digest import short
from workbench.records.base import Digest, Ref, Row, digest_of, kind_of

How = Literal["rebuilt", "merged"]
Json = dict[str, Any]


class Compared(Row):
    """One output of a step: ``rebuilt`` is None when it was not made again."""

    recorded: Ref
    rebuilt: Ref | None = None

    @property
    def same(self) -> bool:
        return self.recorded == self.rebuilt


class StepOutcome(Row):
    """One step. ``code_same`` is False when the workbench's modules are not those recorded."""

    name: str
    run: Ref
    how: How
    status: Literal["same", "differs", "failed", "not-reached"]
    outputs: dict[str, Compared]
    code_same: bool = True
    seconds: float | None = None
    reason: str = ""


class LeafCopy(Row):
    """A record that was taken as it is, and why."""

    ref: Ref
    why: str


class CellDifference(Row):
    """A cell whose output is not the recorded one; ``number`` counts code cells from 1."""

    number: int
    source: str
    recorded: str
    rebuilt: str


class Difference(Row):
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


class Report(Row):
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
    difference: Difference | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> Digest:
        return digest_of(self.target)


def as_text(report: Report) -> str:
    """The end of it in a few lines; steps were told while they ran."""
    compared = [output for step in report.steps for output in step.outputs.values()]
    same = sum(output.same for output in compared)
    name = f"{kind_of(report.target)} {short(report.key)}"
    lines = ["", f"{name}: {report.status.upper()}"]
    lines.append(f"  {same} of {len(compared)} outputs of {len(report.steps)} steps are the same")
    if report.leaves:
        lines.append("  taken as they are, not rebuilt:")
    for leaf in report.leaves:
        lines.append(f"    {kind_of(leaf.ref)} {short(digest_of(leaf.ref))}  {leaf.why}")
    lines += [f"  note: {note}" for note in report.notes]
    if report.difference is not None:
        lines += _difference(report.difference)
    failed = [step for step in report.steps if step.status == "failed"]
    lines += [f"  {step.name} failed: {step.reason}" for step in failed]
    if report.status == "differs" and report.environment:
        lines.append("  The environment is not the recorded one; that may be all there is to it.")
    lines.append(f"  It lies in {report.folder}")
    return "\n".join(lines)


def _difference(found: Difference) -> list[str]:
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
