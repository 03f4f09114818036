"""Key figures of the loop, read from records, runs and the audit log; none can be typed in.

A figure that was never observed is None: nothing is a zero because nobody looked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from workbench.audit import log as audit
from workbench.core.errors import RecordError
from workbench.core.workspace import Workspace
from workbench.data.telemetry import SHADOW
from workbench.monitoring.alarms import AlarmState, alarm_states
from workbench.pipeline.runs import RunState, list_runs
from workbench.records.base import FrozenModel, GateReport, Ref, kind_of, refs_in, short_ref
from workbench.records.catalog import newest_first
from workbench.records.model_types import Checkpoint, Release, StepRun
from workbench.records.store import Store
from workbench.records.types import LabelSet, Selection

__all__ = ["Kpis", "measure_kpis"]

_WEEK = timedelta(days=7)
_DECISIONS = frozenset({"approved", "resumed", "paused", "aborted"})  # of a rollout, by a person


class Hop(FrozenModel):
    """One hop from an alarm to a model in the fleet.

    Attributes:
        at: When it was reached, ISO 8601 in UTC.
        hours: Since the alarm was raised.
        by: Person, or what did it.
    """

    name: str
    at: str
    hours: float
    by: str


class AlarmToModel(FrozenModel):
    """How long it took from a failure mode to an updated model.

    Attributes:
        hours: Until the last hop; None while it goes on.
    """

    alarm: Ref
    slice: str
    status: str
    release: Ref | None
    hours: float | None
    hops: tuple[Hop, ...]


class Rate(FrozenModel):
    """A rate with its interval, 95 %, over drives."""

    value: float
    low: float | None
    high: float | None
    source: Ref


class Yield(FrozenModel):
    """What labeling gave; ``minutes`` is None where no label server measured it."""

    labels: Ref
    boxes: int
    frames: int
    minutes: float | None
    boxes_a_minute: float | None
    simulated: bool


class RunCost(FrozenModel):
    """What a run cost; ``labels`` is the number of boxes that it collected."""

    run: str
    pipeline: str
    status: str
    hours: float | None
    cpu_hours: float
    cpu_seconds_a_label: float | None


class Kpis(FrozenModel):
    """All figures of a workspace.

    Attributes:
        at: When they were read.
        alarm_to_model: Each alarm with its hops, oldest first.
        ingest_to_curated_hours: From a dataset's ingest to the first selection from it, by dataset.
        experiments_a_week: Trainings in the last seven days.
        automation_share: Share of all hops that no person had to take: steps of runs against
            decisions of people in the audit log.
        lineage_complete: Share of releases whose every ancestor is readable; ``lineage_gaps`` names
            what is missing.
        false_positive_rate: Share of the boxes of the last judged model that are wrong.
        false_negative_rate: Share of the objects that it misses.
        disengagement_proxy: Near misses and fallbacks a thousand frames, from telemetry.
    """

    schema_version: Literal[1] = 1
    at: str
    alarm_to_model: tuple[AlarmToModel, ...]
    ingest_to_curated_hours: dict[Ref, float]
    experiments_a_week: int
    automation_share: float | None
    lineage_complete: float | None
    lineage_gaps: tuple[str, ...]
    false_positive_rate: Rate | None
    false_negative_rate: Rate | None
    disengagement_proxy: float | None
    labeling: tuple[Yield, ...]
    runs: tuple[RunCost, ...]


def measure_kpis(
    workspace: Workspace, *, now: datetime | None = None, telemetry: str | None = None
) -> Kpis:
    """Read all figures.

    Args:
        now: End of the last week; the present by default.
        telemetry: Telemetry table, for the proxy of disengagements.
    """
    store, at = Store(workspace), now or datetime.now(UTC)
    entries = list(audit.read_log(workspace, damaged=[]))
    runs = list(list_runs(workspace))
    complete, gaps = _lineage(store)
    precision, recall = _operating_point(store)
    return Kpis(
        at=at.isoformat(timespec="seconds"),
        alarm_to_model=tuple(_alarm(store, one, entries, runs) for one in alarm_states(store)),
        ingest_to_curated_hours=_curated(store, entries),
        experiments_a_week=sum(
            one.event == "trained" and at - _WEEK < _time(one.at) <= at for one in entries
        ),
        automation_share=_automation(entries, runs),
        lineage_complete=complete,
        lineage_gaps=gaps,
        false_positive_rate=precision,
        false_negative_rate=recall,
        disengagement_proxy=_proxy(telemetry) if telemetry else None,
        labeling=tuple(_yield(ref, one) for ref, one in newest_first(store, LabelSet)),
        runs=tuple(_cost(store, one) for one in runs),
    )


def _alarm(
    store: Store, state: AlarmState, entries: Iterable[audit.LogEntry], runs: Iterable[RunState]
) -> AlarmToModel:
    raised = state.raised_at
    hops: list[tuple[datetime, str, str]] = [
        (_time(one.at), str(one.detail["action"]), one.by) for one in state.history
    ]
    release = next(
        (ref for one in state.history for ref in one.subjects if kind_of(ref) == "release"), None
    )
    wanted = {one.detail.get("run") for one in state.history}
    for run in runs:
        if run.run_id in wanted:
            hops += _steps(store, run)
    rollouts = {
        one.detail.get("rollout")
        for one in entries
        if one.event == "rollout" and release is not None and release in one.subjects
    }
    for one in entries:
        action = str(one.detail.get("action"))
        reached = action in {"started", "stage began", "rolled back", "completed"}
        if one.event == "rollout" and one.detail.get("rollout") in rollouts and reached:
            hops.append((_time(one.at), f"rollout {action}", one.by))
    hops.sort(key=lambda hop: hop[0])
    done = next((at for at, name, _ in hops if name == "rollout completed"), None)
    return AlarmToModel(
        alarm=state.ref,
        slice=state.alarm.slice,
        status=state.status,
        release=release,
        hours=None if done is None else _hours(done - raised),
        hops=tuple(
            Hop(name=name, at=at.isoformat(timespec="seconds"), hours=_hours(at - raised), by=by)
            for at, name, by in hops
        ),
    )


def _steps(store: Store, run: RunState) -> list[tuple[datetime, str, str]]:
    """When the steps of a run ended, from their records."""
    found = []
    for ref in store.refs(StepRun.KIND):
        side, created = store.side(ref, "place"), store.side(ref, "created")
        folder = str((side or {}).get("folder", ""))
        if created and f"/{run.run_id}/" in folder:
            name = store.get(ref, StepRun).step
            found.append((_time(created["at"]), f"step {name}", "pipeline"))
    return found


def _curated(store: Store, entries: Iterable[audit.LogEntry]) -> dict[Ref, float]:
    ingested: dict[Ref, datetime] = {}
    for one in entries:
        if one.event == "ingested":
            for ref in one.subjects[:1]:
                ingested.setdefault(ref, _time(one.at))
    found: dict[Ref, float] = {}
    for ref, selection in reversed(newest_first(store, Selection)):
        created = store.side(ref, "created")
        if created and selection.dataset in ingested and selection.dataset not in found:
            passed = _time(created["at"]) - ingested[selection.dataset]
            found[selection.dataset] = _hours(passed)
    return found


def _automation(entries: Iterable[audit.LogEntry], runs: Iterable[RunState]) -> float | None:
    machine = sum(step.status == "ran" for run in runs for step in run.steps)
    people = 0
    for one in entries:
        action = one.detail.get("action")
        if one.event == "waived" or (one.event == "rollout" and action in _DECISIONS):
            people += 1
        elif one.event == "alarm":
            people += action in {"accepted", "dismissed"}
        elif one.event == "rollout" and one.by == "director":
            machine += 1
    return machine / (machine + people) if machine + people else None


def _lineage(store: Store) -> tuple[float | None, tuple[str, ...]]:
    releases = newest_first(store, Release)
    if not releases:
        return None, ()
    gaps: list[str] = []
    whole = 0
    makers = _makers(store)
    for ref, _ in releases:
        missing = _missing(store, ref, makers)
        whole += not missing
        gaps += [f"{short_ref(ref)}: {one}" for one in missing]
    return whole / len(releases), tuple(gaps)


def _makers(store: Store) -> dict[Ref, StepRun]:
    found: dict[Ref, StepRun] = {}
    for _, run in store.readable(StepRun):
        for ref in run.outputs.values():
            found[ref] = run
    return found


def _missing(store: Store, release: Ref, makers: dict[Ref, StepRun]) -> list[str]:
    """What of the ancestors of a release cannot be read, or has no run that made it."""
    seen: set[Ref] = set()
    waiting, missing = [release], []
    while waiting:
        ref = waiting.pop()
        if ref in seen:
            continue
        seen.add(ref)
        try:
            record = store.load(ref)
        except RecordError as error:
            missing.append(f"{short_ref(ref)} {error.what}")
            continue
        if isinstance(record, Checkpoint) and ref not in makers:
            missing.append(f"{short_ref(ref)} has no run that made it")
        waiting += refs_in(record.model_dump(mode="json"))
        if ref in makers:
            waiting += refs_in(makers[ref].inputs)
    return missing


def _operating_point(store: Store) -> tuple[Rate | None, Rate | None]:
    """Wrong boxes and missed objects of the model that was judged last, at its threshold."""
    for ref, _ in newest_first(store, GateReport):
        if "metrics.json" not in store.payload_names(ref):
            continue
        rows = json.loads(store.read_payload(ref, "metrics.json"))
        models: dict[str, Any] = rows.get("models", {})
        for row in models.get("candidate", {}).get("rows", []):
            if row["cls"] == "all" and row["slice"] == "all":
                return _rate(row["precision"], ref), _rate(row["recall"], ref)
    return None, None


def _rate(share: dict[str, float | None], ref: Ref) -> Rate | None:
    """One minus a share, with the ends of its interval exchanged."""
    value, low, high = share["value"], share.get("high"), share.get("low")
    if value is None:
        return None
    return Rate(
        value=1 - value,
        low=None if low is None else 1 - low,
        high=None if high is None else 1 - high,
        source=ref,
    )


def _proxy(url: str) -> float | None:
    from workbench.monitoring.store import TelemetryStore

    with TelemetryStore(url).connect() as connection:
        events, frames = connection.execute(
            "SELECT sum(sum), sum(n) / 2 FROM telemetry "
            "WHERE signal IN ('near_misses', 'frames.fallback') AND NOT starts_with(model, ?)",
            [SHADOW],
        ).fetchone() or (None, None)
    return None if not frames else 1000 * float(events) / float(frames)


def _yield(ref: Ref, labels: LabelSet) -> Yield:
    known = [one.minutes for one in labels.annotators]
    minutes = None if None in known or not known else float(sum(one or 0.0 for one in known))
    boxes = sum(one.boxes for one in labels.annotators)
    return Yield(
        labels=ref,
        boxes=boxes,
        frames=sum(one.frames for one in labels.annotators),
        minutes=minutes,
        boxes_a_minute=boxes / minutes if minutes else None,
        simulated=labels.simulated,
    )


def _cost(store: Store, run: RunState) -> RunCost:
    seconds, labels = 0.0, 0
    for ref in store.refs(StepRun.KIND):
        folder = str((store.side(ref, "place") or {}).get("folder", ""))
        if f"/{run.run_id}/" not in folder:
            continue
        seconds += float((store.side(ref, "cost") or {}).get("cpu_seconds", 0.0))
        kinds = Counter(kind_of(output) for output in store.get(ref, StepRun).outputs.values())
        if kinds["label"]:
            outputs = store.get(ref, StepRun).outputs.values()
            labels += sum(
                store.get(output, LabelSet).labels
                for output in outputs
                if kind_of(output) == LabelSet.KIND
            )
    ended = run.ended_at and _time(run.ended_at) - _time(run.started_at)
    return RunCost(
        run=run.run_id,
        pipeline=run.pipeline,
        status=run.state,
        hours=_hours(ended) if ended else None,
        cpu_hours=seconds / 3600,
        cpu_seconds_a_label=seconds / labels if labels else None,
    )


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _hours(passed: timedelta) -> float:
    return passed / timedelta(hours=1)
