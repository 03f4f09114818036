"""`workbench monitor`: what the fleet reported, what drifted in it, and key figures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from workbench.cli.alarms import alarms, envelope, envelope_state, raise_found, raised_text
from workbench.cli.campaigns import campaign
from workbench.cli.common import json_option, print_result, resolve_ref
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import Workspace, find_workspace
from workbench.data.telemetry import SHADOW
from workbench.records.base import short_ref

if TYPE_CHECKING:
    from workbench.api import Model
    from workbench.monitoring.drift import Drift, DriftLook
    from workbench.monitoring.performance import ScoredDrive
    from workbench.monitoring.watch import Look
    from workbench.pipeline.kpis import Kpis
    from workbench.records.dataset import Dataset

__all__ = ()

TELEMETRY_VARIABLE = "WORKBENCH_TELEMETRY"
_SHOWN = 12
_SILENT_DAYS = 2

_table_option = click.option(
    "--telemetry",
    "url",
    metavar="URL",
    help="Telemetry table: a folder or an fsspec address.  [env: WORKBENCH_TELEMETRY; default: "
    "telemetry in the workspace]",
)


@click.group()
def monitor() -> None:
    """See what drifted in the fleet; decide about alarms and what they set off."""


monitor.add_command(alarms)
monitor.add_command(campaign)
monitor.add_command(envelope)


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
    envelope_in_force = envelope_state(workspace)
    result: Json = {
        "telemetry": telemetry,
        "alarms": counts,
        "envelope": envelope_in_force,
    }
    text = [
        *_telemetry_lines(telemetry),
        "alarms: " + ", ".join(f"{count} {name}" for name, count in counts.items()),
        f"retraining envelope: {envelope_in_force}",
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
    table = _table(workspace, url)
    rides = read_rides(table, by=condition, model=model, shadow=models is not None)
    if models is not None:
        from workbench.monitoring.watch import disagreement_alarms

        candidate, _, champion = models.partition(",")
        if not champion:
            raise ParameterError("invalid --models", where=models, hint="CANDIDATE,CHAMPION")
        if candidate not in rides.models and SHADOW + candidate in rides.models:
            candidate = SHADOW + candidate
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
        raised = raise_found(workspace, made)
        result["raised"] = raised
        text += "\n" + raised_text(raised)
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
    help="Score from which a box counts.  [default: the model's]",
)
@json_option
def performance(
    dataset: str,
    model: str,
    role: str,
    where: str | None,
    reference_role: str,
    labels: str | None,
    threshold: float | None,
    as_json: bool,
) -> None:
    """Estimate precision and recall on frames without labels, with intervals over drives.

    Rests on confidences that mean what they meant on the reference; --labels checks it.
    """
    import workbench as wb
    from workbench.monitoring.performance import check_estimate, estimate_performance

    opened = wb.open(find_workspace().root)
    whole, found_model = opened.dataset(dataset), opened.model(model)
    threshold = found_model.threshold if threshold is None else threshold
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
