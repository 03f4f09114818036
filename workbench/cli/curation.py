"""`workbench app`, `inspect` and `embed`: FiftyOne's App, data quality and embeddings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workbench.cli.common import (
    first_rows,
    json_option,
    print_result,
    progress_bar,
    resolve_ref,
    validation_message,
)
from workbench.cli.mining import load_encoder, resolve_checkpoint
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace
from workbench.records.base import short_ref
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.curation.hygiene import InspectionRules
    from workbench.curation.hygiene.duplicates import DuplicateCluster
    from workbench.curation.hygiene.inspection import InspectionFindings
    from workbench.detection.model import Predictions
    from workbench.records.base import Ref
    from workbench.records.frames import Frame

__all__ = ()

_EXAMPLES = 5
_SKIPPED_LISTED = 3
_MODELS = ("checkpoint", "bundle", "release")


@click.command()
@click.argument("ref", metavar="[DATASET]", default="")
@click.option("--model", "models", multiple=True, help="Model whose boxes to show; repeatable.")
@click.option("--role", "roles", multiple=True, help="Only frames of this role; repeatable.")
@click.option("--port", default=5151, show_default=True, help="Port of the App, on loopback.")
@click.option("--no-open", is_flag=True, help="Publish only, and do not keep the App running.")
@json_option
def app(
    ref: str,
    models: tuple[str, ...],
    roles: tuple[str, ...],
    port: int,
    no_open: bool,
    as_json: bool,
) -> None:
    """Show a dataset version in FiftyOne's App until Ctrl-C; the newest one by default.

    Frames of every role are there with their labels and each model's boxes, evaluated for
    FiftyOne's own panel, and saved views of each slice and kind of miss, and of what
    `workbench inspect` found. Buttons above the grid mine, search, send frames to labelers, add
    incidents and show lineage. It is published as NAME@N: views of mined frames stay as they are.
    """
    from workbench import curation, services
    from workbench.curation.fiftyone.evaluations import publish_evaluations
    from workbench.curation.hygiene import read_findings
    from workbench.detection.model import Model
    from workbench.records.catalog import newest_first
    from workbench.records.dataset import load_dataset
    from workbench.records.references import list_dataset_versions, resolve_dataset
    from workbench.records.types import Inspection

    workspace = find_workspace()
    versions = list_dataset_versions(workspace)
    if not versions:
        raise ParameterError("there is no dataset yet", hint="Run `workbench ingest FOLDER` first")
    store = Store(workspace)
    newest = max(versions, key=lambda one: store.side(one.ref, "created")["at"])
    dataset = load_dataset(store, resolve_dataset(workspace, ref) if ref else newest.ref)
    name = next((str(one) for one in versions if one.ref == dataset.ref), dataset.name)
    shown = dataset.role(*roles) if roles else dataset
    found, failures = {}, {}
    for model in models:
        opened = Model(workspace, resolve_ref(workspace, model, _MODELS), name=model)
        with progress_bar(f"predict {model}") as progress:
            predictions = opened.predict(shown, progress=progress)
        found[model] = predictions.above()
        failures[model] = _kinds_of_misses(predictions)
    services.up(workspace, ("mongod",))
    inspected = [ref for ref, one in newest_first(store, Inspection) if one.dataset == dataset.ref]
    findings = read_findings(store, inspected[0]) if inspected else None
    runs = publish_evaluations(
        workspace,
        shown,
        found,
        name,
        failures=failures,
        findings=findings,
        version=dataset.ref,
    )
    result: Json = {"dataset": name, "frames": len(shown.frames), "evaluations": list(runs)}
    if no_open:
        text = f"{name}: {counted(len(shown.frames), 'frame')} in FiftyOne"
        print_result(result, as_json=as_json, text=text)
        return
    session = curation.open_app(name, workspace=workspace, port=port)
    print_result(
        {**result, "url": session.url}, as_json=as_json, text=f"{session.url}  Ctrl-C stops it"
    )
    session.wait(-1)


def _kinds_of_misses(predictions: Predictions) -> dict[str, list[str]]:
    """Why labels were missed, by frame; frames of the pool have no labels to miss."""
    from workbench.data.slices import ALL_FRAMES
    from workbench.evaluation.metrics import evaluate
    from workbench.evaluation.misses import explain_misses, worst_frames
    from workbench.evaluation.results import EvaluationSettings

    frames = len(predictions.dataset.frames)
    if not predictions.dataset.labels:
        return {}
    threshold = predictions.threshold
    settings = EvaluationSettings(threshold=threshold, resamples=100)
    evaluation = evaluate(predictions, [ALL_FRAMES], settings=settings)
    worst = worst_frames(evaluation, frames, per_drive=frames)
    kinds: dict[str, set[str]] = {}
    for miss in explain_misses(worst, predictions.boxes, threshold=threshold):
        kinds.setdefault(miss.label.frame, set()).add(miss.kind)
    return {frame: sorted(found) for frame, found in kinds.items()}


@click.command()
@click.argument("ref", metavar="DATASET")
@click.option("--model", help="Checkpoint used for embeddings and to find wrong labels.")
@click.option(
    "--target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML file with the wanted coverage of conditions and classes.",
)
@click.option("--gap", type=float, help="Minimum time (s) between roles within a recording.")
@click.option("--radius", type=float, help="Minimum distance (m) between roles, where known.")
@click.option("--gate", is_flag=True, help="Exit with 1 unless the check for leaks passes.")
@click.option(
    "--review", type=int, metavar="N", help="Store the N worst labeled frames as a selection."
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
    """Find leaks between roles, duplicates, thin coverage and wrong labels in DATASET.

    Fingerprints and embeddings are cached. The result can be opened in
    notebooks/explore/leaking_splits.ipynb.
    """
    from workbench.curation import hygiene
    from workbench.records.base import Verdict

    workspace = find_workspace()
    store = Store(workspace)
    dataset = resolve_ref(workspace, ref, ("dataset",))
    checkpoint = resolve_ref(workspace, model, ("checkpoint",)) if model else None
    if review is not None and checkpoint is None:
        raise ParameterError("--review needs --model to find wrong labels")
    rules = _inspection_rules(target, gap, radius)
    with progress_bar("inspect") as progress:
        inspection = hygiene.inspect_dataset(store, dataset, checkpoint, rules, progress=progress)
    findings = hygiene.read_findings(store, inspection)
    selection = _review_selection(store, findings, review) if review is not None else None
    print_result(
        _inspection_as_json(inspection, findings, selection),
        as_json=as_json,
        text="\n".join(_inspection_lines(inspection, findings, selection)),
    )
    if gate and findings.record.verdict is not Verdict.PASS:
        raise SystemExit(1)


def _inspection_rules(
    target: Path | None, gap: float | None, radius: float | None
) -> InspectionRules:
    from pydantic import ValidationError

    from workbench.curation import hygiene

    options = {"gap_s": gap, "radius_m": radius}
    try:
        leakage = hygiene.LeakageRules.model_validate(
            {name: value for name, value in options.items() if value is not None}
        )
    except ValidationError as error:
        field, message = validation_message(error)
        raise ParameterError(f"{field}: {message}", where=options[field]) from error
    coverage = hygiene.read_coverage_target(target) if target else hygiene.CoverageTarget()
    return hygiene.InspectionRules(leakage=leakage, target=coverage)


def _review_selection(store: Store, findings: InspectionFindings, budget: int) -> Ref:
    """The frames whose labels look wrong, as a selection that can be sent to labelers."""
    from workbench import labeling
    from workbench.labeling.review import suspects_from_errors

    suspects = suspects_from_errors(findings.errors)
    return labeling.select_for_review(
        store, findings.record.dataset, suspects, budget, findings.record.model
    )


def _inspection_as_json(ref: Ref, findings: InspectionFindings, selection: Ref | None) -> Json:
    from workbench.curation import hygiene

    record = findings.record
    return {
        "inspection": ref,
        "dataset": record.dataset,
        "model": record.model,
        "simulated": record.simulated,
        "verdict": record.verdict,
        "gates": [gate.model_dump(mode="json") for gate in record.gates],
        "leaks": [leak.model_dump(mode="json") for leak in findings.leaks],
        "duplicates": [cluster.model_dump(mode="json") for cluster in findings.clusters],
        "thin": [
            {**cell.model_dump(mode="json"), "lacks": cell.lacks}
            for cell in hygiene.thin_cells(findings.cells)
        ],
        "label_errors": None
        if record.suspects is None
        else [error.model_dump(mode="json") for error in findings.errors],
        "unreadable": record.parameters["unreadable"],
        "selection": selection,
    }


def _inspection_lines(ref: Ref, findings: InspectionFindings, selection: Ref | None) -> list[str]:
    record = findings.record
    simulated = "  SIMULATED" if record.simulated else ""
    lines = [
        f"{short_ref(ref)} of {short_ref(record.dataset)}{simulated}",
        *_leak_lines(findings),
        f"duplicates: {counted(record.exact, 'exact copy', 'exact copies')},"
        f" {counted(record.near, 'near duplicate')}",
        f"  near: {record.parameters['near']}",
        *_examples([_cluster_line(cluster) for cluster in findings.clusters]),
        *_coverage_lines(findings),
        *_label_lines(findings),
    ]
    if record.parameters["unreadable"]:
        lines.append(counted(len(record.parameters["unreadable"]), "unreadable frame"))
    if selection:
        lines.append(f"next: workbench label send {short_ref(selection)}")
    elif findings.errors:
        options = f"--model {short_ref(record.model or '')} --review 50"
        lines.append(f"next: workbench inspect {short_ref(record.dataset)} {options}")
    return lines


def _leak_lines(findings: InspectionFindings) -> list[str]:
    lines = [f"leaks between roles: {findings.record.verdict}"]
    for gate in findings.record.gates:
        leaks = "" if gate.value is None else f"{counted(round(gate.value), 'leak')} in "
        note = "" if gate.required else " (not required)"
        name = gate.name.removeprefix("leakage-")
        lines.append(
            f"  {name:<10} {gate.verdict}: {leaks}{gate.n} {gate.unit}{note}; {gate.method}"
        )
        lines += [f"             {gate.why}"] if gate.why else []
        lines += _examples(
            [
                f"{leak.first[:12]} {leak.second[:12]}  {leak.why}"
                for leak in findings.leaks
                if leak.kind == name
            ]
        )
    return lines


def _coverage_lines(findings: InspectionFindings) -> list[str]:
    from workbench.curation import hygiene

    thin = hygiene.thin_cells(findings.cells)
    cells = counted(len(findings.cells), "combination")
    rows = [f"coverage: {len(thin)} of {cells} of condition and class below target"]
    return rows + _examples(
        [
            f"{cell.side} {cell.condition}, {cell.cls}: {counted(cell.boxes, 'box', 'boxes')} of"
            f" {counted(cell.drives, 'drive')},"
            f" missing {', '.join(f'{count} {name}' for name, count in cell.lacks.items())}"
            for cell in thin
        ]
    )


def _label_lines(findings: InspectionFindings) -> list[str]:
    if findings.record.suspects is None:
        return ["labels: not checked (give --model CHECKPOINT)"]
    frames = counted(len({error.frame for error in findings.errors}), "frame")
    rows = [f"labels: {len(findings.errors)} look wrong on {frames} (the model may be wrong, too)"]
    return rows + _examples(
        [
            f"{error.frame[:12]}  {error.weight:.2f}  {error.kind}: {error.why}"
            for error in findings.errors
        ]
    )


def _cluster_line(cluster: DuplicateCluster) -> str:
    kind = "identical" if cluster.exact else "nearly identical"
    frames, drives = counted(len(cluster.frames), "frame"), counted(cluster.drives, "drive")
    return f"{frames} of {drives} are {kind}, such as {cluster.frames[0][:12]}"


def _examples(rows: list[str]) -> list[str]:
    return first_rows(rows, _EXAMPLES, "    ")


@click.command()
@click.argument("dataset")
@click.option(
    "--encoder",
    metavar="lite0|FOLDER|NAME|FILE.onnx",
    help="Vision model: an ImageNet classifier, Hugging Face or ONNX.  [default: the detector]",
)
@click.option(
    "--model",
    help="Detector: checkpoint, bundle or models:/NAME@ALIAS."
    "  [default: the dataset's champion, or the newest of a pipeline]",
)
@click.option("--role", "roles", multiple=True, help="Only frames of this role. Repeatable.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Ray cluster that shares this workspace's folder; `local` starts one here.",
)
@click.option(
    "--batch", default=16, show_default=True, type=click.IntRange(1), help="Frames per batch."
)
@json_option
def embed(dataset: str, as_json: bool, roles: tuple[str, ...], **options: Any) -> None:
    """Compute embeddings of DATASET's frames, objects and tiles, and store them for mining.

    Only frames without stored embeddings are computed, so a killed command continues where it
    stopped. `workbench mine` uses the stored embeddings and computes missing ones.
    """
    from workbench import curation
    from workbench.curation.embedding.embeddings import embeddings_folder
    from workbench.curation.embedding.encoders import DetectorEncoder
    from workbench.detection.predictor import load_checkpoint
    from workbench.records.dataset import load_dataset

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, dataset, ("dataset",))
    version = load_dataset(store, ref)
    frames = _frames_of_roles(version.frames, roles)
    model = resolve_checkpoint(workspace, store, options["model"], version)
    encoder = load_encoder(store, options["encoder"], model) or DetectorEncoder(
        load_checkpoint(store, model)
    )
    with progress_bar("embed") as progress:
        embeddings = curation.embed(
            workspace, encoder, frames, progress, batch=options["batch"], ray=options["ray"]
        )
    result = {
        "dataset": ref,
        "model": embeddings.model,
        "preprocessing": embeddings.preprocessing,
        "folder": str(embeddings_folder(workspace, encoder)),
        "frames": len(embeddings.frames),
        "objects": len(embeddings.owner),
        "tiles_per_frame": embeddings.tiles.per_frame,
        "widths": {
            "frame": embeddings.vectors.shape[1],
            "object": embeddings.object_vectors.shape[1],
        },
        "faults": _quality_faults(embeddings),
        "left_out": [{"frame": frame, "reason": reason} for frame, reason in embeddings.skipped],
    }
    print_result(result, as_json=as_json, text=_embed_text(result))


def _frames_of_roles(frames: tuple[Frame, ...], roles: tuple[str, ...]) -> list[Frame]:
    from workbench.records.frames import Role

    known = [role.value for role in Role]
    unknown = [role for role in roles if role not in known]
    if unknown:
        raise ParameterError(
            "unknown role", where=f"--role {unknown[0]}", hint=f"Roles are {', '.join(known)}"
        )
    selected = [
        frame for frame in frames if not roles or (frame.role and frame.role.value in roles)
    ]
    if not selected:
        raise ParameterError("no frames with these roles", where=f"--role {' '.join(roles)}")
    return selected


def _quality_faults(embeddings: Embeddings) -> dict[str, int]:
    """Number of frames that the quality gate would exclude, by fault."""
    from workbench.curation import QualityGate

    gate = QualityGate()
    faults = Counter(gate.verdict(row) for row in embeddings.quality)
    return {fault: count for fault, count in sorted(faults.items()) if fault}


def _embed_text(result: Json) -> str:
    faults = ", ".join(f"{count} {fault}" for fault, count in result["faults"].items())
    frames, objects = counted(result["frames"], "frame"), counted(result["objects"], "object")
    lines = [
        f"{frames} embedded, {objects}, {counted(result['tiles_per_frame'], 'tile')} per frame",
        f"  in {result['folder']}",
        f"  the quality gate would exclude: {faults or 'none'}",
    ]
    if skipped := result["left_out"]:
        rows = [f"{entry['frame'][:12]}  {entry['reason']}" for entry in skipped]
        lines += [f"  skipped: {len(skipped)}", *first_rows(rows, _SKIPPED_LISTED, "    ")]
    return "\n".join([*lines, f"next: workbench mine {result['dataset'][:20]} --budget 100"])
