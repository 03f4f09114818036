"""Incidents: pinned, permanent, replayed by every candidate, and every way around them refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.release.world import World, gate, make_world
from workbench.audit import log as audit
from workbench.cli import main
from workbench.core import digest
from workbench.core.errors import DataError, ParameterError, Refusal, VerificationError
from workbench.data import FRONT_CAMERA, incidents
from workbench.detection.model import Predictions
from workbench.evaluation import gates
from workbench.evaluation.incidents import (
    IncidentResult,
    add_incident,
    gate_result,
    replay_incidents,
)
from workbench.pipeline import plan
from workbench.pipeline.graph import load_pipeline
from workbench.records.base import GateReport, Verdict
from workbench.records.dataset import Dataset, load_dataset, media_path, save_dataset
from workbench.records.evidence_types import Incident, IncidentSuite
from workbench.records.frames import Box, Drive, Frame, Label, Origin, Role
from workbench.records.references import register_dataset
from workbench.records.store import Store
from workbench.records.types import Prediction
from workbench.release.publishing import publish_release

PROJECT = Path(__file__).resolve().parents[2]
WHY = "stepped out from behind a van, not braked for"


@dataclass(frozen=True)
class Scene:
    """Two frames on disk; a pedestrian on the first, a car on the second."""

    store: Store
    dataset: Dataset

    @property
    def pedestrian(self) -> Label:
        return self.objects[0]

    @property
    def objects(self) -> tuple[Label, ...]:
        """The pedestrian, then the car; a stored dataset orders its labels otherwise."""
        return tuple(sorted(self.dataset.labels, key=lambda one: one.cls, reverse=True))

    def image(self, number: int = 0):
        return media_path(self.store.workspace, self.dataset.frames[number])

    def add(self, name: str = "child-behind-van", **more: object) -> str:
        missed = more.pop("missed", [self.pedestrian])
        return add_incident(self.dataset, name, missed, why=WHY, by="Ann", **more)


@pytest.fixture
def scene(store: Store) -> Scene:
    frames, labels = [], []
    boxes = (("pedestrian", (10, 10, 20, 40)), ("car", (30, 20, 40, 30)))
    for index, (cls, (x, y, w, h)) in enumerate(boxes):
        pixels = np.full((64, 96, 3), 40 * (index + 1), np.uint8)
        content = cv2.imencode(".png", pixels)[1].tobytes()
        frame = Frame(
            id=digest.of_bytes(content),
            drive="d1",
            index=index,
            width=96,
            height=64,
            suffix=".png",
            role=Role.SAFETY,
        )
        path = media_path(store.workspace, frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        frames.append(frame)
        box = Box(x=x, y=y, w=w, h=h)
        labels.append(Label(frame=frame.id, cls=cls, box=box, origin=Origin.HUMAN))
    dataset = Dataset(
        "rides",
        FRONT_CAMERA,
        (Drive(id="d1"),),
        tuple(frames),
        tuple(labels),
        workspace=store.workspace,
    )
    ref = save_dataset(store, dataset, made_by="ingest")
    register_dataset(store.workspace, ref)
    return Scene(store, load_dataset(store, ref))


class FakeModel:
    """Finds the boxes it is given, like a `Model`."""

    def __init__(self, store: Store, *boxes: Prediction) -> None:
        self.boxes = boxes
        world = make_world(store)
        self.checkpoint = store.load(world.bundle).checkpoint

    def predict(self, dataset: Dataset, **_: object) -> Predictions:
        ids = {frame.id for frame in dataset.frames}
        return Predictions(dataset, tuple(box for box in self.boxes if box.frame in ids))


def test_an_incident_keeps_frames_and_objects_and_is_logged_once(scene: Scene):
    ref = scene.add()
    assert scene.add() == ref, "adding it again changes nothing"
    pinned = incidents.load_incident(scene.store, ref)
    assert [frame.id for frame in pinned.frames] == [scene.pedestrian.frame]
    assert pinned.labels == (scene.pedestrian,)
    (entry,) = audit.read_log(scene.store.workspace, ref)
    assert (entry.event, entry.by, entry.subjects[1]) == (
        "incident-added",
        "Ann",
        pinned_in(ref, scene),
    )
    with pytest.raises(ParameterError, match="another incident is named"):
        scene.add(missed=[scene.objects[1]])


def pinned_in(ref: str, scene: Scene) -> str:
    return scene.store.get(ref, Incident).dataset


def test_a_part_of_a_version_is_traced_to_its_version(scene: Scene):
    part = scene.dataset.role("safety")
    ref = add_incident(part, "one", [scene.pedestrian], why=WHY, by="Ann")
    assert scene.store.get(ref, Incident).dataset == scene.dataset.ref


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ignore": True}, "is ignored"),
        ({"origin": Origin.MODEL, "score": 0.5}, "model's own box"),
        ({"frame": "0" * 64}, "not in the dataset"),
    ],
)
def test_only_ground_truth_of_the_dataset_can_be_missed(
    scene: Scene, change: dict[str, object], words: str
):
    label = scene.pedestrian.model_copy(update=change)
    with pytest.raises(ParameterError, match=words):
        scene.add(missed=[label])
    with pytest.raises(ParameterError, match="needs a missed object"):
        scene.add(missed=[])
    assert not incidents.list_incidents(scene.store)


def re_encode(scene: Scene) -> None:
    pixels = cv2.imread(str(scene.image()))
    cv2.imwrite(str(scene.image()), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def remove_image(scene: Scene) -> None:
    scene.image().unlink()


def remove_record(scene: Scene) -> None:
    (state,) = incidents.list_incidents(scene.store)
    shutil.rmtree(scene.store.folder(state.ref))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (re_encode, Refusal.INCIDENT_FRAME_CHANGED),
        (remove_image, Refusal.INCIDENT_FRAME_MISSING),
        (remove_record, Refusal.INCIDENT_MISSING),
    ],
)
def test_validate_and_release_refuse_an_incident_that_was_tampered_with(
    scene: Scene, attack, reason: Refusal
):
    ref = scene.add()
    world = make_world(scene.store)
    report = passing_report(world, ref)
    suite = IncidentSuite(incidents=(ref,))
    attack(scene)
    with pytest.raises(VerificationError) as refused:
        replay_incidents(scene.store, FakeModel(scene.store), suite, schema=FRONT_CAMERA.name)
    assert refused.value.reason == reason
    with pytest.raises(VerificationError) as refused:
        publish_release(scene.store, world.bundle, report, "front")
    assert refused.value.reason == reason


def test_a_model_passes_only_if_it_finds_every_object(scene: Scene):
    suite = IncidentSuite(incidents=(scene.add(missed=scene.objects),))
    pedestrian, car = (
        Prediction(frame=one.frame, cls=one.cls, box=one.box, score=0.6) for one in scene.objects
    )
    wrong_class = pedestrian.model_copy(update={"cls": "car"})
    low = pedestrian.model_copy(update={"score": 0.2})
    aside = pedestrian.model_copy(update={"box": Box(x=20, y=10, w=20, h=40)})
    for found, missed in (
        ((pedestrian, car), 0),
        ((car,), 1),
        ((wrong_class, car), 1),
        ((low, car), 1),
        ((aside, car), 1),
        ((), 2),
    ):
        model = FakeModel(scene.store, *found)
        (result,) = replay_incidents(scene.store, model, suite, schema=FRONT_CAMERA.name)
        assert len(result.missed) == missed
        assert result.verdict == (Verdict.FAIL if missed else Verdict.PASS)
    assert replay_incidents(scene.store, model, suite, schema="steel") == ()


def test_a_failed_incident_fails_the_report(scene: Scene):
    result = IncidentResult(
        incident=scene.add(), name="one", verdict=Verdict.FAIL, objects=2, found=1, learned=1
    )
    judged = gate_result([result])
    assert (judged.verdict, judged.n, judged.value) == (Verdict.FAIL, 2, 0.5)
    assert "trained on 1 frame" in judged.why
    assert gates.overall_verdict([gate("ap50", 0.4), judged]) is Verdict.FAIL


def passing_report(world: World, *refs: str, verdict: Verdict = Verdict.PASS) -> str:
    results = [
        IncidentResult(incident=one, name="one", verdict=verdict, objects=1, found=1)
        for one in refs
    ]
    report = world.store.get(world.gates, GateReport)
    return world.report(
        gates=(*report.gates, *([gate_result(results)] if refs else [])), incidents=refs, run={}
    )


def test_release_refuses_a_report_that_was_made_before_the_incident(scene: Scene):
    world = make_world(scene.store)
    ref = scene.add()
    with pytest.raises(VerificationError, match="not replayed on 1 incident") as refused:
        publish_release(scene.store, world.bundle, world.gates, "front")
    assert refused.value.reason == Refusal.INCIDENT_NOT_JUDGED
    publish_release(scene.store, world.bundle, passing_report(world, ref), "front")


def test_release_refuses_a_report_that_passes_in_spite_of_an_incident(scene: Scene):
    world = make_world(scene.store)
    ref = scene.add()
    report = world.store.get(world.gates, GateReport)
    failed = passing_report(world, ref, verdict=Verdict.FAIL)  # overall verdict stays PASS
    dropped = world.report(gates=report.gates, incidents=(ref,), run={})
    for edited in (failed, dropped):
        with pytest.raises(VerificationError) as refused:
            publish_release(scene.store, world.bundle, edited, "front")
        assert refused.value.reason == Refusal.GATES_EDITED


def test_only_a_person_with_a_reason_retires_an_incident(scene: Scene):
    world = make_world(scene.store)
    ref = scene.add()
    for by, reason in (("", "gone"), ("Ann", "")):
        with pytest.raises(ParameterError):
            incidents.retire_incident(scene.store, "child-behind-van", by=by, reason=reason)
    incidents.retire_incident(
        scene.store, "child-behind-van", by="Bea", reason="the label was wrong"
    )
    (state,) = incidents.list_incidents(scene.store)
    assert (state.active, state.retired_by, state.reason) == (False, "Bea", "the label was wrong")
    assert incidents.active_suite(scene.store) is None
    publish_release(scene.store, world.bundle, world.gates, "front")
    assert scene.store.get(ref, Incident), "its record stays"
    with pytest.raises(ParameterError, match="Bea retired it"):
        incidents.retire_incident(scene.store, "child-behind-van", by="Ann", reason="again")


def test_a_retirement_written_into_the_log_by_hand_is_found(scene: Scene):
    ref = scene.add()
    path = scene.store.workspace.root / "audit" / "log.jsonl"
    entry = json.loads(path.read_bytes().splitlines()[-1])
    entry |= {"event": "incident-retired", "detail": {"name": "x", "reason": "y"}, "number": 2}
    path.write_bytes(path.read_bytes() + digest.canonical_json(entry) + b"\n")
    with pytest.raises(VerificationError) as refused:
        incidents.list_incidents(scene.store)
    assert refused.value.reason == Refusal.LOG_CHANGED and ref


def test_without_its_log_an_incident_still_counts(scene: Scene):
    ref = scene.add()
    for name in ("audit", "audit-checkpoint"):
        shutil.rmtree(scene.store.workspace.root / name)
    (state,) = incidents.list_incidents(scene.store)
    assert state.active and state.ref == ref


def test_a_new_incident_makes_validate_run_again(scene: Scene):
    pipeline = load_pipeline(PROJECT / "pipelines" / "data_engine.yaml", {}, base=PROJECT)
    step = pipeline.steps["validate"]
    step = replace(step, sources={"incidents": step.sources["incidents"]})
    before = plan._resolve_inputs(step, {}, scene.store.workspace)
    scene.add()
    after = plan._resolve_inputs(step, {}, scene.store.workspace)
    assert before == {"incidents": None} and after["incidents"]
    assert scene.store.get(after["incidents"], IncidentSuite)


def test_commands(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["incidents", *arguments])
        shown = capsys.readouterr()
        return shown.out if ended.value.code == 0 else shown.err

    added = run("add", "van", "rides", "--frame", "d1@0", "--why", "x", "--by", "Ann", "--json")
    assert json.loads(added)["objects"] == 1
    assert "pedestrian 20x40 px at (10, 10)" in run("show", "van")
    assert "--reason" in run("retire", "van", "--by", "Ann")
    run("retire", "van", "--by", "Bea", "--reason", "sold the camera")
    (row,) = json.loads(run("list", "--json"))["incidents"]
    assert (row["active"], row["retired"]["by"], row["found_in"]) == (False, "Bea", "command")

    def tagged(name: str, _tag: str, *, workspace: object) -> tuple[str, ...]:
        if name == "rides":  # only what `workbench app` publishes is there
            raise DataError("FiftyOne has no dataset 'rides'")
        assert name == "rides@1"
        return (scene.pedestrian.frame,)

    monkeypatch.setattr("workbench.services.up", lambda *_: None)
    monkeypatch.setattr("workbench.curation.fiftyone.tags.tagged_frames", tagged)
    from_app = run("add", "app", "rides", "--tag", "missed", "--why", "x", "--by", "Ann", "--json")
    assert json.loads(from_app)["objects"] == 1
