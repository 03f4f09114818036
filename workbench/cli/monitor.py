"""`workbench monitor`: what drifted in the fleet, alarms, and what a person lets them set off."""

from __future__ import annotations

import getpass
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, resolve_ref
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace
from workbench.records.base import Ref, short_ref

if TYPE_CHECKING:
    from workbench.api import Model
    from workbench.monitoring.alarms import AlarmState
    from workbench.monitoring.drift import Drift, DriftLook
    from workbench.monitoring.envelope import Envelope
    from workbench.monitoring.performance import ScoredDrive
    from workbench.monitoring.watch import Look
    from workbench.pipeline.kpis import Kpis
    from workbench.pipeline.run import RunReport
    from workbench.records.dataset import Dataset
    from workbench.records.store import Store
    from workbench.records.types import Alarm

__all__ = ()

TELEMETRY_VARIABLE = "WORKBENCH_TELEMETRY"
_SHOWN = 12
_SILENT_DAYS = 2

_by_option = click.option("--by", help="Who does it.  [default: the user of this machine]")
_table_option = click.option(
    "--telemetry",
    "url",
    metavar="URL",
    help="Telemetry table: a folder or an fsspec address.  [env: WORKBENCH_TELEMETRY; default: "
    "telemetry in the workspace]",
)
_alarm_argument = click.argument("alarm")


@click.group()
def monitor() -> None:
    """See what drifted in the fleet; decide about alarms and what they set off."""


@monitor.command()
@_table_option
@json_option
def status(url: str | None, as_json: bool) -> None:
    """Show the telemetry that arrived, open alarms and the signed envelope."""
    from workbench.monitoring.alarms import alarm_states
    from workbench.monitoring.store import TelemetryStore, telemetry_status
    from workbench.records.store import Store

    workspace = find_workspace()
    telemetry = telemetry_status(TelemetryStore(_table(workspace, url)), silent_days=_SILENT_DAYS)
    state = workspace.root / "fleet" / "telemetry" / "ingest.json"
    telemetry["service"] = json.loads(state.read_bytes()) if state.exists() else None
    states = alarm_states(Store(workspace))
    counts = {name: sum(one.status == name for one in states) for name in _STATUSES}
    envelope = _envelope_state(workspace)
    result: Json = {
        "telemetry": telemetry,
        "alarms": counts,
        "envelope": envelope,
    }
    text = [
        *_telemetry_lines(telemetry),
        "alarms: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"retraining envelope: {envelope}",
    ]
    print_result(result, as_json=as_json, text="\n".join(text))


_STATUSES = ("open", "accepted", "retrained", "dismissed")


@monitor.command()
@_table_option
@click.option("--days", metavar="A-B", help="Current fleet days.  [default: the last 7]")
@click.option(
    "--reference", metavar="A-B", help="Fleet days to compare with.  [default: the 28 before]"
)
@click.option("--by", "condition", default="light", show_default=True, help="Slice rides by this.")
@click.option("--model", default="", help="Only rides that this model answered.")
@click.option("--release", help="Release that alarms name as the model in the field.")
@click.option(
    "--models",
    metavar="CANDIDATE,CHAMPION",
    help="Compare how two models answer, in the shadow or as a canary, instead of two periods.",
)
@click.option(
    "--false-alarms",
    type=click.FloatRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Expected false alarms a year, over all signals, slices and weekly looks.",
)
@click.option("--raise", "raises", is_flag=True, help="Raise alarms for what is found.")
@json_option
def drift(  # noqa: PLR0913, PLR0917 - each is an option of the command
    url: str | None,
    days: str | None,
    reference: str | None,
    condition: str,
    model: str,
    release: str | None,
    models: str | None,
    false_alarms: float,
    raises: bool,
    as_json: bool,
) -> None:
    """Test whether drives have changed; the drive is the unit of chance.

    Drives are compared within their slice; a vehicle of both periods with itself. `cause` says
    sensor, season, fleet mix or world where the data can tell them apart, and unknown where not.
    """
    from workbench.monitoring.drift import DriftRule
    from workbench.monitoring.watch import compare_models, look_at_telemetry, read_rides

    workspace = find_workspace()
    rule = DriftRule(false_alarms_a_year=false_alarms)
    ref = resolve_ref(workspace, release, ("release",)) if release else None
    rides = read_rides(_table(workspace, url), by=condition, model=model)
    if models is not None:
        from workbench.monitoring.watch import disagreement_alarms

        candidate, _, champion = models.partition(",")
        if not champion:
            raise ParameterError("invalid --models", where=models, hint="CANDIDATE,CHAMPION")
        found = compare_models(rides, candidate, champion, rule=rule)
        made = disagreement_alarms(rides, found, candidate, champion, model=ref)
        result, text = _look_json(found), _drift_text(found)
    else:
        last = int(rides.days.max()) if len(rides.days) else 0
        now = _days(days, "--days") or (max(0, last - 6), last)
        before = _days(reference, "--reference") or (max(0, now[0] - 28), now[0] - 1)
        look = look_at_telemetry(rides, days=now, reference_days=before, rule=rule, model=ref)
        made = look.alarms
        result, text = _full_look_json(look), _look_text(look)
    if raises:
        raised = _raise(workspace, made)
        result["raised"] = raised
        text += "\n" + _raised_text(raised)
    elif made:
        text += f"\n{counted(len(made), 'alarm')} would be raised: add --raise"
    print_result(result, as_json=as_json, text=text)


@monitor.command()
@click.argument("dataset")
@click.option("--model", required=True, help="Bundle, checkpoint or models:/NAME@ALIAS.")
@click.option("--role", default="pool", show_default=True, help="Frames to estimate for.")
@click.option("--where", metavar="CONDITION=VALUE", help="Only those, such as light=night.")
@click.option(
    "--reference-role", default="safety", show_default=True, help="Labelled frames to learn from."
)
@click.option("--labels", help="Dataset with labels of the same frames, to check the estimate.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Score from which a box counts.",
)
@json_option
def performance(
    dataset: str,
    model: str,
    role: str,
    where: str | None,
    reference_role: str,
    labels: str | None,
    threshold: float,
    as_json: bool,
) -> None:
    """Estimate precision and recall on frames without labels, with intervals over drives.

    Rests on confidences that mean what they meant on the reference; --labels checks it.
    """
    import workbench as wb
    from workbench.monitoring.performance import check_estimate, estimate_performance

    opened = wb.open(find_workspace().root)
    whole, found_model = opened.dataset(dataset), opened.model(model)
    reference, current = whole.role(reference_role), whole.role(role)
    if where is not None:
        name, _, value = where.partition("=")
        current = current.where(None, **{name: value})
    old = _scored_drives(found_model, reference, reference)
    new = _scored_drives(found_model, current, None)
    estimate = estimate_performance(old, new, threshold)
    result: Json = {
        "precision": vars(estimate.precision),
        "recall": vars(estimate.recall),
        "threshold": threshold,
        "drives": list(estimate.drives),
        "check": None,
    }
    text = [
        f"{name}: {one.value:.3f} (interval {one.low:.3f} to {one.high:.3f}), estimated from "
        f"{estimate.drives[0]} labelled drives for {estimate.drives[1]}"
        for name, one in (("precision", estimate.precision), ("recall", estimate.recall))
    ]
    if labels is not None:
        known = opened.dataset(labels)
        ids = {frame.id for frame in current.frames}
        answered = known.where(lambda frame: frame.id in ids)
        check = check_estimate(old, _scored_drives(found_model, answered, answered), threshold)
        result["check"] = {
            "precision": vars(check.precision), "recall": vars(check.recall),
            "holds": check.holds,
        }  # fmt: skip
        for name, one in (("precision", check.precision), ("recall", check.recall)):
            text.append(
                f"labels say {one.value:+.3f} for {name} (interval {one.low:+.3f} to "
                f"{one.high:+.3f})"
            )
        text.append("the estimate holds" if check.holds else "labels refute the estimate")
    print_result(result, as_json=as_json, text="\n".join(text))


@monitor.command()
@_table_option
@json_option
def kpis(url: str | None, as_json: bool) -> None:
    """Show key figures of the loop, read from records, runs and the audit log."""
    from workbench.pipeline.kpis import measure_kpis

    workspace = find_workspace()
    found = measure_kpis(workspace, telemetry=_table(workspace, url))
    print_result(found.model_dump(mode="json"), as_json=as_json, text=_kpis_text(found))


@monitor.group()
def alarms() -> None:
    """List alarms; accept one, which mines, labels and retrains, or dismiss it."""


@alarms.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that are closed.")
@json_option
def list_alarms(everything: bool, as_json: bool) -> None:
    """List alarms, oldest first."""
    from workbench.monitoring.alarms import alarm_states
    from workbench.records.store import Store

    states = [
        one
        for one in alarm_states(Store(find_workspace()))
        if everything or one.status in {"open", "accepted"}
    ]
    lines = [f"{short_ref(one.ref)}  {one.status:<10}{_sentence(one.alarm)}" for one in states]
    print_result(
        {"alarms": [_state_json(one) for one in states]},
        as_json=as_json,
        text="\n".join(lines) or "no open alarm",
    )


@alarms.command()
@_alarm_argument
@json_option
def show(alarm: str, as_json: bool) -> None:
    """Show an alarm, and everything that happened to it."""
    state = _state(find_workspace(), alarm)
    found = state.alarm
    lines = [
        f"{short_ref(state.ref)}: {state.status}",
        _sentence(found),
        f"  cause: {found.cause}: {found.why}",
        f"  days {found.days[0]} to {found.days[1]}, compared with {found.reference_days[0]} to "
        f"{found.reference_days[1]}; evidence: {found.evidence}",
    ]
    if found.also:
        lines.append(f"  also changed: {', '.join(found.also)}")
    lines += [f"  drive {name}" for name in found.drives[:_SHOWN]]
    lines += [
        f"{entry.at}  {entry.detail.get('action')} by {entry.by}"
        + (f": {entry.detail['reason']}" if "reason" in entry.detail else "")
        for entry in state.history
    ]
    print_result(_state_json(state), as_json=as_json, text="\n".join(lines))


@alarms.command()
@_alarm_argument
@click.option("--reason", required=True, help="Why nothing has to be done.")
@_by_option
@json_option
def dismiss(alarm: str, reason: str, by: str | None, as_json: bool) -> None:
    """Close an alarm without a retraining."""
    from workbench.monitoring.alarms import dismiss_alarm
    from workbench.records.store import Store

    workspace = find_workspace()
    state = _state(workspace, alarm)
    dismiss_alarm(Store(workspace), state.ref, reason, by=_person(by))
    print_result(
        {"alarm": state.ref, "status": "dismissed"},
        as_json=as_json,
        text=f"{short_ref(state.ref)}: dismissed",
    )


@alarms.command()
@_alarm_argument
@click.option(
    "-p", "parameters", multiple=True, metavar="NAME=VALUE", help="Within the signed envelope."
)
@click.option("--dry-run", is_flag=True, help="Only show what would run.")
@_by_option
@json_option
def accept(
    alarm: str, parameters: tuple[str, ...], dry_run: bool, by: str | None, as_json: bool
) -> None:
    """Mine, label, retrain, validate and release for an alarm, inside the signed envelope.

    Continues an accepted alarm where its run stopped, for example to wait for people. Stop it at
    any time with `workbench cancel`; a release goes nowhere before `workbench fleet rollout`.

    Exit status: as `workbench run`.
    """
    from workbench.monitoring.alarms import alarm_states, record_hop, require_status
    from workbench.monitoring.envelope import read_envelope
    from workbench.records.store import Store

    workspace = find_workspace()
    store = Store(workspace)
    envelope = read_envelope(workspace)
    state = require_status(store, _state(workspace, alarm).ref, "open", "accepted")
    given = dict(text.partition("=")[::2] for text in parameters)
    going = state.history[-1].detail if state.status == "accepted" else None
    if going is not None and not given:
        chosen = dict(going["parameters"])
    else:
        others = [one for one in alarm_states(store) if one.ref != state.ref]
        values = envelope.settings(state.alarm, given, others)
        chosen = _pipeline_parameters(workspace, envelope, state, values)
    if dry_run:
        lines = [f"{name} = {value}" for name, value in chosen.items()]
        plan: Json = {"pipeline": envelope.pipeline, "parameters": chosen}
        print_result(plan, as_json=as_json, text="\n".join([envelope.pipeline, *lines]))
        return
    if going is None or given:
        record_hop(
            store,
            state.ref,
            "accepted",
            by=_person(by),
            parameters=chosen,
            budget=int(chosen["budget"]),
        )
    report = _run(workspace, Path(envelope.pipeline), chosen)
    released = next(
        (ref for name, ref in report.outputs.items() if name.endswith(".release")), None
    )
    if released is not None:
        record_hop(
            store,
            state.ref,
            "retrained",
            by=_person(by),
            results=(released,),
            run=report.run_id,
            verdict=report.status,
        )
    elif report.status in {"failed", "cancelled"}:
        record_hop(
            store, state.ref, "stopped", by=_person(by), run=report.run_id, why=report.status
        )
    result: Json = {
        "alarm": state.ref,
        "run": report.run_id,
        "status": report.status,
        "release": released,
        "parameters": chosen,
    }
    text = f"{short_ref(state.ref)}: run {report.run_id} {report.status}"
    if released:
        text += f", {short_ref(released)}; send it out with `workbench fleet rollout`"
    elif report.status == "waiting":
        text += "; when labels are there: `workbench monitor alarms accept` again"
    print_result(result, as_json=as_json, text=text)
    sys.exit(int(report.exit_status))


@monitor.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_by_option
@json_option
def envelope(file: Path, by: str | None, as_json: bool) -> None:
    """Sign FILE, which says what alarms may set off, with the key of role `rollout`."""
    from workbench.monitoring.envelope import sign_envelope

    signed = sign_envelope(find_workspace(), file, by=_person(by))
    result = signed.model_dump(mode="json")
    limits = ", ".join(
        f"{name} {limits.minimum:g} to {limits.maximum:g}"
        for name, limits in signed.parameters.items()
    )
    text = [
        f"signed: {signed.model} may be retrained from {signed.dataset} until {signed.expires}",
        f"  for {', '.join(signed.causes)}; {limits}",
        f"  {signed.retrainings_a_week} retrainings and {signed.labels_a_week} labels a week",
    ]
    print_result(result, as_json=as_json, text="\n".join(text))


def _pipeline_parameters(
    workspace: Workspace, envelope: Envelope, state: AlarmState, values: Json
) -> Json:
    """Parameters of the pipeline: numbers of the envelope, and the records that are there now."""
    return {
        **values,
        "alarm": state.ref,
        "dataset": resolve_ref(workspace, envelope.dataset, ("dataset",)),
        "answers": resolve_ref(workspace, envelope.answers, ("dataset",))
        if envelope.answers
        else "",
        "start": _field_checkpoint(workspace, envelope.model, state.alarm),
        "model": envelope.model,
        "labelers": envelope.labelers,
    }


def _field_checkpoint(workspace: Workspace, model: str, alarm: Alarm) -> Ref:
    """Checkpoint of the champion. Without one: of the model that the alarm names, or of the release
    before it where that one is a candidate that disagrees with the field.

    Raises:
        ParameterError: There is neither.
    """
    from workbench.records.model_types import ExportBundle, Release
    from workbench.records.releases import registered_releases
    from workbench.records.store import Store

    store = Store(workspace)
    known = registered_releases(workspace, model)
    champion = known.aliases.get("champion")
    release = champion.record if champion else None
    if release is None and alarm.model is not None and alarm.model.startswith("release/"):
        release = store.get(alarm.model, Release)
        earlier = [one.record for one in known.releases if one.ref != alarm.model]
        if alarm.what == "disagreement" and earlier:
            release = earlier[-1]
    if release is None:
        raise ParameterError(
            f"{model} has no champion, and the alarm names no release",
            hint="Raise it with --release, or promote a release",
        )
    return store.get(release.bundle, ExportBundle).checkpoint


def _run(workspace: Workspace, file: Path, parameters: Json) -> RunReport:
    from workbench.cli.runs import TerminalDisplay
    from workbench.pipeline.graph import load_pipeline
    from workbench.pipeline.run import run_pipeline
    from workbench.pipeline.runs import earlier_durations

    pipeline = load_pipeline(file, parameters, base=file.parent)
    needs = {name: step.needs for name, step in pipeline.steps.items()}
    with TerminalDisplay(needs, earlier_durations(workspace, pipeline.name)) as display:
        return run_pipeline(workspace, pipeline, display)


def _scored_drives(model: Model, frames: Dataset, truth: Dataset | None) -> list[ScoredDrive]:
    """Boxes of each drive at any score, matched with labels where there are some."""
    import numpy as np

    from workbench.data.slices import ALL_FRAMES
    from workbench.evaluation.matching import build_evaluation_set, match_slice
    from workbench.monitoring.performance import ScoredDrive

    boxes = list(model.predict(frames))
    drives = {frame.id: frame.drive for frame in frames.frames}
    names = sorted(set(drives.values()))
    if truth is None:
        scores: dict[str, list[float]] = {name: [] for name in names}
        for box in boxes:
            scores[drives[box.frame]].append(box.score)
        return [ScoredDrive(np.array(scores[name], np.float64)) for name in names]
    data = build_evaluation_set(truth, boxes)
    table = match_slice(data, ALL_FRAMES)
    of_frame = np.array([frame.drive for frame in data.frames])
    box_drive, truth_drive = of_frame[table.frame], of_frame[table.truth_frame]
    counted = ~table.ignored[0]
    return [
        ScoredDrive(
            table.score[mine := (box_drive == name) & counted],
            table.hit[0][mine],
            int((truth_drive == name).sum()),
        )
        for name in names
    ]


def _raise(workspace: Workspace, made: tuple[Alarm, ...]) -> Json:
    from workbench.core.errors import ParameterError as Missing
    from workbench.monitoring.alarms import raise_alarms
    from workbench.monitoring.envelope import read_envelope
    from workbench.records.store import Store

    limits: dict[str, float] = {}
    try:
        signed = read_envelope(workspace)
        limits = {"cool_down_days": signed.cool_down_days}
        result = raise_alarms(
            Store(workspace), made, cool_down_days=signed.cool_down_days, max_open=signed.max_open
        )
    except Missing as error:
        info(f"note: {error.what}: default cool-down")
        result = raise_alarms(Store(workspace), made)
    return {"alarms": list(result.raised), "quiet": result.quiet, **limits}


def _table(workspace: Workspace, url: str | None) -> str:
    return url or os.environ.get(TELEMETRY_VARIABLE) or str(workspace.root / "telemetry")


def _telemetry_lines(found: Json) -> list[str]:
    days = "no rides yet" if found["days"] is None else "fleet days {} to {}".format(*found["days"])
    lines = [
        f"telemetry: {counted(found['rides'], 'ride')} of {counted(found['vehicles'], 'vehicle')},"
        f" {days}" + (f", evidence: {', '.join(found['evidence'])}" if found["evidence"] else "")
    ]
    for version, number in found["versions"].items():
        lines.append(f"  version {version}: last run by {counted(number, 'vehicle')}")
    if found["silent"]:
        names = ", ".join(found["silent"][:_SHOWN])
        more = " …" if len(found["silent"]) > _SHOWN else ""
        lines.append(f"  silent for {_SILENT_DAYS} days or more: {names}{more}")
    if found["dropped"]:
        lines.append(f"  dropped by vehicles without space: {counted(found['dropped'], 'message')}")
    for reason, number in found["quarantine"].items():
        lines.append(f"  put aside, {reason}: {counted(number, 'message')}")
    return lines


def _days(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
        raise ParameterError(f"invalid {option}", where=text, hint="Fleet days, such as 28-34")
    return int(first), int(last or first)


def _state(workspace: Workspace, text: str) -> AlarmState:
    from workbench.monitoring.alarms import alarm_states, find_alarm
    from workbench.records.store import Store

    store: Store = Store(workspace)
    ref = find_alarm(store, text)
    return next(one for one in alarm_states(store) if one.ref == ref)


def _envelope_state(workspace: Workspace) -> str:
    from workbench.core.errors import WorkbenchError
    from workbench.monitoring.envelope import read_envelope

    try:
        signed = read_envelope(workspace)
    except WorkbenchError as error:
        return error.what
    return f"{signed.model}, until {signed.expires}"


def _person(by: str | None) -> str:
    return by or getpass.getuser()


def _sentence(alarm: Alarm) -> str:
    change = f"{alarm.reference:.3g} to {alarm.current:.3g}"
    return f"{alarm.signal} in {alarm.slice}: {change} ({alarm.what}, p {alarm.p_value:.2g})"


def _state_json(state: AlarmState) -> Json:
    return {
        "ref": state.ref,
        "status": state.status,
        "alarm": state.alarm.model_dump(mode="json"),
        "history": [
            {"at": one.at, "by": one.by, "subjects": list(one.subjects), **one.detail}
            for one in state.history
        ],
    }


def _row(one: Drift) -> Json:
    return vars(one) | {"drives": list(one.drives)}


def _look_json(look: DriftLook) -> Json:
    return {
        "alpha": look.alpha,
        "drifted": [_row(one) for one in look.found],
        "tested": len(look.tested),
        "mix": {
            "changed": look.mix_changed,
            "p_value": look.mix_p_value,
            "alpha": look.mix_alpha,
            "shares": {name: list(both) for name, both in look.shares.items()},
        },
        "skipped": look.skipped,
    }


def _full_look_json(look: Look) -> Json:
    causes = look.causes
    body = _look_json(look.drift)
    for row in body["drifted"]:
        cause = causes[row["slice"], row["signal"]]
        row |= {"cause": cause.name, "why": cause.why}
    return {
        **body,
        "days": list(look.days),
        "reference_days": list(look.reference_days),
        "rides": list(look.rides),
        "evidence": look.evidence,
    }


def _drift_text(look: DriftLook) -> str:
    lines = [
        f"{one.slice:<16}{one.signal:<28}{one.reference:>10.3g} ->{one.current:>10.3g}  "
        f"{one.what}, p {one.p_value:.2g}, {one.drives[0]} and {one.drives[1]} drives"
        for one in look.found
    ]
    lines = lines or [f"no drift: {counted(len(look.tested), 'test')}, alpha {look.alpha:.2g}"]
    if look.mix_changed:
        lines.append(
            "mix of slices changed: "
            + ", ".join(
                f"{name} {before:.0%} -> {now:.0%}" for name, (before, now) in look.shares.items()
            )
        )
    lines += [f"not tested: {name}: {why}" for name, why in look.skipped.items()]
    return "\n".join(lines)


def _look_text(look: Look) -> str:
    head = (
        f"{look.rides[1]} rides of days {look.days[0]} to {look.days[1]} and {look.rides[0]} of "
        f"days {look.reference_days[0]} to {look.reference_days[1]}, evidence: {look.evidence}"
    )
    causes = {f"cause in {alarm.slice}: {alarm.cause}: {alarm.why}": None for alarm in look.alarms}
    return "\n".join([head, _drift_text(look.drift), *causes])


def _kpis_text(found: Kpis) -> str:
    lines = []
    for one in found.alarm_to_model:
        took = "goes on" if one.hours is None else f"{one.hours:.2f} h to the updated fleet"
        lines.append(f"{short_ref(one.alarm)} {one.slice}: {one.status}, {took}")
        lines += [f"  {hop.hours:8.2f} h  {hop.name} by {hop.by}" for hop in one.hops]
    for ref, hours in found.ingest_to_curated_hours.items():
        lines.append(f"ingest to curated: {hours:.2f} h ({short_ref(ref)})")
    lines.append(f"experiments in the last week: {found.experiments_a_week}")
    for name, share in (
        ("automation share", found.automation_share),
        ("releases with whole lineage", found.lineage_complete),
    ):
        lines.append(f"{name}: " + ("not observed" if share is None else f"{share:.0%}"))
    for name, rate in (
        ("wrong boxes", found.false_positive_rate),
        ("missed objects", found.false_negative_rate),
    ):
        shown = "not observed"
        if rate is not None:
            shown = f"{rate.value:.1%}"
            if rate.low is not None and rate.high is not None:
                shown += f" (interval {rate.low:.1%} to {rate.high:.1%} over drives)"
        lines.append(f"{name}: {shown}")
    proxy = found.disengagement_proxy
    lines.append(
        "near misses and fallbacks in 1,000 frames: "
        + ("not observed" if proxy is None else f"{proxy:.1f}")
    )
    for labels in found.labeling:
        minutes = "time not measured" if labels.minutes is None else f"{labels.minutes:.0f} min"
        drawn = ", replayed" if labels.simulated else ""
        lines.append(f"{short_ref(labels.labels)}: {labels.boxes} boxes, {minutes}{drawn}")
    for run in found.runs:
        lines.append(f"run {run.run} {run.pipeline}: {run.cpu_hours:.2f} CPU hours, {run.status}")
    return "\n".join(lines)


def _raised_text(raised: Json) -> str:
    lines = [f"raised {short_ref(ref)}" for ref in raised["alarms"]]
    lines += [f"not raised for {name}: {why}" for name, why in raised["quiet"].items()]
    return "\n".join(lines) or "nothing to raise"
