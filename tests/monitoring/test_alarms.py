"""Alarms are raised once and never in a storm; the signed envelope bounds what may follow."""

import json
from pathlib import Path

import pytest

from workbench.audit import log as audit
from workbench.core.errors import ParameterError, VerificationError
from workbench.core.workspace import Workspace
from workbench.monitoring import alarms, envelope
from workbench.records.base import make_ref
from workbench.records.store import Store
from workbench.records.types import Alarm

RELEASE = make_ref("release", "a" * 64)


def alarm(slice_name="light=night", *, days=(28, 34), cause="world", p_value=0.001, model=RELEASE):
    return Alarm(
        signal="confidence[car]",
        what="location",
        slice=slice_name,
        cause=cause,
        why="night drives answer with less confidence",
        reference=0.6,
        current=0.4,
        effect=-1.2,
        p_value=p_value,
        alpha=0.01,
        days=days,
        reference_days=(0, 27),
        drives=("vehicle-0001/12",),
        model=model,
        evidence="replayed",
    )


@pytest.fixture
def store(workspace: Workspace) -> Store:
    return Store(workspace)


def test_an_alarm_is_raised_once(store):
    (ref,) = alarms.raise_alarms(store, [alarm()]).raised
    again = alarms.raise_alarms(store, [alarm(days=(35, 41))])
    assert not again.raised
    assert "is open" in again.quiet["light=night"]
    (state,) = alarms.alarm_states(store)
    assert (state.ref, state.status, state.alarm.slice) == (ref, "open", "light=night")


def test_the_same_slice_is_quiet_until_the_cool_down_has_passed(store):
    (ref,) = alarms.raise_alarms(store, [alarm()]).raised
    alarms.dismiss_alarm(store, ref, "known: winter", by="ana")
    assert not alarms.raise_alarms(store, [alarm(days=(32, 38))]).raised
    assert alarms.raise_alarms(store, [alarm(days=(35, 41))]).raised


def test_another_model_has_alarms_of_its_own(store):
    alarms.raise_alarms(store, [alarm()])
    other = alarm(model=make_ref("release", "b" * 64))
    assert alarms.raise_alarms(store, [other]).raised


def test_a_storm_is_capped_and_counted(store):
    storm = [alarm(f"light=night/{number}", p_value=0.001 * number) for number in range(40)]
    result = alarms.raise_alarms(store, storm, max_open=5)
    assert len(result.raised) == 5
    assert len(result.quiet) == 35
    kept = {state.alarm.slice for state in alarms.alarm_states(store)}
    assert kept == {f"light=night/{number}" for number in range(5)}  # the strongest


def test_dismissing_needs_a_reason_and_an_open_alarm(store):
    (ref,) = alarms.raise_alarms(store, [alarm()]).raised
    with pytest.raises(ParameterError, match="needs a reason"):
        alarms.dismiss_alarm(store, ref, " ")
    alarms.dismiss_alarm(store, ref, "sensor replaced", by="ana")
    with pytest.raises(ParameterError, match="alarm is dismissed, not open or accepted"):
        alarms.dismiss_alarm(store, ref, "again")
    last = alarms.alarm_states(store)[0].history[-1]
    assert (last.by, last.detail["reason"]) == ("ana", "sensor replaced")
    assert not audit.verify_log(store.workspace).problems


def test_alarms_are_found_by_the_beginning_of_their_digest(store):
    (ref,) = alarms.raise_alarms(store, [alarm()]).raised
    assert alarms.find_alarm(store, ref[:14]) == ref
    with pytest.raises(ParameterError, match="unknown alarm"):
        alarms.find_alarm(store, "alarm/zzzz")


def test_half_of_a_budget_goes_to_the_slice():
    assert alarm().quotas(9) == {"night": 5}
    assert alarm("all").quotas(9) == {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "retrain.yaml").write_text("name: retrain\n")
    path = tmp_path / "retraining.yaml"
    path.write_text(
        "schema_version: 1\npipeline: retrain.yaml\nmodel: m\ndataset: d\ncauses: [world]\n"
        "parameters:\n  budget: {default: 20, minimum: 8, maximum: 50}\n"
        "labels_a_week: 60\nretrainings_a_week: 3\nexpires: 2099-01-01\n"
    )
    return path


def test_a_signed_envelope_bounds_what_an_alarm_may_set(store, file):
    envelope.sign_envelope(store.workspace, file, by="ana")
    signed = envelope.read_envelope(store.workspace)
    assert signed.settings(alarm(), {}, []) == {"budget": 20}
    assert signed.settings(alarm(), {"budget": "50"}, []) == {"budget": 50}


@pytest.mark.parametrize(
    ("given", "raised", "reason"),
    [
        ({"budget": "51"}, alarm(), "outside-envelope"),
        ({"learning_rate": "1"}, alarm(), "outside-envelope"),
        ({}, alarm(cause="sensor"), "cause-not-allowed"),
    ],
)
def test_what_lies_outside_the_envelope_is_refused(store, file, given, raised, reason):
    signed = envelope.sign_envelope(store.workspace, file, by="ana")
    with pytest.raises(ParameterError) as refused:
        signed.settings(raised, given, [])
    assert refused.value.reason == reason


def test_a_retrain_storm_ends_at_the_budget_of_a_week(store, file):
    signed = envelope.sign_envelope(store.workspace, file, by="ana")
    accepted = 0
    with pytest.raises(ParameterError) as refused:
        for number in range(10):
            (ref,) = alarms.raise_alarms(store, [alarm(f"light={number}")]).raised
            values = signed.settings(alarm(), {}, alarms.alarm_states(store))
            alarms.record_hop(store, ref, "accepted", by="ana", budget=values["budget"])
            accepted += 1
    assert refused.value.reason in {"labels-spent", "retrainings-spent"}
    assert accepted == 3


@pytest.mark.parametrize("change", ["envelope", "by", "signature"])
def test_an_edited_envelope_counts_for_nothing(store, file, change):
    envelope.sign_envelope(store.workspace, file, by="ana")
    path = store.workspace.root / "monitoring" / "retraining.json"
    body = json.loads(path.read_bytes())
    if change == "envelope":
        body["envelope"]["labels_a_week"] = 10_000
    elif change == "by":
        body["by"] = "mallory"
    else:
        body["signature"]["signature"] = "AAAA"
    path.write_text(json.dumps(body))
    with pytest.raises(VerificationError):
        envelope.read_envelope(store.workspace)


def test_an_edited_pipeline_voids_the_envelope(store, file):
    envelope.sign_envelope(store.workspace, file, by="ana")
    (file.parent / "retrain.yaml").write_text("name: other\n")
    with pytest.raises(ParameterError) as refused:
        envelope.read_envelope(store.workspace)
    assert refused.value.reason == "pipeline-changed"


def test_an_expired_envelope_allows_nothing(store, file):
    file.write_text(file.read_text().replace("2099", "2020"))
    signed = envelope.sign_envelope(store.workspace, file, by="ana")
    with pytest.raises(ParameterError) as refused:
        signed.settings(alarm(), {}, [])
    assert refused.value.reason == "envelope-expired"


def test_without_an_envelope_nothing_is_retrained(store):
    with pytest.raises(ParameterError) as refused:
        envelope.read_envelope(store.workspace)
    assert refused.value.reason == "no-envelope"
