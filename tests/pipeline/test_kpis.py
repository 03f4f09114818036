"""Key figures come from records, the audit log and runs; what was not observed is null, not 0."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.fleet.test_commands import publish
from workbench.audit import log as audit
from workbench.core.workspace import Workspace
from workbench.monitoring.alarms import raise_alarms, record_hop
from workbench.pipeline.kpis import measure_kpis
from workbench.records.base import make_ref
from workbench.records.store import Store
from workbench.records.types import Alarm, Annotator, LabelSet, Selection


def alarm() -> Alarm:
    return Alarm(
        signal="near_misses", what="location", slice="light=night", cause="world", why="it says so",
        reference=0.1, current=0.4, effect=1.0, p_value=0.001, alpha=0.01, days=(28, 34),
        reference_days=(0, 27), drives=(), evidence="simulated",
    )  # fmt: skip


def test_an_empty_workspace_has_no_figures(workspace: Workspace) -> None:
    found = measure_kpis(workspace)
    assert found.automation_share is None
    assert found.lineage_complete is None
    assert found.false_positive_rate is None
    assert found.disengagement_proxy is None
    assert (found.alarm_to_model, found.experiments_a_week) == ((), 0)


def test_hops_reach_from_the_alarm_to_the_last_vehicle(workspace: Workspace) -> None:
    store = Store(workspace)
    (ref,) = raise_alarms(store, [alarm()]).raised
    record_hop(store, ref, "accepted", by="ana", budget=24)
    release = publish(store)
    record_hop(store, ref, "retrained", by="ana", results=(release,), run="r1")
    (going,) = measure_kpis(workspace).alarm_to_model
    assert going.hours is None and going.release == release
    for action, subjects in (("started", (release,)), ("stage began", ()), ("completed", ())):
        audit.append(
            workspace, "rollout", subjects=subjects, by="director", rollout="camera-1",
            action=action,
        )  # fmt: skip
    audit.append(
        workspace, "rollout", subjects=(), by="director", rollout="other", action="completed"
    )
    (done,) = measure_kpis(workspace).alarm_to_model
    assert [hop.name for hop in done.hops] == [
        "raised", "accepted", "retrained", "rollout started", "rollout stage began",
        "rollout completed",
    ]  # fmt: skip
    assert done.hours is not None and 0 <= done.hours < 0.1
    assert [hop.by for hop in done.hops[1:3]] == ["ana", "ana"]


def test_a_missing_ancestor_is_a_gap_of_the_lineage(workspace: Workspace) -> None:
    publish(Store(workspace))
    found = measure_kpis(workspace)
    assert found.lineage_complete == 0.0
    assert any("checkpoint/cccc" in gap for gap in found.lineage_gaps)


def test_trainings_count_for_a_week_and_labels_have_a_yield(workspace: Workspace) -> None:
    store = Store(workspace)
    dataset = make_ref("dataset", "d" * 64)
    audit.append(workspace, "ingested", subjects=(dataset,))
    audit.append(workspace, "trained", subjects=(make_ref("checkpoint", "c" * 64),))
    store.put(Selection(dataset=dataset, budget=1, seed=0, method="by hand", chosen=()))
    for minutes in (30.0, None):
        annotator = Annotator(id="a", frames=4, boxes=60, minutes=minutes, simulated=False)
        batch = make_ref("batch", "b" * 64)
        store.put(LabelSet(batch=batch, annotators=(annotator,), labels=60, agreement={}))
    found = measure_kpis(workspace)
    assert found.experiments_a_week == 1
    assert (
        measure_kpis(workspace, now=datetime.now(UTC) + timedelta(days=8)).experiments_a_week == 0
    )
    assert {one.boxes_a_minute for one in found.labeling} == {2.0, None}
    assert list(found.ingest_to_curated_hours) == [dataset]
