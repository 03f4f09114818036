"""``workbench inspect``: is a dataset version clean enough to learn from and to judge by?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench import workspace
from workbench.commands.common import emit, json_option, progress_bar
from workbench.commands.label_access import resolve, short
from workbench.errors import ParameterError

if TYPE_CHECKING:
    from workbench.curation.hygiene.inspection import Found
    from workbench.records.base import Ref
    from workbench.records.store import Store

_SHOWN = 5


@click.command()
@click.argument("ref")
@click.option("--model", help="Checkpoint whose view of the frames counts; judges labels too.")
@click.option(
    "--target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML with what conditions and classes should hold.",
)
@click.option("--gap", type=float, help="Seconds between roles within one recording.")
@click.option("--radius", type=float, help="Metres between roles, where frames tell a position.")
@click.option("--gate", is_flag=True, help="Exit with 1 unless no leak between roles was found.")
@click.option(
    "--review", type=int, metavar="N", help="Keep the N worst labelled frames as a selection."
)
@json_option
def inspect(
    ref: str,
    model: str | None,
    target: Path | None,
    gap: float | None,
    radius: float | None,
    gate: bool,
    review: int | None,
    as_json: bool,
) -> None:
    """Look for duplicates, leaks between roles, thin conditions and labels that look wrong.

    REF is a dataset version. Images and embeddings that were looked at before are not looked at
    again. The record of what was found can be opened in notebooks/explore/leaking_splits.ipynb.
    """
    from workbench.curation import hygiene
    from workbench.records.store import Store
    from workbench.records.types import Verdict

    place = workspace.find()
    store = Store(place)
    dataset = resolve(place, ref, ("dataset",))
    checkpoint = resolve(place, model, ("checkpoint",)) if model else None
    if review is not None and checkpoint is None:
        raise ParameterError("--review needs --model, to know which labels look wrong")
    rules = _rules(target, gap, radius)
    with progress_bar("inspect") as progress:
        made = hygiene.inspect(store, dataset, checkpoint, rules, progress=progress)
    found = hygiene.read(store, made)
    selection = _review(store, found, review) if review is not None else None
    result = _result(made, found, selection)
    emit(result, as_json=as_json, text="\n".join(_lines(made, found, selection)))
    if gate and found.record.verdict is not Verdict.PASS:
        raise SystemExit(1)


def _rules(target: Path | None, gap: float | None, radius: float | None) -> Any:
    from pydantic import ValidationError

    from workbench.curation import hygiene

    given = {"gap_s": gap, "radius_m": radius}
    try:
        leakage = hygiene.LeakageRules.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(f"{first['loc'][0]}: {first['msg']}", where=first["input"]) from error
    wanted = hygiene.read_target(target) if target else hygiene.Target()
    return hygiene.InspectionRules(leakage=leakage, target=wanted)


def _review(store: Store, found: Found, budget: int) -> Ref:
    """What looks wrong, in the form in which labeling sends frames to be looked at again."""
    from workbench import labeling
    from workbench.labeling.quality import as_suspects

    suspects = as_suspects(found.errors)
    return labeling.to_review(store, found.record.dataset, suspects, budget, found.record.model)


def _result(made: Ref, found: Found, selection: Ref | None) -> dict[str, Any]:
    from workbench.curation import hygiene

    record = found.record
    return {
        "inspection": made,
        "dataset": record.dataset,
        "model": record.model,
        "simulated": record.simulated,
        "verdict": record.verdict,
        "gates": [one.model_dump(mode="json") for one in record.gates],
        "leaks": [one.model_dump(mode="json") for one in found.leaks],
        "duplicates": [one.model_dump(mode="json") for one in found.clusters],
        "thin": [
            {**cell.model_dump(mode="json"), "lacks": cell.lacks}
            for cell in hygiene.thin(found.cells)
        ],
        "label_errors": None
        if record.suspects is None
        else [one.model_dump(mode="json") for one in found.errors],
        "unreadable": record.parameters["unreadable"],
        "selection": selection,
    }


def _lines(made: Ref, found: Found, selection: Ref | None) -> list[str]:
    record = found.record
    simulated = "  SIMULATED" if record.simulated else ""
    lines = [f"{short(made)} of {short(record.dataset)}{simulated}"]
    lines.append(f"leaks between roles: {record.verdict}")
    for one in record.gates:
        count = "" if one.value is None else f"{one.value:.0f} found among "
        aside = "" if one.required else " (shown, not required)"
        name = one.name.removeprefix("leakage-")
        lines.append(f"  {name:<10} {one.verdict}: {count}{one.n} {one.unit}{aside}; {one.method}")
        lines += [f"             {one.why}"] if one.why else []
        theirs = [leak for leak in found.leaks if leak.kind == name]
        lines += _few([f"{leak.first[:12]} {leak.second[:12]}  {leak.why}" for leak in theirs])
    lines.append(f"duplicates: {record.exact} exact copies, {record.near} near ones")
    lines.append(f"  near: {record.parameters['near']}")
    lines += _few([_cluster_line(cluster) for cluster in found.clusters])
    lines += _coverage_lines(found)
    lines += _label_lines(found)
    if record.parameters["unreadable"]:
        lines.append(f"{len(record.parameters['unreadable'])} frames cannot be read")
    if selection:
        lines.append(f"next: workbench label send {short(selection)}")
    elif found.errors:
        again = f"--model {short(record.model or '')} --review 50"
        lines.append(f"next: workbench inspect {short(record.dataset)} {again}")
    return lines


def _coverage_lines(found: Found) -> list[str]:
    from workbench.curation import hygiene

    thin = hygiene.thin(found.cells)
    rows = [f"coverage: {len(thin)} of {len(found.cells)} conditions x classes are thin"]
    return rows + _few(
        [
            f"{cell.side} {cell.condition}, {cell.cls}: {cell.boxes} boxes of {cell.drives} drives,"
            f" lacks {', '.join(f'{count} {name}' for name, count in cell.lacks.items())}"
            for cell in thin
        ]
    )


def _label_lines(found: Found) -> list[str]:
    if found.record.suspects is None:
        return ["labels: not judged; say --model CHECKPOINT"]
    frames = len({one.frame for one in found.errors})
    rows = [f"labels: {len(found.errors)} look wrong on {frames} frames; a model errs too"]
    return rows + _few(
        [f"{one.frame[:12]}  {one.weight:.2f}  {one.kind}: {one.why}" for one in found.errors]
    )


def _cluster_line(cluster: Any) -> str:
    kind = "the same picture" if cluster.exact else "nearly the same"
    drives = "one drive" if cluster.drives == 1 else f"{cluster.drives} drives"
    return f"{len(cluster.frames)} frames of {drives} show {kind}, such as {cluster.frames[0][:12]}"


def _few(rows: list[str]) -> list[str]:
    more = [f"    … and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return [f"    {row}" for row in rows[:_SHOWN]] + more
