"""`workbench incidents`, `blind` and `hazards`: evidence that outlives a candidate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar, resolve_ref
from workbench.core.errors import DataError, ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import Digest, Ref, short_ref

if TYPE_CHECKING:
    from workbench.data.incidents import IncidentState
    from workbench.records.dataset import Dataset
    from workbench.records.store import Store

__all__ = ()


@click.group()
def incidents() -> None:
    """Keep missed objects as regression cases that every candidate must pass."""


@incidents.command("add")
@click.argument("name")
@click.argument("dataset")
@click.option(
    "--frame", "frames", multiple=True, help="DRIVE@INDEX, or first digits of a frame's id; repeat."
)
@click.option("--tag", help="All frames with this tag in FiftyOne.")
@click.option("--class", "classes", multiple=True, help="Only objects of this class; repeat.")
@click.option("--missed-by", metavar="MODEL", help="Only objects that this model misses.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score at which it misses them.  [default: the model's]",
)
@click.option("--why", required=True, help="What happened, in a sentence.")
@click.option("--by", required=True, help="Who adds it.")
@click.option(
    "--scenario", default="", help="Id of the test case that the frames are an example of."
)
@click.option("--telemetry", is_flag=True, help="A vehicle reported it.")
@json_option
def add_incident(  # noqa: PLR0913, PLR0917 - one an option
    name: str,
    dataset: str,
    frames: tuple[str, ...],
    tag: str | None,
    classes: tuple[str, ...],
    missed_by: str | None,
    threshold: float | None,
    why: str,
    by: str,
    scenario: str,
    telemetry: bool,
    as_json: bool,
) -> None:
    """Pin missed objects of a DATASET version as incident NAME.

    The objects are the labels of the frames given with --frame or --tag.
    """
    from workbench.curation.selection.ranking import parse_exemplar
    from workbench.data import incidents as kept
    from workbench.detection.model import Model
    from workbench.evaluation.incidents import missed_labels
    from workbench.records.dataset import load_dataset
    from workbench.records.evidence_types import FoundIn
    from workbench.records.store import Store
    from workbench.simulation.cases import find_cases

    if scenario:
        find_cases([scenario])
    workspace = find_workspace()
    store = Store(workspace)
    whole = load_dataset(store, resolve_ref(workspace, dataset, ("dataset",)))
    chosen = {parse_exemplar(whole.frames, one).frame for one in frames}
    if tag:
        chosen |= _tagged_frames(workspace, whole, tag)
    if not chosen:
        raise ParameterError(
            "no frames",
            where=name,
            hint="Name frames with --frame, or a tag of FiftyOne with --tag",
        )
    part = whole.where(lambda frame: frame.id in chosen)
    labels = [
        label for label in part.labels if not label.ignore and (not classes or label.cls in classes)
    ]
    if missed_by:
        ref = resolve_ref(workspace, missed_by, ("checkpoint", "bundle", "release"))
        boxes = Model(workspace, ref).predict(part).above(threshold)
        labels = list(missed_labels(labels, boxes))
    found_in: FoundIn = "telemetry" if telemetry else "fiftyone" if tag else "command"
    ref = kept.add_incident(
        store, name, whole, labels, why=why, by=by, found_in=found_in, scenario=scenario
    )
    body = {"incident": ref, "name": name, "frames": len(part), "objects": len(labels)}
    text = f"{name}: {counted(len(labels), 'object')}; every candidate has to find them from now on"
    print_result(body, as_json=as_json, text=text)


def _tagged_frames(workspace: Workspace, whole: Dataset, tag: str) -> set[Digest]:
    """Frames with a tag in FiftyOne: as NAME after mining, as NAME@N in `workbench app`."""
    from workbench import services
    from workbench.curation.fiftyone.tags import tagged_frames
    from workbench.records.references import list_dataset_versions

    services.up(workspace, ("mongod",))
    versions = list_dataset_versions(workspace)
    found, absent = set[Digest](), None
    names = [whole.name, *(str(one) for one in versions if one.ref == whole.ref)]
    for name in names:
        try:
            found |= set(tagged_frames(name, tag, workspace=workspace))
        except DataError as error:
            absent = error
    if absent and not found:
        raise absent
    return found


@incidents.command("list")
@json_option
def list_incidents(as_json: bool) -> None:
    """List all incidents, retired ones too."""
    from workbench.data import incidents as kept
    from workbench.records.store import Store

    states = kept.list_incidents(Store(find_workspace()))
    lines = [
        f"{one.name:<28} {'retired' if not one.active else 'active ':<8} "
        + (
            f"{counted(one.record.objects, 'object')}: {one.record.why}"
            if one.record
            else "RECORD MISSING: no candidate can pass"
        )
        for one in states
    ]
    body = {"incidents": [_state_json(one) for one in states]}
    print_result(body, as_json=as_json, text="\n".join(lines) or "no incidents")


@incidents.command("show")
@click.argument("name")
@json_option
def show_incident(name: str, as_json: bool) -> None:
    """Show an incident, its frames and objects; check that the frames are untouched."""
    from workbench.data import incidents as kept
    from workbench.records.store import Store

    store = Store(find_workspace())
    state = kept.find_incident(store, name)
    pinned = kept.load_incident(store, state.ref)
    objects = [
        {"frame": one.frame, "class": one.cls, "box": one.box.model_dump()} for one in pinned.labels
    ]
    body = {**_state_json(state), "objects": objects}
    record = state.record
    lines = [f"{name} ({short_ref(state.ref)})"]
    if record is not None:
        lines.append(f"  {record.why}")
        lines.append(f"  added {state.added_at} by {record.by}, found in {record.found_in}")
    if not state.active:
        lines.append(f"  retired {state.retired_at} by {state.retired_by}: {state.reason}")
    lines += [
        f"  {one.cls} {one.box.w:.0f}x{one.box.h:.0f} px at ({one.box.x:.0f}, {one.box.y:.0f})"
        f" of {one.frame[:12]}"
        for one in pinned.labels
    ]
    print_result(body, as_json=as_json, text="\n".join(lines))


@incidents.command("retire")
@click.argument("name")
@click.option("--reason", required=True, help="Why it no longer applies, in a sentence.")
@click.option("--by", required=True, help="The person who decides.")
@json_option
def retire_incident(name: str, reason: str, by: str, as_json: bool) -> None:
    """Stop judging candidates by an incident; the audit log says who and why."""
    from workbench.data import incidents as kept
    from workbench.records.store import Store

    state = kept.retire_incident(Store(find_workspace()), name, by=by, reason=reason)
    print_result(_state_json(state), as_json=as_json, text=f"{name}: retired by {state.retired_by}")


@incidents.command("replay")
@click.argument("model")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score from which a box counts.  [default: the model's]",
)
@json_option
def replay_incidents(model: str, threshold: float | None, as_json: bool) -> None:
    """Run MODEL on every active incident; what `validate` does, without a report.

    Exit status: 0 only if every object is found.
    """
    from workbench.data import incidents as kept
    from workbench.detection.model import Model
    from workbench.evaluation import incidents as replay
    from workbench.records.evidence_types import Incident, IncidentSuite
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    ref = resolve_ref(workspace, model, ("checkpoint", "bundle", "release"))
    suite = kept.active_suite(store)
    loaded = store.get(suite, IncidentSuite) if suite else None
    schemas = {
        store.get(one, Incident).label_schema.name for one in (loaded.incidents if loaded else ())
    }
    opened = Model(workspace, ref)
    least = opened.threshold if threshold is None else threshold
    results = [
        result
        for schema in sorted(schemas)
        for result in replay.replay_incidents(store, opened, loaded, schema=schema, threshold=least)
    ]
    failed = [one for one in results if one.missed]
    lines = [
        f"{one.verdict:<5} {one.name}: {one.found} of {counted(one.objects, 'object')} found"
        + "".join(f"\n      missed {text}" for text in one.missed)
        for one in results
    ]
    body = {"model": ref, "results": [one.model_dump(mode="json") for one in results]}
    print_result(body, as_json=as_json, text="\n".join(lines) or "no incidents")
    if failed:
        info(f"{counted(len(failed), 'incident')} failed at score {least:g}")
        sys.exit(1)


def _state_json(state: IncidentState) -> Json:
    record = state.record
    return {
        "incident": state.ref,
        "name": state.name,
        "active": state.active,
        "why": record and record.why,
        "found_in": record and record.found_in,
        "frames": record and list(record.frames),
        "objects": record and record.objects,
        "simulated": record and record.simulated,
        "added": {"by": state.added_by, "at": state.added_at},
        "retired": None
        if state.active
        else {"by": state.retired_by, "at": state.retired_at, "reason": state.reason},
    }


@click.group()
def blind() -> None:
    """Judge models on frames that nobody sees, a limited number of times."""


@blind.command("open")
@click.argument("dataset")
@click.option("--budget", type=click.IntRange(1), required=True, help="How many models may ask.")
@click.option(
    "--rules",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("pipelines/gates.yaml"),
    show_default=True,
    help="Gates file; its floors are kept, fixed from now on.",
)
@click.option("--by", required=True, help="Who opens it.")
@json_option
def open_holdout(dataset: str, budget: int, rules: Path, by: str, as_json: bool) -> None:
    """Open the blind frames of a DATASET version; this can be done once for a frame."""
    from workbench.evaluation import blind as holdouts
    from workbench.evaluation.gates import load_rules
    from workbench.records.evidence_types import Holdout
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    version = resolve_ref(workspace, dataset, ("dataset",))
    ref = holdouts.open_holdout(store, version, load_rules(rules), budget=budget, by=by)
    frames = len(store.get(ref, Holdout).frames)
    body = {"holdout": ref, "dataset": version, "frames": frames, "budget": budget}
    text = f"{short_ref(ref)}: {counted(frames, 'blind frame')}, {counted(budget, 'model')} may ask"
    print_result(body, as_json=as_json, text=text)


@blind.command("ask")
@click.argument("model")
@click.option("--holdout", help="Which one; needed only where there are several.")
@click.option("--by", required=True, help="Who asks; kept in the audit log.")
@json_option
def ask_holdout(model: str, holdout: str | None, by: str, as_json: bool) -> None:
    """Judge MODEL on the blind frames: prints verdicts only, and costs one query.

    Exit status: 0 only on PASS.
    """
    from workbench.detection.model import Model
    from workbench.evaluation import blind as holdouts
    from workbench.records.base import Verdict
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    held = resolve_ref(workspace, holdout, ("holdout",)) if holdout else _only_holdout(store)
    ref = resolve_ref(workspace, model, ("checkpoint", "bundle", "release"))
    with progress_bar("blind frames") as shown:
        answer = holdouts.ask_holdout(store, held, Model(workspace, ref), by=by, progress=shown)
    lines = [f"{verdict:<22} {name}" for name, verdict in answer.gates.items()]
    lines.append(
        f"{answer.verdict}: query {answer.asked} of {answer.budget}"
        + (", simulated" if answer.simulated else "")
    )
    body = {
        "holdout": held,
        "model": ref,
        "verdict": answer.verdict,
        "gates": answer.gates,
        "asked": answer.asked,
        "budget": answer.budget,
        "simulated": answer.simulated,
    }
    print_result(body, as_json=as_json, text="\n".join(lines))
    if answer.verdict is not Verdict.PASS:
        sys.exit(1)


@blind.command("status")
@json_option
def show_holdouts(as_json: bool) -> None:
    """List the holdouts with the queries they have left."""
    from workbench.evaluation.blind import holdout_state
    from workbench.records.evidence_types import Holdout
    from workbench.records.store import Store

    store = Store(find_workspace())
    states = [holdout_state(store, ref) for ref, _ in store.readable(Holdout)]
    lines = [
        f"{short_ref(one.ref)}  {counted(len(one.record.frames), 'frame')}, "
        f"{len(one.asked)} of {counted(one.record.budget, 'query', 'queries')} used"
        for one in states
    ]
    body = {
        "holdouts": [
            {
                "holdout": one.ref,
                "dataset": one.record.dataset,
                "frames": len(one.record.frames),
                "budget": one.record.budget,
                "asked": list(one.asked),
            }
            for one in states
        ]
    }
    print_result(body, as_json=as_json, text="\n".join(lines) or "no holdout")


def _only_holdout(store: Store) -> Ref:
    from workbench.records.evidence_types import Holdout

    refs = [ref for ref, _ in store.readable(Holdout)]
    if len(refs) != 1:
        raise ParameterError(
            f"{len(refs)} holdouts" if refs else "no holdout",
            where=store.root,
            hint=f"Name one with --holdout: {', '.join(map(short_ref, refs))}"
            if refs
            else "`workbench blind open DATASET --budget N` opens one",
        )
    return refs[0]


@click.group()
def hazards() -> None:
    """Check that gates answer the hazards."""


@hazards.command("check")
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of hazards.  [default: the one that comes with the workbench]",
)
@click.option(
    "--gates",
    "gates_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("pipelines/gates.yaml"),
    show_default=True,
    help="Gates file.",
)
@json_option
def check_hazards(table: Path | None, gates_file: Path, as_json: bool) -> None:
    """List the hazards with their gates, and what does not fit.

    A safety goal without a required gate and a gate without a goal are findings. Exit status: 0
    only without findings.
    """
    from workbench.data.slice_file import load_slices
    from workbench.data.slices import STANDARD_SLICES
    from workbench.evaluation.gates import load_rules
    from workbench.release import hazards as tables

    rows = tables.read_hazards(table or tables.DEFAULT_TABLE)
    slices = gates_file.with_name("slices.yaml")
    rules = load_rules(gates_file, load_slices(slices) if slices.exists() else STANDARD_SLICES)
    gates = [
        tables.JudgedGate(gate.name, gate.required, getattr(gate, "slice", "all"))
        for gate in rules.gates
    ]
    findings = tables.check_hazards(rows, gates)
    lines = [f"{one.id:<4} ASIL {one.asil:<2} {one.goal}: {', '.join(one.gates)}" for one in rows]
    lines += [f"{one.kind:<18} {one.subject}: {one.text}" for one in findings]
    lines.append(f"{counted(len(rows), 'hazard')}, {counted(len(findings), 'finding')}")
    body = {
        "ok": not findings,
        "hazards": [one.model_dump(mode="json") for one in rows],
        "findings": [vars(one) for one in findings],
    }
    print_result(body, as_json=as_json, text="\n".join(lines))
    if findings:
        sys.exit(1)
