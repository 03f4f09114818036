"""`workbench inspect` and `workbench embed`: data quality and embeddings of a dataset version."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import json_option, print_result, progress_bar, resolve_ref, short_ref
from workbench.cli.mining import load_encoder, resolve_checkpoint
from workbench.core.errors import ParameterError
from workbench.core.workspace import find_workspace
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.curation.hygiene.inspection import InspectionFindings
    from workbench.records.base import Ref
    from workbench.records.frames import Frame


_EXAMPLES = 5


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
    from workbench.records.base import Verdict
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    dataset = resolve_ref(workspace, ref, ("dataset",))
    checkpoint = resolve_ref(workspace, model, ("checkpoint",)) if model else None
    if review is not None and checkpoint is None:
        raise ParameterError("--review needs --model, to know which labels look wrong")
    rules = _inspection_rules(target, gap, radius)
    with progress_bar("inspect") as progress:
        made = hygiene.inspect_dataset(store, dataset, checkpoint, rules, progress=progress)
    found = hygiene.read_findings(store, made)
    selection = _review_selection(store, found, review) if review is not None else None
    result = _inspection_as_json(made, found, selection)
    print_result(result, as_json=as_json, text="\n".join(_inspection_lines(made, found, selection)))
    if gate and found.record.verdict is not Verdict.PASS:
        raise SystemExit(1)


def _inspection_rules(target: Path | None, gap: float | None, radius: float | None) -> Any:
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
    wanted = hygiene.read_coverage_target(target) if target else hygiene.CoverageTarget()
    return hygiene.InspectionRules(leakage=leakage, target=wanted)


def _review_selection(store: Store, found: InspectionFindings, budget: int) -> Ref:
    """What looks wrong, in the form in which labeling sends frames to be looked at again."""
    from workbench import labeling
    from workbench.labeling.review import suspects_from_errors

    suspects = suspects_from_errors(found.errors)
    return labeling.select_for_review(
        store, found.record.dataset, suspects, budget, found.record.model
    )


def _inspection_as_json(
    made: Ref, found: InspectionFindings, selection: Ref | None
) -> dict[str, Any]:
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
            for cell in hygiene.thin_cells(found.cells)
        ],
        "label_errors": None
        if record.suspects is None
        else [one.model_dump(mode="json") for one in found.errors],
        "unreadable": record.parameters["unreadable"],
        "selection": selection,
    }


def _inspection_lines(made: Ref, found: InspectionFindings, selection: Ref | None) -> list[str]:
    record = found.record
    simulated = "  SIMULATED" if record.simulated else ""
    lines = [f"{short_ref(made)} of {short_ref(record.dataset)}{simulated}"]
    lines.append(f"leaks between roles: {record.verdict}")
    for one in record.gates:
        count = "" if one.value is None else f"{one.value:.0f} found among "
        aside = "" if one.required else " (shown, not required)"
        name = one.name.removeprefix("leakage-")
        lines.append(f"  {name:<10} {one.verdict}: {count}{one.n} {one.unit}{aside}; {one.method}")
        lines += [f"             {one.why}"] if one.why else []
        theirs = [leak for leak in found.leaks if leak.kind == name]
        lines += _first_rows(
            [f"{leak.first[:12]} {leak.second[:12]}  {leak.why}" for leak in theirs]
        )
    lines.append(f"duplicates: {record.exact} exact copies, {record.near} near ones")
    lines.append(f"  near: {record.parameters['near']}")
    lines += _first_rows([_cluster_line(cluster) for cluster in found.clusters])
    lines += _coverage_lines(found)
    lines += _label_lines(found)
    if record.parameters["unreadable"]:
        lines.append(f"{len(record.parameters['unreadable'])} frames cannot be read")
    if selection:
        lines.append(f"next: workbench label send {short_ref(selection)}")
    elif found.errors:
        again = f"--model {short_ref(record.model or '')} --review 50"
        lines.append(f"next: workbench inspect {short_ref(record.dataset)} {again}")
    return lines


def _coverage_lines(found: InspectionFindings) -> list[str]:
    from workbench.curation import hygiene

    thin = hygiene.thin_cells(found.cells)
    rows = [f"coverage: {len(thin)} of {len(found.cells)} conditions x classes are thin"]
    return rows + _first_rows(
        [
            f"{cell.side} {cell.condition}, {cell.cls}: {cell.boxes} boxes of {cell.drives} drives,"
            f" lacks {', '.join(f'{count} {name}' for name, count in cell.lacks.items())}"
            for cell in thin
        ]
    )


def _label_lines(found: InspectionFindings) -> list[str]:
    if found.record.suspects is None:
        return ["labels: not judged; say --model CHECKPOINT"]
    frames = len({one.frame for one in found.errors})
    rows = [f"labels: {len(found.errors)} look wrong on {frames} frames; a model errs too"]
    return rows + _first_rows(
        [f"{one.frame[:12]}  {one.weight:.2f}  {one.kind}: {one.why}" for one in found.errors]
    )


def _cluster_line(cluster: Any) -> str:
    kind = "the same picture" if cluster.exact else "nearly the same"
    drives = "one drive" if cluster.drives == 1 else f"{cluster.drives} drives"
    return f"{len(cluster.frames)} frames of {drives} show {kind}, such as {cluster.frames[0][:12]}"


def _first_rows(rows: list[str]) -> list[str]:
    more = [f"    … and {len(rows) - _EXAMPLES} more"] if len(rows) > _EXAMPLES else []
    return [f"    {row}" for row in rows[:_EXAMPLES]] + more


# ---- ``workbench embed``: vectors of a dataset's frames, objects and tiles, ahead of mining.


_LEFT_OUT_EXAMPLES = 3


@click.command()
@click.argument("dataset")
@click.option(
    "--encoder",
    metavar="FOLDER|NAME|FILE.onnx",
    help="Whose vectors: a model of Hugging Face or ONNX. Default: the detector's own.",
)
@click.option("--model", help="The detector: a checkpoint, bundle or models:/NAME@ALIAS.")
@click.option("--role", "roles", multiple=True, help="Only frames of this role. Repeatable.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Share the work with a Ray cluster that sees this workspace; `local` starts one here.",
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1), help="Frames.")
@json_option
def embed(dataset: str, as_json: bool, roles: tuple[str, ...], **asked: Any) -> None:
    """Look at every frame of DATASET once and keep what was seen.

    What is on disk already is not computed again: a killed pass goes on when it is started again,
    and added frames cost only themselves. `workbench mine` uses what was kept, and computes what
    is missing.
    """
    from workbench import curation
    from workbench.curation.embedding import embeddings
    from workbench.curation.embedding.encoders import DetectorEncoder
    from workbench.detection.predictor import load_checkpoint
    from workbench.records import dataset as datasets

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    version = datasets.load_dataset(store, ref)
    frames = _frames_of_roles(version.frames, roles)
    model = resolve_checkpoint(workspace, store, asked["model"], version)
    named = load_encoder(store, asked["encoder"], model)
    encoder = named or DetectorEncoder(load_checkpoint(store, model))
    with progress_bar("embed") as progress:
        found = curation.embed(
            workspace, encoder, frames, progress, batch=asked["batch"], ray=asked["ray"]
        )
    result = {
        "dataset": ref,
        "model": found.model,
        "preprocessing": found.preprocessing,
        "folder": str(embeddings.embeddings_folder(workspace, encoder)),
        "frames": len(found.frames),
        "objects": len(found.owner),
        "tiles_per_frame": found.tiles.per_frame,
        "widths": {"frame": found.vectors.shape[1], "object": found.object_vectors.shape[1]},
        "faults": _quality_faults(found),
        "left_out": [{"frame": frame, "reason": why} for frame, why in found.skipped],
    }
    print_result(result, as_json=as_json, text=_embed_text(result))


def _frames_of_roles(frames: tuple[Frame, ...], roles: tuple[str, ...]) -> list[Frame]:
    from workbench.records.frames import Role

    known = [role.value for role in Role]
    strange = [role for role in roles if role not in known]
    if strange:
        raise ParameterError(
            "no such role", where=f"--role {strange[0]}", hint=f"Roles are {', '.join(known)}"
        )
    chosen = [frame for frame in frames if not roles or (frame.role and frame.role.value in roles)]
    if not chosen:
        raise ParameterError("the dataset has no such frames", where=f"--role {' '.join(roles)}")
    return chosen


def _quality_faults(found: Embeddings) -> dict[str, int]:
    """What the quality gate would keep out, by fault."""
    from workbench.curation import QualityGate

    gate = QualityGate()
    verdicts = Counter(gate.verdict(row) for row in found.quality)
    return {fault: count for fault, count in sorted(verdicts.items()) if fault}


def _embed_text(result: dict[str, Any]) -> str:
    faults = ", ".join(f"{count} {fault}" for fault, count in result["faults"].items())
    left = result["left_out"]
    lines = [
        f"{result['frames']} frames embedded, {result['objects']} objects, "
        f"{result['tiles_per_frame']} tiles a frame",
        f"  in {result['folder']}",
        f"  the quality gate would keep out: {faults or 'none'}",
    ]
    if left:
        lines.append(f"  left out: {len(left)}")
        lines += [f"    {one['frame'][:12]}  {one['reason']}" for one in left[:_LEFT_OUT_EXAMPLES]]
        lines += [f"    and {len(left) - _LEFT_OUT_EXAMPLES} more (--json lists them)"] * (
            len(left) > _LEFT_OUT_EXAMPLES
        )
    return "\n".join([*lines, f"next: workbench mine {result['dataset'][:20]} --budget 100"])
